"""The public strategies give what they promise."""

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAGS_MASK, Config
from nvmx_core.scenario.steps import OPERATIONS, Scenario, Step, canonical
from nvmx_core.scenario.text import STEPS_MAX
from nvmx_fuzz.codec import PackedConfig
from nvmx_fuzz.strategies import configs, scenarios, steps


@given(st.one_of(steps(), steps(typical=False)))
def test_steps_are_canonical(step: Step) -> None:
    assert canonical(*step) == step


def test_every_operation_is_drawn() -> None:
    seen: set[int] = set()

    @settings(max_examples=1200, derandomize=True, database=None, phases=[Phase.generate])
    @given(steps())
    def collect(step: Step) -> None:
        seen.add(step[0])

    collect()
    assert seen == set(range(len(OPERATIONS)))


@given(st.one_of(configs(), configs(any_combination=True)))
def test_configurations_are_packed_and_build(config: PackedConfig) -> None:
    flags, exceptions, l0_exceptions, pf_filter = config
    assert flags & ~FLAGS_MASK == 0
    Config(flags, exceptions, l0_exceptions, pf_filter)


@given(configs())
def test_a_configuration_stays_near_the_default(config: PackedConfig) -> None:
    assert (config[0] ^ DEFAULT_FLAGS).bit_count() <= 4


@given(scenarios(min_steps=2, max_steps=5))
def test_scenarios_have_as_many_steps_as_asked_for(scenario: Scenario) -> None:
    assert 2 <= len(scenario.steps) <= 5


@given(scenarios(config=st.just((DEFAULT_FLAGS, 0, 0, 0))))
def test_the_configuration_can_be_chosen(scenario: Scenario) -> None:
    assert scenario.config == (DEFAULT_FLAGS, 0, 0, 0)


@pytest.mark.parametrize("typical", [True, False])
def test_scenarios_shrink_to_the_default_and_to_enter(typical: bool) -> None:
    found = find(
        scenarios(typical=typical),
        lambda scenario: len(scenario.steps) >= 2,
        settings=settings(max_examples=500, database=None),
    )
    assert found == Scenario((DEFAULT_FLAGS, 0, 0, 0), ((0, 0, 0, 0),) * 2)


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (4, 3), (0, STEPS_MAX + 1)])
def test_impossible_lengths_are_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="a scenario has 0 to"):
        scenarios(min_steps=low, max_steps=high)
