"""The explanation of a finding: five parts, in text and as JSON (style of miri's and elle's reports).

1. one sentence with the id of the oracle and the rule; 2. the scenario, one line per step, with what it did
in L1, in L2 and, hidden, in L0; 3. for each field in the violated rule who wrote it, when and why; 4. what
the SDM or KVM says should have happened; 5. the command that runs it again.

A scenario that breaks nothing has the same report without parts 1 and 3.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from nvmx_core.bugs.catalogue import shown_version
from nvmx_core.bugs.planted import PLANTED
from nvmx_core.bugs.versions import FIXED, bugs_of, l0_class
from nvmx_core.journal import EXIT, Record
from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.judge import run_and_judge, violations_of
from nvmx_core.oracle.transparency import first_difference
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.decode_words import record_field
from nvmx_fuzz.explain_bare import bare_lines
from nvmx_fuzz.explain_fields import stories
from nvmx_fuzz.explain_render import render_rich, render_text
from nvmx_fuzz.explain_replay import Place, PlayedStep, play
from nvmx_fuzz.explain_report import Finding, Report, to_json
from nvmx_fuzz.explain_rules import rule_texts
from nvmx_fuzz.explain_setup import setup_texts
from nvmx_fuzz.explain_timeline import timeline, wrong_moment
from nvmx_fuzz.free_operands import free_operands
from nvmx_fuzz.wording import command_on

__all__ = ["Report", "explain", "render_rich", "render_text", "to_json"]

NOT_SAVED: Final = "FILE"
"""Stands for the scenario's file in the replay command when nobody said where it is."""


def explain(
    scenario: Scenario,
    l0_name: str,
    violation_index: int = 0,
    *,
    file: str = NOT_SAVED,
    revision: str = "",
) -> Report:
    """Run a scenario with an L0 of the catalogue and explain one of its violations.

    *file* is where the scenario is saved and *revision* the version of this program, both for the last
    part. A scenario with fewer violations than *violation_index* asks for: IndexError, unless it has
    none and the index is 0. UnknownL0Error for an unknown *l0_name*.
    """
    config = config_for(scenario.config)
    l0 = l0_class(l0_name)
    verdict = run_and_judge(scenario, config, l0)
    violation = (
        verdict.violations[violation_index] if verdict.violations or violation_index else None
    )
    bare, nested = verdict.bare.journal, verdict.nested.journal
    played = play(scenario, config, l0)
    place = None if violation is None else _place(played, bare, nested, violation)
    moment = place.moment if place else None
    return Report(
        l0=l0_name,
        l0_about=about(l0_name),
        setup=setup_texts(config),
        finding=None if violation is None else _finding(violation),
        others=_others(verdict.violations, violation),
        lines=timeline(played, bare, nested, moment, config.l0_ept, _free(scenario, l0, violation)),
        bare=bare_lines(scenario, config, nested),
        fields=stories(played, violation, place) if violation and place else (),
        rules=rule_texts(violation, place),
        replay=command_on("replay", l0_name, file),
        revision=revision,
        scenario=format_scenario(scenario),
    )


def _free(
    scenario: Scenario, l0: type[Kvm], violation: Violation | None
) -> Mapping[int, Collection[int]]:
    """The operands that do not matter for a violation."""
    if violation is None:
        return {}
    key = violation.key()

    def holds(candidate: Scenario) -> bool:
        return any(other.key() == key for other in violations_of(candidate, l0))

    return free_operands(scenario, holds)


def _place(
    played: Sequence[PlayedStep], bare: list[Record], nested: list[Record], violation: Violation
) -> Place | None:
    """Where it is wrong; None when no record of the run stands for it."""
    moment = wrong_moment(played, violation)
    if moment is None:
        return None
    return Place(moment, None if moment.hidden else counterpart(bare, nested, violation))


def about(l0_name: str) -> str:
    """What is wrong with an L0 by construction."""
    if l0_name == FIXED:
        return "KVM's nested event code with all known bugs mended"
    if l0_name in PLANTED:
        return "has a bug planted for measuring"
    bugs = bugs_of(l0_name)
    if not bugs:
        return ""
    if len(bugs) > 1:
        return f"has {', '.join(bug.name for bug in bugs)}"
    bug = bugs[0]
    fix = f'{bug.commit[:12]} "{bug.subject}"'.lstrip()
    return f"undoes {fix} ({shown_version(bug.fixed_in) or 'not mended in 6.12'})"


def _finding(violation: Violation) -> Finding:
    return Finding(
        oracle=violation.oracle,
        rule=violation.rule,
        situation=violation.situation,
        sentence=violation.sentence,
        step=violation.step + 1,
        fields=violation.fields,
    )


def _others(violations: Sequence[Violation], chosen: Violation | None) -> tuple[str, ...]:
    """What else is broken, each kind once."""
    keys = [violation.key() for violation in violations if violation is not chosen]
    return tuple(dict.fromkeys(keys))


def counterpart(bare: list[Record], nested: list[Record], violation: Violation) -> Record | None:
    """What bare metal shows instead of the record that is wrong; None when nobody can tell.

    Up to the first difference the journals go together. There, an exit that comes too early is compared
    with the same exit of bare metal.
    """
    position = violation.position
    difference = first_difference(bare, nested)
    if position > difference or position >= min(len(bare), len(nested)):
        return None
    seen = nested[position]
    if position == difference and seen[0] == EXIT != bare[position][0]:
        reason = record_field(seen, "reason")
        for record in bare[position:]:
            if record[0] == EXIT and record_field(record, "reason") == reason:
                return record
    return bare[position]
