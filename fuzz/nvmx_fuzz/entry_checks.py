"""What the fuzz target `fuzz_entry_checks.py` does with an input: one VM entry, all checks.

The input is a scenario; of its steps those of L1 before the first `enter` prepare the entry, and that one is
made. Asked are the model's checks (the rule that they name included), the machine `bare`, which makes the
entry, and the independent table of `entry_reading.py`. The manual leaves the order of checks within a class
open, so the rule that the model names has to be one that the table finds broken.

This module imports the model, so import it inside `feedback.instrument`.
"""

from typing import Final, NamedTuple

from nvmx_core.arch.exits import FAILED_ENTRY
from nvmx_core.arch.fields import ENTRY_MSR_LOAD_BAD
from nvmx_core.journal import EXIT as EXIT_RECORD
from nvmx_core.journal import L1_ENTRY
from nvmx_core.journal import VMFAIL as VMFAIL_RECORD
from nvmx_core.machines.bare import Bare
from nvmx_core.scenario.config import Config, config_for
from nvmx_core.scenario.steps import ENTER, FORCE_RESUME, OPERATIONS, Scenario, Step
from nvmx_core.scenario.steps import L1 as L1_ACTOR
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.artifacts import replay_note
from nvmx_fuzz.codec import decode
from nvmx_fuzz.entry_reading import EXIT, VMFAIL, Entry, Row, forbidden_by, is_permission

_MSR_LOAD: Final = 34


class Disagreement(Exception):  # noqa: N818 - it is a finding about the model, no error of this program
    """The model and the table do not say the same of an entry."""


class Outcome(NamedTuple):
    """How an entry ends: ``how`` is VMFAIL, EXIT (a failed entry) or "" when L2 is entered."""

    how: str
    number: int
    qualification: int

    def __str__(self) -> str:
        """The outcome in words."""
        if self.how == EXIT:
            return f"exit {self.number}, qualification {self.qualification}"
        return f"{self.how} {self.number}" if self.how else "L2 is entered"


ENTERED: Final = Outcome("", 0, 0)


def prepared_entry(scenario: Scenario) -> tuple[tuple[Step, ...], Step]:
    """L1's steps before the first entry of a scenario, and that entry (a plain one if there is none)."""
    steps: list[Step] = []
    for step in scenario.steps:
        if step[0] == ENTER:
            return tuple(steps), step
        if OPERATIONS[step[0]].actor == L1_ACTOR:
            steps.append(step)
    return tuple(steps), (ENTER, 0, 0, 0)


def prepared_text(scenario: Scenario) -> str:
    """What matters of a scenario, as text: how the entry is prepared, and the entry."""
    steps, entry_step = prepared_entry(scenario)
    return format_scenario(Scenario(scenario.config, (*steps, entry_step)))


def check_entry(scenario: Scenario) -> Outcome:
    """Make the entry that a scenario prepares and return its outcome.

    Raises:
        Disagreement: the checks, the machine and the table do not agree.
    """
    config = config_for(scenario.config)
    machine = Bare(config)
    steps, entry_step = prepared_entry(scenario)
    for step in steps:
        machine.do_step(step)
    entry = _entry_of(machine, config, entry_step[1])
    rows = forbidden_by(entry)
    if not is_permission(rows):
        _compare_checks(entry, config, rows)
    allowed = {Outcome(row.how, row.number, row.qualification) for row in rows} or {
        _msr_load(entry)
    }
    machine.do_step(entry_step)
    outcome = _outcome(machine)
    if outcome not in allowed:
        expected = " or ".join(sorted(map(str, allowed)))
        raise Disagreement(f"the machine says {outcome}, the table {expected}{_because(rows)}")
    return outcome


def check_input(data: bytes, artifact_prefix: str = "") -> None:
    """Check the entry of an input as a libFuzzer target does; raises Disagreement."""
    scenario = decode(data)
    try:
        check_entry(scenario)
    except Exception as error:
        note = replay_note("fuzz_entry_checks", data, artifact_prefix)
        error.add_note(f"{prepared_text(scenario)}{note}")
        raise


def _entry_of(machine: Bare, config: Config, manners: int) -> Entry:
    """What decides about the entry that L1 is about to make."""
    l1 = machine.l1
    return Entry(
        list(l1.vmcs),
        machine.memory.vtpr,
        config.caps,
        has_current=l1.has_current,
        behind_mov_ss=l1.in_mov_ss_shadow,
        force_resume=manners & FORCE_RESUME != 0,
    )


def _compare_checks(entry: Entry, config: Config, rows: tuple[Row, ...]) -> None:
    """Ask the model's checks themselves, which also name the rule."""
    number, rule = config.checker.judge_controls(entry.vmcs, entry.vtpr)
    how, qualification = VMFAIL, 0
    if not number:
        qualification, rule = config.checker.judge_guest_state(entry.vmcs)
        how, number = EXIT, 33
    if not rule:
        if rows:
            raise Disagreement(f"the checks pass, the table does not{_because(rows)}")
        return
    if (rule, how, number, qualification) not in {
        (row.rule, row.how, row.number, row.qualification) for row in rows
    }:
        outcome = Outcome(how, number, qualification)
        raise Disagreement(f"the checks say {outcome} by rule {rule}, the table{_because(rows)}")


def _msr_load(entry: Entry) -> Outcome:
    """The outcome when no check fails: the MSR list may still fail, with the number of its entry."""
    bad_entry = entry.vmcs[ENTRY_MSR_LOAD_BAD]
    return Outcome(EXIT, _MSR_LOAD, bad_entry) if bad_entry else ENTERED


def _outcome(machine: Bare) -> Outcome:
    """The outcome that L1 saw of its last entry."""
    journal = machine.journal
    start = max(index for index, record in enumerate(journal) if record[0] == L1_ENTRY)
    for record in journal[start:]:
        if record[0] == VMFAIL_RECORD:
            return Outcome(VMFAIL, record[1], 0)
        if record[0] == EXIT_RECORD:
            if record[1] & FAILED_ENTRY:
                return Outcome(EXIT, record[1] & ~FAILED_ENTRY, record[2])
            break
    return ENTERED


def _because(rows: tuple[Row, ...]) -> str:
    return "".join(f"; {row.rule} forbids {row.terms}" for row in rows) or "; nothing forbids it"
