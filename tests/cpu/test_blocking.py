"""What holds events back, and for how long (B1 to B9), and NMI blocking (N1 to N3)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    DB,
    NMI,
    NMI_VECTOR,
    NP,
    OTHER_EVENT,
    PF,
    UD,
)
from nvmx_core.arch.exits import (
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    TASK_SWITCH,
    TPR_BELOW_THRESHOLD,
)
from nvmx_core.arch.fields import (
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_PREEMPTION_TIMER,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    PENDING_DBG_BS,
    WAIT_FOR_SIPI,
)
from nvmx_core.guests.manners import NO_IRET
from nvmx_core.guests.memory import CODE_BASE, DATA, GATE_NOT_PRESENT, GATE_TASK, STACK
from nvmx_core.journal import END, EXIT, L1_ENTRY, L1_NMI, SMM_ENTRY, SMM_RETURN, VMFAIL
from nvmx_core.scenario.steps import AT_ENTRY
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
    l1_iret,
    l1_mov_ss,
    nmi,
    play,
    rsm,
    run,
    smi,
    timer,
    vmwrite,
    vtpr,
)

DELIVERS_INTERRUPTS: Final = "external-interrupt-exiting"
INTERRUPTS_OFF: Final = "external-interrupt-exiting interrupts-on"
DELIVERS_NMIS: Final = "nmi-exiting virtual-nmis"

SHADOWS: Final = (BLOCKING_BY_STI, BLOCKING_BY_MOV_SS)
POPF_SETS_IF: Final = 1
POPF_SETS_IF_AND_TF: Final = 3


def shadow(blocking: int) -> tuple[int, int, int, int]:
    """L1 lets L2 start in an interrupt shadow."""
    return vmwrite(GUEST_INTERRUPTIBILITY, blocking)


# -- B1: STI ----


def test_b1_sti_blocks_an_interrupt_for_one_instruction() -> None:
    seen = play(enter(), interrupt(0x40), run("sti"), run("nop"), off=INTERRUPTS_OFF)
    assert seen.retired == 2
    assert seen.vectors == [0x40]
    assert seen.delivered[0].return_rip == CODE_BASE + 2


def test_b1_sti_with_interrupts_on_blocks_nothing() -> None:
    seen = play(enter(), run("sti"), off=DELIVERS_INTERRUPTS)
    assert seen.end.interruptibility == 0


def test_b1_of_two_sti_only_the_first_blocks() -> None:
    seen = play(enter(), interrupt(0x40), run("sti"), run("sti"), off=INTERRUPTS_OFF)
    assert seen.vectors == [0x40]


def test_b1_popf_that_sets_if_blocks_nothing() -> None:
    moves = (enter(), interrupt(0x40), run("popf", POPF_SETS_IF))
    assert play(*moves, off=INTERRUPTS_OFF).vectors == [0x40]


def test_b1_iret_that_sets_if_blocks_nothing() -> None:
    moves = (enter(), run("int", 0x80), interrupt(0x40), run("iret"))
    assert play(*moves, off=DELIVERS_INTERRUPTS).vectors == [0x80, 0x40]


def test_b1_an_event_ends_the_blocking_too() -> None:
    moves = (enter(), run("sti"), run("ud2"))
    assert play(*moves, off=INTERRUPTS_OFF).end.interruptibility == 0


def test_b1_cli_in_the_shadow_keeps_the_interrupt_out() -> None:
    moves = (enter(), interrupt(0x40), run("sti"), run("cli"), run("nop"))
    assert play(*moves, off=INTERRUPTS_OFF).delivered == []


# -- B2: MOV SS ----


@pytest.mark.parametrize("instruction", ["mov-ss", "pop-ss"])
def test_b2_mov_ss_blocks_an_interrupt_for_one_instruction(instruction: str) -> None:
    moves = (enter(), run(instruction), interrupt(0x40), run("nop"))
    seen = play(*moves, off=DELIVERS_INTERRUPTS)
    assert seen.retired == 2
    assert seen.vectors == [0x40]


def test_b2_mov_ss_blocks_an_nmi_for_one_instruction() -> None:
    seen = play(enter(), run("mov-ss"), nmi(), run("nop"), off=DELIVERS_NMIS)
    assert seen.retired == 2
    assert seen.vectors == [NMI_VECTOR]


def test_b2_the_mov_ss_of_l1_blocks_an_nmi_for_l1_until_its_next_instruction_has_ended() -> None:
    seen = play(l1_mov_ss(), nmi(), enter())
    kinds = [record[0] for record in seen.machine.journal]
    assert kinds == [L1_ENTRY, VMFAIL, L1_NMI, END]


def test_b2_mov_ss_holds_a_debug_trap_which_joins_the_next() -> None:
    moves = (intercept(DB), enter(), run("mov-ss"), run("nop"))
    seen = play(*moves, on="single-step")
    assert seen.retired == 2
    assert seen.exit.vector == DB
    assert seen.exit.qualification == PENDING_DBG_BS


def test_b2_mov_ss_does_not_hold_mtf() -> None:
    seen = play(control("monitor-trap-flag"), enter(), run("mov-ss"))
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.interruptibility == BLOCKING_BY_MOV_SS


def test_b2_mov_ss_does_not_hold_a_fault() -> None:
    assert play(enter(), run("mov-ss"), run("ud2")).vectors == [UD]


@pytest.mark.parametrize("second", ["mov-ss", "pop-ss"])
def test_b2_of_two_mov_ss_only_the_first_blocks(second: str) -> None:
    moves = (enter(), run("mov-ss"), interrupt(0x40), run(second))
    seen = play(*moves, off=DELIVERS_INTERRUPTS)
    assert seen.vectors == [0x40]


def test_b2_sti_does_not_hold_a_debug_trap() -> None:
    seen = play(intercept(DB), enter(), run("sti"), on="single-step", off="interrupts-on")
    assert seen.exit.vector == DB


def test_b2_the_trap_that_mov_ss_held_follows_an_int_n_into_its_handler() -> None:
    """INT n in the shadow is delivered first; the held trap returns to the handler's start."""
    moves = (enter(), run("mov-ss"), run("int", 0x80))
    seen = play(*moves, on="single-step")
    assert seen.vectors == [0x80, DB]
    assert seen.delivered[1].dr6 == PENDING_DBG_BS


