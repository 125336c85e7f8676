"""EXIT-INFO (X1, X2, X3, X4, X6): each rule fires on a planted wrong core, and is silent on the right one."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    BP,
    DB,
    DF,
    ERROR_CODE_VALID,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI_INFO,
    OTHER_EVENT,
    PF,
    SOFTWARE_EXCEPTION,
)
from nvmx_core.arch.exits import (
    CPUID_EXIT,
    EOI_INDUCED,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    IDT_VECTORING_ALLOWED,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
    exit_name,
)
from nvmx_core.arch.fields import (
    EOI_EXIT_BITMAP,
    GUEST_ACTIVITY,
    GUEST_PREEMPTION_TIMER,
    IDT_VECTORING_INFO,
    POISON,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import WAIT_FOR_SIPI
from nvmx_core.bugs.ordering import Bug2
from nvmx_core.guests.memory import DATA, GATE_TASK, HANDLER, IDT_HIGH, IDT_LOW, STACK
from nvmx_core.journal import EXIT
from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.exit_info import BOUNDARY_REASONS, ORACLE, VECTORING, exit_info
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, Step
from tests.nested_support import both, drop_page
from tests.oracle.planted import Planted, name_of, run_fixed, run_wrong, told_by
from tests.support import (
    absent,
    control,
    enter,
    ept,
    event,
    gate,
    init,
    inject,
    intercept,
    interrupt,
    nmi,
    run,
    sipi,
    timer,
    virtual_interrupt,
    vmwrite,
    vtpr,
)

STALE_EVENT: Final = event(EXTERNAL_INTERRUPT, 0x40)


class ReportsStaleEvent(Kvm):
    """Wrong: IDT-vectoring information of an earlier exit is left in vmcs12."""

    def save_pending_event(self, reason: int, info: int, length: int) -> None:
        super().save_pending_event(reason, info, length)
        self.vmcs12[IDT_VECTORING_INFO] = STALE_EVENT


class InventsErrorCode(Kvm):
    """Wrong: an event in flight gets an error-code bit, whatever its type."""

    def save_pending_event(self, reason: int, info: int, length: int) -> None:
        super().save_pending_event(reason, info, length)
        self.vmcs12[IDT_VECTORING_INFO] |= ERROR_CODE_VALID


class ForgetsEvent(Kvm):
    """Wrong: an exit in a delivery does not report the event that is being delivered."""

    def save_pending_event(self, reason: int, info: int, length: int) -> None:
        self.clear_queues()
        super().save_pending_event(reason, info, length)


class NormalisesTypes(Kvm):
    """Wrong: a hardware exception with the vector of #BP comes back as a software exception (res2)."""

    def requeue(self, info: int, error_code: int, length: int) -> None:
        if info == event(HARDWARE_EXCEPTION, BP):
            info = event(SOFTWARE_EXCEPTION, BP)
        super().requeue(info, error_code, length)


class LeavesInterruptionInfo(Kvm):
    """Wrong: interruption information of an earlier exit is left in vmcs12 (bug24's kind)."""

    def nested_vmexit(
        self,
        reason: int,
        qualification: int = 0,
        info: int = 0,
        error_code: int = POISON,
        length: int = POISON,
    ) -> None:
        super().nested_vmexit(reason, qualification, info or NMI_INFO, error_code, length)


# -- X1, X2, X3: one scenario for each exit that never reports an event in flight -----------------

