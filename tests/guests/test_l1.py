"""L1's manners before an entry: each one kept, and each one left out."""

import pytest

from nvmx_core.arch.controls import CPU_INTR_WINDOW_EXITING, CPU_NMI_WINDOW_EXITING
from nvmx_core.arch.events import (
    BP,
    DB,
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_UNBLOCKING_BY_IRET,
    NMI_VECTOR,
    NP,
    PF,
    RESERVED_TYPE,
    SOFTWARE_EXCEPTION,
    UD,
    VALID,
)
from nvmx_core.arch.exits import (
    APIC_ACCESS,
    CPUID_EXIT,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXTERNAL_INTERRUPT_EXIT,
    INVALID_STATE,
    MSR_LOAD_FAIL,
    PML_FULL,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TASK_SWITCH,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_INTR_INFO,
    ENTRY_MSR_LOAD_BAD,
    GUEST_ACTIVITY,
    GUEST_RIP,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import ACTIVE, BLOCKING_BY_NMI, PENDING_DBG_BS, WAIT_FOR_SIPI
from nvmx_core.guests.manners import (
    NO_ADJUST,
    NO_ADVANCE,
    NO_EOI,
    NO_IRET,
    NO_REINJECT,
    NO_REPAIR,
    TIMER_RELOAD,
)
from nvmx_core.guests.memory import (
    CODE_BASE,
    DATA,
    GATE_NOT_PRESENT,
    GATE_TASK,
    STACK,
)
from nvmx_core.journal import L1_INTERRUPT, L1_NMI, L1_UNEXPECTED_VECTORING
from nvmx_core.scenario.steps import PAGE_MISCONFIGURED
from tests.support import (
    absent,
    apic_page,
    control,
    enter,
    ept,
    event,
    gate,
    inject,
    intercept,
    interrupt,
    nmi,
    open_interrupts,
    play,
    pml_log_full,
    run,
    sipi,
    timer,
    virtual_interrupt,
    vmclear,
    vmptrld,
    vmwrite,
    vtpr,
)

BAD_INJECTION = inject(RESERVED_TYPE, 0)

# -- re-injection (X11, X12, X13) ----


def test_reinjects_what_idt_vectoring_reports() -> None:
    seen = play(ept(STACK), inject(EXTERNAL_INTERRUPT, 0x40), enter(), enter())
    assert seen.vectors == [0x40]


def test_reinjects_an_error_code_and_a_length() -> None:
    fault = play(ept(STACK), enter(), run("gp"), enter())
    assert fault.delivered[0].error_code == 0
    soft = play(ept(STACK), enter(), run("int", 0x80), enter())
    assert soft.delivered[0].return_rip == CODE_BASE + 2


def test_opens_virtual_nmis_before_it_reinjects_an_nmi() -> None:
    seen = play(ept(STACK), inject(NMI, 2), enter(), enter())
    assert seen.vectors == [NMI_VECTOR]
    assert seen.end.interruptibility == BLOCKING_BY_NMI


def test_drops_the_event_when_told_so() -> None:
    seen = play(ept(STACK), inject(EXTERNAL_INTERRUPT, 0x40), enter(), enter(NO_REINJECT))
    assert seen.delivered == []
    assert seen.in_l2


@pytest.mark.parametrize(
    ("instruction", "vector", "info"),
    [
        ("ud2", UD, event(HARDWARE_EXCEPTION, UD)),
        ("gp", GP, event(HARDWARE_EXCEPTION, GP, error_code=True)),
        ("int3", BP, event(SOFTWARE_EXCEPTION, BP)),
    ],
)
def test_reflects_an_exception_that_it_only_looked_at(
    instruction: str, vector: int, info: int
) -> None:
    seen = play(intercept(vector), enter(), run(instruction), enter())
    assert seen.exit.interruption == info
    assert seen.vectors == [vector]


def test_reflects_out_of_a_shadow() -> None:
    """The injection would otherwise meet a shadow that the exception has ended."""
    seen = play(intercept(DB), enter(), run("sti"), enter(), on="single-step", off="interrupts-on")
    assert seen.vmfails == []
    assert seen.reasons == [0]
    assert seen.vectors == [DB]


def test_handles_a_page_fault_itself_instead_of_reflecting_it() -> None:
    seen = play(intercept(PF), absent(DATA), enter(), run("load"), enter(), run("load"))
    assert seen.delivered == []
    assert seen.retired == 1


def test_reflects_no_nmi() -> None:
    assert play(enter(), nmi(), enter()).delivered == []


def test_blocks_nmis_again_for_an_iret_that_runs_again() -> None:
    moves = (inject(NMI, 2), enter(), absent(STACK), run("iret"), enter(), run("iret"))
    seen = play(intercept(PF), *moves)
    assert seen.exit.nmi_unblocking
    assert seen.end.interruptibility == 0
    assert seen.end.rip == CODE_BASE


def test_blocks_nmis_again_after_an_ept_violation_of_iret() -> None:
    """X12: there bit 12 of the qualification says so, not the interruption information."""
    moves = (inject(NMI, 2), enter(), run("cpuid"), ept(STACK), enter(), run("iret"), enter())
    seen = play(*moves)
    assert seen.exits[1].qualification & NMI_UNBLOCKING_BY_IRET
    assert seen.end.interruptibility == BLOCKING_BY_NMI


def test_reflects_a_debug_trap_into_hlt_under_tf() -> None:
    """G9 wants BS pending there, although the injection makes it be dropped (O6)."""
    seen = play(intercept(DB), enter(), run("hlt"), enter(), on="single-step")
    assert seen.exits[0].vector == DB
    assert not seen.exits[-1].failed_entry
    assert seen.vectors == [DB]


def test_does_not_overwrite_an_injection_that_a_step_wrote() -> None:
    moves = (ept(STACK), inject(EXTERNAL_INTERRUPT, 0x40), enter(), inject(NMI, 2), enter())
    assert play(*moves).vectors == [NMI_VECTOR]


# -- repair ----


@pytest.mark.parametrize(
    ("state", "reason"), [(1, EPT_VIOLATION), (PAGE_MISCONFIGURED, EPT_MISCONFIG)]
)
def test_repairs_the_page_that_the_exit_names(state: int, reason: int) -> None:
    seen = play(ept(DATA, state), enter(), run("load"), enter(), run("load"))
    assert seen.reasons == [reason]
    assert seen.retired == 1


def test_leaves_the_page_when_told_so() -> None:
    moves = (ept(DATA), enter(), run("load"), enter(NO_REPAIR), run("load"))
    assert play(*moves).reasons == [EPT_VIOLATION, EPT_VIOLATION]


def test_makes_the_gate_usable_that_the_fault_names() -> None:
    moves = (intercept(NP), gate(0x40, GATE_NOT_PRESENT), inject(EXTERNAL_INTERRUPT, 0x40))
    seen = play(*moves, enter(), enter())
    assert len(seen.exits) == 1
    assert seen.vectors == [0x40]


def test_makes_a_task_gate_an_interrupt_gate() -> None:
    seen = play(gate(0x40, GATE_TASK), inject(EXTERNAL_INTERRUPT, 0x40), enter(), enter())
    assert seen.reasons == [TASK_SWITCH]
    assert seen.vectors == [0x40]


def test_empties_a_full_log() -> None:
    moves = (control("pml"), pml_log_full(), enter(), run("store"), enter(), run("store"))
    assert play(*moves).reasons == [PML_FULL]


def test_moves_the_apic_page_out_of_the_way_of_a_delivery() -> None:
    moves = (control("virtualize-apic-accesses"), apic_page(STACK), inject(NMI, 2))
    seen = play(*moves, enter(), enter())
    assert seen.reasons == [APIC_ACCESS]
    assert seen.vectors == [NMI_VECTOR]


def test_restarts_l2_after_a_triple_fault() -> None:
    gates = (gate(GP, GATE_NOT_PRESENT), gate(DF, GATE_NOT_PRESENT))
    seen = play(*gates, enter(), run("nop"), run("gp"), enter(), run("gp"))
    assert seen.reasons == [TRIPLE_FAULT]
    assert seen.vectors == [GP]
    assert seen.delivered[0].return_rip == CODE_BASE


def test_repairs_the_controls_after_a_vmfail() -> None:
    seen = play(BAD_INJECTION, enter(), enter())
    assert seen.vmfails == [7]
    assert seen.in_l2


def test_leaves_the_controls_when_told_so() -> None:
    assert play(BAD_INJECTION, enter(), enter(NO_REPAIR)).vmfails == [7, 7]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [(GUEST_ACTIVITY, 7, INVALID_STATE), (ENTRY_MSR_LOAD_BAD, 3, MSR_LOAD_FAIL)],
)
def test_repairs_the_guest_state_after_a_failed_entry(field: int, value: int, reason: int) -> None:
    seen = play(vmwrite(GUEST_RIP, 0x16004), vmwrite(field, value), enter(), enter())
    assert seen.reasons == [reason]
    assert seen.in_l2
    assert seen.end.rip == 0x16004


