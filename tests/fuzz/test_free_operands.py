"""Operands that do not matter for a finding."""

import pytest

from nvmx_core.bugs.catalogue import BUG_BY_NAME
from nvmx_core.bugs.versions import l0_class
from nvmx_core.oracle.judge import violations_of
from nvmx_core.scenario.step_text import format_step
from nvmx_core.scenario.steps import OPERATIONS, Operation, Scenario
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.free_operands import alternatives, free_operands
from nvmx_fuzz.seeds import BUGS_FOLDER

BUG1 = """version 1
L1 inject external-interrupt 0x40
L0 drop-page stack
outside interrupt 0x51 in-delivery
L1 enter
"""


def shown(scenario: Scenario, free: dict[int, frozenset[int]]) -> list[str]:
    return [
        format_step(step, compact=True, free=free.get(index, ()))
        for index, step in enumerate(scenario.steps)
    ]


def test_what_matters_for_a_finding_keeps_its_value() -> None:
    scenario = parse_scenario(BUG1).scenario
    bug1 = l0_class("bug1")

    def holds(candidate: Scenario) -> bool:
        return any(violation.rule == "X3" for violation in violations_of(candidate, bug1))

    assert shown(scenario, free_operands(scenario, holds)) == [
        "L1 inject external-interrupt any",
        "L0 drop-page stack",
        "outside interrupt any in-delivery",
        "L1 enter",
    ]


@pytest.mark.parametrize("name", ["bug30", "bug40", "bug48"])
def test_a_vector_that_must_not_be_one_of_the_first_is_not_free(name: str) -> None:
    """The interrupt controller has no vectors 0 to 15, so a virtual interrupt of them is none."""
    file = parse_scenario((BUGS_FOLDER / f"{name}.scn").read_text())
    bug = BUG_BY_NAME[name]

    def holds(candidate: Scenario) -> bool:
        return any(found.rule == bug.rule for found in violations_of(candidate, bug.l0))

    lines = shown(file.scenario, free_operands(file.scenario, holds))
    assert any(line.startswith("L1 virtual-interrupt") for line in lines)
    assert "L1 virtual-interrupt any" not in lines


def test_nothing_is_free_when_every_value_matters() -> None:
    scenario = parse_scenario(BUG1).scenario
    assert free_operands(scenario, lambda candidate: candidate == scenario) == {}


def test_everything_is_free_when_nothing_matters() -> None:
    scenario = parse_scenario(BUG1).scenario
    free = free_operands(scenario, lambda _candidate: True)
    assert shown(scenario, free)[:3] == [
        "L1 inject any any",
        "L0 drop-page any",
        "outside interrupt any any",
    ]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_alternatives_are_other_values_in_range(operation: Operation) -> None:
    for operand in operation.operands:
        for value in (0, 1, operand.limit - 1):
            tried = alternatives(operand, value)
            assert value not in tried
            assert len(set(tried)) == len(tried)
            assert all(0 <= other < operand.limit for other in tried)