# -- B3, B4: exits for interrupts and NMIs ----


@pytest.mark.parametrize("blocking", [0, *SHADOWS])
def test_b3_an_interrupt_exits_whatever_if_says(blocking: int) -> None:
    """A shadow may hold it back on other processors; ours does not (B3 leaves it open)."""
    moves = (shadow(blocking), enter(), interrupt(0x40))
    assert play(*moves).exit.reason == EXTERNAL_INTERRUPT_EXIT


def test_b3_an_interrupt_exits_with_if_0() -> None:
    seen = play(enter(), interrupt(0x40), off="interrupts-on")
    assert seen.exit.reason == EXTERNAL_INTERRUPT_EXIT


def test_b3_without_exiting_if_0_blocks_an_interrupt() -> None:
    seen = play(enter(), interrupt(0x40), run("nop"), off=INTERRUPTS_OFF)
    assert seen.delivered == []
    assert seen.exits == []


@pytest.mark.parametrize("blocking", SHADOWS)
def test_b3_without_exiting_a_shadow_blocks_an_interrupt(blocking: int) -> None:
    moves = (shadow(blocking), enter(), interrupt(0x40))
    assert play(*moves, off=DELIVERS_INTERRUPTS).delivered == []
    assert play(*moves, run("nop"), off=DELIVERS_INTERRUPTS).vectors == [0x40]


