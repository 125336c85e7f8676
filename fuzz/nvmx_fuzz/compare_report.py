"""What `nvmx-fuzz compare` prints: counts, and each kind of difference field by field with its rules."""

import textwrap
from collections.abc import Iterator
from typing import Any, Final

from nvmx_core.arch.rules import RULES
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.compare import Difference
from nvmx_fuzz.comparing import Comparison, Finding
from nvmx_fuzz.wording import counted

WIDTH: Final = 110
_MIB: Final = 1 << 20


def to_json(comparison: Comparison, machine: str, took: float) -> dict[str, Any]:
    """The whole comparison for a program."""
    return {
        "machine": machine,
        "compared": comparison.compared,
        "verdicts": dict(sorted(comparison.verdicts.items())),
        "not_realisable": dict(comparison.reasons.most_common()),
        "divergences": dict(comparison.divergences.most_common()),
        "unlisted": dict(comparison.unlisted.most_common()),
        "seconds": round(took, 1),
        "rate": round(comparison.median_rate),
        "worker_memory": comparison.memory,
        "restarts": comparison.restarts,
        "digest": comparison.digest(),
        "findings": [
            _finding_to_json(finding, machine) for finding in comparison.findings.values()
        ],
    }


def _finding_to_json(finding: Finding, machine: str) -> dict[str, Any]:
    difference = finding.outcome.difference
    return {
        "key": finding.key,
        "reason": finding.outcome.reason,
        "records": difference.lines(machine) if difference else [],
        "fields": _fields_to_json(difference, machine) if difference else [],
        "rules": list(difference.rules()) if difference else [],
        "scenario": format_scenario(finding.scenario),
    }


def _fields_to_json(difference: Difference, machine: str) -> list[dict[str, Any]]:
    return [
        {"field": name, "bare": ours, machine: theirs, "rules": list(difference.rules_of(name))}
        for name, ours, theirs in difference.values()
    ]


def lines(comparison: Comparison, machine: str, took: float) -> Iterator[str]:
    """The whole comparison for a person."""
    verdicts = ", ".join(f"{number} {name}" for name, number in sorted(comparison.verdicts.items()))
    time = f" in {took:.0f} s" if took else ""
    yield (
        f"bare and {machine}: {counted(comparison.compared, 'scenario')} compared{time} ({verdicts})"
    )
    if comparison.rates:
        yield f"  {comparison.median_rate:.0f} a second (median), at least {min(comparison.rates):.0f}"
    if comparison.memory:
        least, most = min(comparison.memory) / _MIB, max(comparison.memory) / _MIB
        yield f"  memory of the emulator's process {least:.1f} to {most:.1f} MiB"
    if comparison.restarts:
        yield f"  the emulator's process was replaced {counted(comparison.restarts, 'time')}"
    yield f"  digest {comparison.digest()[:16]}"
    for name, number in comparison.divergences.most_common():
        yield f"  known {number:6}  {name}"
    for name, number in comparison.reasons.most_common():
        yield f"  cannot {number:5}  {name}"
    for finding in comparison.findings.values():
        yield ""
        yield from _finding_lines(finding, machine, comparison.unlisted[finding.key])
    hidden = comparison.unlisted.keys() - comparison.findings.keys()
    if hidden:
        yield ""
        yield f"and {counted(len(hidden), 'kind')} of difference more"


def _finding_lines(finding: Finding, machine: str, times: int) -> Iterator[str]:
    difference = finding.outcome.difference
    heading = "DIFFERENCE" if difference else "INCIDENT"
    yield f"{heading} {finding.key} ({counted(times, 'time')})"
    yield from (f"    {line}" for line in format_scenario(finding.scenario).splitlines())
    if not difference:
        return
    yield from (f"  {line}" for line in difference.lines(machine))
    told: set[str] = set()
    for name, ours, theirs in difference.values():
        rules = difference.rules_of(name)
        yield f"  {name}: {ours} on bare, {theirs} on {machine}; {', '.join(rules) or 'no rule'}"
        for rule_id in rules:
            if rule_id not in told:
                told.add(rule_id)
                yield from _rule_lines(rule_id)


def _rule_lines(rule_id: str) -> Iterator[str]:
    rule = RULES[rule_id]
    text = f"{rule.title}. {rule.text} ({rule.source})"
    indent = " " * 10
    yield from textwrap.wrap(
        text, WIDTH, initial_indent=f"    {rule_id:4}  ", subsequent_indent=indent
    )
