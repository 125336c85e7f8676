"""What the fuzz target `fuzz_trace_reader.py` asks of the reader of traces, for any bytes.

- Only `NotATraceError` refuses, with a line that there is.
- Where a chunk ends makes no difference.
- A finding stands in a line of the trace, and shows lines of the trace.
- The spelling of trace-cmd of the same events gives the same verdicts.
- With an event lost after each line no rule speaks that needs to know what came before.
- What was found can be told in lines that people read, and a scenario can be made of it or the refusal is
  one line.

This module imports the model, so import it inside `feedback.instrument`.
"""

import json
import re
from typing import Final, NamedTuple

from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.artifacts import replay_note
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.trace.check import Check
from nvmx_fuzz.trace.findings import Finding
from nvmx_fuzz.trace.reader import EVENT_MARK, NotATraceError
from nvmx_fuzz.trace.report import text_of, to_json
from nvmx_fuzz.trace.seed import scenario_text
from nvmx_fuzz.trace.stretch import Stretches

WITHOUT_HISTORY: Final = frozenset({"X1", "X2", "X3", "X4", "X6", "K1"})
"""The rules of `words.judge_exit`; X1 and X4 have sentences of both kinds."""

_EVENT_LINE: Final = re.compile(rb"([^\n]*\[\d+\]) [^ \[\n:]{4,6} +([\d.]+): (kvm_\w+): *([^\n]*)")
_LOSS: Final = b"\nCPU:0 [LOST 1 EVENTS]\n"
_CHUNK_SIZES: Final = (3, 61)


class TraceError(Exception):
    """The reader of traces does not keep what it promises."""


class Outcome(NamedTuple):
    """What a trace comes to: the check, or the line that refused it."""

    check: Check
    refused_line: int

    def verdict(self) -> tuple[object, ...]:
        """What must be equal for equal events."""
        if self.refused_line:
            return (self.refused_line,)
        check = self.check
        told = [
            (found.rule, found.sentence, found.line, found.pid, found.vcpu)
            for found in check.findings
        ]
        return check.lines, check.events, check.unread, check.losses, check.findings_count, told


def check_trace(data: bytes, artifact_prefix: str = "") -> None:
    """Check an input as a libFuzzer target does; raises TraceError, or what the reader must not raise."""
    try:
        examine(data)
    except Exception as error:
        error.add_note(replay_note("fuzz_trace_reader", data, artifact_prefix))
        raise


def examine(data: bytes) -> Outcome:
    """Hold the outcome of *data* against everything that the head of this file says; raises TraceError."""
    whole = outcome(data, len(data) or 1)
    for size in _CHUNK_SIZES:
        _require_equal(whole, outcome(data, size), f"in chunks of {size} bytes")
    if whole.refused_line:
        if whole.refused_line > data.count(b"\n") + 1:
            raise TraceError(f"refused at line {whole.refused_line}, which there is not")
        return whole
    lines = data.split(b"\n")
    for finding in whole.check.findings:
        _require_in_trace(finding, lines)
    spelled = trace_cmd_spelling(data)
    _require_equal(whole, outcome(spelled, len(spelled) or 1), "in the spelling of trace-cmd")
    holed = data.replace(b"\n", _LOSS)
    alone = outcome(holed, len(holed) or 1).check.findings
    for finding in alone:
        if finding.rule not in WITHOUT_HISTORY:
            raise TraceError(f"{finding.rule} speaks across lost events: {finding.sentence}")
    _require_told(whole.check, data)
    return whole


def outcome(data: bytes, chunk_size: int) -> Outcome:
    """Check *data* in chunks of that size."""
    check = Check()
    try:
        for start in range(0, len(data), chunk_size):
            check.feed(data[start : start + chunk_size])
        check.finish()
    except NotATraceError as error:
        return Outcome(check, error.line)
    return Outcome(check, 0)


def trace_cmd_spelling(data: bytes) -> bytes:
    """The same trace as ``trace-cmd report`` prints it: without flags, with padded names of events."""
    return b"\n".join(_respelled(line) for line in data.split(b"\n"))


def _respelled(line: bytes) -> bytes:
    match = _EVENT_LINE.fullmatch(line)
    if match is None:
        return line
    prefix, time, name, detail = match.groups()
    if EVENT_MARK in prefix or not time[-1:].isdigit():
        return line
    return b"%s  %s: %-21s %s" % (prefix, time, name + b":", detail)


def _require_equal(one: Outcome, other: Outcome, how: str) -> None:
    if one.verdict() != other.verdict():
        raise TraceError(f"another verdict {how}: {one.verdict()} and {other.verdict()}")


def _require_in_trace(finding: Finding, lines: list[bytes]) -> None:
    if finding.line not in dict(finding.lines):
        raise TraceError(f"the line of a finding is not among those shown: {finding}")
    for number, text in finding.lines:
        if not 1 <= number <= len(lines) or text not in lines[number - 1]:
            raise TraceError(f"line {number} is shown, but is no such line: {finding}")


def _require_told(check: Check, data: bytes) -> None:
    """A report of printable lines, JSON that can be written, and a scenario or one line of refusal."""
    report = text_of("input", check)
    for line in report.splitlines():
        if not line.isprintable():
            raise TraceError(f"reported in a line that cannot be printed: {line!r}")
    json.dumps(to_json("input", check))
    try:
        text = scenario_text("input", Stretches.of_chunks([data])).text
    except BadFile as refused:
        if not refused.message.isprintable():
            raise TraceError(f"refused, but not in one line for people: {refused}") from None
        return
    parse_scenario(text)