@pytest.mark.parametrize("blocking", SHADOWS)
def test_b4_an_nmi_exits_in_a_shadow(blocking: int) -> None:
    """Left open by the manual; ours is not held back, and the shadow is saved."""
    seen = play(shadow(blocking), enter(), nmi())
    assert seen.exit.interruption == event(NMI, NMI_VECTOR)
    assert seen.exit.interruptibility == blocking


# -- B5, B6, B7: windows, timer, MTF ----


def test_b5_interrupt_window_needs_if() -> None:
    moves = (control("interrupt-window-exiting"), enter())
    assert play(*moves, off="interrupts-on").exits == []
    assert play(*moves).exit.reason == INTERRUPT_WINDOW


@pytest.mark.parametrize("blocking", SHADOWS)
def test_b5_interrupt_window_opens_behind_a_shadow(blocking: int) -> None:
    moves = (control("interrupt-window-exiting"), shadow(blocking), enter())
    assert play(*moves).exits == []
    seen = play(*moves, run("nop"))
    assert seen.exit.reason == INTERRUPT_WINDOW
    assert seen.retired == 1


def test_b5_interrupt_window_opens_behind_sti() -> None:
    moves = (control("interrupt-window-exiting"), enter(), run("sti"), run("nop"))
    seen = play(*moves, off="interrupts-on")
    assert seen.exit.rip == CODE_BASE + 2


def test_b6_nmi_window_needs_open_virtual_nmis() -> None:
    moves = (control("nmi-window-exiting"), shadow(BLOCKING_BY_NMI), enter())
    assert play(*moves).exits == []
    assert play(control("nmi-window-exiting"), enter()).exit.reason == NMI_WINDOW


def test_b6_nmi_window_opens_after_iret() -> None:
    moves = (control("nmi-window-exiting"), inject(NMI, 2), enter(), run("nop"), run("iret"))
    seen = play(*moves)
    assert seen.exit.reason == NMI_WINDOW
    assert seen.exit.rip == CODE_BASE


def test_b6_nmi_window_opens_behind_mov_ss() -> None:
    moves = (control("nmi-window-exiting"), shadow(BLOCKING_BY_MOV_SS), enter())
    assert play(*moves).exits == []
    assert play(*moves, run("nop")).exit.reason == NMI_WINDOW


def test_b6_sti_and_the_nmi_window_are_the_processors_choice() -> None:
    moves = (control("nmi-window-exiting"), shadow(BLOCKING_BY_STI), enter())
    assert play(*moves).exit.reason == NMI_WINDOW
    assert play(*moves, on="sti-blocks-nmi").exits == []
    assert play(*moves, run("nop"), on="sti-blocks-nmi").exit.reason == NMI_WINDOW


def test_b6_nmi_window_does_not_need_if() -> None:
    moves = (control("nmi-window-exiting"), enter())
    assert play(*moves, off="interrupts-on").exit.reason == NMI_WINDOW


@pytest.mark.parametrize("blocking", [0, *SHADOWS, BLOCKING_BY_NMI])
def test_b7_the_timer_is_not_blocked(blocking: int) -> None:
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 0), shadow(blocking), enter())
    assert play(*moves, on="preemption-timer").exit.reason == PREEMPTION_TIMER


@pytest.mark.parametrize("blocking", [0, *SHADOWS, BLOCKING_BY_NMI])
def test_b7_mtf_is_not_blocked(blocking: int) -> None:
    seen = play(shadow(blocking), inject(OTHER_EVENT, 0), enter())
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.interruptibility == blocking


def test_b7_neither_needs_if() -> None:
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 0), enter())
    seen = play(*moves, on="preemption-timer", off="interrupts-on")
    assert seen.exit.reason == PREEMPTION_TIMER


# -- B8: SMIs ----


def test_b8_an_smi_comes_and_goes_without_an_exit() -> None:
    seen = play(enter(), smi(), rsm(), run("nop"))
    assert seen.kinds.count(SMM_ENTRY) == seen.kinds.count(SMM_RETURN) == 1
    assert seen.exits == []
    assert seen.retired == 1