LEADS_TO: Final[dict[str, tuple[int, str, str, tuple[Step, ...]]]] = {
    "external interrupt": (EXTERNAL_INTERRUPT_EXIT, "X3", "", (interrupt(0x40, AT_ENTRY), enter())),
    "init": (INIT_SIGNAL, "X3", "", (init(), enter())),
    "sipi": (SIPI_SIGNAL, "X3", "", (vmwrite(GUEST_ACTIVITY, WAIT_FOR_SIPI), enter(), sipi(0x10))),
    "interrupt window": (
        INTERRUPT_WINDOW,
        "X3",
        "",
        (control("interrupt-window-exiting"), enter()),
    ),
    "nmi window": (NMI_WINDOW, "X3", "", (control("nmi-window-exiting"), enter())),
    "monitor trap flag": (MONITOR_TRAP_FLAG, "X3", "", (inject(OTHER_EVENT, 0), enter())),
    "tpr below threshold": (
        TPR_BELOW_THRESHOLD,
        "X3",
        "tpr-shadow",
        (vmwrite(TPR_THRESHOLD, 2), vtpr(2), enter(), run("mov-cr8", 1)),
    ),
    "virtualized eoi": (
        EOI_INDUCED,
        "X3",
        "tpr-shadow virtual-interrupt-delivery",
        (
            vmwrite(EOI_EXIT_BITMAP, 1 << 0x20),
            virtual_interrupt(0x20),
            enter(),
            run("apic-eoi"),
        ),
    ),
    "preemption timer": (
        PREEMPTION_TIMER,
        "X3",
        "preemption-timer",
        (vmwrite(GUEST_PREEMPTION_TIMER, 0), enter()),
    ),
    "nmi": (EXCEPTION_NMI, "X3", "", (nmi(AT_ENTRY), enter())),
    "double fault": (
        EXCEPTION_NMI,
        "X2",
        "",
        (intercept(DF), absent(STACK), inject(HARDWARE_EXCEPTION, PF), enter()),
    ),
    "triple fault": (
        TRIPLE_FAULT,
        "X2",
        "",
        (absent(STACK), inject(HARDWARE_EXCEPTION, DF), enter()),
    ),
    "an instruction": (CPUID_EXIT, "X1", "", (enter(), run("cpuid"))),
}


STALE: Final[dict[str, Planted]] = {
    name: Planted(
        rule, f"{exit_name(reason)} with valid IDT-vectoring", ReportsStaleEvent, moves, on
    )
    for name, (reason, rule, on, moves) in LEADS_TO.items()
}


@pytest.mark.parametrize("name", LEADS_TO)
def test_x3_fires_on_a_stale_event(name: str) -> None:
    """X1, X2, X3: valid IDT-vectoring with a reason that cannot have it."""
    planted = STALE[name]
    pair = run_wrong(planted)
    assert pair.seen.exits[-1].reason == LEADS_TO[name][0]
    assert told_by(ORACLE, pair) == [(planted.rule, planted.situation)]


@pytest.mark.parametrize("name", LEADS_TO)
def test_x3_is_silent_on_the_fixed_core(name: str) -> None:
    reason, _rule, on, moves = LEADS_TO[name]
    pair = both(*moves, on=on)
    assert pair.seen.exits[-1].reason == reason
    assert pair.violations == ()


def test_x3_every_boundary_reason_that_a_step_can_cause_is_tried() -> None:
    """No instruction of L2 causes an APIC-write exit (56)."""
    tried = {reason for reason, rule, _on, _moves in LEADS_TO.values() if rule == "X3"}
    assert tried == (BOUNDARY_REASONS - {56}) | {EXCEPTION_NMI}


@pytest.mark.parametrize("reason", sorted(BOUNDARY_REASONS))
def test_x3_fires_on_a_doctored_record(reason: int) -> None:
    """The oracle alone: a finished run whose exit is given another reason and an event."""
    nested = both(enter(), run("cpuid")).nested
    position = next(index for index, record in enumerate(nested.journal) if record[0] == EXIT)
    record = list(nested.journal[position])
    record[1] = reason
    record[VECTORING] = STALE_EVENT
    nested.journal[position] = tuple(record)
    assert [found.rule for found in exit_info(nested)] == ["X3"]


@pytest.mark.parametrize("reason", sorted(IDT_VECTORING_ALLOWED - {EXCEPTION_NMI}))
def test_x1_is_silent_on_reasons_that_may_carry_an_event(reason: int) -> None:
    nested = both(enter(), run("cpuid")).nested
    position = next(index for index, record in enumerate(nested.journal) if record[0] == EXIT)
    record = list(nested.journal[position])
    record[1] = reason
    record[VECTORING] = STALE_EVENT
    nested.journal[position] = tuple(record)
    assert list(exit_info(nested)) == []


# -- X3, planted as the project's first bug ------------------------------------------------------

