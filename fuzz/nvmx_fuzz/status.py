"""What a campaign knows about itself while it runs, and how that is shown in plain lines."""

import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, NamedTuple, Protocol

from nvmx_core.l0.reach import REACH_COUNT
from nvmx_fuzz.findings import Findings
from nvmx_fuzz.launcher import Plan
from nvmx_fuzz.model_errors import ModelErrors
from nvmx_fuzz.progress import Totals

LINE_SECONDS: Final = 5.0

_TAIL_BYTES: Final = 4096
_STATUS: Final = re.compile(rb"^#\d+\s+\S+\s+(?:cov: (\d+) )?ft: (\d+) corp: (\d+)/", re.MULTILINE)
_NO_MEMORY: Final = re.compile(
    rb"^MemoryError|Failed to mmap|failed to map segment|out-of-memory|bad_alloc", re.MULTILINE
)
_RECENT: Final = 10


class Coverage(NamedTuple):
    """What libFuzzer counts: counters hit, counters in value classes, inputs kept."""

    counters: int = 0
    features: int = 0
    corpus: int = 0


@dataclass
class Status:
    """A campaign.

    `mode` and `probes` say how branches are counted, `seconds` how long it has been fuzzing,
    `ended` why it no longer is, `killed` whether somebody killed a fuzzing process, and `lost` which of
    several jobs ended before the others, and why.
    """

    plan: Plan
    progress: Totals
    findings: Findings
    model_errors: ModelErrors
    mode: str = ""
    probes: int = 0
    seconds: float = 0.0
    ended: str = ""
    killed: bool = False
    lost: list[str] = field(default_factory=list)

    def coverage(self) -> Coverage:
        """The newest numbers in libFuzzer's log; of several jobs the largest, as each knows most of all."""
        plan = self.plan
        logs = [read_coverage(plan.log_of(number)) for number in range(plan.jobs)]
        return Coverage(*map(max, zip(*logs, strict=True)))

    def reach(self) -> list[int]:
        """How often each situation was reached, in the order of REACH_NAMES."""
        return self.progress.reach(REACH_COUNT)


class Reporter(Protocol):
    """Shows a campaign."""

    def show(self, status: Status) -> None:
        """Called several times a second."""

    def tell(self, line: str) -> None:
        """Something happened that people want to know at once."""

    def close(self) -> None:
        """The campaign is over."""


def read_coverage(log: Path) -> Coverage:
    """The newest numbers in a log of libFuzzer; zeros when there are none yet."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _TAIL_BYTES, 0))
            found = _STATUS.findall(file.read())
    except OSError:
        return Coverage()
    if not found:
        return Coverage()
    counters, features, corpus = found[-1]
    return Coverage(int(counters or 0), int(features), int(corpus))


def ran_out_of_memory(log: Path) -> bool:
    """Whether the end of a log of libFuzzer says that there was no memory, in its words or atheris's."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - _TAIL_BYTES, 0))
            return _NO_MEMORY.search(file.read()) is not None
    except OSError:
        return False


_RATE_SECONDS_MIN: Final = 0.1
"""In less, a rate is chance."""


class Rate:
    """Executions and steps a second, over the last few looks."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._looks: Final[deque[tuple[float, int, int]]] = deque([(0.0, 0, 0)], maxlen=_RECENT)

    def look(self, status: Status) -> tuple[float, float]:
        """Take the numbers of now; returns both rates."""
        progress = status.progress
        now = (status.seconds, progress.executions, progress.steps)
        first = self._looks[0]
        self._looks.append(now)
        passed = now[0] - first[0]
        if passed < _RATE_SECONDS_MIN:
            return 0.0, 0.0
        return (now[1] - first[1]) / passed, (now[2] - first[2]) / passed


class PlainReporter:
    """A line every few seconds, and one for each event."""

    def __init__(self, stream: IO[str]) -> None:
        """Write to *stream*."""
        self._stream: Final = stream
        self._rate: Final = Rate()
        self._next = 0.0

    def show(self, status: Status) -> None:
        """Write a line when it is time."""
        if status.seconds >= self._next and status.progress.executions:
            self._next = status.seconds + LINE_SECONDS
            self.tell(status_line(status, self._rate.look(status)))

    def tell(self, line: str) -> None:
        """Write a line now."""
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """There is nothing to undo."""


def status_line(status: Status, rates: tuple[float, float]) -> str:
    """All numbers in one line."""
    coverage = status.coverage()
    hit = sum(1 for count in status.reach() if count)
    working = status.plan.jobs - len(status.lost)
    jobs = f"  jobs {working}/{status.plan.jobs}" if status.plan.is_shared else ""
    return (
        f"{status.seconds:5.0f} s  {status.progress.executions} executions  {rates[0]:.0f}/s"
        f"  {rates[1]:.0f} steps/s  cov {coverage.counters}  ft {coverage.features}"
        f"  corpus {coverage.corpus}  reach {hit}/{REACH_COUNT}  findings {len(status.findings)}{jobs}"
    )
