"""What a campaign came to: one dictionary, shown as text or as JSON."""

from collections.abc import Iterator
from typing import Any, Final

from nvmx_core.l0.reach import REACH_COUNT, REACH_NAMES
from nvmx_fuzz import OUR_OWN_BUG
from nvmx_fuzz.findings import Finding, Findings
from nvmx_fuzz.status import Status
from nvmx_fuzz.version import revision
from nvmx_fuzz.wording import command_on, counted

SUMMARY_VERSION: Final = 1

NOTHING_FOUND: Final = 0
FOUND: Final = 1
CUT_SHORT: Final = 2

Summary = dict[str, Any]

_COLUMNS: Final = 2


def summarise(status: Status) -> Summary:
    """All that is worth keeping of a campaign that has ended."""
    plan = status.plan
    progress = status.progress
    seconds = max(status.seconds, 1e-9)
    coverage = status.coverage()
    findings = status.findings
    return {
        "version": SUMMARY_VERSION,
        "revision": revision(),
        "l0": plan.l0,
        "seed": plan.seed,
        "command": plan.command,
        "out": str(plan.out),
        "ended": status.ended,
        "killed": status.killed,
        "jobs": plan.jobs,
        "jobs_lost": status.lost,
        "core": plan.core,
        "feedback": status.mode,
        "probes": status.probes,
        "seconds": round(status.seconds, 3),
        "executions": progress.executions,
        "executions_per_second": round(progress.executions / seconds, 1),
        "steps": progress.steps,
        "steps_per_second": round(progress.steps / seconds, 1),
        "steps_skipped": progress.skipped,
        "executions_violating": progress.violating,
        "coverage": coverage.counters,
        "features": coverage.features,
        "corpus": coverage.corpus,
        "reach": dict(zip(REACH_NAMES, status.reach(), strict=True)),
        "findings": [_finding(findings, finding) for finding in findings.all()],
        "model_errors": [
            {"error": error, "file": file} for error, file in status.model_errors.seen
        ],
    }


def exit_status(summary: Summary) -> int:
    """3 when the model contradicted itself, for then nothing else can be relied on.

    Else 1 for findings; 2 when somebody killed a fuzzing process before there was one.
    """
    if summary["model_errors"]:
        return OUR_OWN_BUG
    if summary["findings"]:
        return FOUND
    return CUT_SHORT if summary["killed"] else NOTHING_FOUND


def summary_text(summary: Summary) -> str:
    """The summary for people; what to do next stands last."""
    return "\n".join(
        [
            *_numbers(summary),
            "",
            *_reach(summary["reach"]),
            "",
            *_results(summary),
            "",
        ]
    )


def _finding(findings: Findings, finding: Finding) -> dict[str, Any]:
    violation = finding.violation
    return {
        "key": violation.key(),
        "oracle": violation.oracle,
        "rule": violation.rule,
        "situation": violation.situation,
        "sentence": violation.sentence,
        "step": violation.step + 1,
        "steps": len(finding.scenario.steps),
        "file": str(finding.scn),
        "earlier": finding.earlier,
        "explain": findings.explain_command(finding),
        "replay": findings.replay_command(finding),
    }


def _numbers(summary: Summary) -> Iterator[str]:
    jobs = f", {summary['jobs']} jobs" if summary["jobs"] > 1 else ""
    yield (
        f"L0 {summary['l0']}, seed {summary['seed']}, {summary['core']} core, feedback"
        f" {summary['feedback']}{jobs}: {summary['ended']} after {summary['seconds']:.1f} s"
    )
    yield from summary["jobs_lost"]
    yield (
        f"executions  {summary['executions']:>12,}   {summary['executions_per_second']:>10,.0f}/s"
        f"   {summary['executions_violating']:,} of them broke a rule"
    )
    skipped = 100 * summary["steps_skipped"] / max(summary["steps"], 1)
    yield (
        f"steps       {summary['steps']:>12,}   {summary['steps_per_second']:>10,.0f}/s"
        f"   {skipped:.0f} % could not apply"
    )
    yield (
        f"coverage    {summary['coverage']:>12,}   {summary['features']:>10,} features"
        f"   {summary['corpus']:,} inputs kept"
    )


def _reach(reach: dict[str, int]) -> Iterator[str]:
    """Two columns; what was never reached proves nothing, so it is marked."""
    hit = sum(1 for count in reach.values() if count)
    yield f"reach {hit} of {REACH_COUNT} situations"
    width = max(map(len, reach))
    cells = [
        f"{'  ' if count else '! '}{name:{width}} {count:>10,}" for name, count in reach.items()
    ]
    rows = -(-len(cells) // _COLUMNS)
    for row in range(rows):
        yield "   ".join(cells[row::rows]).rstrip()
    if hit < REACH_COUNT:
        yield "! never reached: the rules of these situations were not put to the test"


def _results(summary: Summary) -> Iterator[str]:
    findings = summary["findings"]
    errors = summary["model_errors"]
    if errors:
        yield f"OUR OWN BUG: the model contradicted itself, {counted(len(errors), 'time')}"
        for error in errors:
            yield f"  {error['error']}"
            if error["file"]:
                yield f"  next: {command_on('replay', summary['l0'], error['file'])}"
    if not findings:
        yield "no findings"
        yield f"next: {summary['command']}"
        return
    yield f"{counted(len(findings), 'finding')} in {summary['out']}/findings"
    for finding in findings:
        known = ", known from an earlier campaign" if finding["earlier"] else ""
        yield f"  {finding['key']}"
        yield f"    {finding['sentence']} ({finding['steps']} steps{known})"
        yield f"    next: {finding['explain']}"
