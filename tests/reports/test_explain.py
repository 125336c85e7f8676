"""Explanations are complete and true whatever the scenario: five parts, and the history of the fields."""

import json

import pytest

from nvmx_core.arch.events import NMI_INFO
from nvmx_core.arch.rules import RULES
from nvmx_core.bugs.catalogue import CATALOGUE
from nvmx_core.bugs.versions import FIXED, UnknownL0Error, l0_class
from nvmx_core.journal import EXIT, L1_UNEXPECTED_VECTORING, RECORD_FIELDS
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.judge import run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.step_text import format_step
from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz import decode_words, explain_records
from nvmx_fuzz.explain import Report, explain, render_rich, render_text, to_json
from nvmx_fuzz.explain_history import History
from nvmx_fuzz.explain_replay import play
from nvmx_fuzz.generate import random_scenario

L0_NAMES = (FIXED, *(bug.name for bug in CATALOGUE))
SEEDS = range(60)
VIOLATIONS_MAX = 4
WIDTH = 110


def scenario_of(*lines: str) -> Scenario:
    return parse_scenario("\n".join(("version 1", *lines))).scenario


def violation_count(scenario: Scenario, l0_name: str) -> int:
    verdict = run_and_judge(scenario, config_for(scenario.config), l0_class(l0_name))
    return len(verdict.violations)


def reports_of(scenario: Scenario, l0_name: str) -> list[Report]:
    """The explanations of the first violations, or the one of a clean run."""
    count = max(1, min(violation_count(scenario, l0_name), VIOLATIONS_MAX))
    return [explain(scenario, l0_name, index) for index in range(count)]


# -- any scenario ----------------------------------------------------------------------------------


@pytest.mark.parametrize("l0_name", L0_NAMES)
def test_explains_random_scenarios_step_by_step(l0_name: str) -> None:
    for seed in SEEDS:
        scenario = random_scenario(seed)
        for report in reports_of(scenario, l0_name):
            check_lines(report, scenario)
            check_json(report)
            check_text(report)
            render_rich(report)


def check_lines(report: Report, scenario: Scenario) -> None:
    """One numbered line for each step, in order, in the words of the text form."""
    numbered = [line for line in report.lines if line.step]
    assert [line.step for line in numbered] == list(range(1, len(scenario.steps) + 1))
    for line, step in zip(numbered, scenario.steps, strict=True):
        assert f"{line.who} {line.action}".split() == format_step(step).split()
        assert line.effect
    assert report.lines[-1].action == "end"


def check_json(report: Report) -> None:
    """JSON holds every part and survives writing and reading."""
    plain = to_json(report)
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == ["version", *Report.__dataclass_fields__]
    assert parse_scenario(report.scenario)


def check_text(report: Report) -> None:
    """Lines are short, parts come in their order."""
    text = render_text(report, WIDTH)
    assert "\x1b" not in text
    for line in text.splitlines():
        assert len(line) <= WIDTH, line
    heads = ["  who ", f"\nreplay: {report.replay}"]
    heads.insert(0, "VIOLATION " if report.finding else "nothing wrong")
    heads.insert(2, "\nrule " if report.finding else "\nholds ")
    if report.fields:
        heads.insert(2, "\nfields of the rule")
    places = [text.index(head) for head in heads]
    assert places == sorted(places)


@pytest.mark.parametrize("l0_name", L0_NAMES)
def test_replay_sees_what_the_judged_run_saw(l0_name: str) -> None:
    for seed in SEEDS:
        scenario = random_scenario(seed)
        config = config_for(scenario.config)
        machine = Nested(config, l0_class(l0_name))
        machine.run(scenario)
        moments = [m for step in play(scenario, config, l0_class(l0_name)) for m in step.moments]
        assert [m.record for m in moments if not m.hidden] == machine.journal
        assert [m.record for m in moments if m.hidden] == machine.vcpu.log


def test_history_ends_with_the_state_of_the_vcpu() -> None:
    """What records and snapshots say adds up: the last change of each variable is its last value."""
    for seed in SEEDS:
        scenario = random_scenario(seed)
        played = play(scenario, config_for(scenario.config), l0_class(FIXED))
        history = History(played)
        for name, value in played[-1].after.state.items():
            assert history.values[name] == value, f"seed {seed}: {name}"


def test_a_narrow_terminal_loses_nothing() -> None:
    scenario = scenario_of("outside interrupt 0x51", "L1 inject nmi", "L1 enter", "L2 nop")
    words = render_text(explain(scenario, "bug3"), 400).split()
    narrow = render_text(explain(scenario, "bug3"), 60).split()
    assert sorted(narrow) == sorted(words)


# -- what the parts say ----------------------------------------------------------------------------

BUG1 = (
    "L1 inject external-interrupt 0x40",
    "L0 drop-page stack",
    "outside interrupt 0x51 in-delivery",
    "L1 enter",
)


def test_a_scenario_that_breaks_nothing_has_no_finding_and_no_fields() -> None:
    report = explain(scenario_of(*BUG1), FIXED)
    assert report.finding is None
    assert report.fields == ()
    assert not any(line.expected or line.wrong for line in report.lines)
    assert render_text(report).startswith("nothing wrong: both machines show the same\n")


def test_asking_for_a_violation_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError):
        explain(scenario_of(*BUG1), FIXED, 1)
    with pytest.raises(UnknownL0Error):
        explain(scenario_of(*BUG1), "bug0")


