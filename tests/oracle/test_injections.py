"""CONSERVATION, V2: an injection ends exactly once, judged by the whole identity of the event."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    BP,
    BR,
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_INFO,
    NMI_VECTOR,
    NP,
    OTHER_EVENT,
    PF,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_MASK,
    TYPE_SHIFT,
    UD,
    VALID,
    is_vectoring,
)
from nvmx_core.arch.exits import EPT_VIOLATION, EXCEPTION_NMI, TASK_SWITCH, TRIPLE_FAULT
from nvmx_core.arch.fields import (
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    EXIT_INSTRUCTION_LEN,
    GUEST_RFLAGS,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    POISON,
)
from nvmx_core.arch.state import RFLAGS_IF
from nvmx_core.guests.memory import (
    GATE_NOT_PRESENT,
    GATE_TASK,
    GDT,
    HANDLER,
    IDT_HIGH,
    IDT_LOW,
    STACK,
)
from nvmx_core.journal import DELIVER, EXIT, L1_ENTRY
from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.conservation import ORACLE
from nvmx_core.oracle.injections import (
    CHANGED,
    ERASED,
    HANDED_BACK_TOO,
    LOST,
    REPEATED,
    broken_injections,
)
from nvmx_core.scenario.config import CHOSEN_EXCEPTIONS
from nvmx_core.scenario.steps import IN_DELIVERY, Step
from tests.nested_support import both, cancel_entry, drop_page, host_interrupt
from tests.oracle.planted import Planted, name_of, run_fixed, run_wrong, told_by
from tests.support import (
    absent,
    enter,
    ept,
    event,
    gate,
    inject,
    intercept,
    interrupt,
    run,
    vmwrite,
)

# -- wrong cores ---------------------------------------------------------------------------------


class LosesNmiInFlight(Kvm):
    """Wrong: an interrupted NMI is not put back into its queue (bug11)."""

    def requeue(self, info: int, error_code: int, length: int) -> None:
        if info != NMI_INFO:
            super().requeue(info, error_code, length)


class LosesCancelledEvent(Kvm):
    """Wrong: what a cancelled entry had in its field is gone (bug2's kind, res3)."""

    def cancel_injection(self, immediate: bool) -> None:
        super().cancel_injection(immediate)
        self.interrupt_injected = False
        self.mtf_injected = False


class TurnsIntoFault(Kvm):
    """Wrong: an interrupt in flight comes back as a #GP, an exception that its delivery never raises."""

    def requeue(self, info: int, error_code: int, length: int) -> None:
        del info, error_code
        super().requeue(event(HARDWARE_EXCEPTION, GP, error_code=True), 0, length)


class DeliversFaultOfDoubleFault(Kvm):
    """Wrong: a fault while #DF is delivered takes its place instead of being a triple fault (bug21)."""

    def _merge(self, info: int, error_code: int, payload: int, length: int) -> None:
        self._set_pending(info, error_code, payload, length, False)


class LosesErrorCode(Kvm):
    """Wrong: an exception in flight comes back with the error code 0."""

    def requeue(self, info: int, error_code: int, length: int) -> None:
        del error_code
        super().requeue(info, 0, length)


class NormalisesTypes(Kvm):
    """Wrong: a hardware exception with the vector of #BP comes back as a software exception (res2)."""

    def requeue(self, info: int, error_code: int, length: int) -> None:
        if info == event(HARDWARE_EXCEPTION, BP):
            info = event(SOFTWARE_EXCEPTION, BP)
        super().requeue(info, error_code, length or 1)


class HandsBackAnotherLength(Kvm):
    """Wrong: the length of a soft event in flight is that of the exit before (res4's kind)."""

    def save_pending_event(self, reason: int, info: int, length: int) -> None:
        super().save_pending_event(reason, info, length)
        self.vmcs12[EXIT_INSTRUCTION_LEN] += 1


class ErasesOnFailure(Kvm):
    """Wrong: a failed entry clears the valid bit, as every exit does (bug33)."""

    def fail_entry(self, reason: int, qualification: int) -> None:
        self.vmcs12[ENTRY_INTR_INFO] &= ~VALID
        super().fail_entry(reason, qualification)


class KeepsInterruptInFlight(Kvm):
    """Wrong: an interrupt stays in flight after its delivery was completed (O2, X13).

    The handler runs with IF = 0, where hardware refuses an interrupt (G6); so this core opens IF as well.
    """

    def complete_interrupts(self) -> None:
        was_injected = self.interrupt_injected
        super().complete_interrupts()
        if was_injected:
            self.interrupt_injected = True
            self.request_event = True
            self.vmcs02[GUEST_RFLAGS] |= RFLAGS_IF


class HandsBackDelivered(Kvm):
    """Wrong: the exit reports what L1 injected last, delivered or not (the scratch copy of 3.1's kind)."""

    def save_pending_event(self, reason: int, info: int, length: int) -> None:
        super().save_pending_event(reason, info, length)
        injected = self.vmcs12[ENTRY_INTR_INFO]
        if is_vectoring(injected):
            self.vmcs12[IDT_VECTORING_INFO] = injected
            self.vmcs12[IDT_VECTORING_ERROR_CODE] = self.vmcs12[ENTRY_ERROR_CODE]
            self.vmcs12[EXIT_INSTRUCTION_LEN] = self.vmcs12[ENTRY_INSTRUCTION_LEN]


L0_WANTS_NP: Final = 1 << CHOSEN_EXCEPTIONS.index(NP)
L0_WANTS_ALL: Final = (1 << len(CHOSEN_EXCEPTIONS)) - 1
FIRST_FETCH: Final = (enter(), run("nop"))
"""The event is delivered; then its handler's page is missing in L1's EPT, which is no delivery (X14)."""

PLANTED: Final = (
    Planted(
        "V2",
        LOST,
        LosesNmiInFlight,
        (drop_page(IDT_LOW), inject(NMI, NMI_VECTOR), enter(), run("nop")),
    ),
    Planted(
        "V2",
        LOST,
        LosesCancelledEvent,
        (cancel_entry(), inject(EXTERNAL_INTERRUPT, 0x40), enter(), run("nop")),
    ),
    Planted(
        "V2",
        LOST,
        LosesCancelledEvent,
        (cancel_entry(), inject(OTHER_EVENT, 0), enter(), run("nop")),
    ),
    Planted(
        "V2", LOST, TurnsIntoFault, (drop_page(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    ),
    Planted(
        "V2",
        LOST,
        DeliversFaultOfDoubleFault,
        (gate(DF, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, DF), enter()),
        l0_exceptions=L0_WANTS_NP,
    ),
    Planted(
        "V2",
        LOST,
        DeliversFaultOfDoubleFault,
        (gate(PF, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, PF), enter()),
        l0_exceptions=L0_WANTS_NP,
    ),
    Planted(
        "V2",
        CHANGED,
        LosesErrorCode,
        (drop_page(IDT_LOW), inject(HARDWARE_EXCEPTION, GP, error=0x18), enter()),
    ),
    Planted(
        "V2",
        CHANGED,
        LosesErrorCode,
        (ept(IDT_LOW), inject(HARDWARE_EXCEPTION, GP, error=0x18), enter()),
    ),
    Planted(
        "V2", CHANGED, NormalisesTypes, (ept(IDT_LOW), inject(HARDWARE_EXCEPTION, BP), enter())
    ),
    Planted(
        "V2",
        CHANGED,
        NormalisesTypes,
        (drop_page(IDT_LOW), inject(HARDWARE_EXCEPTION, BP), enter()),
    ),
    Planted(
        "V2",
        CHANGED,
        HandsBackAnotherLength,
        (ept(IDT_HIGH), inject(SOFTWARE_INTERRUPT, 0x80, length=2), enter()),
    ),
    Planted(
        "V2",
        ERASED,
        ErasesOnFailure,
        (vmwrite(GUEST_RFLAGS, 0), inject(EXTERNAL_INTERRUPT, 0x40), enter()),
    ),
    Planted(
        "V2",
        REPEATED,
        KeepsInterruptInFlight,
        (drop_page(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter(), host_interrupt()),
    ),
    *(
        Planted("V2", HANDED_BACK_TOO, HandsBackDelivered, (ept(HANDLER), injection, *FIRST_FETCH))
        for injection in (
            inject(EXTERNAL_INTERRUPT, 0x40),
            inject(NMI, NMI_VECTOR),
            inject(HARDWARE_EXCEPTION, UD),
            inject(HARDWARE_EXCEPTION, PF, error=2),
            inject(SOFTWARE_INTERRUPT, 0x80, length=2),
            inject(SOFTWARE_EXCEPTION, BP, length=1),
        )
    ),
)


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_v2_fires_on_the_wrong_core(planted: Planted) -> None:
    assert told_by(ORACLE, run_wrong(planted)) == [(planted.rule, planted.situation)]


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_v2_is_silent_on_the_fixed_core(planted: Planted) -> None:
    assert run_fixed(planted).violations == ()


# -- ends that are right -------------------------------------------------------------------------

REPLACED: Final[dict[str, tuple[tuple[Step, ...], int, int]]] = {
    "interrupt by #NP": (
        (gate(0x40, GATE_NOT_PRESENT), inject(EXTERNAL_INTERRUPT, 0x40)),
        NP,
        0x203,
    ),
    "interrupt by #PF": ((absent(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40)), PF, 0),
    "INT n by #NP": (
        (gate(0x80, GATE_NOT_PRESENT), inject(SOFTWARE_INTERRUPT, 0x80, length=2)),
        NP,
        0x402,
    ),
    "#BR by #NP": ((gate(BR, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, BR)), NP, 0x2B),
    "#GP by #DF": ((gate(GP, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, GP)), DF, 0),
    "#PF by #DF": ((gate(PF, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, PF)), DF, 0),
    "interrupt by #NP, then #DF": (
        (
            gate(0x40, GATE_NOT_PRESENT),
            gate(NP, GATE_NOT_PRESENT),
            inject(EXTERNAL_INTERRUPT, 0x40),
        ),
        DF,
        0,
    ),
}


@pytest.mark.parametrize("name", REPLACED)
def test_v2_is_silent_when_a_fault_of_the_delivery_takes_the_place(name: str) -> None:
    """D4, F1: on bare metal, and with an L0 that intercepts the faults and merges them itself."""
    moves, vector, error_code = REPLACED[name]
    for l0_exceptions in (0, L0_WANTS_ALL):
        pair = both(*moves, enter(), l0_exceptions=l0_exceptions)
        assert pair.violations == ()
        assert [(seen.vector, seen.error_code) for seen in pair.seen.delivered] == [
            (vector, error_code)
        ]


ENDED_BY_EXIT: Final[dict[str, tuple[tuple[Step, ...], int, int]]] = {
    "handed back": (
        (ept(STACK), inject(HARDWARE_EXCEPTION, PF, error=2)),
        EPT_VIOLATION,
        event(HARDWARE_EXCEPTION, PF, error_code=True),
    ),
    "handed back by a task gate": (
        (gate(0x80, GATE_TASK), inject(SOFTWARE_INTERRUPT, 0x80, length=2)),
        TASK_SWITCH,
        event(SOFTWARE_INTERRUPT, 0x80),
    ),
    "the fault that replaced it": (
        (gate(0x40, GATE_NOT_PRESENT), ept(IDT_LOW), inject(EXTERNAL_INTERRUPT, 0x40)),
        EPT_VIOLATION,
        event(HARDWARE_EXCEPTION, NP, error_code=True),
    ),
    "triple fault": ((absent(STACK), inject(EXTERNAL_INTERRUPT, 0x40)), TRIPLE_FAULT, 0),
    "#DF for L1": (
        (intercept(DF), absent(GDT), inject(HARDWARE_EXCEPTION, GP)),
        EXCEPTION_NMI,
        0,
    ),
}


@pytest.mark.parametrize("name", ENDED_BY_EXIT)
def test_v2_is_silent_when_an_exit_ends_the_injection(name: str) -> None:
    moves, reason, vectoring = ENDED_BY_EXIT[name]
    pair = both(*moves, enter())
    assert pair.violations == ()
    assert (pair.seen.exit.reason, pair.seen.exit.vectoring) == (reason, vectoring)


def test_v2_the_same_event_raised_by_the_handler_is_no_second_end() -> None:
    """The handler's first instruction raises #UD once more, and this delivery is interrupted (X1)."""
    missing = (drop_page(IDT_LOW), interrupt(0x51, IN_DELIVERY))
    pair = both(inject(HARDWARE_EXCEPTION, UD), enter(), gate(UD, GATE_TASK), *missing, run("ud2"))
    assert pair.violations == ()
    assert pair.seen.vectors == [UD]
    assert pair.seen.exit.reason == TASK_SWITCH
    assert pair.seen.exit.vectoring == event(HARDWARE_EXCEPTION, UD)


# -- the oracle alone ----------------------------------------------------------------------------

DOCTORED: Final[dict[str, tuple[Step, tuple[int, int], str]]] = {
    "another error code": (inject(HARDWARE_EXCEPTION, GP, error=8), (GP, 0x10), CHANGED),
    "without its error code": (inject(HARDWARE_EXCEPTION, GP, error=8), (GP, POISON), CHANGED),
    "#PF of a fetch": (inject(EXTERNAL_INTERRUPT, 0x40), (PF, 1 << 4), LOST),
    "#PF by the user": (inject(EXTERNAL_INTERRUPT, 0x40), (PF, 1 << 2), LOST),
    "#NP of another gate": (inject(EXTERNAL_INTERRUPT, 0x40), (NP, 0x41 << 3 | 3), LOST),
    "#NP without EXT": (inject(EXTERNAL_INTERRUPT, 0x40), (NP, 0x40 << 3 | 2), LOST),
    "#GP for an interrupt": (inject(EXTERNAL_INTERRUPT, 0x40), (GP, 0x40 << 3 | 3), LOST),
    "#DF with error code": (inject(EXTERNAL_INTERRUPT, 0x40), (DF, 1), LOST),
    "#NP for #GP": (inject(HARDWARE_EXCEPTION, GP), (NP, GP << 3 | 3), LOST),
    "#PF for #PF": (inject(HARDWARE_EXCEPTION, PF, error=4), (PF, 0), CHANGED),
    "#PF for #DF": (inject(HARDWARE_EXCEPTION, DF), (PF, 0), LOST),
    "another vector": (inject(EXTERNAL_INTERRUPT, 0x40), (0x41, POISON), LOST),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_v2_fires_on_a_doctored_delivery(name: str) -> None:
    injection, (vector, error_code), situation = DOCTORED[name]
    nested = both(injection, enter()).nested
    position = next(index for index, record in enumerate(nested.journal) if record[0] == DELIVER)
    nested.journal[position] = (DELIVER, vector, error_code, *nested.journal[position][3:])
    assert [broken.situation for broken in broken_injections(nested)] == [situation]


@pytest.mark.parametrize(
    ("field", "value", "situation"),
    [
        (5, event(HARDWARE_EXCEPTION, 0x40 & 31), LOST),
        (5, event(SOFTWARE_INTERRUPT, 0x80) & ~TYPE_MASK, CHANGED),
        (5, event(SOFTWARE_INTERRUPT, 0x80) | 5 << TYPE_SHIFT, CHANGED),
        (5, 0, LOST),
        (7, 3, CHANGED),
    ],
)
def test_v2_fires_on_a_doctored_exit(field: int, value: int, situation: str) -> None:
    nested = both(ept(IDT_HIGH), inject(SOFTWARE_INTERRUPT, 0x80, length=2), enter()).nested
    position = next(index for index, record in enumerate(nested.journal) if record[0] == EXIT)
    record = list(nested.journal[position])
    record[field] = value
    nested.journal[position] = tuple(record)
    assert nested.journal[position - 1][0] == L1_ENTRY
    assert [broken.situation for broken in broken_injections(nested)] == [situation]
