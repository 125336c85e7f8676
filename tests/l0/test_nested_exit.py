"""The nested exit: information from the queues, L2's state in vmcs12, nothing left behind (X1-X13, V6)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    DB,
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_VECTOR,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    VALID,
)
from nvmx_core.arch.exits import (
    APIC_ACCESS,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    PREEMPTION_TIMER,
    TASK_SWITCH,
    TRIPLE_FAULT,
)
from nvmx_core.arch.fields import (
    ENTRY_INTR_INFO,
    GUEST_PREEMPTION_TIMER,
    LAUNCH_STATE,
    POISON,
)
from nvmx_core.arch.state import BLOCKING_BY_NMI
from nvmx_core.guests.memory import GATE_TASK, IDT_LOW, STACK, page_address
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, IN_EMULATION, Step
from tests.nested_support import drop_page, transparent
from tests.support import (
    absent,
    apic_page,
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
    timer,
    vmwrite,
)

INJECTIONS: Final[tuple[tuple[Step, int, int], ...]] = (
    (inject(EXTERNAL_INTERRUPT, 0x40), event(EXTERNAL_INTERRUPT, 0x40), POISON),
    (inject(NMI, NMI_VECTOR), event(NMI, NMI_VECTOR), POISON),
    (
        inject(HARDWARE_EXCEPTION, GP, error=8),
        event(HARDWARE_EXCEPTION, GP, error_code=True),
        POISON,
    ),
    (inject(SOFTWARE_INTERRUPT, 0x80, length=2), event(SOFTWARE_INTERRUPT, 0x80), 2),
    (
        inject(PRIVILEGED_SOFTWARE_EXCEPTION, DB, length=1),
        event(PRIVILEGED_SOFTWARE_EXCEPTION, DB),
        1,
    ),
    (inject(SOFTWARE_EXCEPTION, GP, length=3), event(SOFTWARE_EXCEPTION, GP), 3),
)

# -- X1, X4, X9: what is in flight ----------------------------------------------------------------


@pytest.mark.parametrize(("step", "info", "length"), INJECTIONS)
def test_x4_a_reflected_ept_violation_reports_the_event(step: Step, info: int, length: int) -> None:
    seen = transparent(ept(STACK), step, enter()).seen.exit
    assert seen.reason == EPT_VIOLATION
    assert (seen.vectoring, seen.length) == (info, length)
    assert seen.linear_address == seen.physical_address == page_address(STACK)


@pytest.mark.parametrize(("step", "info", "length"), INJECTIONS)
def test_x4_an_exception_in_the_delivery_reports_the_event(
    step: Step, info: int, length: int
) -> None:
    """The same from L0's queue under shadow paging as from hardware."""
    by_hardware = transparent(intercept(PF), absent(STACK), step, enter())
    by_l0 = transparent(intercept(PF), absent(STACK), step, enter(), off="l0-ept")
    for pair in (by_hardware, by_l0):
        seen = pair.seen.exit
        assert (seen.vectoring, seen.length) == (info, length)
        assert seen.vector == PF


@pytest.mark.parametrize(("step", "info", "length"), INJECTIONS)
def test_x4_an_apic_access_in_the_delivery_reports_the_event(
    step: Step, info: int, length: int
) -> None:
    moves = (control("virtualize-apic-accesses"), apic_page(STACK), step, enter())
    seen = transparent(*moves, on="tpr-shadow").seen.exit
    assert seen.reason == APIC_ACCESS
    assert (seen.vectoring, seen.length) == (info, length)


@pytest.mark.parametrize(("step", "info", "length"), INJECTIONS)
def test_x4_the_event_is_reported_after_a_repair_of_l0_too(
    step: Step, info: int, length: int
) -> None:
    """First L0 repairs the IDT and injects again, then L1's page is missing."""
    seen = transparent(drop_page(IDT_LOW), ept(STACK), step, enter()).seen.exit
    assert (seen.vectoring, seen.length) == (info, length)


