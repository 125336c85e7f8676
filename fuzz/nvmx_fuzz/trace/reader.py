"""A trace as lines, whatever the chunks it comes in, and what a line is.

Both spellings of a line are read, of ftrace (``TASK-PID [CPU] FLAGS TIME: EVENT: TEXT``, with or without
a column for the thread group) and of ``trace-cmd report`` (flags left out, the event padded). What tells
a line of an event of KVM is ``: kvm_`` behind the digits of a time, so no pattern is tried on any other
line.
"""

import re
from typing import Final

LINE_LENGTH_MAX: Final = 1 << 16
"""No line of a trace comes near; what is longer is no trace."""

EVENT_MARK: Final = b": kvm_"
DIGITS: Final = frozenset(b"0123456789")

_LOSS: Final = re.compile(
    rb"CPU:\d+ \[(?:LOST )?(?:\d+ )?EVENTS(?: DROPPED)?\]|##### CPU \d+ buffer started ####"
)
"""ftrace, kernel/trace/trace.c: print_trace_line, test_cpu_buff_start; trace-cmd, tracecmd/trace-read.c."""

_BEGINNING: Final = re.compile(rb"# tracer: |version = \d|cpus=\d")
"""How ftrace and trace-cmd begin a trace: what stands before belongs to another one."""

MARKERS: Final = frozenset(b"C#vc")
"""The first letters of the lines that the two patterns look for."""

_PID: Final = re.compile(rb"([ -~]{0,64}?)-(\d{1,9}) *(?:\( *[\d-]+ *\) *)?$")


class NotATraceError(Exception):
    """The content is no text of a trace; *line* is where that shows, from 1.

    ``before``: the lines in front of that one which nobody has got yet.
    """

    def __init__(self, line: int, before: list[bytes]) -> None:
        """Say where."""
        super().__init__(f"line {line} is no text of a trace")
        self.line: Final = line
        self.before: Final = before


class Lines:
    """Chunks of bytes as whole lines. Where a chunk ends makes no difference, not for errors either."""

    def __init__(self) -> None:
        """Begin before the first line."""
        self._rest = b""
        self.count = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes, without their ends; raises NotATraceError."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines[-1]
        if b"\0" in chunk or max(map(len, lines)) > LINE_LENGTH_MAX:
            for number, line in enumerate(lines, start=self.count + 1):
                if b"\0" in line or len(line) > LINE_LENGTH_MAX:
                    raise NotATraceError(number, lines[: number - self.count - 1])
        lines.pop()
        self.count += len(lines)
        return lines

    def finish(self) -> list[bytes]:
        """The last line, if no line end follows it."""
        if not self._rest:
            return []
        last, self._rest = self._rest, b""
        self.count += 1
        return [last]


def is_loss(line: bytes) -> bool:
    """Whether the line says that events before it are missing."""
    return _LOSS.match(line.lstrip(b" ")) is not None


def is_beginning(line: bytes) -> bool:
    """Whether another trace begins with this line."""
    return _BEGINNING.match(line) is not None


def task_of(prefix: bytes) -> tuple[int, str] | None:
    """Thread number and name from what stands before the ``[CPU]`` of a line; None if it is no such thing."""
    match = _PID.search(prefix)
    if match is None:
        return None
    return int(match[2]), match[1].strip().decode("ascii")
