"""VM exits in the middle of a delivery (X1 to X10)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    BP,
    DB,
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NP,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    UD,
)
from nvmx_core.arch.exits import (
    APIC_ACCESS,
    APIC_ACCESS_IN_EVENT_DELIVERY,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PML_FULL,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TASK_SWITCH,
    TASK_SWITCH_BY_IDT_GATE,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
)
from nvmx_core.arch.fields import (
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_RFLAGS,
    POISON,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    PENDING_DBG_BS,
    RFLAGS_RF,
    WAIT_FOR_SIPI,
)
from nvmx_core.guests.memory import (
    CODE_BASE,
    DATA,
    GATE_NOT_PRESENT,
    GATE_TASK,
    HANDLER,
    STACK,
    TASK_GATE_SELECTOR,
    page_address,
)
from nvmx_core.journal import L1_NMI
from nvmx_core.scenario.steps import IN_DELIVERY, PAGE_MISCONFIGURED, Step
from tests.support import (
    RFLAGS_START,
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
    play,
    pml_log_full,
    run,
    sipi,
    timer,
    vmwrite,
)

Moves = tuple[Step, ...]

INTERRUPT_40: Final = event(EXTERNAL_INTERRUPT, 0x40)
NMI_EVENT: Final = event(NMI, 2)

# What a hypervisor can meet while the interrupt 40h is delivered, with the exit that it causes.
OBSTACLES: Final[dict[int, Moves]] = {
    EXCEPTION_NMI: (intercept(NP), gate(0x40, GATE_NOT_PRESENT)),
    TASK_SWITCH: (gate(0x40, GATE_TASK),),
    APIC_ACCESS: (control("virtualize-apic-accesses"), apic_page(STACK)),
    EPT_VIOLATION: (ept(STACK),),
    EPT_MISCONFIG: (ept(STACK, PAGE_MISCONFIGURED),),
    PML_FULL: (control("pml"), pml_log_full()),
}

ALL_TYPES: Final = (
    (EXTERNAL_INTERRUPT, 0x40, False),
    (NMI, 2, False),
    (HARDWARE_EXCEPTION, UD, False),
    (HARDWARE_EXCEPTION, GP, True),
    (SOFTWARE_INTERRUPT, 0x80, False),
    (PRIVILEGED_SOFTWARE_EXCEPTION, DB, False),
    (SOFTWARE_EXCEPTION, BP, False),
)


# -- X1, X2, X3: when IDT-vectoring information is valid ----


@pytest.mark.parametrize("reason", OBSTACLES)
def test_x1_exits_during_an_injected_delivery_carry_the_event(reason: int) -> None:
    seen = play(*OBSTACLES[reason], inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.reason == reason
    assert seen.exit.vectoring == INTERRUPT_40


@pytest.mark.parametrize("reason", OBSTACLES)
def test_x1_exits_during_a_natural_delivery_carry_the_event(reason: int) -> None:
    seen = play(*OBSTACLES[reason], enter(), interrupt(0x40), off="external-interrupt-exiting")
    assert seen.exit.reason == reason
    assert seen.exit.vectoring == INTERRUPT_40


def test_x1_the_same_exits_outside_a_delivery_carry_nothing() -> None:
    assert play(ept(DATA), enter(), run("load")).exit.vectoring == 0
    assert play(intercept(UD), enter(), run("ud2")).exit.vectoring == 0


def test_x1_task_switch_reports_an_idt_gate_and_its_selector() -> None:
    seen = play(*OBSTACLES[TASK_SWITCH], inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.qualification == TASK_SWITCH_BY_IDT_GATE | TASK_GATE_SELECTOR


def test_x1_apic_access_reports_a_linear_access_during_delivery() -> None:
    seen = play(*OBSTACLES[APIC_ACCESS], inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.qualification == APIC_ACCESS_IN_EVENT_DELIVERY


def test_x2_an_event_that_exits_itself_is_not_being_delivered() -> None:
    seen = play(enter(), nmi())
    assert seen.exit.interruption == NMI_EVENT
    assert seen.exit.vectoring == 0


def test_x2_a_double_fault_that_exits_carries_nothing() -> None:
    seen = play(intercept(DF), gate(GP, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, GP), enter())
    assert seen.exit.vector == DF
    assert seen.exit.vectoring == 0


def test_x2_a_triple_fault_carries_nothing() -> None:
    seen = play(gate(DF, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, DF), enter())
    assert seen.exit.reason == TRIPLE_FAULT
    assert seen.exit.vectoring == 0


def test_x2_the_fetch_of_the_handler_carries_nothing() -> None:
    seen = play(ept(HANDLER), inject(EXTERNAL_INTERRUPT, 0x40), enter(), run("nop"))
    assert seen.vectors == [0x40]
    assert seen.exit.reason == EPT_VIOLATION
    assert seen.exit.vectoring == 0


NO_INTERRUPT_EXITING: Final = "external-interrupt-exiting"
BOUNDARY_EVENTS: Final[tuple[tuple[int, Moves, str], ...]] = (
    (EXTERNAL_INTERRUPT_EXIT, (interrupt(0x50, IN_DELIVERY),), ""),
    (EXCEPTION_NMI, (nmi(IN_DELIVERY),), ""),
    (INIT_SIGNAL, (init(IN_DELIVERY),), ""),
    (PREEMPTION_TIMER, (timer(100, IN_DELIVERY),), "preemption-timer"),
    (MONITOR_TRAP_FLAG, (control("monitor-trap-flag"),), ""),
    (NMI_WINDOW, (control("nmi-window-exiting"),), ""),
    (
        TPR_BELOW_THRESHOLD,
        (control("virtualize-apic-accesses"), vmwrite(TPR_THRESHOLD, 1)),
        "tpr-shadow",
    ),
)


# After an exit in the middle of the delivery these still wait for the next entry. L1 takes an NMI
# through its own IDT first, and the timer starts anew.
STILL_PENDING: Final = tuple(
    row for row in BOUNDARY_EVENTS if row[0] not in {EXCEPTION_NMI, PREEMPTION_TIMER}
)


@pytest.mark.parametrize(
    ("reason", "moves", "on"), BOUNDARY_EVENTS, ids=[str(row[0]) for row in BOUNDARY_EVENTS]
)
def test_x3_boundary_exits_wait_for_the_end_of_the_delivery(
    reason: int, moves: Moves, on: str
) -> None:
    seen = play(*moves, inject(HARDWARE_EXCEPTION, UD), enter(), on=on)
    assert seen.vectors == [UD]
    assert seen.exit.reason == reason
    assert seen.exit.vectoring == 0


@pytest.mark.parametrize(
    ("reason", "moves", "on"), STILL_PENDING, ids=[str(row[0]) for row in STILL_PENDING]
)
def test_x3_boundary_exits_wait_also_if_the_delivery_exits_first(
    reason: int, moves: Moves, on: str
) -> None:
    """The scenario that gave the project its name: finish the injection, then exit."""
    seen = play(ept(STACK), *moves, inject(HARDWARE_EXCEPTION, UD), enter(), enter(), on=on)
    first, second = seen.exits
    assert first.reason == EPT_VIOLATION
    assert first.vectoring == event(HARDWARE_EXCEPTION, UD)
    assert second.reason == reason
    assert second.vectoring == 0


def test_x3_an_nmi_that_waits_behind_such_an_exit_is_taken_in_l1() -> None:
    moves = (ept(STACK), nmi(IN_DELIVERY), inject(HARDWARE_EXCEPTION, UD), enter())
    seen = play(*moves)
    assert seen.exit.reason == EPT_VIOLATION
    assert L1_NMI in seen.kinds


def test_x3_interrupt_window_after_iret_of_the_handler_carries_nothing() -> None:
    moves = (control("interrupt-window-exiting"), inject(NMI, 2), enter(), run("iret"))
    seen = play(*moves)
    assert seen.exit.reason == INTERRUPT_WINDOW
    assert seen.exit.vectoring == 0


def test_x3_sipi_carries_nothing() -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, WAIT_FOR_SIPI), enter(), sipi(0x10))
    assert seen.exit.reason == SIPI_SIGNAL
    assert seen.exit.vectoring == 0


# -- X4, X5, X6: what it says ----


@pytest.mark.parametrize(("event_type", "vector", "has_error_code"), ALL_TYPES)
def test_x4_vector_and_type_are_those_of_the_injection(
    event_type: int, vector: int, has_error_code: bool
) -> None:
    seen = play(ept(STACK), inject(event_type, vector, error=0x77, length=1), enter())
    assert seen.exit.vectoring == event(event_type, vector, has_error_code)
    assert seen.exit.vectoring_error_code == (0x77 if has_error_code else POISON)


@pytest.mark.parametrize(
    ("instruction", "operand", "expected"),
    [
        ("int", 0x80, event(SOFTWARE_INTERRUPT, 0x80)),
        ("int3", 0, event(SOFTWARE_EXCEPTION, BP)),
        ("int1", 0, event(PRIVILEGED_SOFTWARE_EXCEPTION, DB)),
        ("ud2", 0, event(HARDWARE_EXCEPTION, UD)),
        ("gp", 0, event(HARDWARE_EXCEPTION, GP, error_code=True)),
    ],
)
def test_x4_natural_events_are_reported_with_their_type(
    instruction: str, operand: int, expected: int
) -> None:
    seen = play(ept(STACK), enter(), run(instruction, operand))
    assert seen.exit.vectoring == expected


def test_x5_only_the_last_event_of_a_chain_is_reported() -> None:
    gates = (gate(0x40, GATE_NOT_PRESENT), gate(NP, GATE_TASK))
    seen = play(*gates, inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.reason == TASK_SWITCH
    assert seen.exit.vectoring == event(HARDWARE_EXCEPTION, NP, error_code=True)
    assert seen.exit.vectoring_error_code == 0x40 << 3 | 3


def test_x6_interruption_information_describes_the_nested_exception() -> None:
    seen = play(*OBSTACLES[EXCEPTION_NMI], inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.interruption == event(HARDWARE_EXCEPTION, NP, error_code=True)
    assert seen.exit.error_code == 0x40 << 3 | 3


@pytest.mark.parametrize("reason", [reason for reason in OBSTACLES if reason != EXCEPTION_NMI])
def test_x6_other_exits_have_no_interruption_information(reason: int) -> None:
    seen = play(*OBSTACLES[reason], inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.interruption == 0


# -- X7, X8, X9, X10: the state that is saved ----


@pytest.mark.parametrize("reason", OBSTACLES)
def test_x7_registers_are_those_before_the_delivery(reason: int) -> None:
    seen = play(*OBSTACLES[reason], inject(EXTERNAL_INTERRUPT, 0x40), enter(), on="user-mode")
    assert seen.exit.rip == CODE_BASE
    assert seen.exit.rsp == 0
    assert seen.exit.rflags & ~RFLAGS_RF == RFLAGS_START
    assert seen.exit.ss_dpl == 3


def test_x7_rip_is_the_int_instruction() -> None:
    seen = play(ept(STACK), enter(), run("nop"), run("int", 0x80))
    assert seen.exit.rip == CODE_BASE + 1


def test_x7_rip_of_an_injected_int_is_as_loaded() -> None:
    seen = play(ept(STACK), inject(SOFTWARE_INTERRUPT, 0x80, length=2), enter())
    assert seen.exit.rip == CODE_BASE


@pytest.mark.parametrize("rf", [0, RFLAGS_RF])
def test_x8_a_memory_exit_saves_the_rf_of_the_frame(rf: int) -> None:
    flags = vmwrite(GUEST_RFLAGS, RFLAGS_START | rf)
    seen = play(flags, ept(STACK), inject(HARDWARE_EXCEPTION, UD), enter())
    assert seen.exit.rflags & RFLAGS_RF == rf


def test_x8_a_natural_fault_has_rf_1_in_its_frame() -> None:
    assert play(ept(STACK), enter(), run("ud2")).exit.rflags & RFLAGS_RF


def test_x8_a_natural_interrupt_has_rf_0_in_its_frame() -> None:
    seen = play(ept(STACK), enter(), interrupt(0x40), off=NO_INTERRUPT_EXITING)
    assert seen.vmcs[GUEST_RFLAGS] & RFLAGS_RF == 0


@pytest.mark.parametrize("state", [1, PAGE_MISCONFIGURED])
def test_x8_a_memory_exit_outside_a_delivery_saves_rf_1(state: int) -> None:
    assert play(ept(DATA, state), enter(), run("load")).exit.rflags & RFLAGS_RF


def test_x8_an_exception_exit_saves_the_rf_of_the_nested_fault() -> None:
    seen = play(*OBSTACLES[EXCEPTION_NMI], inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.rflags & RFLAGS_RF


@pytest.mark.parametrize(("event_type", "vector", "_has_error_code"), ALL_TYPES)
def test_x9_length_is_defined_for_soft_types_only(
    event_type: int, vector: int, _has_error_code: bool
) -> None:
    seen = play(ept(STACK), inject(event_type, vector, length=9), enter())
    soft = event_type in {SOFTWARE_INTERRUPT, PRIVILEGED_SOFTWARE_EXCEPTION, SOFTWARE_EXCEPTION}
    assert seen.exit.length == (9 if soft else POISON)


@pytest.mark.parametrize(
    ("instruction", "operand", "length"), [("int", 0x80, 2), ("int3", 0, 1), ("int1", 0, 1)]
)
@pytest.mark.parametrize("moves", [(ept(STACK),), (intercept(PF), absent(STACK))])
def test_x9_length_of_a_natural_soft_event(
    instruction: str, operand: int, length: int, moves: Moves
) -> None:
    assert play(*moves, enter(), run(instruction, operand)).exit.length == length


def test_x10_the_interrupt_has_been_acknowledged() -> None:
    seen = play(ept(STACK), enter(), interrupt(0x40), off=NO_INTERRUPT_EXITING)
    assert seen.end.irr == 0
    assert seen.end.isr == 1 << 0x40


def test_x10_an_nmi_blocks_nmis() -> None:
    seen = play(ept(STACK), inject(NMI, 2), enter())
    assert seen.exit.interruptibility == BLOCKING_BY_NMI


def test_x10_a_natural_page_fault_has_written_cr2() -> None:
    seen = play(absent(DATA), ept(STACK), enter(), run("load"))
    assert seen.exit.reason == EPT_VIOLATION
    assert seen.exit.vectoring == event(HARDWARE_EXCEPTION, PF, error_code=True)
    assert seen.exit.cr2 == page_address(DATA)


def test_x10_a_natural_debug_trap_has_written_dr6() -> None:
    seen = play(ept(STACK), enter(), run("nop"), on="single-step")
    assert seen.exit.vectoring == event(HARDWARE_EXCEPTION, DB)
    assert seen.exit.dr6 == PENDING_DBG_BS


def test_x10_the_guest_has_left_hlt() -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, HLT), ept(STACK), inject(NMI, 2), enter())
    assert seen.exit.activity == ACTIVE


def test_x10_no_shadow_is_left() -> None:
    shadow = vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_STI)
    seen = play(shadow, ept(STACK), inject(HARDWARE_EXCEPTION, UD), enter())
    assert seen.exit.interruptibility == 0
