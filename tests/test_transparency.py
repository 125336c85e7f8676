"""L1 and L2 never notice L0: properties over random scenarios (V11, and every other oracle).

The campaign explores; these tests are the same on every run, and their counterexamples are minimal. To look
further, raise ``max_examples`` and drop ``derandomize``.
"""

from typing import Final

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from nvmx_core.journal import Record
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.judge import run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario, Step
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.generate import random_scenario
from nvmx_fuzz.strategies import configs, scenarios
from tests.nested_support import L0_ONLY_STEPS

REPRODUCIBLE: Final = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

GROWN: Final = st.integers(0, 2**32 - 1).map(random_scenario)
"""Scenarios grown in rounds, as the fuzzer makes them: they enter L2 with events in their hands."""
ANY_CONFIG: Final = scenarios(config=configs(any_combination=True))
INSERTIONS: Final = st.lists(
    st.tuples(st.integers(0, 32), st.sampled_from(L0_ONLY_STEPS)), min_size=1, max_size=4
)


def nested_journal(scenario: Scenario) -> list[Record]:
    """What L1 and L2 see under the fixed L0."""
    machine = Nested(config_for(scenario.config))
    machine.run(scenario)
    return machine.journal


def with_l0_steps(scenario: Scenario, insertions: list[tuple[int, Step]]) -> Scenario:
    """The scenario with steps put in at some places, counted from the start."""
    steps = list(scenario.steps)
    for place, step in insertions:
        steps.insert(place % (len(steps) + 1), step)
    return Scenario(scenario.config, tuple(steps))


def assert_nothing_is_wrong(scenario: Scenario) -> None:
    """No oracle finds anything on the fixed L0."""
    note(format_scenario(scenario))
    assert run_and_judge(scenario, config_for(scenario.config)).violations == ()


@settings(REPRODUCIBLE, max_examples=1000)
@given(scenarios())
def test_v11_the_fixed_core_breaks_no_rule(scenario: Scenario) -> None:
    assert_nothing_is_wrong(scenario)


@settings(REPRODUCIBLE, max_examples=500)
@given(ANY_CONFIG)
def test_v11_the_fixed_core_breaks_no_rule_in_any_configuration(scenario: Scenario) -> None:
    assert_nothing_is_wrong(scenario)


@settings(REPRODUCIBLE, max_examples=2000)
@given(GROWN)
def test_v11_the_fixed_core_breaks_no_rule_in_a_grown_scenario(scenario: Scenario) -> None:
    assert_nothing_is_wrong(scenario)


@settings(REPRODUCIBLE, max_examples=1000)
@given(st.one_of(scenarios(), GROWN), INSERTIONS)
def test_v11_steps_of_l0_alone_leave_the_journal_unchanged(
    scenario: Scenario, insertions: list[tuple[int, Step]]
) -> None:
    """Metamorphic: no second machine is needed to see that L0 shows itself."""
    disturbed = with_l0_steps(scenario, insertions)
    note(format_scenario(disturbed))
    assert nested_journal(disturbed) == nested_journal(scenario)


@settings(REPRODUCIBLE, max_examples=300)
@given(st.one_of(scenarios(), GROWN))
def test_a_run_is_the_same_every_time(scenario: Scenario) -> None:
    assert nested_journal(scenario) == nested_journal(scenario)