# -- advance (I1, I2) ----


def test_steps_over_an_instruction_that_it_emulates() -> None:
    seen = play(enter(), run("cpuid"), enter())
    assert seen.end.rip == CODE_BASE + 2


def test_steps_over_an_apic_access() -> None:
    moves = (control("virtualize-apic-accesses"), apic_page(DATA), enter(), run("store"))
    seen = play(*moves, enter())
    assert seen.reasons == [APIC_ACCESS]
    assert seen.end.rip == CODE_BASE + 3


def test_does_not_step_over_a_delivery() -> None:
    seen = play(ept(STACK), enter(), run("int", 0x80), enter(NO_REINJECT))
    assert seen.end.rip == CODE_BASE


def test_does_not_step_when_told_so() -> None:
    assert play(enter(), run("cpuid"), enter(NO_ADVANCE)).end.rip == CODE_BASE


def test_owes_the_single_step_of_what_it_emulates() -> None:
    seen = play(enter(), run("cpuid"), enter(), on="single-step")
    assert seen.delivered[0].dr6 == PENDING_DBG_BS


# -- interrupts and NMIs (K1, N2) ----


def test_ends_an_acknowledged_interrupt() -> None:
    moves = (enter(), interrupt(0x40), enter())
    on = "acknowledge-interrupt-on-exit"
    assert play(*moves, on=on).end.isr == 0
    assert play(*moves[:-1], enter(NO_EOI), on=on).end.isr == 1 << 0x40


