"""A quick greedy shrink: fewer steps, a plainer configuration, plainer steps, while a property holds."""

from collections.abc import Callable
from typing import Final

from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAG_BIT
from nvmx_core.scenario.steps import Scenario, Step, canonical

RUNS_MAX: Final = 1500
"""Enough for a scenario of 64 steps; a longer search is the minimiser's business."""


def shrink(
    scenario: Scenario, holds: Callable[[Scenario], bool], runs_max: int = RUNS_MAX
) -> Scenario:
    """Find a smaller scenario for which *holds* is true, as it must be for *scenario*.

    No single step of the result can be left out, unless *runs_max* calls were not enough.
    """
    budget = _Budget(holds, runs_max)
    scenario = _fewer_steps(scenario, budget)
    simpler = _plainer_steps(_plainer_config(scenario, budget), budget)
    return _fewer_steps(simpler, budget) if simpler != scenario else scenario


class _Budget:
    """Asks the property, and says no when it was asked too often."""

    def __init__(self, holds: Callable[[Scenario], bool], runs_max: int) -> None:
        self._holds: Final = holds
        self._left = runs_max

    def allows(self, scenario: Scenario) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        return self._holds(scenario)


def _fewer_steps(scenario: Scenario, budget: _Budget) -> Scenario:
    """Leave out runs of steps, long ones first, from the end, until single steps all matter."""
    length = max(len(scenario.steps) // 2, 1)
    while True:
        before = len(scenario.steps)
        end = before
        while end > 0:
            start = max(end - length, 0)
            steps = scenario.steps[:start] + scenario.steps[end:]
            candidate = scenario._replace(steps=steps)
            if budget.allows(candidate):
                scenario = candidate
            end = start
        if length > 1:
            length //= 2
        elif len(scenario.steps) == before:
            return scenario


def _plainer_config(scenario: Scenario, budget: _Budget) -> Scenario:
    """Give each part of the configuration its default where that is enough, or else leave out bits of it."""
    for place in range(1, len(scenario.config)):
        value = scenario.config[place]
        for mask in (value, *_bits(value)):
            parts = [*scenario.config]
            parts[place] &= ~mask
            candidate = scenario._replace(config=(parts[0], parts[1], parts[2], parts[3]))
            if candidate.config != scenario.config and budget.allows(candidate):
                scenario = candidate
    flags = scenario.config[0]
    for bit in FLAG_BIT.values():
        if (flags ^ DEFAULT_FLAGS) & bit:
            candidate = scenario._replace(config=(flags ^ bit, *scenario.config[1:]))
            if budget.allows(candidate):
                scenario, flags = candidate, flags ^ bit
    return scenario


def _plainer_steps(scenario: Scenario, budget: _Budget) -> Scenario:
    """Make each operand of each step 0 where that is enough, or else leave out bits of it."""
    for index in range(len(scenario.steps)):
        for place in range(1, len(scenario.steps[index])):
            value = scenario.steps[index][place]
            for mask in (value, *_bits(value)):
                step = scenario.steps[index]
                candidate = _with_step(scenario, index, without_bits(step, place, mask))
                if candidate.steps[index] < step and budget.allows(candidate):
                    scenario = candidate
    return scenario


def _bits(value: int) -> list[int]:
    return [1 << number for number in range(value.bit_length()) if value >> number & 1]


def without_bits(step: Step, place: int, bits: int) -> Step:
    """The step with some bits of the operand in a place cleared."""
    operands = [*step]
    operands[place] &= ~bits
    return canonical(*operands)


def _with_step(scenario: Scenario, index: int, step: Step) -> Scenario:
    steps = scenario.steps
    return scenario._replace(steps=(*steps[:index], step, *steps[index + 1 :]))
