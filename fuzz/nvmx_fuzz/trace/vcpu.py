"""One vCPU, followed through a trace: who runs on it, which event is in delivery, and what breaks a rule.

A trace begins anywhere and has holes, so everything here may be unknown, and a rule speaks only when all
that it needs is known. `docs/TRACES.md` lists for each rule what that is. Three things are followed:

- **who is current**: `kvm_nested_vmenter` and `kvm_nested_vmexit` show L2, `kvm_nested_vmexit_inject`
  shows L1. KVM prints `kvm_nested_vmexit` for every exit of L2, so an exit without it was not L2's, and
  L2 is no longer believed to be current (it may have been left for SMM, or by userspace).
- **L1's injection**, from L1's entry to the first entry of the processor: it is neither replaced nor
  skipped (O2, X13).
- **the event in delivery**, from an exit with valid IDT-vectoring information to the next entry: it is
  injected again as it was (X4), replaced by a new exception (D4), or reported to L1 (X1), and never
  forgotten (X13); and without such an exit nothing is injected *again* (D6).
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from nvmx_core.arch.events import (
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    info_text,
    is_vectoring,
    vector_name,
)
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    PREEMPTION_TIMER,
    TASK_SWITCH,
    VMLAUNCH_EXIT,
)
from nvmx_fuzz.trace.findings import Finding, Known
from nvmx_fuzz.trace.late import Arrivals, Evidence, Line
from nvmx_fuzz.trace.reasons import reason_name
from nvmx_fuzz.trace.records import (
    Entry,
    ExceptionInjected,
    Exit,
    InterruptInjected,
    NestedEntry,
    NestedExit,
    Reflected,
)
from nvmx_fuzz.trace.words import (
    EVENT_MASK,
    UNKNOWN,
    Fault,
    drops_event,
    is_boundary_exit,
    judge_entry,
    names_event,
    same_event,
)

ROOT: Final = 0
L2: Final = 1

CONTEXT_LINES: Final = 8
_VMRESUME_EXIT: Final = 24
_ENTERING: Final = frozenset({VMLAUNCH_EXIT, _VMRESUME_EXIT})
_INTERRUPT_TYPES: Final = (EXTERNAL_INTERRUPT, SOFTWARE_INTERRUPT)
_EXCEPTION_TYPES: Final = (HARDWARE_EXCEPTION, PRIVILEGED_SOFTWARE_EXCEPTION, SOFTWARE_EXCEPTION)
_RETOLD_EXCEPTION_TYPES: Final = (HARDWARE_EXCEPTION, SOFTWARE_EXCEPTION)
"""KVM prints these when it injects them again; what it does with an INT1 or an NMI does not show."""


class Vcpu:
    """The thread of one vCPU. *found* takes what is wrong."""

    def __init__(self, pid: int, task: str, known: Known, found: Callable[[Finding], None]) -> None:
        """Follow the thread *pid*; *task* is how the trace names it."""
        self.pid: Final = pid
        self.task: Final = task
        self.vcpu = UNKNOWN
        self.guest = UNKNOWN
        self.exits = self.nested_entries = self.nested_exits = self.findings = self.losses = 0
        self.context: Final[deque[Line]] = deque(maxlen=CONTEXT_LINES)
        self.arrivals: Final = Arrivals()
        self._known: Final = known
        self._found: Final = found
        self._last_exit: Exit | NestedExit | None = None
        self._exit_line: Line = (0, b"")
        self._is_confirmed = False
        # L1's injection, until the first exit after it.
        self._requested = UNKNOWN
        self._request_line: Line = (0, b"")
        self._l2_rip = UNKNOWN
        self._suspects: list[tuple[Fault, Line]] = []  # until the entry is known to be L2's
        self._is_entered = True
        # The event in delivery between an exit of L2 and the next entry; 0 for none.
        self._flight = UNKNOWN
        self._injected: Line | None = None
        self._is_exception_injected = False

    # -- what is forgotten -------------------------------------------------------------------------

    def forget(self) -> None:
        """Events may be missing here: nothing is known any more."""
        self.guest = UNKNOWN
        self.losses += 1
        self.arrivals.forget()
        self._forget_delivery()

    def interlude(self) -> None:
        """Userspace or SMM has the vCPU: what is pending or in delivery may change."""
        self.arrivals.forget()
        self._forget_delivery()

    def _forget_delivery(self) -> None:
        self._last_exit = None
        self._is_confirmed = False
        self._requested = self._flight = UNKNOWN
        self._suspects.clear()
        self._is_entered = True
        self._injected = None
        self._is_exception_injected = False

    def identify(self, vcpu: int) -> None:
        """The event says which vCPU this thread runs; another one means a new thread of the same number."""
        if self.vcpu != UNKNOWN:
            self.forget()
        self.vcpu = vcpu

    # -- events ------------------------------------------------------------------------------------

    def entry(self, event: Entry, line: Line) -> None:
        """L0 enters its guest."""
        last_exit = self._last_exit
        if last_exit is not None and not self._is_confirmed and self.guest != ROOT:
            self._doubt(last_exit)
        if self.guest == L2 and not self._is_entered and event.rip not in (UNKNOWN, self._l2_rip):
            self.entry_refused()  # L1 runs on: loading its MSRs failed, which no event tells
        if self.guest != L2:
            self._last_exit = None
            return
        for fault, injection in self._suspects:
            self._tell((fault,), injection, self._request_line)
        self._suspects.clear()
        if not self._is_entered:
            self._judge_first_entry(event, line)
        elif self._flight > 0 and self._injected is None:
            self._judge_reinjection(event, line)
        is_injecting = (
            self._injected is not None
            or (not self._is_entered and self._requested > 0 and is_vectoring(self._requested))
            or (event.event > 0 and is_vectoring(event.event))
        )
        self.arrivals.enter(line, is_injecting, event.immediate)
        self._is_entered = True
        self._flight = UNKNOWN
        self._last_exit = None
        self._injected = None
        self._is_exception_injected = False

    def exit(self, event: Exit, line: Line) -> None:
        """The processor left L0's guest."""
        self.exits += 1
        if event.faults:
            self._tell(event.faults, line)
        self._last_exit = event
        self._exit_line = line
        self._is_confirmed = False
        self._flight = UNKNOWN
        if self.guest == ROOT and event.reason in _ENTERING:
            self.guest = UNKNOWN  # before 6.1 no event tells whether the entry came about

    def nested_exit(self, event: NestedExit, line: Line) -> None:
        """The exit was L2's."""
        self._known.nested_exits = True
        last = self._last_exit
        is_same = last is not None and not self._is_confirmed and last.reason == event.reason
        told = last.faults if is_same and last is not None else ()
        self._tell(tuple(fault for fault in event.faults if fault not in told), line)
        if self.guest != L2:
            self.guest = L2
            self.arrivals.begin_stay()
            self._requested = UNKNOWN
            self._is_entered = True
        if not is_same:
            self._last_exit = event
            self._exit_line = line
        self._is_confirmed = True
        vectoring = event.vectoring
        if event.failed or vectoring == UNKNOWN or event.reason == TASK_SWITCH:
            self._flight = UNKNOWN  # a task switch consumes the event that caused it
        else:
            self._flight = vectoring & EVENT_MASK if vectoring & VALID else 0
        if self._requested != UNKNOWN and self._is_entered:
            if not event.failed:
                self._tell(judge_entry(self._requested), line, self._request_line)
            self._requested = UNKNOWN
        self.arrivals.exit(event.reason, event.qualification, self._flight != 0, line)

    def nested_entry(self, event: NestedEntry, line: Line) -> None:
        """L1 enters L2. AMD's words are not those of VMX, so L2 of AMD stays unknown."""
        last_exit = self._last_exit
        self._forget_delivery()
        if not event.is_vmx:
            self.guest = UNKNOWN
            return
        # Without L1's instruction it is RSM or userspace that goes on in L2, and the injection is an old one.
        is_l1 = last_exit is not None and last_exit.reason in _ENTERING
        self.nested_entries += 1
        self.guest = L2
        self.arrivals.begin_stay(is_seen=True)
        self._requested = event.event if is_l1 else UNKNOWN
        self._l2_rip = event.l2_rip
        self._request_line = line
        self._is_entered = False

    def entry_refused(self) -> None:
        """L1's entry failed a check, before or after `nested_entry`."""
        self.guest = UNKNOWN
        self._forget_delivery()

    def interrupt_injected(self, event: InterruptInjected, line: Line) -> None:
        """L0 puts an interrupt into the next entry."""
        self._known.interrupts_injected = True
        self.arrivals.taken(event.vector, is_by_l1=self.guest == ROOT and event.reinjected != 1)
        if self.guest != L2:
            return
        what = f"interrupt {event.vector:#04x}"
        types = _INTERRUPT_TYPES if event.type == UNKNOWN else (event.type,)
        self._judge_injection(what, event.vector, types, event.reinjected == 1, False, line)
        self._injected = line

    def exception_injected(self, event: ExceptionInjected, line: Line) -> None:
        """L0 puts an exception into the next entry."""
        if event.reinjected:
            self._known.exceptions_injected_again = True
        if self.guest != L2:
            return
        what = f"exception {vector_name(event.vector)}"
        self._judge_injection(what, event.vector, _EXCEPTION_TYPES, event.reinjected, True, line)
        self._injected = line
        self._is_exception_injected |= not event.reinjected

    def reflected(self, event: Reflected, line: Line) -> None:
        """L0 shows L1 an exit of L2."""
        self.nested_exits += 1
        self._tell(event.faults, line)
        interruption = event.interruption
        is_interrupt = event.reason == EXTERNAL_INTERRUPT_EXIT and interruption & VALID != 0
        evidence = None
        if is_interrupt:
            evidence = self.arrivals.interrupt_exit(interruption & VECTOR_MASK)
        if self.guest == L2 and not event.failed:
            self._judge_reflected(event, line)
            if evidence is not None:
                self._tell_late(evidence, interruption & VECTOR_MASK, line)
        self.guest = ROOT
        self._forget_delivery()

    # -- judgements --------------------------------------------------------------------------------

    def _doubt(self, last_exit: Exit | NestedExit) -> None:
        """An exit without `kvm_nested_vmexit`: L0 finished it at once, or it was not L2's."""
        if self.guest == L2:
            if last_exit.reason == PREEMPTION_TIMER:
                return
            self.guest = UNKNOWN
            self.arrivals.forget()
            self._forget_delivery()
        elif self._known.nested_exits and last_exit.reason not in _ENTERING:
            self.guest = ROOT

    def _judge_first_entry(self, event: Entry, line: Line) -> None:
        requested = self._requested
        if requested <= 0 or not is_vectoring(requested) or event.event == UNKNOWN:
            return
        if not same_event(event.event, requested):
            told = info_text(event.event)
            sentence = f"L1 injects {info_text(requested)}, but L2 is entered with {told}"
            self._tell((Fault("O2", sentence),), line, self._request_line)

    def _judge_reinjection(self, event: Entry, line: Line) -> None:
        """An event was in delivery at the last exit of L2, and nothing says that it was injected again.

        After an exception L0 may have queued it for L2 in place of the event (D4), and hold it back for
        an INIT that ranks higher; no event tells what is queued.
        """
        if self._last_exit is not None and self._last_exit.reason == EXCEPTION_NMI:
            return
        flight = info_text(self._flight)
        if event.event != UNKNOWN:
            if not event.event & VALID:
                self._tell_vanished(flight, line)
            elif not same_event(event.event, self._flight):
                told = info_text(event.event)
                sentence = f"L2 is entered with {told}, but the event in delivery was {flight}"
                self._tell((Fault("X4", sentence),), line, self._exit_line)
            return
        event_type = (self._flight & TYPE_MASK) >> TYPE_SHIFT
        if (event_type in _INTERRUPT_TYPES and self._known.interrupts_injected) or (
            event_type in _RETOLD_EXCEPTION_TYPES and self._known.exceptions_injected_again
        ):
            self._tell_vanished(flight, line)

    def _judge_injection(
        self,
        what: str,
        vector: int,
        types: tuple[int, ...],
        is_again: bool,
        is_exception: bool,
        line: Line,
    ) -> None:
        if not self._is_entered:
            requested = self._requested
            if (
                requested > 0
                and is_vectoring(requested)
                and not names_event(requested, vector, types)
            ):
                sentence = f"L0 injects {what} into the entry that L1 made to inject {info_text(requested)}"
                self._suspects.append((Fault("X13", sentence), line))
            return
        if self._flight == UNKNOWN or self._is_exception_injected:
            return
        if self._flight:
            if names_event(self._flight, vector, types) or (is_exception and not is_again):
                return
            flight = info_text(self._flight)
            if is_again:
                fault = Fault(
                    "X4", f"L0 injects {what} again, but the event in delivery was {flight}"
                )
            else:
                fault = Fault("X13", f"L0 injects {what} while {flight} is still in delivery")
            self._tell((fault,), line, self._exit_line)
        elif is_again and self._injected is None:
            sentence = f"L0 injects {what} again, although its delivery was complete"
            self._tell((Fault("D6", sentence),), line, self._exit_line)

    def _judge_reflected(self, event: Reflected, line: Line) -> None:
        name = f"nested exit {reason_name(event.reason)}"
        if not self._is_entered:
            requested = self._requested
            if requested > 0 and is_vectoring(requested) and self._known.entries:
                sentence = (
                    f"{name} before L1's injection of {info_text(requested)} reached the processor"
                )
                self._tell((Fault("O2", sentence),), line, self._request_line)
            return
        if self._flight == UNKNOWN or self._is_exception_injected or event.faults:
            return
        told = event.vectoring & EVENT_MASK if event.vectoring & VALID else 0
        if told == self._flight:
            return
        if not told:
            if not drops_event(event.reason, event.interruption):
                rule = "X13" if is_boundary_exit(event.reason, event.interruption) else "X1"
                sentence = f"{name} forgets the event in delivery ({info_text(self._flight)})"
                self._tell((Fault(rule, sentence),), line, self._exit_line)
        elif self._flight:
            sentence = (
                f"{name} reports {info_text(told)} instead of the event in delivery"
                f" ({info_text(self._flight)})"
            )
            self._tell((Fault("X4", sentence),), line, self._exit_line)
        elif self._injected is None:
            sentence = f"{name} reports {info_text(told)}, but nothing is being delivered"
            self._tell((Fault("X1", sentence),), line, self._exit_line)

    # -- telling -----------------------------------------------------------------------------------

    def _tell_vanished(self, flight: str, line: Line) -> None:
        sentence = f"the event in delivery ({flight}) is gone: L2 is entered without it"
        self._tell((Fault("X13", sentence),), line, self._exit_line)

    def _tell_late(self, evidence: Evidence, vector: int, line: Line) -> None:
        rule = "O11" if evidence.is_first_entry else "P12"
        sentence = (
            f"interrupt {vector:#04x} for L1 was pending when L2 was entered in line {evidence.entry[0]}, "
            f"but L2 ran on to line {evidence.exit[0]} before its exit"
        )
        fault = Fault(rule, sentence)
        self._tell((fault,), line, evidence.arrival, evidence.entry, evidence.exit)

    def _tell(self, faults: tuple[Fault, ...], line: Line, *before: Line) -> None:
        for fault in faults:
            self.findings += 1
            lines = {number: text for number, text in (*before, *self.context, line) if number}
            self._found(
                Finding(
                    fault.rule,
                    fault.sentence,
                    line[0],
                    self.pid,
                    self.vcpu,
                    tuple(sorted(lines.items())),
                )
            )
