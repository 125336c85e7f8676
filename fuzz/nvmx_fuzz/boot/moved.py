"""Steps moved to where L1 can make them: an interrupt that would come in L2, a change of L2's tables.

L1 runs with its interrupts off, so it can send itself one before VMLAUNCH; whether that is the same
scenario is not argued but asked: the model runs both, and what can be seen has to be equal.
"""

from collections.abc import Iterator
from typing import Final

from nvmx_core.journal import Record
from nvmx_core.scenario.steps import AT_ENTRY, ENTER, INTERRUPT, L2_GATE, L2_PAGE, Scenario, Step
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.predicted import journal_on_bare
from nvmx_fuzz.boot.standalone import Standalone
from nvmx_fuzz.boot.stopping import stand_alone
from nvmx_fuzz.realise.realiser import fit
from nvmx_fuzz.realise.vmcs import NotRealisableError

_TABLES: Final = "l2-tables-change-while-l2-runs"
_MOVABLE: Final = (
    "interrupt-while-l2-runs", "interrupt-in-delivery", "interrupt-in-emulation",
    _TABLES,
)  # fmt: skip

Steps = tuple[Step, ...]


def stand_alone_moved(scenario: Scenario, capabilities: Capabilities) -> Standalone:
    """Realise a scenario, with steps moved where nobody can tell.

    Raises: NotRealisableError, for the first reason that stays.
    """
    current = fit(scenario, capabilities.flags())
    expected: list[Record] = []
    for _ in range(len(scenario.steps) + 1):
        try:
            return stand_alone(current, capabilities)
        except NotRealisableError as error:
            if error.reason not in _MOVABLE:
                raise
            expected = expected or journal_on_bare(current, has_rf=True)
            moved = _first_that_shows(current, expected, error.reason)
            if not moved:
                raise
            current = moved
    raise NotRealisableError("too-many-moves")


def _first_that_shows(scenario: Scenario, expected: list[Record], reason: str) -> Scenario | None:
    """The scenario with one step moved that still shows what is expected; None if there is none."""
    places = _table_steps if reason == _TABLES else _interrupts
    for steps in places(scenario.steps):
        candidate = Scenario(scenario.config, steps)
        if journal_on_bare(candidate, has_rf=True) == expected:
            return candidate
    return None


def _interrupts(steps: Steps) -> Iterator[Steps]:
    """An interrupt sent at the entry before it; one that waits for a delivery, at the entry behind it."""
    for index in reversed(range(len(steps))):
        op, when, vector, rest = steps[index]
        if op != INTERRUPT or when == AT_ENTRY:
            continue
        step = (op, AT_ENTRY, vector, rest)
        if when and ENTER in (later[0] for later in steps[index:]):
            yield (*steps[:index], step, *steps[index + 1 :])
        else:
            yield from _before(steps, index, step, _last_enter(steps, index))


def _table_steps(steps: Steps) -> Iterator[Steps]:
    """A change of L2's tables made before L2 is entered, or after it has been left for good."""
    for index in range(len(steps)):
        if steps[index][0] in (L2_PAGE, L2_GATE):
            yield from _before(steps, index, steps[index], _last_enter(steps, index))
    for index in range(len(steps)):
        if steps[index][0] in (L2_PAGE, L2_GATE) and steps[index + 1 :]:
            later = [place for place in range(index, len(steps)) if steps[place][0] == ENTER]
            place = later[0] if later else len(steps)
            if place > index + 1:
                yield (*steps[:index], *steps[index + 1 : place], steps[index], *steps[place:])


def _last_enter(steps: Steps, index: int) -> int:
    """The last entry of L1 before a step; -1 for none."""
    return max((place for place in range(index) if steps[place][0] == ENTER), default=-1)


def _before(steps: Steps, index: int, step: Step, place: int) -> Iterator[Steps]:
    """A step in front of another, instead of at *index*."""
    if place >= 0:
        yield (*steps[:place], step, *steps[place:index], *steps[index + 1 :])