def test_x1_a_task_switch_reports_the_event() -> None:
    moves = (gate(0x40, GATE_TASK), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    seen = transparent(*moves).seen.exit
    assert seen.reason == TASK_SWITCH
    assert seen.vectoring == event(EXTERNAL_INTERRUPT, 0x40)


# -- X2, X3: what is never reported ---------------------------------------------------------------


@pytest.mark.parametrize("off", ["", "l0-ept"])
def test_x2_a_double_fault_exit_reports_no_event(off: str) -> None:
    moves = (intercept(DF), absent(STACK), inject(HARDWARE_EXCEPTION, PF), enter())
    seen = transparent(*moves, off=off).seen.exit
    assert seen.vector == DF
    assert seen.vectoring == 0


@pytest.mark.parametrize("off", ["", "l0-ept"])
def test_x2_a_triple_fault_reports_no_event(off: str) -> None:
    seen = transparent(absent(STACK), inject(HARDWARE_EXCEPTION, DF), enter(), off=off).seen.exit
    assert seen.reason == TRIPLE_FAULT
    assert seen.vectoring == 0


@pytest.mark.parametrize("off", ["", "l0-ept"])
@pytest.mark.parametrize(("step", "info", "length"), INJECTIONS)
def test_x3_an_interrupt_exit_after_a_repair_reports_no_event(
    step: Step, info: int, length: int, off: str
) -> None:
    """The project's first bug, for every type, with EPT and with shadow paging."""
    moves = (drop_page(STACK), interrupt(0x51, IN_DELIVERY), step, enter())
    pair = transparent(*moves, off=off)
    assert pair.seen.vectors == [info & 0xFF]
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT
    assert pair.seen.exit.vectoring == 0
    assert length == POISON or pair.seen.exit.length == POISON


# -- D6, E0: vmcs12 -------------------------------------------------------------------------------


def test_d6_an_exit_clears_the_valid_bit_of_the_entry_field() -> None:
    vmcs = transparent(ept(STACK), inject(EXTERNAL_INTERRUPT, 0x40), enter()).nested.l1.vmcs
    assert not vmcs[ENTRY_INTR_INFO] & VALID
    assert vmcs[ENTRY_INTR_INFO] & 0xFF == 0x40


def test_d6_the_entry_length_is_the_property_of_l1() -> None:
    """res4: the length of the soft event in flight is in the exit field alone."""
    moves = (ept(STACK), enter(), run("int", 0x80))
    seen = transparent(*moves).seen.exit
    assert seen.length == 2
    assert seen.entry_length == 0


def test_e0_an_exit_follows_a_launch() -> None:
    assert transparent(enter(), run("cpuid")).nested.l1.vmcs[LAUNCH_STATE] == 1


@pytest.mark.parametrize(("on", "left"), [("", 50), ("save-preemption-timer", 43)])
def test_y4_the_timer_is_saved_if_l1_asked_for_it(on: str, left: int) -> None:
    """bug55: what is left of the period since the entry."""
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 50), enter(), timer(7), run("cpuid"))
    assert transparent(*moves, on=f"preemption-timer {on}").seen.exit.timer == left


def test_y4_an_expired_timer_saves_zero() -> None:
    moves = (enter(), timer(1000))
    seen = transparent(*moves, on="preemption-timer save-preemption-timer").seen.exit
    assert seen.reason == PREEMPTION_TIMER
    assert seen.timer == 0


# -- Y5, V6: L1 after the exit --------------------------------------------------------------------


def test_y5_l1_has_nmis_blocked_after_an_nmi_exit() -> None:
    pair = transparent(enter(), nmi())
    assert pair.seen.exit.reason == EXCEPTION_NMI
    assert pair.seen.end.nmi_blocked_in_l1 == 1


@pytest.mark.parametrize(("off", "blocked"), [("", 0), ("virtual-nmis", 1)])
def test_y5_physical_nmi_blocking_stays_with_l1(off: str, blocked: int) -> None:
    """With virtual NMIs the injected NMI blocks nothing in L1."""
    pair = transparent(inject(NMI, NMI_VECTOR), enter(), run("cpuid"), off=off)
    assert pair.seen.exit.interruptibility == BLOCKING_BY_NMI
    assert pair.seen.end.nmi_blocked_in_l1 == blocked


def test_v6_a_nested_exit_empties_every_queue() -> None:
    vcpu = transparent(ept(STACK), inject(EXTERNAL_INTERRUPT, 0x40), enter()).nested.vcpu
    assert not vcpu.needs_reinjection()
    assert not vcpu.exception_pending
    assert not vcpu.vmexit_pending


def test_v5_no_exit_before_the_accepted_entry_has_run() -> None:
    """What came at the entry waits, whatever it is."""
    moves = (interrupt(0x51, AT_ENTRY), nmi(AT_ENTRY), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert transparent(*moves).seen.vectors == [0x40]


def test_m3_another_exit_cancels_the_mtf_exit() -> None:
    """The emulated instruction owed one; INIT came first, and the next entry owes nothing."""
    moves = (control("monitor-trap-flag"), enter(), init(IN_EMULATION), run("out"), enter())
    assert transparent(*moves).seen.reasons == [INIT_SIGNAL]