def test_idt_vectoring_is_followed_from_the_entry_field_to_the_exit() -> None:
    """The event of the exit is the one that L1 injected, through vmcs02, the processor and L0."""
    report = explain(scenario_of(*BUG1), "bug1")
    (story,) = (story for story in report.fields if story.field == "IDT-vectoring info")
    assert [(write.step, write.who, write.variable) for write in story.writes] == [
        (1, "L1", "vmcs12.ENTRY_INTR_INFO"),
        (4, "L0", "vmcs02.ENTRY_INTR_INFO"),
        (4, "processor", "vmcs02.IDT_VECTORING_INFO"),
        (4, "L0", "vmcs12.IDT_VECTORING_INFO"),
    ]
    assert {write.new for write in story.writes} == {"0x80000040"}
    assert story.expected == "0 (invalid)"


def test_the_line_that_differs_says_what_bare_metal_shows() -> None:
    report = explain(scenario_of(*BUG1), "bug1")
    (line,) = (line for line in report.lines if line.expected)
    assert line.who == "L1"
    assert line.wrong
    assert line.effect.startswith("exit EXTERNAL_INTERRUPT at code+0x0")
    assert line.expected.startswith("L2 takes 0x40, then exit EXTERNAL_INTERRUPT at handler:0x40")


def test_l0s_own_doings_are_hidden_and_in_order() -> None:
    report = explain(scenario_of(*BUG1), FIXED)
    assert [line.effect for line in report.lines if line.hidden] == [
        "page stack is not mapped by L0 any more",
        "builds vmcs02, enters L2 injecting external-interrupt 0x40",
        "exit EPT_VIOLATION in the delivery of external-interrupt 0x40",
        "repairs page stack (EPT violation, hidden from L1)",
        "re-injects external-interrupt 0x40",
        "enters L2, with preemption timer 0 (immediate exit)",
        "exit PREEMPTION_TIMER (the immediate exit)",
        "nested exit EXTERNAL_INTERRUPT to L1",
    ]


def test_a_missing_immediate_exit_is_marked_at_the_entry() -> None:
    scenario = scenario_of("outside interrupt 0x51", "L1 enter", "L2 nop")
    report = explain(scenario, "bug3")
    (line,) = (line for line in report.lines if line.wrong)
    assert line.effect.startswith("enters L2, no immediate exit; due: external interrupt")
    assert line.expected == "preemption timer 0 (immediate exit)"
    assert report.fields[0].field == "vmcs02.GUEST_PREEMPTION_TIMER"
    assert report.fields[1].field == "IRR"


def test_an_exit_for_what_the_host_takes_is_not_called_reflected() -> None:
    """The hardware exit is L0's kick; L1's exit is for its own interrupt."""
    report = explain(scenario_of("L1 enter", "outside interrupt 0x51"), FIXED)
    effects = [line.effect for line in report.lines]
    assert "exit EXTERNAL_INTERRUPT (an interrupt of the host)" in effects
    assert not any("reflected" in effect for effect in effects)


def test_arrivals_name_the_step_that_they_come_from() -> None:
    lines = (
        "outside interrupt 0x51 in-delivery",
        "outside interrupt 0x61 at-entry",
        "outside interrupt 0x51 at-entry",
    )
    report = explain(scenario_of(*lines, "L1 inject nmi", "L1 enter"), FIXED)
    arrivals = [line.effect for line in report.lines if " arrives for L1" in line.effect]
    assert arrivals == [
        "interrupt 0x61 arrives for L1 (step 2)",
        "interrupt 0x51 arrives for L1 (step 3)",
        "interrupt 0x51 arrives for L1 (step 1); L0 kicks the vCPU",
    ]


def test_the_violated_rule_comes_first_and_all_rules_are_known() -> None:
    for l0_name in L0_NAMES[1:]:
        for seed in SEEDS[:15]:
            for report in reports_of(random_scenario(seed), l0_name):
                assert all(rule.id in RULES for rule in report.rules)
                if report.finding:
                    assert report.rules[0].id == report.finding.rule
                    assert [rule.violated for rule in report.rules].count(True) == 1


def test_file_and_revision_stand_in_the_replay_line() -> None:
    report = explain(scenario_of(*BUG1), "bug1", file="out/a b.scn", revision="1a2b3c4")
    last = render_text(report).splitlines()[-1]
    assert last == "replay: nvmx-fuzz replay --l0 bug1 'out/a b.scn'   (revision 1a2b3c4)"


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("reason", 48, "EPT_VIOLATION"),
        ("reason", 33 | 1 << 31, "INVALID_STATE (failed entry)"),
        ("interruption info", NMI_INFO, "nmi"),
        ("IDT-vectoring info", 0x80000040, "external-interrupt 0x40"),
        ("IDT-vectoring info", 0x40, "invalid"),
        ("rip", 0x17400, "handler:0x40"),
        ("rip", 0x16000, "code+0x0"),
        ("guest linear address", -1, "-"),
        ("rflags", 0x10302, "0x10302 (TF IF RF)"),
        ("interruptibility", 9, "sti,nmi"),
        ("activity", 3, "wait-for-sipi"),
        ("pending debug exceptions", 0x5001, "0x5001 (B0 enabled-breakpoint BS)"),
        ("preemption timer", 100, "100"),
    ],
)
def test_values_read_as_in_the_manual(name: str, value: int, word: str) -> None:
    index = RECORD_FIELDS[EXIT].index(name) + 1
    record = (EXIT, *(value if place == index else 0 for place in range(1, 24)))
    assert decode_words.record_word(record, name) == word


def test_records_of_unknown_kinds_still_get_a_line() -> None:
    assert explain_records.log_text((99, 0)) == "log record 99"
    warning = explain_records.record_text((L1_UNEXPECTED_VECTORING, 1, 0x80000040))
    assert "unexpected, valid vectoring info" in warning
