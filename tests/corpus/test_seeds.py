"""Every seed is a small proof: its lines hold on both machines, and all together reach every situation."""

import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from nvmx_core.arch.exits import APIC_WRITE, BASIC_REASON_MASK, EXIT_NAMES, MCE_DURING_ENTRY
from nvmx_core.arch.instructions import INSTRUCTIONS, NEVER
from nvmx_core.arch.rules import RULES
from nvmx_core.bugs.versions import l0_class
from nvmx_core.journal import EXIT
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.reach import REACH_NAMES
from nvmx_core.machines.bare import Bare
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.judge import judge
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import canonical
from nvmx_core.scenario.text import (
    ScenarioFile,
    check_expectations,
    format_file,
    parse_scenario,
)
from nvmx_fuzz import journals

FOLDER: Final = Path(__file__).resolve().parents[2] / "corpus" / "nested_events"
SEEDS: Final = sorted(FOLDER.glob("*.scn"))
SEEDS_MIN: Final = 40
STEPS_MAX: Final = 8

KEBAB_CASE: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
RULE_LINE: Final = re.compile(r"Rules: [A-Z]\d+(, [A-Z]\d+)*")
RULE_ID: Final = re.compile(r"\b[A-Z]\d+\b")

BUG2_SEEDS: Final = (
    "interrupt-while-l0-repairs-stack-page",
    "interrupt-while-l0-repairs-stack-page-shadow-paging",
    "interrupt-while-l0-repairs-page-of-int-n",
    "interrupt-acknowledged-on-exit-after-l0-repair",
    "nmi-while-l0-repairs-idt-page",
    "init-while-l0-repairs-gdt-page",
    "timer-expires-while-l0-repairs-stack-page",
)
BUG3_SEEDS: Final = (
    "interrupt-pending-at-entry-with-injection",
    "interrupt-pending-at-entry-without-injection",
    "interrupt-pending-at-entry-shadow-paging",
    "interrupt-arrives-at-entry",
    "nmi-pending-at-entry-with-injection",
)

every_seed = pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.stem)


@cache
def seed(path: Path) -> ScenarioFile:
    """Read a seed once."""
    return parse_scenario(path.read_text())


def run(file: ScenarioFile, l0: type[Kvm] = Kvm) -> tuple[Bare, Nested]:
    """Run a seed on both machines, each with the starts of its steps."""
    config = config_for(file.scenario.config)
    bare = Bare(config)
    bare.run(file.scenario)
    nested = Nested(config, l0)
    nested.run(file.scenario)
    return bare, nested


def findings(name: str, bug: str) -> list[Violation]:
    """Return what the oracles say about a seed under a bug."""
    return list(judge(*run(seed(FOLDER / f"{name}.scn"), l0_class(bug))))


def test_there_are_enough_seeds() -> None:
    assert len(SEEDS) >= SEEDS_MIN


@every_seed
def test_text_is_canonical(path: Path) -> None:
    """Formatting what was read gives the file back, and every step is the one its record stands for."""
    file = seed(path)
    assert format_file(file) == path.read_text()
    assert [canonical(*step) for step in file.scenario.steps] == list(file.scenario.steps)


@every_seed
def test_name_and_size(path: Path) -> None:
    """A seed is one situation, named after it."""
    assert KEBAB_CASE.fullmatch(path.stem)
    assert 1 <= len(seed(path).scenario.steps) <= STEPS_MAX


@every_seed
def test_comment_says_what_happens_and_cites_rules(path: Path) -> None:
    *sentences, rules = seed(path).comments
    assert sentences, "say in a sentence or two what should happen, and why"
    assert RULE_LINE.fullmatch(rules), "the last comment line is 'Rules: X3, O11'"
    unknown = [rule for rule in RULE_ID.findall(rules) if rule not in RULES]
    assert not unknown, f"no such rule: {', '.join(unknown)}"


@every_seed
def test_expectations_hold_on_both_machines(path: Path) -> None:
    file = seed(path)
    assert file.expects, "a seed pins what matters by expect lines"
    bare, nested = run(file)
    assert check_expectations(file, bare.journal, bare.step_starts) == []
    assert check_expectations(file, nested.journal, nested.step_starts) == []


@every_seed
def test_no_violation_on_fixed(path: Path) -> None:
    assert [violation.sentence for violation in judge(*run(seed(path)))] == []


@every_seed
def test_every_step_applies(path: Path) -> None:
    """A seed has no step that does nothing because it comes at a wrong time."""
    bare, nested = run(seed(path))
    assert (bare.skipped, nested.skipped) == (0, 0)


def test_all_seeds_together_reach_every_situation() -> None:
    counts = [0] * len(REACH_NAMES)
    for path in SEEDS:
        _bare, nested = run(seed(path))
        counts = [total + more for total, more in zip(counts, nested.vcpu.reach, strict=True)]
    missing = [name for name, count in zip(REACH_NAMES, counts, strict=True) if not count]
    assert not missing, f"no seed reaches {', '.join(missing)}"


def test_every_named_exit_reason_happens_but_two() -> None:
    """By a seed, or by an instruction of the table; docs/ARCHITECTURE.md names the two left out."""
    seen = {
        record[1] & BASIC_REASON_MASK
        for path in SEEDS
        for record in run(seed(path))[0].journal
        if record[0] == EXIT
    }
    exiting = {entry.exit_reason for entry in INSTRUCTIONS if entry.exit_field != NEVER}
    assert EXIT_NAMES.keys() - seen - exiting == {MCE_DURING_ENTRY, APIC_WRITE}


@pytest.mark.parametrize("name", BUG2_SEEDS)
def test_bug2_shows_as_an_exit_with_valid_idt_vectoring(name: str) -> None:
    assert ("EXIT-INFO", "X3") in [(found.oracle, found.rule) for found in findings(name, "bug2")]


@pytest.mark.parametrize("name", BUG3_SEEDS)
def test_bug3_shows_as_an_exit_that_comes_too_late(name: str) -> None:
    assert "O11" in [found.rule for found in findings(name, "bug3")]


@pytest.mark.parametrize("bug", ["bug2", "bug3"])
def test_expect_lines_of_the_bugs_own_seeds_notice_them(bug: str) -> None:
    """The expect lines alone tell the bug from the fixed L0, or the seed pins too little."""
    for name in BUG2_SEEDS if bug == "bug2" else BUG3_SEEDS:
        file = seed(FOLDER / f"{name}.scn")
        _bare, nested = run(file, l0_class(bug))
        assert check_expectations(file, nested.journal, nested.step_starts), name


def test_the_recorded_journals_are_up_to_date() -> None:
    found = journals.all_digests()
    assert found == journals.recorded(), "wanted? then run python -m nvmx_fuzz.journals"
