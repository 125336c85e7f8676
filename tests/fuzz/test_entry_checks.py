"""One VM entry, all checks: the model, the machine and the second reading agree, and each would be missed."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmx_core.arch.rules_entry import ENTRY_RULES
from nvmx_core.cpu import entry_checks as model
from nvmx_core.scenario.config import DEFAULT_FLAGS, Config
from nvmx_core.scenario.steps import CONTROL, ENTER, NMI, RUN, Scenario
from nvmx_fuzz import entry_checks, entry_reading
from nvmx_fuzz.cli import main
from nvmx_fuzz.codec import encode
from nvmx_fuzz.entry_checks import Disagreement, Outcome, check_entry, check_input, prepared_entry
from nvmx_fuzz.entry_reading import CLASSES, Entry, Row, forbidden_by
from nvmx_fuzz.generate import random_scenario
from nvmx_fuzz.scenario_files import load

SEEDS = sorted((Path(__file__).resolve().parents[2] / "corpus" / "entry_checks").glob("*.scn"))
ROWS = [row for rows in CLASSES for row in rows]
RANDOM = 2000
DEFAULT: tuple[int, int, int, int] = (DEFAULT_FLAGS, 0, 0, 0)
COMPILED = entry_reading._COMPILED

each_seed = pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)


def scenarios() -> Iterator[Scenario]:
    """The scenario of each seed."""
    return (load(str(path)).scenario for path in SEEDS)


def disagreements() -> int:
    """On how many seeds the readings do not agree."""
    found = 0
    for scenario in scenarios():
        try:
            check_entry(scenario)
        except Disagreement:
            found += 1
    return found


def forbidding(scenario: Scenario) -> tuple[Row, ...]:
    """The rows that forbid the entry which a scenario prepares."""
    seen: list[tuple[Row, ...]] = []

    def note(entry: Entry) -> tuple[Row, ...]:
        seen.append(forbidden_by(entry))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry_checks, "forbidden_by", note)
        check_entry(scenario)
    return seen[0]


@pytest.fixture
def fresh_checkers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkers that remember nothing: they keep controls that passed."""
    monkeypatch.setattr(entry_checks, "config_for", lambda packed: Config(*packed))


def test_every_rule_about_checks_has_a_row() -> None:
    wanted = {rule.id for rule in ENTRY_RULES if rule.id[0] in "CEG"}
    assert {row.rule for row in ROWS} == wanted


@each_seed
def test_a_seed_breaks_the_rule_that_it_names_and_no_other(path: Path) -> None:
    rule = re.match(r"# ([CEG]\d+): ", path.read_text())
    assert rule is not None
    assert path.stem.startswith(f"{rule[1].lower()}-")
    assert {row.rule for row in forbidding(load(str(path)).scenario)} == {rule[1]}


def test_the_seeds_are_canonical_and_both_machines_show_what_they_expect() -> None:
    assert main(["corpus", "check", str(SEEDS[0].parent)]) == 0


def test_every_row_has_a_seed() -> None:
    broken = {row for scenario in scenarios() for row in forbidding(scenario)}
    assert [row for row in ROWS if row not in broken] == []


def test_both_readings_agree_on_random_scenarios() -> None:
    outcomes = {check_entry(random_scenario(number)) for number in range(RANDOM)}
    assert len(outcomes) > 3


def test_an_entry_that_nothing_forbids_enters() -> None:
    assert check_entry(Scenario(DEFAULT, ())) == entry_checks.ENTERED


def test_only_steps_of_l1_prepare_the_entry() -> None:
    control = (CONTROL, 3, 1, 0)
    steps = ((NMI, 0, 0, 0), control, (RUN, 0, 0, 0), (ENTER, 4, 0, 0), control, (ENTER, 0, 0, 0))
    scenario = Scenario(DEFAULT, steps)
    assert prepared_entry(scenario) == ((control,), (ENTER, 4, 0, 0))


def checks_of_the_model() -> list[str]:
    """The names of the functions that the model's lists of checks call."""
    names = {
        node.func.id
        for node in ast.walk(ast.parse(inspect.getsource(model)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return sorted(name for name in names if hasattr(model, name) and not name.startswith("_"))


@pytest.mark.usefixtures("fresh_checkers")
@pytest.mark.parametrize("name", checks_of_the_model())
def test_a_check_that_always_passes_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, name, lambda *_arguments: True)
    assert disagreements()


@pytest.mark.usefixtures("fresh_checkers")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.rule} {row.terms}")
def test_a_row_that_is_missing_is_found(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = tuple(tuple(pair for pair in rows if pair[0] != row) for rows in COMPILED)
    monkeypatch.setattr(entry_reading, "_COMPILED", rest)
    assert disagreements()


@pytest.mark.usefixtures("fresh_checkers")
def test_a_disagreement_says_who_says_what_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model, "nmi_has_vector_2", lambda *_arguments: True)
    (path,) = (path for path in SEEDS if path.stem.startswith("e2-"))
    with pytest.raises(Disagreement) as caught:
        check_input(encode(load(str(path)).scenario), "there/")
    assert str(caught.value) == (
        "the checks pass, the table does not; E2 forbids valid=1 type=2 vector!=2"
    )
    (note,) = caught.value.__notes__
    assert note.startswith("version 1\n")
    assert "replay: nvmx-fuzz replay --target fuzz_entry_checks there/crash-" in note


def test_outcomes_in_words() -> None:
    assert str(Outcome("VMfail", 7, 0)) == "VMfail 7"
    assert str(Outcome("exit", 33, 4)) == "exit 33, qualification 4"
    assert str(entry_checks.ENTERED) == "L2 is entered"


@pytest.mark.parametrize("terms", ["valid", "valid=x", "nonsense=1", "valid>nonsense", "VALID=1"])
def test_a_mistake_in_the_table_is_noticed(terms: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        entry_reading._compiled(Row("E1", "VMfail", 7, terms))
