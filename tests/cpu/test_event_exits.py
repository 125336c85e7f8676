"""Exits that an event causes directly (Y1 to Y6)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    BP,
    DB,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_VECTOR,
    OF,
    OTHER_EVENT,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    UD,
)
from nvmx_core.arch.exits import (
    CPUID_EXIT,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    TPR_BELOW_THRESHOLD,
)
from nvmx_core.arch.fields import (
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    POISON,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    HLT,
    PENDING_DBG_BS,
    PENDING_DBG_ENABLED_BP,
    RFLAGS_RF,
)
from nvmx_core.guests.memory import CODE_BASE, DATA, page_address
from nvmx_core.scenario.steps import AT_ENTRY, Step
from tests.support import (
    RFLAGS_START,
    absent,
    control,
    enter,
    ept,
    event,
    init,
    inject,
    intercept,
    interrupt,
    nmi,
    play,
    run,
    timer,
    vmwrite,
    vtpr,
)

Moves = tuple[Step, ...]

BREAKPOINT_0: Final = PENDING_DBG_ENABLED_BP | 1
"""The pending-debug field of a data breakpoint in DR0."""

# -- Y1: the event has not happened ----


def test_y1_a_page_fault_that_exits_leaves_cr2() -> None:
    seen = play(intercept(PF), absent(DATA), enter(), run("store"))
    assert seen.exit.qualification == page_address(DATA)
    assert seen.exit.error_code == 1 << 1
    assert seen.exit.cr2 == 0


def test_y1_a_debug_exception_that_exits_leaves_dr6() -> None:
    seen = play(intercept(DB), enter(), run("nop"), on="single-step")
    assert seen.exit.qualification == PENDING_DBG_BS
    assert seen.exit.dr6 == 0


def test_y1_an_interrupt_that_exits_stays_pending() -> None:
    seen = play(enter(), interrupt(0x40))
    assert seen.end.irr == 1 << 0x40
    assert seen.end.isr == 0


def test_y1_an_nmi_that_exits_has_not_blocked_in_the_guest() -> None:
    assert play(enter(), nmi()).exit.interruptibility == 0


def test_y1_a_delivered_page_fault_writes_cr2() -> None:
    seen = play(absent(DATA), enter(), run("load"))
    assert seen.delivered[0].cr2 == page_address(DATA)


def test_y1_a_delivered_debug_trap_writes_dr6() -> None:
    seen = play(enter(), run("nop"), on="single-step")
    assert seen.delivered[0].dr6 == PENDING_DBG_BS


# -- Y2: RIP and length ----


@pytest.mark.parametrize(("instruction", "vector"), [("ud2", UD), ("gp", GP)])
def test_y2_a_fault_saves_the_faulting_instruction(instruction: str, vector: int) -> None:
    seen = play(intercept(vector), enter(), run("nop"), run(instruction))
    assert seen.exit.vector == vector
    assert seen.exit.rip == CODE_BASE + 1
    assert seen.exit.length == POISON


@pytest.mark.parametrize(
    ("instruction", "info"),
    [
        ("int3", event(SOFTWARE_EXCEPTION, BP)),
        ("into", event(SOFTWARE_EXCEPTION, OF)),
        ("int1", event(PRIVILEGED_SOFTWARE_EXCEPTION, DB)),
    ],
)
def test_y2_int3_into_and_int1_save_their_own_address_and_length(
    instruction: str, info: int
) -> None:
    popf_sets_of = 1 | 1 << 2
    intercepts = (intercept(BP), intercept(OF), intercept(DB))
    seen = play(*intercepts, enter(), run("popf", popf_sets_of), run(instruction))
    assert seen.exit.interruption == info
    assert seen.exit.rip == CODE_BASE + 1
    assert seen.exit.length == 1


def test_y2_a_trap_saves_the_next_instruction() -> None:
    seen = play(intercept(DB), enter(), run("nop"), on="single-step")
    assert seen.exit.rip == CODE_BASE + 1


@pytest.mark.parametrize("arrival", [nmi(), interrupt(0x40)])
def test_y2_interrupts_and_nmis_save_the_next_instruction(arrival: Step) -> None:
    assert play(enter(), run("nop"), arrival).exit.rip == CODE_BASE + 1


# -- Y3: RF ----


@pytest.mark.parametrize(("instruction", "vector"), [("ud2", UD), ("gp", GP)])
def test_y3_a_fault_saves_rf_1(instruction: str, vector: int) -> None:
    seen = play(intercept(vector), enter(), run(instruction))
    assert seen.exit.rflags == RFLAGS_START | RFLAGS_RF


def test_y3_a_debug_trap_saves_rf_0() -> None:
    seen = play(intercept(DB), enter(), run("nop"), on="single-step")
    assert seen.exit.rflags & RFLAGS_RF == 0


def test_y3_an_intercepted_instruction_saves_rf_0() -> None:
    assert play(enter(), run("cpuid")).exit.rflags & RFLAGS_RF == 0


def test_y3_int3_saves_rf_0() -> None:
    assert play(intercept(BP), enter(), run("int3")).exit.rflags & RFLAGS_RF == 0


# -- Y4: activity ----

OUT_OF_HLT: Final[tuple[tuple[int, Moves, Moves, str], ...]] = (
    (EXTERNAL_INTERRUPT_EXIT, (), (interrupt(0x40),), ""),
    (EXCEPTION_NMI, (), (nmi(),), ""),
    (INIT_SIGNAL, (), (init(),), ""),
    (PREEMPTION_TIMER, (), (timer(100),), "preemption-timer"),
    (MONITOR_TRAP_FLAG, (inject(OTHER_EVENT, 0),), (), ""),
    (NMI_WINDOW, (control("nmi-window-exiting"),), (), ""),
    (INTERRUPT_WINDOW, (control("interrupt-window-exiting"),), (), ""),
)


@pytest.mark.parametrize(
    ("reason", "before", "after", "on"), OUT_OF_HLT, ids=[str(row[0]) for row in OUT_OF_HLT]
)
def test_y4_an_exit_out_of_hlt_saves_hlt(reason: int, before: Moves, after: Moves, on: str) -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, HLT), *before, enter(), *after, on=on)
    assert seen.exit.reason == reason
    assert seen.exit.activity == HLT
    assert seen.exit.interruptibility == 0


def test_y4_sti_hlt_leaves_no_shadow_behind() -> None:
    """The shadow covers HLT only; an interrupt that was pending wakes at once."""
    seen = play(enter(), run("sti"), run("hlt"), nmi(), off="interrupts-on")
    assert seen.exit.activity == HLT
    assert seen.exit.interruptibility == 0


# -- Y5: the host after the exit ----


def test_y5_only_an_nmi_exit_leaves_nmis_blocked() -> None:
    assert play(enter(), nmi()).end.nmi_blocked_in_l1 == 1
    assert play(enter(), run("cpuid")).end.nmi_blocked_in_l1 == 0
    assert play(intercept(UD), enter(), run("ud2")).end.nmi_blocked_in_l1 == 0


def test_y5_virtual_nmi_blocking_is_no_blocking_of_the_host() -> None:
    seen = play(inject(NMI, 2), enter(), run("cpuid"))
    assert seen.end.nmi_blocked_in_l1 == 0


def test_y5_physical_blocking_of_the_guest_goes_on_in_the_host() -> None:
    seen = play(inject(NMI, 2), enter(), run("cpuid"), off="nmi-exiting virtual-nmis")
    assert seen.end.nmi_blocked_in_l1 == 1


def test_y5_an_intercepted_exception_with_vector_2_is_no_nmi() -> None:
    """Blocking follows the type, not the vector."""
    seen = play(ept(DATA), enter(), run("load"))
    assert seen.end.nmi_blocked_in_l1 == 0


def test_y5_nothing_of_l2_is_pending_after_the_exit() -> None:
    """An MTF exit that lost against another exit does not reach the next stay in L2."""
    mtf, no_mtf = control("monitor-trap-flag"), control("monitor-trap-flag", on=False)
    seen = play(mtf, enter(), run("cpuid"), no_mtf, enter(), run("nop"))
    assert seen.reasons == [CPUID_EXIT]
    assert seen.retired == 1


def test_y5_the_timer_does_not_count_in_root_operation() -> None:
    moves = (enter(), run("cpuid"), timer(100), enter(), run("nop"))
    seen = play(*moves, on="preemption-timer")
    assert seen.reasons == [CPUID_EXIT]
    assert seen.retired == 1


# -- Y6: pending debug exceptions ----


@pytest.mark.parametrize(
    ("reason", "before", "on"),
    [
        (INIT_SIGNAL, (init(AT_ENTRY),), ""),
        (MONITOR_TRAP_FLAG, (inject(OTHER_EVENT, 0),), ""),
        (
            TPR_BELOW_THRESHOLD,
            (control("virtualize-apic-accesses"), vmwrite(TPR_THRESHOLD, 1)),
            "tpr-shadow",
        ),
    ],
)
def test_y6_init_mtf_and_tpr_exits_save_the_field(reason: int, before: Moves, on: str) -> None:
    seen = play(vmwrite(GUEST_PENDING_DBG, BREAKPOINT_0), *before, enter(), on=on)
    assert seen.exit.reason == reason
    assert seen.exit.pending_dbg == BREAKPOINT_0


def test_y6_the_single_step_before_a_tpr_exit_is_saved() -> None:
    moves = (vtpr(2), vmwrite(TPR_THRESHOLD, 2), enter(), run("mov-cr8", 1))
    seen = play(*moves, on="tpr-shadow single-step")
    assert seen.exit.reason == TPR_BELOW_THRESHOLD
    assert seen.exit.pending_dbg == PENDING_DBG_BS


def test_y6_a_debug_exit_saves_0() -> None:
    seen = play(vmwrite(GUEST_PENDING_DBG, BREAKPOINT_0), intercept(DB), enter())
    assert seen.exit.qualification == 1
    assert seen.exit.pending_dbg == 0


def test_y6_a_debug_exit_saves_0_also_if_mov_ss_held_the_trap() -> None:
    moves = (intercept(DB), enter(), run("mov-ss"), run("nop"))
    assert play(*moves, on="single-step").exit.pending_dbg == 0


@pytest.mark.parametrize("arrival", [nmi(), interrupt(0x40)])
def test_y6_other_exits_save_it_under_mov_ss(arrival: Step) -> None:
    moves = (enter(), run("mov-ss"), arrival)
    seen = play(*moves, on="single-step")
    assert seen.exit.interruptibility == BLOCKING_BY_MOV_SS
    assert seen.exit.pending_dbg == PENDING_DBG_BS


def test_y6_an_intercepted_instruction_saves_it_under_mov_ss() -> None:
    seen = play(enter(), run("mov-ss"), run("cpuid"), on="single-step")
    assert seen.exit.reason == CPUID_EXIT
    assert seen.exit.pending_dbg == PENDING_DBG_BS


def test_y6_conditions_that_were_not_enabled_are_cleared_by_other_exits() -> None:
    """B0 without the enabled-breakpoint bit never traps; NMI is not among the saving exits."""
    seen = play(vmwrite(GUEST_PENDING_DBG, 1), enter(), nmi())
    assert seen.exit.vector == NMI_VECTOR
    assert seen.exit.pending_dbg == 0


def test_y6_an_exception_exit_without_mov_ss_saves_0() -> None:
    moves = (vmwrite(GUEST_PENDING_DBG, 1), intercept(UD), enter(), run("ud2"))
    seen = play(*moves)
    assert seen.exit.interruption == event(HARDWARE_EXCEPTION, UD)
    assert seen.exit.pending_dbg == 0


def test_y6_the_host_has_no_pending_debug_exception() -> None:
    moves = (vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS), init(AT_ENTRY), enter())
    seen = play(*moves, vmwrite(GUEST_PENDING_DBG, 0), enter(), run("nop"))
    assert seen.delivered == []


def test_y6_mov_ss_held_traps_reappear_with_the_saved_field() -> None:
    shadow = vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_MOV_SS)
    moves = (shadow, vmwrite(GUEST_PENDING_DBG, BREAKPOINT_0), intercept(DB), enter())
    assert play(*moves).exits == []
    assert play(*moves, run("nop")).exit.qualification == 1