def test_takes_an_interrupt_that_was_not_acknowledged() -> None:
    seen = play(enter(), interrupt(0x40), enter())
    assert seen.reasons == [EXTERNAL_INTERRUPT_EXIT]
    assert (L1_INTERRUPT, 0x40) in seen.journal
    assert (seen.end.irr, seen.end.isr) == (0, 0)


def test_takes_interrupts_in_the_order_of_priority() -> None:
    seen = play(interrupt(0x40), interrupt(0x50), open_interrupts())
    taken = [record[1] for record in seen.journal if record[0] == L1_INTERRUPT]
    assert taken == [0x50, 0x40]


def test_executes_iret_after_an_nmi_exit() -> None:
    assert play(enter(), nmi(), enter(), run("cpuid"), nmi()).kinds.count(L1_NMI) == 1


def test_forgets_the_iret_when_told_so() -> None:
    moves = (enter(), nmi(), vmwrite(GUEST_ACTIVITY, 7), enter(NO_IRET))
    assert play(*moves).end.nmi_blocked_in_l1 == 1


# -- windows, timer, threshold, SIPI ----


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("interrupt-window-exiting", CPU_INTR_WINDOW_EXITING),
        ("nmi-window-exiting", CPU_NMI_WINDOW_EXITING),
    ],
)
def test_closes_a_window_that_has_opened(name: str, bit: int) -> None:
    seen = play(control(name), enter(), enter())
    assert len(seen.exits) == 1
    assert seen.vmcs[CPU_BASED] & bit == 0


def test_leaves_a_window_open_when_told_so() -> None:
    seen = play(control("nmi-window-exiting"), enter(), enter(NO_ADJUST))
    assert len(seen.exits) == 2


