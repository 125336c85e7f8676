"""The quick greedy shrink of a new finding."""

from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAG_BIT
from nvmx_core.scenario.steps import ENTER, INTERRUPT, NMI, RUN, Scenario, Step, canonical
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.shrink import shrink

DEFAULT = (DEFAULT_FLAGS, 0, 0, 0)
MATTERS: tuple[Step, ...] = ((NMI, 0, 0, 0), (ENTER, 0, 0, 0))
NOISE: Step = (RUN, 1, 0, 0)


def holds(scenario: Scenario) -> bool:
    """Both steps that matter are there, in their order."""
    steps = iter(scenario.steps)
    return all(step in steps for step in MATTERS)


def test_only_the_steps_that_matter_remain() -> None:
    noisy = (NOISE,) * 9 + MATTERS[:1] + (NOISE,) * 17 + MATTERS[1:] + (NOISE,) * 5
    assert shrink(Scenario(DEFAULT, noisy), holds) == Scenario(DEFAULT, MATTERS)


def test_configuration_becomes_the_default_where_it_does_not_matter() -> None:
    real, single = FLAG_BIT["real-mode"], FLAG_BIT["single-step"]
    scenario = Scenario((DEFAULT_FLAGS | real | single, 3, 5, 2), MATTERS)
    small = shrink(scenario, lambda other: holds(other) and other.config[0] & real != 0)
    assert small == Scenario((DEFAULT_FLAGS | real, 0, 0, 0), MATTERS)


def test_nothing_is_left_out_that_matters() -> None:
    scenario = Scenario(DEFAULT, (NOISE,) * 12)
    assert shrink(scenario, lambda other: other.steps.count(NOISE) >= 7).steps == (NOISE,) * 7


def test_operands_become_0_where_they_do_not_matter_and_lose_bits_elsewhere() -> None:
    scenario = Scenario(DEFAULT, ((INTERRUPT, 2, 0x53, 0), NOISE))
    small = shrink(scenario, lambda other: bool(other.steps and other.steps[0][2] & 0x10))
    assert small.steps == (canonical(INTERRUPT, 0, 0x10, 0),)


def test_the_budget_is_kept() -> None:
    asked = 0

    def count(scenario: Scenario) -> bool:
        nonlocal asked
        asked += 1
        return holds(scenario)

    scenario = Scenario(DEFAULT, (NOISE,) * 30 + MATTERS)
    small = shrink(scenario, count, runs_max=10)
    assert asked == 10
    assert holds(small)


def test_single_bits_of_a_choice_of_the_configuration_are_left_out() -> None:
    scenario = parse_scenario(
        "version 1\nconfig exceptions=#PF,#NP,#UD l0-exceptions=#GP,#DB\nL1 enter\n"
    ).scenario
    _flags, needed, l0_needed, _filter = parse_scenario(
        "version 1\nconfig exceptions=#NP l0-exceptions=#DB\nL1 enter\n"
    ).scenario.config

    def keeps_one_of_each(candidate: Scenario) -> bool:
        _, exceptions, l0_exceptions, _ = candidate.config
        return exceptions & needed != 0 and l0_exceptions & l0_needed != 0

    small = shrink(scenario, keeps_one_of_each)
    assert small.config[1:3] == (needed, l0_needed)
