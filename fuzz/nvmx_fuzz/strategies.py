"""Hypothesis strategies for scenarios, for tests of anything that runs them.

::

    from hypothesis import given
    from nvmx_fuzz.strategies import scenarios

    @given(scenarios())
    def test_journals_are_equal(scenario): ...

All values are valid and canonical: ``decode(encode(scenario)) == scenario``, and likewise for the
text form. They shrink towards the default configuration, towards fewer steps, and each step towards
``L1 enter`` and towards operands of 0.

What these strategies never give: operations, operands or flags outside their tables; configurations
whose packed form is not canonical; more than STEPS_MAX steps. For arbitrary input use
``st.binary()`` with ``codec.decode``, or ``st.text()`` with ``parse_scenario``.
"""

from functools import cache
from typing import Final

from hypothesis import strategies as st

from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAGS
from nvmx_core.scenario.steps import OPERATIONS, Scenario, Step, canonical
from nvmx_core.scenario.text import STEPS_MAX
from nvmx_fuzz.codec import HEADER_SIZE, PackedConfig, decode
from nvmx_fuzz.palette import ALL

__all__ = ["configs", "scenarios", "steps"]

_FLIPS_MAX: Final = 4
_OPERANDS_MAX: Final = (0xFF, 0xFFFF, 0xFFFFFFFF)


def configs(*, any_combination: bool = False) -> st.SearchStrategy[PackedConfig]:
    """Packed configurations ``(flags, exceptions, l0_exceptions, pf_filter)``.

    By default at most four flags differ from the default, since a configuration far from it often
    never enters L2; *any_combination* draws every flag on its own. Flags whose prerequisite is off
    may be on: ``Config`` resolves them.
    """
    size = len(FLAGS) if any_combination else _FLIPS_MAX
    flips = st.sets(st.integers(0, len(FLAGS) - 1), max_size=size)
    flags = flips.map(lambda chosen: DEFAULT_FLAGS ^ sum(1 << index for index in chosen))
    return st.tuples(flags, st.integers(0, 255), st.integers(0, 255), st.integers(0, 3))


@cache
def steps(*, typical: bool = True) -> st.SearchStrategy[Step]:
    """Single steps, every operation alike.

    Half of the steps come from ``palette.py``, the others have any operands that the table of
    operations allows; with ``typical=False`` all have.
    """
    return st.one_of(_typical_steps(), _any_steps()) if typical else _any_steps()


def scenarios(
    *,
    min_steps: int = 0,
    max_steps: int = 20,
    config: st.SearchStrategy[PackedConfig] | None = None,
    typical: bool = True,
) -> st.SearchStrategy[Scenario]:
    """Scenarios of *min_steps* to *max_steps* steps; raises ValueError if the format has no room."""
    if not 0 <= min_steps <= max_steps <= STEPS_MAX:
        raise ValueError(f"a scenario has 0 to {STEPS_MAX} steps, not {min_steps} to {max_steps}")
    chosen = st.lists(steps(typical=typical), min_size=min_steps, max_size=max_steps)
    return st.builds(Scenario, configs() if config is None else config, chosen.map(tuple))


def _any_steps() -> st.SearchStrategy[Step]:
    """Steps of any operation and operands.

    All draw as much, so that none is simpler than another for what it leaves out.
    """
    operation = st.sampled_from(range(len(OPERATIONS)))
    record = st.tuples(operation, *(st.integers(0, limit) for limit in _OPERANDS_MAX))
    return record.map(lambda values: canonical(*values))


def _typical_steps() -> st.SearchStrategy[Step]:
    """The steps of the palette, the simplest first."""
    records = {record for records in ALL.values() for record in records}
    return st.sampled_from(sorted({decode(bytes(HEADER_SIZE) + r).steps[0] for r in records}))