@pytest.mark.parametrize("blocking", [*SHADOWS, BLOCKING_BY_NMI])
def test_b8_blocking_survives_the_visit(blocking: int) -> None:
    seen = play(shadow(blocking), enter(), smi(), rsm())
    assert SMM_ENTRY in seen.kinds
    assert seen.end.interruptibility == blocking


def test_b8_a_pending_mtf_exit_survives_the_visit() -> None:
    seen = play(inject(OTHER_EVENT, 0), smi(AT_ENTRY), enter(), rsm())
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.retired == 0


def test_b8_a_held_debug_trap_survives_the_visit() -> None:
    moves = (intercept(DB), enter(), run("mov-ss"), smi(), rsm(), run("nop"))
    assert play(*moves, on="single-step").exit.vector == DB


def test_b8_the_timer_goes_on_counting() -> None:
    seen = play(enter(), smi(), timer(100), rsm(), on="preemption-timer")
    assert seen.exit.reason == PREEMPTION_TIMER
    assert seen.kinds.index(SMM_RETURN) < seen.kinds.index(EXIT)


def test_b8_l2_runs_nothing_in_smm() -> None:
    seen = play(enter(), smi(), run("nop"))
    assert seen.retired == 0
    assert seen.machine.skipped == 1


@pytest.mark.parametrize(
    ("arrival", "reason"),
    [(nmi(), EXCEPTION_NMI), (init(), INIT_SIGNAL), (interrupt(0x40), EXTERNAL_INTERRUPT_EXIT)],
)
def test_b8_what_arrives_in_smm_waits_for_rsm(
    arrival: tuple[int, int, int, int], reason: int
) -> None:
    assert play(enter(), smi(), arrival).exits == []
    assert play(enter(), smi(), arrival, rsm()).exit.reason == reason


def test_b8_an_smi_in_smm_follows_rsm() -> None:
    seen = play(enter(), smi(), smi(), rsm())
    assert seen.kinds.count(SMM_ENTRY) == 2


def test_b8_wait_for_sipi_blocks_smis() -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, WAIT_FOR_SIPI), enter(), smi())
    assert SMM_ENTRY not in seen.kinds
    assert seen.end.smi_latched == 1


def test_b8_rsm_returns_to_hlt() -> None:
    seen = play(enter(), run("hlt"), smi(), rsm())
    assert seen.end.activity == HLT


# -- B9: shadows and exits ----


def test_b9_a_fault_like_exit_saves_the_shadow() -> None:
    seen = play(enter(), run("sti"), run("cpuid"), off="interrupts-on")
    assert seen.exit.interruptibility == BLOCKING_BY_STI


def test_b9_an_intercepted_fault_saves_the_shadow() -> None:
    seen = play(intercept(UD), enter(), run("mov-ss"), run("ud2"))
    assert seen.exit.interruptibility == BLOCKING_BY_MOV_SS


def test_b9_a_completed_instruction_has_ended_the_shadow() -> None:
    seen = play(enter(), run("sti"), run("nop"), run("cpuid"), off="interrupts-on")
    assert seen.exit.interruptibility == 0


def test_b9_a_trap_like_exit_has_ended_the_shadow() -> None:
    moves = (vtpr(2), vmwrite(TPR_THRESHOLD, 2), enter(), run("sti"), run("mov-cr8", 1))
    seen = play(*moves, on="tpr-shadow", off="interrupts-on")
    assert seen.exit.reason == TPR_BELOW_THRESHOLD
    assert seen.exit.interruptibility == 0


def test_b9_a_memory_exit_of_an_instruction_saves_the_shadow() -> None:
    seen = play(ept(DATA), enter(), run("mov-ss"), run("load"))
    assert seen.exit.reason == EPT_VIOLATION
    assert seen.exit.interruptibility == BLOCKING_BY_MOV_SS


