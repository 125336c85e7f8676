"""Every rule of the processor has a test that carries its name.

A test names its rule at the start, `test_x3_...`, or several, `test_e1_to_e8_...` and
`test_p7_before_p8_...`; only the first counts.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

from nvmx_core.arch.rules import RULES

TESTS = Path(__file__).resolve().parent
FOLDERS = ("arch", "cpu", "guests")
"""Where the processor's own tests are; those of L0 cite the rules S and V."""

PROCESSOR_RULES = [rule_id for rule_id in RULES if rule_id[0] not in "SV"]
RULE_IN_NAME = re.compile(r"test_([a-z]\d{1,2})_")


@functools.cache
def find_tests() -> list[tuple[ast.FunctionDef, Path]]:
    """Return each test function and its file."""
    return [
        (node, path)
        for folder in FOLDERS
        for path in sorted((TESTS / folder).rglob("test_*.py"))
        for node in ast.parse(path.read_text(), str(path)).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@functools.cache
def named_rules() -> dict[str, list[str]]:
    """Return the names of the tests of each rule."""
    tests: dict[str, list[str]] = {}
    for node, _path in find_tests():
        match = RULE_IN_NAME.match(node.name)
        if match:
            tests.setdefault(match[1].upper(), []).append(node.name)
    return tests


@pytest.mark.parametrize("rule_id", PROCESSOR_RULES)
def test_rule_has_a_test(rule_id: str) -> None:
    assert rule_id in named_rules(), f"no test is named test_{rule_id.lower()}_..."


@pytest.mark.parametrize("rule_id", [rule for rule in PROCESSOR_RULES if rule[0] in "ECG"])
def test_rule_of_a_check_has_a_passing_and_a_failing_case(rule_id: str) -> None:
    """A file that tests a check holds at least one expectation of each kind for it."""
    prefix = f"test_{rule_id.lower()}_"
    text = "\n".join(
        ast.unparse(node)
        for node, path in find_tests()
        if path.name.startswith("test_entry_checks") and node.name.startswith(prefix)
    )
    passes = re.compile(r"PASS\b|vmfails == \[\]|in_l2")
    fails = re.compile(r"fails\(|VMFAIL_|failure\b|INVALID_STATE")
    assert passes.search(text), f"no passing case of {rule_id}"
    assert fails.search(text), f"no failing case of {rule_id}"


def test_rule_names_in_tests_exist() -> None:
    for rule_id, names in named_rules().items():
        assert rule_id in RULES, f"{names[0]} names rule {rule_id}, which is not in the table"


def test_no_test_is_hidden_by_another_of_the_same_name() -> None:
    seen: set[tuple[str, Path]] = set()
    for node, path in find_tests():
        assert (node.name, path) not in seen, f"{path.name} defines {node.name} twice"
        seen.add((node.name, path))