DURING_REPAIR: Final[dict[int, tuple[str, tuple[Step, ...]]]] = {
    EXTERNAL_INTERRUPT_EXIT: ("", (interrupt(0x51, IN_DELIVERY),)),
    INIT_SIGNAL: ("", (init(IN_DELIVERY),)),
    PREEMPTION_TIMER: ("preemption-timer", (timer(1000, IN_DELIVERY),)),
    NMI_WINDOW: ("", (control("nmi-window-exiting"),)),
    INTERRUPT_WINDOW: ("", (control("interrupt-window-exiting"),)),
    EXCEPTION_NMI: ("", (nmi(IN_DELIVERY),)),
}


@pytest.mark.parametrize("reason", DURING_REPAIR)
def test_x3_fires_when_an_exit_overtakes_a_reinjection(reason: int) -> None:
    """bug1, for each exit that may wait while L0 repairs a page in a delivery."""
    on, waits = DURING_REPAIR[reason]
    moves = (drop_page(IDT_HIGH), *waits, inject(EXTERNAL_INTERRUPT, 0x40), enter())
    situation = f"{exit_name(reason)} with valid IDT-vectoring"
    assert told_by(ORACLE, both(*moves, on=on, l0=Bug2)) == [("X3", situation)]
    assert both(*moves, on=on).violations == ()


# -- X4, X6 --------------------------------------------------------------------------------------

PLANTED: Final = (
    Planted(
        "X1",
        "EPT_VIOLATION without IDT-vectoring",
        ForgetsEvent,
        (ept(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter()),
    ),
    Planted(
        "X1",
        "EXCEPTION_NMI without IDT-vectoring",
        ForgetsEvent,
        (intercept(PF), absent(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter()),
    ),
    Planted(
        "X1",
        "TASK_SWITCH without IDT-vectoring",
        ForgetsEvent,
        (gate(0x80, GATE_TASK), enter(), run("int", 0x80)),
    ),
    Planted(
        "X1",
        "EPT_VIOLATION with IDT-vectoring outside a delivery",
        ReportsStaleEvent,
        (ept(HANDLER), inject(EXTERNAL_INTERRUPT, 0x40), enter(), run("nop")),
    ),
    Planted(
        "X4",
        "EPT_VIOLATION with IDT-vectoring of another event",
        NormalisesTypes,
        (ept(IDT_LOW), inject(HARDWARE_EXCEPTION, BP), enter()),
    ),
    Planted(
        "X4",
        "error-code bit of IDT-vectoring",
        InventsErrorCode,
        (ept(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter()),
    ),
    Planted(
        "X6",
        "EPT_VIOLATION with interruption information",
        LeavesInterruptionInfo,
        (ept(DATA), enter(), run("load")),
    ),
    Planted(
        "X6",
        "EXTERNAL_INTERRUPT with interruption information",
        LeavesInterruptionInfo,
        (interrupt(0x40, AT_ENTRY), enter()),
    ),
)


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_fires_on_the_wrong_core(planted: Planted) -> None:
    assert told_by(ORACLE, run_wrong(planted)) == [(planted.rule, planted.situation)]


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_silent_on_the_fixed_core(planted: Planted) -> None:
    assert run_fixed(planted).violations == ()


def test_x4_is_silent_on_an_exception_with_an_error_code() -> None:
    moves = (ept(IDT_LOW), inject(HARDWARE_EXCEPTION, GP, error=0x18), enter())
    pair = both(*moves)
    assert pair.seen.exit.vectoring == event(HARDWARE_EXCEPTION, GP, error_code=True)
    assert pair.violations == ()


def test_x6_is_silent_on_an_exception_exit() -> None:
    pair = both(intercept(DB), enter(), run("nop"), on="single-step")
    assert pair.seen.exit.reason == EXCEPTION_NMI
    assert pair.violations == ()


def test_x1_is_silent_on_an_ept_violation_in_a_delivery() -> None:
    pair = both(ept(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert pair.seen.exit.reason == EPT_VIOLATION
    assert pair.seen.exit.vectoring == event(EXTERNAL_INTERRUPT, 0x40)
    assert pair.violations == ()
