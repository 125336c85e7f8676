"""What happens at a VM entry that succeeds, in order (O1 to O12)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    BP,
    DB,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    MC,
    NMI,
    NMI_VECTOR,
    OTHER_EVENT,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    UD,
)
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    MSR_LOAD_FAIL,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    TASK_SWITCH,
    TPR_BELOW_THRESHOLD,
)
from nvmx_core.arch.fields import (
    ENTRY_MSR_LOAD_BAD,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_RIP,
    LAUNCH_STATE,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    PENDING_DBG_BS,
    PENDING_DBG_ENABLED_BP,
    RFLAGS_FIXED,
    SHUTDOWN,
    WAIT_FOR_SIPI,
)
from nvmx_core.guests.manners import NO_IRET
from nvmx_core.guests.memory import CODE_BASE, GATE_TASK, handler_rip
from nvmx_core.journal import DELIVER, L1_ENTRY
from nvmx_core.scenario.steps import AT_ENTRY, Step
from tests.support import (
    control,
    enter,
    event,
    gate,
    init,
    inject,
    intercept,
    interrupt,
    l1_iret,
    nmi,
    play,
    run,
    timer,
    virtual_interrupt,
    vmclear,
    vmptrld,
    vmwrite,
)

Moves = tuple[Step, ...]

TPR_EXIT: Final = (control("virtualize-apic-accesses"), vmwrite(TPR_THRESHOLD, 1))
TIMER_0: Final = vmwrite(GUEST_PREEMPTION_TIMER, 0)
SINGLE_STEP_PENDING: Final = vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS)

VECTORING: Final = (
    (EXTERNAL_INTERRUPT, 0x40),
    (NMI, NMI_VECTOR),
    (HARDWARE_EXCEPTION, UD),
    (SOFTWARE_INTERRUPT, 0x80),
    (PRIVILEGED_SOFTWARE_EXCEPTION, DB),
    (SOFTWARE_EXCEPTION, BP),
)


# -- O1, O2 ----


def test_o1_the_guest_state_is_loaded_and_the_vmcs_launched() -> None:
    moves = (vmwrite(GUEST_RIP, 0x16020), vmwrite(GUEST_RFLAGS, RFLAGS_FIXED), enter())
    seen = play(*moves)
    assert seen.end.rip == 0x16020
    assert seen.end.rflags == RFLAGS_FIXED
    assert seen.vmcs[LAUNCH_STATE] == 1


def test_o1_a_bad_msr_list_keeps_the_vmcs_clear() -> None:
    seen = play(vmwrite(ENTRY_MSR_LOAD_BAD, 1), enter())
    assert seen.exit.reason == MSR_LOAD_FAIL
    assert seen.vmcs[LAUNCH_STATE] == 0


def test_o1_each_vmcs_has_its_own_launch_state() -> None:
    seen = play(enter(), run("cpuid"), vmptrld(1), enter(), run("cpuid"), vmclear(0))
    first, second = seen.machine.l1.regions
    assert (first[LAUNCH_STATE], second[LAUNCH_STATE]) == (0, 1)


@pytest.mark.parametrize(
    ("moves", "on", "reason"),
    [
        ((interrupt(0x40, AT_ENTRY),), "", EXTERNAL_INTERRUPT_EXIT),
        ((nmi(AT_ENTRY),), "", EXCEPTION_NMI),
        ((init(AT_ENTRY),), "", INIT_SIGNAL),
        ((TIMER_0,), "preemption-timer", PREEMPTION_TIMER),
        (TPR_EXIT, "tpr-shadow", TPR_BELOW_THRESHOLD),
    ],
)
@pytest.mark.parametrize(("event_type", "vector"), VECTORING)
def test_o2_the_injection_is_delivered_before_any_boundary(
    event_type: int, vector: int, moves: Moves, on: str, reason: int
) -> None:
    seen = play(*moves, inject(event_type, vector, length=1), enter(), on=on)
    assert seen.vectors == [vector]
    assert seen.exit.reason == reason
    assert seen.exit.rip == handler_rip(vector)


def test_o2_the_injection_is_delivered_exactly_once() -> None:
    moves = (inject(NMI, 2), enter(), run("cpuid"), enter(), run("nop"))
    assert play(*moves).vectors == [NMI_VECTOR]


def test_o2_delivery_goes_through_the_idt_of_the_guest() -> None:
    seen = play(gate(0x40, GATE_TASK), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.reason == TASK_SWITCH


# -- O3, O4, O5 ----


@pytest.mark.parametrize(
    ("event_type", "vector", "activity"),
    [
        (EXTERNAL_INTERRUPT, 0x40, HLT),
        (NMI, NMI_VECTOR, HLT),
        (HARDWARE_EXCEPTION, DB, HLT),
        (HARDWARE_EXCEPTION, MC, HLT),
        (NMI, NMI_VECTOR, SHUTDOWN),
        (HARDWARE_EXCEPTION, MC, SHUTDOWN),
    ],
)
def test_o3_a_vectoring_entry_makes_the_guest_active(
    event_type: int, vector: int, activity: int
) -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, activity), inject(event_type, vector), enter())
    assert seen.vectors == [vector]
    assert seen.end.activity == ACTIVE


@pytest.mark.parametrize("shadow", [BLOCKING_BY_STI, BLOCKING_BY_MOV_SS])
@pytest.mark.parametrize(("event_type", "vector"), VECTORING[2:])
def test_o4_a_vectoring_entry_ends_the_shadow(event_type: int, vector: int, shadow: int) -> None:
    moves = (vmwrite(GUEST_INTERRUPTIBILITY, shadow), inject(event_type, vector, length=1))
    assert play(*moves, enter()).end.interruptibility == 0


@pytest.mark.parametrize("shadow", [BLOCKING_BY_STI, BLOCKING_BY_MOV_SS])
def test_o4_a_shadow_holds_for_one_instruction_otherwise(shadow: int) -> None:
    moves = (vmwrite(GUEST_INTERRUPTIBILITY, shadow), enter())
    assert play(*moves).end.interruptibility == shadow
    assert play(*moves, run("nop")).end.interruptibility == 0


def test_o4_type_7_is_not_vectoring_and_keeps_the_shadow() -> None:
    moves = (vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_MOV_SS), inject(OTHER_EVENT, 0))
    assert play(*moves, enter()).exit.interruptibility == BLOCKING_BY_MOV_SS


@pytest.mark.parametrize("off", ["", "virtual-nmis", "nmi-exiting virtual-nmis"])
def test_o5_injecting_an_nmi_sets_bit_3(off: str) -> None:
    assert play(inject(NMI, 2), enter(), off=off).end.interruptibility == BLOCKING_BY_NMI


@pytest.mark.parametrize(("off", "is_blocked"), [("", False), ("virtual-nmis", True)])
def test_o5_bit_3_blocks_physical_nmis_only_without_virtual_nmis(
    off: str, is_blocked: bool
) -> None:
    seen = play(vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_NMI), enter(), nmi(), off=off)
    assert (not seen.exits) == is_blocked


def test_o5_the_hosts_own_nmi_blocking_does_not_survive_the_entry() -> None:
    """With virtual NMIs L2 starts with NMIs open, and an exit of another kind keeps them so."""
    moves = (enter(), nmi(), enter(NO_IRET), run("cpuid"))
    assert play(*moves).end.nmi_blocked_in_l1 == 0


def test_o5_other_injections_leave_bit_3() -> None:
    assert play(inject(HARDWARE_EXCEPTION, UD), enter()).end.interruptibility == 0


# -- O6: pending debug exceptions ----


@pytest.mark.parametrize("field", [PENDING_DBG_BS, PENDING_DBG_ENABLED_BP | 1])
def test_o6_a_valid_one_traps_on_the_first_boundary(field: int) -> None:
    seen = play(vmwrite(GUEST_PENDING_DBG, field), enter())
    assert seen.vectors == [DB]
    assert seen.delivered[0].return_rip == CODE_BASE
    assert seen.delivered[0].dr6 == field & ~PENDING_DBG_ENABLED_BP


def test_o6_conditions_without_a_valid_bit_do_not_trap() -> None:
    assert play(vmwrite(GUEST_PENDING_DBG, 0xF), enter(), run("nop")).delivered == []


@pytest.mark.parametrize(("event_type", "vector"), VECTORING)
def test_o6_every_vectoring_type_drops_it_without_mov_ss(event_type: int, vector: int) -> None:
    moves = (SINGLE_STEP_PENDING, inject(event_type, vector, length=1), enter(), run("nop"))
    assert play(*moves).vectors == [vector]


@pytest.mark.parametrize(
    ("event_type", "vector"), [(HARDWARE_EXCEPTION, UD), (PRIVILEGED_SOFTWARE_EXCEPTION, DB)]
)
def test_o6_types_3_and_5_drop_it_under_mov_ss(event_type: int, vector: int) -> None:
    moves = (
        vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_MOV_SS),
        vmwrite(GUEST_PENDING_DBG, PENDING_DBG_ENABLED_BP | 1),
        inject(event_type, vector, length=1),
        enter(),
    )
    assert play(*moves).vectors == [vector]


@pytest.mark.parametrize(
    ("event_type", "vector"), [(SOFTWARE_INTERRUPT, BP), (SOFTWARE_EXCEPTION, BP)]
)
def test_o6_int3_under_mov_ss_keeps_it(event_type: int, vector: int) -> None:
    """As executing INT3 after a MOV SS that hit a breakpoint: the trap follows the delivery."""
    moves = (
        vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_MOV_SS),
        vmwrite(GUEST_PENDING_DBG, PENDING_DBG_ENABLED_BP | 1),
        inject(event_type, vector, length=1),
        enter(),
    )
    seen = play(*moves)
    assert seen.vectors == [vector, DB]
    assert seen.delivered[1].return_rip == handler_rip(vector)


def test_o6_type_7_does_not_drop_it() -> None:
    seen = play(SINGLE_STEP_PENDING, inject(OTHER_EVENT, 0), enter())
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.pending_dbg == PENDING_DBG_BS


@pytest.mark.parametrize("activity", [SHUTDOWN, WAIT_FOR_SIPI])
def test_o6_shutdown_and_wait_for_sipi_drop_it(activity: int) -> None:
    moves = (SINGLE_STEP_PENDING, vmwrite(GUEST_ACTIVITY, activity), init(AT_ENTRY), enter())
    seen = play(*moves)
    assert seen.delivered == []
    if activity == SHUTDOWN:
        assert seen.exit.pending_dbg == 0


def test_o6_mov_ss_holds_it_for_one_instruction() -> None:
    moves = (
        vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_MOV_SS),
        vmwrite(GUEST_PENDING_DBG, PENDING_DBG_ENABLED_BP | 1),
        enter(),
    )
    assert play(*moves).delivered == []
    seen = play(*moves, run("nop"))
    assert seen.vectors == [DB]
    assert seen.delivered[0].return_rip == CODE_BASE + 1


def test_o6_the_trap_at_the_entry_may_exit() -> None:
    seen = play(SINGLE_STEP_PENDING, intercept(DB), enter())
    assert seen.exit.interruption == event(HARDWARE_EXCEPTION, DB)
    assert seen.exit.qualification == PENDING_DBG_BS


# -- O7, O8, O9 ----


def test_o7_timer_0_exits_before_any_instruction() -> None:
    seen = play(TIMER_0, enter(), on="preemption-timer")
    assert seen.exit.reason == PREEMPTION_TIMER
    assert seen.exit.rip == CODE_BASE


def test_o7_timer_0_comes_after_pending_debug_exceptions() -> None:
    seen = play(TIMER_0, SINGLE_STEP_PENDING, enter(), on="preemption-timer")
    assert seen.vectors == [DB]
    assert seen.exit.reason == PREEMPTION_TIMER


def test_o7_a_timer_that_expires_during_the_entry_exits_at_once() -> None:
    seen = play(timer(100, AT_ENTRY), enter(), on="preemption-timer")
    assert seen.exit.reason == PREEMPTION_TIMER
    assert seen.retired == 0


def test_o7_the_timer_counts_from_the_value_in_the_vmcs() -> None:
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 5), enter(), timer(4))
    assert play(*moves, on="preemption-timer").exits == []
    assert play(*moves, timer(1), on="preemption-timer").exit.reason == PREEMPTION_TIMER


def test_o7_an_exit_saves_what_is_left_if_the_control_says_so() -> None:
    moves = (enter(), timer(40), run("cpuid"))
    assert play(*moves, on="preemption-timer save-preemption-timer").exit.timer == 60
    assert play(*moves, on="preemption-timer").exit.timer == 100


def test_o7_an_expired_timer_is_saved_as_0() -> None:
    moves = (enter(), timer(400))
    assert play(*moves, on="preemption-timer save-preemption-timer").exit.timer == 0


def test_o7_without_the_control_the_value_means_nothing() -> None:
    assert play(TIMER_0, enter(), timer(100)).exits == []


@pytest.mark.parametrize("shadow", [0, BLOCKING_BY_STI, BLOCKING_BY_MOV_SS])
def test_o8_tpr_below_threshold_exits_at_once(shadow: int) -> None:
    moves = (*TPR_EXIT, vmwrite(GUEST_INTERRUPTIBILITY, shadow), enter())
    seen = play(*moves, on="tpr-shadow")
    assert seen.exit.reason == TPR_BELOW_THRESHOLD
    assert seen.exit.rip == CODE_BASE


def test_o8_tpr_below_threshold_does_not_need_if() -> None:
    seen = play(*TPR_EXIT, enter(), on="tpr-shadow", off="interrupts-on")
    assert seen.exit.reason == TPR_BELOW_THRESHOLD


def test_o8_tpr_below_threshold_follows_the_injection() -> None:
    seen = play(*TPR_EXIT, inject(NMI, 2), enter(), on="tpr-shadow")
    assert seen.vectors == [NMI_VECTOR]
    assert seen.exit.reason == TPR_BELOW_THRESHOLD


def test_o9_mtf_is_pending_after_a_vectoring_entry() -> None:
    seen = play(control("monitor-trap-flag"), inject(NMI, 2), enter())
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.rip == handler_rip(NMI_VECTOR)
    assert seen.retired == 0


@pytest.mark.parametrize("on", [False, True])
def test_o9_injecting_type_7_makes_mtf_pending_with_and_without_the_control(on: bool) -> None:
    seen = play(control("monitor-trap-flag", on), inject(OTHER_EVENT, 0), enter())
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.rip == CODE_BASE


# -- O10, O11, O12 ----


@pytest.mark.parametrize(
    ("window", "reason"),
    [("interrupt-window-exiting", INTERRUPT_WINDOW), ("nmi-window-exiting", NMI_WINDOW)],
)
def test_o10_an_open_window_exits_before_the_first_instruction(window: str, reason: int) -> None:
    seen = play(control(window), enter())
    assert seen.exit.reason == reason
    assert seen.exit.rip == CODE_BASE


def test_o10_the_window_is_judged_after_the_injection() -> None:
    """The handler runs with interrupts off and, after an NMI, with virtual NMIs blocked."""
    windows = (control("interrupt-window-exiting"), control("nmi-window-exiting"))
    assert play(*windows, inject(NMI, 2), enter()).exits == []
    seen = play(*windows, inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.reason == NMI_WINDOW
    assert seen.exit.rip == handler_rip(0x40)


def test_o10_a_virtual_interrupt_comes_before_the_first_instruction() -> None:
    on = "tpr-shadow virtual-interrupt-delivery"
    seen = play(virtual_interrupt(0x40), enter(), on=on)
    assert seen.delivered[0].return_rip == CODE_BASE


def test_o10_a_virtual_interrupt_comes_after_the_injection() -> None:
    on = "tpr-shadow virtual-interrupt-delivery"
    seen = play(virtual_interrupt(0x40), inject(NMI, 2), enter(), run("iret"), on=on)
    assert seen.vectors == [NMI_VECTOR, 0x40]


@pytest.mark.parametrize(
    ("arrival", "reason"),
    [
        (interrupt(0x40), EXTERNAL_INTERRUPT_EXIT),
        (init(), INIT_SIGNAL),
        (nmi(AT_ENTRY), EXCEPTION_NMI),
    ],
)
@pytest.mark.parametrize("activity", [ACTIVE, HLT])
def test_o11_what_waits_for_the_host_exits_before_the_first_instruction(
    activity: int, arrival: Step, reason: int
) -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, activity), arrival, enter(), run("nop"))
    assert seen.exit.reason == reason
    assert seen.exit.rip == CODE_BASE
    assert seen.exit.activity == activity
    assert seen.retired == 0


def test_o11_an_nmi_latched_in_l1_exits_after_the_entry() -> None:
    seen = play(enter(), nmi(), nmi(), inject(HARDWARE_EXCEPTION, UD), enter(NO_IRET), l1_iret())
    assert seen.kinds.index(DELIVER) > seen.kinds.index(L1_ENTRY)
    assert seen.reasons == [EXCEPTION_NMI, EXCEPTION_NMI]
    assert seen.exits[1].rip == handler_rip(UD)


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN, WAIT_FOR_SIPI])
def test_o12_an_entry_without_an_event_sleeps_right_away(activity: int) -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, activity), enter(), run("nop"))
    assert seen.retired == 0
    assert seen.end.activity == activity


def test_o12_hlt_ends_with_the_first_open_event() -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, HLT), enter(), interrupt(0x40))
    assert seen.exit.reason == EXTERNAL_INTERRUPT_EXIT
