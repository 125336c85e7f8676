"""The stretch of a trace that a scenario is made of: one stay in L2, from L1's entry to its exit.

With it goes what came for L1 while L1 ran before. Of a whole trace only the stays that are going on are
held, and the one that is wanted; so a trace of any length will do.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from nvmx_fuzz.trace.check import Check
from nvmx_fuzz.trace.findings import Finding
from nvmx_fuzz.trace.late import Line
from nvmx_fuzz.trace.records import (
    Arrival,
    Event,
    Exit,
    InterruptInjected,
    NestedEntry,
    NestedExit,
    Reflected,
)
from nvmx_fuzz.trace.vcpu import Vcpu

RECORDS_MAX: Final = 512
"""A longer stay is cut there: no scenario has so many steps."""

_BEFORE_MAX: Final = 16
_THREADS_MAX: Final = 4096


class Stretch(NamedTuple):
    """One stay: its vCPU, the records and their lines, arrivals before it, and whether its ends were seen."""

    pid: int
    vcpu: int
    before: tuple[tuple[Line, Event], ...]
    records: tuple[tuple[Line, Event], ...]
    is_begun: bool
    is_ended: bool

    @property
    def first_line(self) -> int:
        """The line of its first record."""
        return self.records[0][0][0]

    @property
    def last_line(self) -> int:
        """The line of its last record."""
        return self.records[-1][0][0]


class _Stay:
    """What is held of one thread: what came for L1, and the records of L2's stay while it goes on."""

    def __init__(self) -> None:
        self.before: deque[tuple[Line, Event]] = deque(maxlen=_BEFORE_MAX)
        self.records: list[tuple[Line, Event]] = []
        self.last_exit: tuple[Line, Event] | None = None

    def take(self, event: Event, line: Line) -> bool:
        """Take a record of the thread; True when L2's stay is over with it."""
        if isinstance(event, NestedEntry):
            self.records = [(line, event)]
        elif self.records:
            is_over = isinstance(event, Reflected)
            if len(self.records) < RECORDS_MAX or is_over:
                self.records.append((line, event))
            return is_over
        elif isinstance(event, NestedExit):
            # L1's entry was not seen; before 6.1 none is.
            self.records = [*([self.last_exit] if self.last_exit else []), (line, event)]
        elif isinstance(event, Exit):
            self.last_exit = (line, event)
        elif isinstance(event, InterruptInjected):
            pending = [one for one in self.before if getattr(one[1], "vector", -1) != event.vector]
            self.before = deque(pending, maxlen=_BEFORE_MAX)
        return False


class Stretches:
    """Watches a `Check` and keeps the stay that is asked for."""

    def __init__(self, at: int = 0, vcpu: int | None = None) -> None:
        """Want the stay around line *at*, or 0: around the first finding; of that vCPU only, if given."""
        self.check: Final = Check(self._watch)
        self.chosen: Stretch | None = None
        self.first_stay = self.next_stay = 0
        self.at: Final = at
        self._wanted_vcpu: Final = vcpu
        self._stays: dict[int, _Stay] = {}
        self._ended: dict[int, Stretch] = {}

    @classmethod
    def of_chunks(
        cls, chunks: Iterable[bytes], at: int = 0, vcpu: int | None = None
    ) -> "Stretches":
        """Read a whole trace; raises NotATraceError."""
        stretches = cls(at, vcpu)
        for chunk in chunks:
            stretches.check.feed(chunk)
        stretches.check.finish()
        stretches.finish()
        return stretches

    def finish(self) -> None:
        """The trace is over: what is going on ends here."""
        self._choose_ended()
        if self.chosen is None:
            for stretch in self._going_on():
                if self._is_wanted(stretch):
                    self.chosen = stretch
                    return

    def finding(self) -> Finding | None:
        """The first finding that counts."""
        for finding in self.check.findings:
            if self._wanted_vcpu is None or finding.vcpu == self._wanted_vcpu:
                return finding
        return None

    def why_none(self) -> str:
        """Why nothing was chosen, and where there is something to choose."""
        whose = "" if self._wanted_vcpu is None else f" of vCPU {self._wanted_vcpu}"
        if not self.at:
            finding = self.finding()
            if finding is not None:
                return f"the first violation, in line {finding.line}, is in no stay in L2"
            if not self.first_stay:
                return f"holds no violation, and no stay in L2{whose}"
            return f"holds no violation{whose}; choose a stay in L2, as in --at {self.first_stay}"
        if self.next_stay:
            return f"no stay in L2{whose} is there; the next begins in line {self.next_stay}"
        return f"no stay in L2{whose} is there, nor behind it"

    def _watch(self, vcpu: Vcpu, event: Event, line: Line) -> None:
        if self._ended:
            self._choose_ended()
        if self.chosen is not None:
            return
        if isinstance(event, Arrival):
            self._arrive(vcpu, event, line)
            return
        if isinstance(event, NestedEntry):
            self.first_stay = self.first_stay or line[0]
            if not self.next_stay and line[0] > self.at:
                self.next_stay = line[0]
        stay = self._stays.get(vcpu.pid)
        if stay is None:
            if len(self._stays) >= _THREADS_MAX:
                self._stays.clear()
            stay = self._stays[vcpu.pid] = _Stay()
        if isinstance(event, NestedEntry) and stay.records:
            self._ended[vcpu.pid] = _stretch(
                vcpu, stay, is_ended=False
            )  # left without an exit for L1
        if stay.take(event, line):
            self._ended[vcpu.pid] = _stretch(vcpu, stay, is_ended=True)
            self._stays[vcpu.pid] = _Stay()

    def _arrive(self, thread: Vcpu, event: Arrival, line: Line) -> None:
        """An arrival belongs to the vCPU that it is for, which may run in another thread."""
        for pid, stay in self._stays.items():
            number = thread.vcpu if pid == thread.pid else self._vcpu_number(pid)
            if number == event.apic:
                (stay.records or stay.before).append((line, event))

    def _vcpu_number(self, pid: int) -> int:
        for (_trace, known), vcpu in self.check.vcpus.items():
            if known == pid:
                return vcpu.vcpu
        return -1

    def _choose_ended(self) -> None:
        """Look at the stays that are over, now that their last event was judged."""
        ended, self._ended = self._ended, {}
        for stretch in ended.values():
            if self.chosen is None and self._is_wanted(stretch):
                self.chosen = stretch

    def _is_wanted(self, stretch: Stretch) -> bool:
        if self._wanted_vcpu is not None and stretch.vcpu != self._wanted_vcpu:
            return False
        at = self.at
        pid = stretch.pid
        if not at:
            finding = self.finding()
            if finding is None:
                return False
            at, pid = finding.line, finding.pid
        return pid == stretch.pid and stretch.first_line <= at <= stretch.last_line

    def _going_on(self) -> Iterator[Stretch]:
        for (_trace, pid), vcpu in self.check.vcpus.items():
            stay = self._stays.get(pid)
            if stay is not None and stay.records:
                yield _stretch(vcpu, stay, is_ended=False)


def _stretch(vcpu: Vcpu, stay: _Stay, is_ended: bool) -> Stretch:
    is_begun = isinstance(stay.records[0][1], NestedEntry)
    return Stretch(vcpu.pid, vcpu.vcpu, tuple(stay.before), tuple(stay.records), is_begun, is_ended)
