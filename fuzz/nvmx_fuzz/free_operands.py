"""Which operands of a scenario do not matter for a finding: "any" in the explanation.

An operand is free when each other value that is tried, with everything else as it is, gives the same finding.
Of a few values all are tried; of many numbers some that differ in kind. It is a function of the scenario and
the property alone, and costs at most a dozen runs an operand; a single one when the first value matters.
"""

from collections.abc import Callable
from typing import Final

from nvmx_core.scenario.step_text import operand_values, pack_step
from nvmx_core.scenario.steps import OPERATIONS, Operand, Scenario, Step, canonical

_VALUES_TRIED: Final = 16
_VECTORS: Final = (0x00, 0x20, 0x31, 0x51, 0x80, 0xF1)
"""The interrupt controllers, L1's and the virtual one, have none below 0x10; exceptions are below 0x20."""


def free_operands(
    scenario: Scenario, holds: Callable[[Scenario], bool]
) -> dict[int, frozenset[int]]:
    """The places of the free operands by the index of their step; steps without any are left out."""
    found = {}
    for index, step in enumerate(scenario.steps):
        places = frozenset(
            place
            for place, operand in enumerate(OPERATIONS[step[0]].operands)
            if _is_free(scenario, index, step, place, operand, holds)
        )
        if places:
            found[index] = places
    return found


def _is_free(
    scenario: Scenario,
    index: int,
    step: Step,
    place: int,
    operand: Operand,
    holds: Callable[[Scenario], bool],
) -> bool:
    values = operand_values(step)
    steps = scenario.steps
    tried = False
    for value in alternatives(operand, values[place]):
        other = pack_step(step[0], (*values[:place], value, *values[place + 1 :]))
        if canonical(*other) != other:
            continue  # this operation takes no such value here
        tried = True
        if not holds(scenario._replace(steps=(*steps[:index], other, *steps[index + 1 :]))):
            return False
    return tried


def alternatives(operand: Operand, value: int) -> tuple[int, ...]:
    """Values to try in the place of *value*."""
    if operand.flags:
        tried = tuple(value ^ 1 << bit for bit in range(len(operand.names)))
    elif operand.names or operand.limit <= _VALUES_TRIED:
        tried = tuple(range(min(operand.limit, _VALUES_TRIED)))
    elif operand.limit == 1 << 8:
        tried = _VECTORS
    else:
        tried = (0, 1, operand.limit // 3, operand.limit // 2, operand.limit - 1)
    return tuple(other for other in tried if other != value)
