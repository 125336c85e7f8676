"""What is found in a trace, and what is known of the whole of it."""

from typing import NamedTuple

from nvmx_fuzz.trace.late import Line


class Finding(NamedTuple):
    """A broken rule, the line where it shows, and the lines before it that matter, that line included."""

    rule: str
    sentence: str
    line: int
    pid: int
    vcpu: int
    lines: tuple[Line, ...]


class Known:
    """What is known of the trace as a whole: which events were recorded at all, and how new the kernel is."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self.entries = False
        self.nested_exits = False
        self.interrupts_injected = False
        self.exceptions_injected_again = False
