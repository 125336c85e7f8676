"""A whole trace, checked while it is read: memory does not grow with its length.

``Check.feed`` is the hot path. A line costs one search; a line of an event that KVM's rules care about
costs two look-ups more (the thread by what stands before its CPU, the record by its text) and one step of
its vCPU.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

from nvmx_fuzz.trace.findings import Finding, Known
from nvmx_fuzz.trace.formats import SPELLINGS, Texts
from nvmx_fuzz.trace.late import Line
from nvmx_fuzz.trace.reader import (
    DIGITS,
    EVENT_MARK,
    MARKERS,
    Lines,
    NotATraceError,
    is_beginning,
    is_loss,
    task_of,
)
from nvmx_fuzz.trace.records import (
    ApicUse,
    Arrival,
    Entry,
    EntryRefused,
    Event,
    ExceptionInjected,
    Exit,
    Interlude,
    InterruptInjected,
    NestedEntry,
    NestedExit,
    PageFault,
    Reflected,
)
from nvmx_fuzz.trace.vcpu import L2, Vcpu
from nvmx_fuzz.trace.words import UNKNOWN

FINDINGS_MAX: Final = 100
"""So many are kept with their lines; further ones are counted."""

_THREADS_MAX: Final = 4096
_PREFIXES_MAX: Final = 1 << 14

Watch = Callable[[Vcpu, Event, Line], None]
"""Somebody who looks on: called with each record before its vCPU takes it."""

_ABSENT: Final = object()


class Check:
    """One trace. Feed it chunks, then `finish` it."""

    def __init__(self, watch: Watch | None = None) -> None:
        """Begin before the first line; *watch* sees every record."""
        self.findings: Final[list[Finding]] = []
        self.findings_count = 0
        self.events = 0
        self.unread = 0
        self.unread_line = 0
        self.other_isa_line = 0
        self.losses = 0
        self.vcpus: Final[dict[tuple[int, int], Vcpu]] = {}
        self._lines: Final = Lines()
        self._texts: Final = Texts()
        self._watch: Final = watch
        self._trace = 0
        self._known = Known()
        self._threads: dict[int, Vcpu] = {}
        self._by_prefix: dict[bytes, Vcpu] = {}
        self._number = 0
        self._steps: Final[dict[type, Callable[[Vcpu, Any, Line], None]]] = {
            Entry: self._entry,
            Exit: self._exit,
            NestedExit: Vcpu.nested_exit,
            NestedEntry: self._nested_entry,
            EntryRefused: lambda vcpu, _event, _line: vcpu.entry_refused(),
            Reflected: Vcpu.reflected,
            InterruptInjected: Vcpu.interrupt_injected,
            ExceptionInjected: Vcpu.exception_injected,
            Arrival: self._arrival,
            ApicUse: self._apic_use,
            Interlude: lambda vcpu, _event, _line: vcpu.interlude(),
            PageFault: lambda _vcpu, _event, _line: None,
        }

    @property
    def lines(self) -> int:
        """How many lines were read."""
        return self._number

    def feed(self, chunk: bytes) -> None:
        """Check what this chunk completes; raises NotATraceError, behind what could be checked."""
        try:
            lines = self._lines.feed(chunk)
        except NotATraceError as error:
            self._take(error.before)
            raise
        self._take(lines)

    def finish(self) -> None:
        """The trace is over; a last line without an end counts too."""
        self._take(self._lines.finish())

    def _take(self, lines: list[bytes]) -> None:
        number = self._number
        known = self._texts.known
        by_prefix = self._by_prefix
        steps = self._steps
        watch = self._watch
        for line in lines:
            number += 1
            at = line.find(EVENT_MARK)
            if at < 1 or line[at - 1] not in DIGITS:
                if line and line[0] in MARKERS:
                    self._marker(line)
                continue
            text = line[at + 2 :]
            event = known.get(text, _ABSENT)
            if event is _ABSENT:
                name, _, detail = text.partition(b":")
                if name not in SPELLINGS:
                    continue
                event = self._texts.read(text, name, detail)
            prefix = line[: line.rfind(b"[", 0, at)]
            vcpu = by_prefix.get(prefix) or self._vcpu_of(prefix)
            if event is None or vcpu is None:
                self._not_read(vcpu, text, number)
                continue
            self.events += 1
            seen = (number, text)
            vcpu.context.append(seen)
            if watch is not None:
                watch(vcpu, event, seen)  # type: ignore[arg-type]
            steps[type(event)](vcpu, event, seen)
        self._number = number

    # -- lines that are no events ------------------------------------------------------------------

    def _marker(self, line: bytes) -> None:
        if is_loss(line):
            # A vCPU may have run on the CPU that lost events, wherever it was seen before and after.
            self.losses += 1
            for vcpu in self._threads.values():
                vcpu.forget()
        elif is_beginning(line):
            self._trace += 1
            self._known = Known()
            self._threads.clear()
            self._by_prefix.clear()

    def _not_read(self, vcpu: Vcpu | None, text: bytes, number: int) -> None:
        """An event of a spelling that the table lacks: what it said is missing."""
        if vcpu is not None:
            vcpu.forget()
        if is_of_svm(text):
            self.other_isa_line = self.other_isa_line or number
            return
        self.unread += 1
        self.unread_line = self.unread_line or number

    # -- events ------------------------------------------------------------------------------------

    def _vcpu_of(self, prefix: bytes) -> Vcpu | None:
        task = task_of(prefix)
        if task is None:
            return None
        pid, name = task
        vcpu = self._threads.get(pid)
        if vcpu is None:
            if len(self._threads) >= _THREADS_MAX:
                self._threads.clear()
                self._by_prefix.clear()
            vcpu = Vcpu(pid, name, self._known, self._found)
            self._threads[pid] = vcpu
        if len(self._by_prefix) >= _PREFIXES_MAX:
            self._by_prefix.clear()
        self._by_prefix[prefix] = vcpu
        return vcpu

    def _found(self, finding: Finding) -> None:
        self.findings_count += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)

    def _identify(self, vcpu: Vcpu, number: int) -> None:
        vcpu.identify(number)
        if len(self.vcpus) < _THREADS_MAX:
            self.vcpus.setdefault((self._trace, vcpu.pid), vcpu)

    def _entry(self, vcpu: Vcpu, event: Entry, line: Line) -> None:
        if event.vcpu != vcpu.vcpu:
            self._identify(vcpu, event.vcpu)
        self._known.entries = True
        vcpu.entry(event, line)

    def _exit(self, vcpu: Vcpu, event: Exit, line: Line) -> None:
        if event.vcpu != vcpu.vcpu and event.vcpu != UNKNOWN:
            self._identify(vcpu, event.vcpu)
        vcpu.exit(event, line)

    def _nested_entry(self, vcpu: Vcpu, event: NestedEntry, line: Line) -> None:
        if not event.is_vmx:
            self.other_isa_line = self.other_isa_line or line[0]
        vcpu.nested_entry(event, line)

    def _arrival(self, thread: Vcpu, event: Arrival, line: Line) -> None:
        """An interrupt for the APIC of a vCPU; it must be sure whose, as several guests may be traced."""
        if not event.is_interrupt:
            return
        is_own = thread.vcpu == event.apic
        named = [thread] if is_own else [v for v in self._threads.values() if v.vcpu == event.apic]
        if len(named) != 1:
            return
        vcpu = named[0]
        if event.is_posted and vcpu.guest != L2:
            vcpu.arrivals.taken_silently(event.vector)
        else:
            vcpu.arrivals.arrive(event.vector, line, is_own)

    def _apic_use(self, thread: Vcpu, event: ApicUse, _line: Line) -> None:
        if event.apic in (UNKNOWN, thread.vcpu):
            thread.arrivals.use_apic()
            return
        for vcpu in self._threads.values():
            if vcpu.vcpu == event.apic:
                vcpu.arrivals.use_apic()


def is_of_svm(text: bytes) -> bool:
    """Whether it is an exit of AMD's half of KVM: reasons in small letters, or EXIT_ in front of them."""
    name, _, rest = text.partition(b":")
    words = rest.split(maxsplit=4)
    if name not in (b"kvm_exit", b"kvm_nested_vmexit", b"kvm_nested_vmexit_inject"):
        return False
    for word, following in pairwise(words):
        if word.rstrip(b":") == b"reason":
            return following[:1].islower() or following.startswith(b"EXIT_")
    return False