def test_reloads_an_expired_timer() -> None:
    moves = (enter(), timer(100), enter(), timer(TIMER_RELOAD - 1))
    on = "preemption-timer save-preemption-timer"
    assert play(*moves, on=on).reasons == [PREEMPTION_TIMER]
    assert play(*moves, timer(1), on=on).reasons == [PREEMPTION_TIMER, PREEMPTION_TIMER]


def test_lowers_a_threshold_that_was_crossed() -> None:
    moves = (vtpr(5), vmwrite(TPR_THRESHOLD, 4), enter(), run("mov-cr8", 2), enter())
    seen = play(*moves, on="tpr-shadow")
    assert seen.reasons == [TPR_BELOW_THRESHOLD]
    assert seen.vmfails == []
    assert seen.vmcs[TPR_THRESHOLD] == 2


def test_starts_l2_after_a_sipi() -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, WAIT_FOR_SIPI), enter(), sipi(0x10), enter())
    assert seen.reasons == [SIPI_SIGNAL]
    assert seen.end.activity == ACTIVE


# -- once, and for the VMCS that it is about ----


def test_manners_are_kept_once_per_exit() -> None:
    seen = play(enter(), run("cpuid"), BAD_INJECTION, enter(), enter())
    assert seen.vmfails == [7]
    assert seen.end.rip == CODE_BASE + 2


def test_another_vmcs_owes_nothing_to_the_last_exit() -> None:
    seen = play(enter(), run("cpuid"), vmptrld(1), enter())
    assert seen.end.rip == CODE_BASE


def test_a_vmcs_that_comes_back_is_entered_as_it_was_left() -> None:
    seen = play(enter(), run("cpuid"), vmptrld(1), vmptrld(0), enter(), run("cpuid"))
    assert seen.reasons == [CPUID_EXIT, CPUID_EXIT]
    assert seen.exits[1].rip == CODE_BASE


def test_a_cleared_vmcs_needs_vmptrld_before_it_is_entered() -> None:
    assert play(vmclear(0), enter()).vmfails == [0]
    assert play(vmclear(1), enter()).vmfails == []


# -- KVM's own check ----


def test_warns_about_idt_vectoring_that_kvm_does_not_expect() -> None:
    """KVM does not expect it with EPT misconfigurations, although a processor returns it (X1)."""
    moves = (ept(STACK, PAGE_MISCONFIGURED), inject(NMI, 2), enter())
    assert L1_UNEXPECTED_VECTORING in play(*moves).kinds


@pytest.mark.parametrize("moves", [(ept(STACK),), (gate(NMI_VECTOR, GATE_TASK),)])
def test_does_not_warn_about_idt_vectoring_that_kvm_expects(
    moves: tuple[tuple[int, int, int, int], ...],
) -> None:
    seen = play(*moves, inject(NMI, 2), enter())
    assert seen.exit.vectoring == event(NMI, NMI_VECTOR)
    assert L1_UNEXPECTED_VECTORING not in seen.kinds


def test_does_not_warn_about_a_failed_entry_after_such_an_exit() -> None:
    moves = (ept(STACK), inject(NMI, 2), enter(), vmwrite(ENTRY_MSR_LOAD_BAD, 1), enter())
    seen = play(*moves)
    assert seen.reasons == [EPT_VIOLATION, MSR_LOAD_FAIL]
    assert L1_UNEXPECTED_VECTORING not in seen.kinds


def test_x13_the_repair_of_a_failed_entry_drops_its_event_knowingly() -> None:
    """The event may be what the entry disliked, so L1 goes back to a state that enters."""
    moves = (ept(STACK), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    seen = play(*moves, vmwrite(GUEST_ACTIVITY, 7), enter(), enter())
    assert seen.reasons == [EPT_VIOLATION, INVALID_STATE]
    assert seen.delivered == []
    assert seen.in_l2


def test_x13_a_virtual_interrupt_does_not_replace_a_reinjection() -> None:
    on = "tpr-shadow virtual-interrupt-delivery"
    moves = (ept(STACK), inject(NMI, 2), enter(), virtual_interrupt(0x40), enter(), run("iret"))
    seen = play(*moves, on=on)
    assert seen.vectors == [NMI_VECTOR, 0x40]
    assert seen.vmcs[ENTRY_INTR_INFO] & VALID
