"""What a checked trace comes to, for people and as JSON."""

from textwrap import wrap
from typing import Any, Final

from nvmx_core.arch.rules import rule
from nvmx_fuzz.trace.check import Check
from nvmx_fuzz.trace.findings import Finding
from nvmx_fuzz.trace.vcpu import Vcpu
from nvmx_fuzz.wording import counted, printable

_WIDTH: Final = 110
_TEXT_LENGTH_MAX: Final = 220

OK: Final = "ok"
VIOLATION: Final = "violation"
NOTHING_NESTED: Final = "nothing nested"


def verdict_of(check: Check) -> str:
    """One word for the whole trace."""
    return VIOLATION if check.findings_count else OK


def verdict_of_vcpu(vcpu: Vcpu) -> str:
    """One word for one vCPU; without an exit of L2 only L0's own exits were judged."""
    if vcpu.findings:
        return VIOLATION
    return OK if vcpu.nested_entries or vcpu.nested_exits else NOTHING_NESTED


def text_of(name: str, check: Check) -> str:
    """The findings of a trace, then a line for each vCPU, then one for the file."""
    lines: list[str] = []
    for finding in check.findings:
        lines += [*finding_lines(name, finding), ""]
    left_out = check.findings_count - len(check.findings)
    if left_out:
        lines += [f"and {left_out:,} more, of which nothing is kept", ""]
    for vcpu in check.vcpus.values():
        lines.append(_vcpu_line(vcpu))
    lines.append(_file_line(name, check))
    if check.unread:
        lines.append(
            f"{counted(check.unread, 'event')} could not be read, the first in line {check.unread_line}: "
            f"nothing is concluded across them"
        )
    if check.findings:
        lines.append(f"next: nvmx-fuzz corpus from-trace --at {check.findings[0].line} {name}")
    return "\n".join(lines) + "\n"


def finding_lines(name: str, finding: Finding) -> list[str]:
    """A finding: where, what, the lines that matter, and the rule."""
    found = rule(finding.rule)
    head = f"VIOLATION {finding.rule}  {name}:{finding.line}  {_who(finding.vcpu, finding.pid)}"
    lines = [head, *_wrapped(finding.sentence, "  ")]
    width = len(str(finding.line))
    previous = finding.lines[0][0] if finding.lines else finding.line
    for number, text in finding.lines:
        if number > previous + 1:
            lines.append(f"    {'':{width}}  ...")
        previous = number
        mark = ">" if number == finding.line else " "
        lines.append(f"  {mark} {number:{width}}  {_shown(text)}")
    lines += _wrapped(f"rule {found.id}  {found.text} ({found.source})", "  ", "          ")
    return lines


def to_json(name: str, check: Check) -> dict[str, Any]:
    """The same for a program."""
    return {
        "file": name,
        "verdict": verdict_of(check),
        "lines": check.lines,
        "events": check.events,
        "events_not_read": check.unread,
        "losses": check.losses,
        "vcpus": [
            {
                "vcpu": vcpu.vcpu,
                "pid": vcpu.pid,
                "task": vcpu.task,
                "verdict": verdict_of_vcpu(vcpu),
                "exits": vcpu.exits,
                "nested_entries": vcpu.nested_entries,
                "nested_exits": vcpu.nested_exits,
                "violations": vcpu.findings,
            }
            for vcpu in check.vcpus.values()
        ],
        "violations_count": check.findings_count,
        "violations": [
            {
                "rule": finding.rule,
                "title": rule(finding.rule).title,
                "sentence": finding.sentence,
                "source": rule(finding.rule).source,
                "line": finding.line,
                "vcpu": finding.vcpu,
                "pid": finding.pid,
                "lines": [{"line": number, "text": _shown(text)} for number, text in finding.lines],
            }
            for finding in check.findings
        ],
    }


def _vcpu_line(vcpu: Vcpu) -> str:
    counts = [counted(vcpu.exits, "exit"), f"{vcpu.nested_exits:,} shown to L1"]
    if vcpu.losses:
        counts.append(f"begun anew {counted(vcpu.losses, 'time')}")
    verdict = verdict_of_vcpu(vcpu)
    if verdict == VIOLATION:
        verdict = counted(vcpu.findings, "violation")
    who = f"{_who(vcpu.vcpu, vcpu.pid)} {printable(vcpu.task)}".rstrip()
    return f"{who}: {', '.join(counts)}: {verdict}"


def _file_line(name: str, check: Check) -> str:
    parts = [counted(check.lines, "line"), counted(check.events, "event")]
    if check.losses:
        parts.append(f"events missing in {counted(check.losses, 'place')}")
    verdict = verdict_of(check)
    if check.findings_count:
        verdict = counted(check.findings_count, "violation")
    return f"{name}: {', '.join(parts)}: {verdict}"


def _who(vcpu: int, pid: int) -> str:
    return f"vcpu {vcpu} (thread {pid})" if vcpu >= 0 else f"thread {pid}"


def _shown(text: bytes) -> str:
    line = printable(text.decode("ascii", "backslashreplace").rstrip())
    return f"{line[:_TEXT_LENGTH_MAX]} ..." if len(line) > _TEXT_LENGTH_MAX else line


def _wrapped(text: str, indent: str, following: str | None = None) -> list[str]:
    return wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent if following is None else following
    )  # fmt: skip