def test_b9_an_instruction_that_sets_a_new_shadow_ends_the_old_one() -> None:
    seen = play(enter(), run("mov-ss"), run("sti"), off="interrupts-on")
    assert seen.end.interruptibility == BLOCKING_BY_STI


# -- N: NMI blocking ----


def test_n1_iret_ends_virtual_nmi_blocking() -> None:
    assert play(inject(NMI, 2), enter()).end.interruptibility == BLOCKING_BY_NMI
    assert play(inject(NMI, 2), enter(), run("iret")).end.interruptibility == 0


def test_n1_iret_ends_physical_nmi_blocking() -> None:
    moves = (shadow(BLOCKING_BY_NMI), enter(), nmi())
    assert play(*moves, off=DELIVERS_NMIS).delivered == []
    assert play(*moves, run("iret"), off=DELIVERS_NMIS).vectors == [NMI_VECTOR]


def test_n1_iret_unblocks_even_if_it_faults() -> None:
    moves = (inject(NMI, 2), enter(), absent(STACK), gate(PF, GATE_TASK), run("iret"))
    seen = play(*moves)
    assert seen.exit.reason == TASK_SWITCH
    assert seen.exit.interruptibility & BLOCKING_BY_NMI == 0


def test_n1_nmi_exiting_alone_lets_iret_unblock_nothing() -> None:
    moves = (shadow(BLOCKING_BY_NMI), enter(), run("iret"), nmi())
    seen = play(*moves, off="virtual-nmis")
    assert seen.exits == []
    assert seen.end.interruptibility == BLOCKING_BY_NMI
    assert seen.end.nmi_latched == 1


def test_n1_virtual_nmi_blocking_does_not_hold_physical_nmis() -> None:
    assert play(shadow(BLOCKING_BY_NMI), enter(), nmi()).exit.vector == NMI_VECTOR


def test_n2_after_an_nmi_exit_l1_runs_with_nmis_blocked_until_its_iret() -> None:
    seen = play(enter(), nmi(), nmi())
    assert seen.end.nmi_blocked_in_l1 == 1
    assert L1_NMI not in seen.kinds


def test_n2_of_the_nmis_that_arrive_meanwhile_one_is_kept() -> None:
    seen = play(enter(), nmi(), nmi(), nmi(), l1_iret())
    assert seen.kinds.count(L1_NMI) == 1
    assert seen.end.nmi_latched == 0


def test_n2_the_iret_before_the_next_entry_opens_nmis_too() -> None:
    """L1 executes IRET and then VMRESUME: the latched NMI comes between them, in L1."""
    seen = play(enter(), nmi(), nmi(), enter())
    assert seen.kinds.count(L1_NMI) == 1
    assert seen.reasons == [EXCEPTION_NMI]


def test_n2_other_exits_leave_nmis_open() -> None:
    seen = play(enter(), run("cpuid"), nmi())
    assert seen.kinds.count(L1_NMI) == 1


def test_n2_an_entry_with_virtual_nmis_opens_nmis_even_without_iret() -> None:
    seen = play(enter(), nmi(), nmi(), enter(NO_IRET))
    assert seen.reasons == [EXCEPTION_NMI, EXCEPTION_NMI]


def test_n3_an_injected_nmi_blocks_before_its_delivery_can_fault() -> None:
    seen = play(intercept(NP), gate(NMI_VECTOR, GATE_NOT_PRESENT), inject(NMI, 2), enter())
    assert seen.exit.vectoring == event(NMI, NMI_VECTOR)
    assert seen.exit.interruptibility == BLOCKING_BY_NMI


def test_n3_an_nmi_that_is_lost_to_a_fault_has_blocked_too() -> None:
    seen = play(gate(NMI_VECTOR, GATE_NOT_PRESENT), inject(NMI, 2), enter())
    assert seen.vectors == [NP]
    assert seen.end.interruptibility == BLOCKING_BY_NMI
