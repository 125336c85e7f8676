"""Activity states against events (A1 to A3, and the table behind them)."""

from typing import Final

import pytest

from nvmx_core.arch.events import DB, DF, GP, HARDWARE_EXCEPTION, NMI, NMI_VECTOR
from nvmx_core.arch.exits import (
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    HLT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
)
from nvmx_core.arch.fields import (
    GUEST_ACTIVITY,
    GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import ACTIVE, HLT, PENDING_DBG_BS, SHUTDOWN, WAIT_FOR_SIPI
from nvmx_core.guests.memory import CODE_BASE, GATE_NOT_PRESENT, STACK
from nvmx_core.journal import SMM_ENTRY
from nvmx_core.scenario.steps import AT_ENTRY, Step
from tests.support import (
    Play,
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
    run,
    sipi,
    smi,
    timer,
    virtual_interrupt,
    vmwrite,
)

INTERRUPT_DELIVERY: Final = "external-interrupt-exiting"
NMI_DELIVERY: Final = "nmi-exiting virtual-nmis"
VIRTUAL_INTERRUPTS: Final = "tpr-shadow virtual-interrupt-delivery"
TPR_EXIT: Final = (control("virtualize-apic-accesses"), vmwrite(TPR_THRESHOLD, 1))


def asleep(activity: int, *moves: Step, on: str = "", off: str = "") -> Play:
    """Enter L2 in an activity state, then go on with *moves*."""
    return play(vmwrite(GUEST_ACTIVITY, activity), enter(), *moves, on=on, off=off)


def asleep_with(activity: int, *before: Step, on: str = "", off: str = "") -> Play:
    """Enter L2 in an activity state after the steps *before*."""
    return play(vmwrite(GUEST_ACTIVITY, activity), *before, enter(), on=on, off=off)


# -- external interrupts ----


def test_a1_an_interrupt_exits_out_of_hlt_even_with_if_0() -> None:
    seen = asleep(HLT, interrupt(0x40), off="interrupts-on")
    assert seen.exit.reason == EXTERNAL_INTERRUPT_EXIT
    assert seen.exit.activity == HLT


def test_a1_an_interrupt_wakes_and_is_delivered() -> None:
    seen = asleep(HLT, interrupt(0x40), off=INTERRUPT_DELIVERY)
    assert seen.vectors == [0x40]
    assert seen.end.activity == ACTIVE


def test_a1_an_interrupt_needs_if_to_wake() -> None:
    seen = asleep(HLT, interrupt(0x40), off=f"{INTERRUPT_DELIVERY} interrupts-on")
    assert seen.delivered == []
    assert seen.end.activity == HLT


def test_a1_an_exit_during_the_delivery_that_woke_saves_active() -> None:
    moves = (vmwrite(GUEST_ACTIVITY, HLT), ept(STACK), enter(), interrupt(0x40))
    seen = play(*moves, off=INTERRUPT_DELIVERY)
    assert seen.exit.reason == EPT_VIOLATION
    assert seen.exit.activity == ACTIVE


@pytest.mark.parametrize("activity", [SHUTDOWN, WAIT_FOR_SIPI])
@pytest.mark.parametrize("off", ["", INTERRUPT_DELIVERY])
def test_o12_shutdown_and_wait_for_sipi_block_interrupts(activity: int, off: str) -> None:
    seen = asleep(activity, interrupt(0x40), off=off)
    assert seen.exits == []
    assert seen.delivered == []
    assert seen.end.activity == activity


# -- NMIs ----


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN])
def test_a1_an_nmi_exits_from_the_state_it_finds(activity: int) -> None:
    seen = asleep(activity, nmi())
    assert seen.exit.interruption == event(NMI, NMI_VECTOR)
    assert seen.exit.activity == activity


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN])
def test_a1_an_nmi_wakes_and_is_delivered(activity: int) -> None:
    seen = asleep(activity, nmi(), off=NMI_DELIVERY)
    assert seen.vectors == [NMI_VECTOR]
    assert seen.end.activity == ACTIVE


# -- wait-for-SIPI ----

BLOCKED_IN_WAIT_FOR_SIPI: Final = {
    "nmi": nmi(),
    "smi": smi(),
    "init": init(),
    "interrupt": interrupt(0x40),
    "timer": timer(100),
}


@pytest.mark.parametrize("arrival", BLOCKED_IN_WAIT_FOR_SIPI)
def test_o12_wait_for_sipi_blocks_everything_but_sipi(arrival: str) -> None:
    seen = asleep(WAIT_FOR_SIPI, BLOCKED_IN_WAIT_FOR_SIPI[arrival], on="preemption-timer")
    assert seen.exits == []
    assert SMM_ENTRY not in seen.kinds
    assert seen.end.activity == WAIT_FOR_SIPI


def test_o12_a_sipi_exits_from_wait_for_sipi_with_its_vector() -> None:
    seen = asleep(WAIT_FOR_SIPI, sipi(0x12))
    assert seen.exit.reason == SIPI_SIGNAL
    assert seen.exit.qualification == 0x12
    assert seen.exit.activity == WAIT_FOR_SIPI
    assert seen.exit.rip == CODE_BASE


@pytest.mark.parametrize("activity", [ACTIVE, HLT, SHUTDOWN])
def test_o12_a_sipi_is_discarded_elsewhere(activity: int) -> None:
    seen = asleep(activity, sipi(0x12))
    assert seen.exits == []
    assert seen.end.activity == activity


@pytest.mark.parametrize(
    "before",
    [
        (control("nmi-window-exiting"),),
        (control("interrupt-window-exiting"),),
        (vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS),),
        (vmwrite(GUEST_PREEMPTION_TIMER, 0),),
    ],
    ids=["nmi-window", "interrupt-window", "debug", "timer"],
)
def test_o12_wait_for_sipi_has_no_windows_traps_or_timer(before: tuple[Step, ...]) -> None:
    seen = asleep_with(WAIT_FOR_SIPI, *before, on="preemption-timer")
    assert seen.exits == []
    assert seen.delivered == []


def test_o8_wait_for_sipi_has_no_tpr_exit() -> None:
    assert asleep_with(WAIT_FOR_SIPI, *TPR_EXIT, on="tpr-shadow").exits == []


# -- the rest of the table ----


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN])
def test_a2_init_exits_from_sleep(activity: int) -> None:
    seen = asleep(activity, init())
    assert seen.exit.reason == INIT_SIGNAL
    assert seen.exit.activity == activity


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN])
def test_b8_an_smi_is_taken_in_sleep(activity: int) -> None:
    assert SMM_ENTRY in asleep(activity, smi()).kinds


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN])
def test_o7_the_timer_exits_from_sleep(activity: int) -> None:
    seen = asleep(activity, timer(100), on="preemption-timer")
    assert seen.exit.reason == PREEMPTION_TIMER
    assert seen.exit.activity == activity


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN])
def test_b6_the_nmi_window_opens_in_sleep(activity: int) -> None:
    seen = asleep_with(activity, control("nmi-window-exiting"))
    assert seen.exit.reason == NMI_WINDOW
    assert seen.exit.activity == activity


def test_b5_the_interrupt_window_opens_in_hlt_but_not_in_shutdown() -> None:
    window = control("interrupt-window-exiting")
    assert asleep_with(HLT, window).exit.reason == INTERRUPT_WINDOW
    assert asleep_with(SHUTDOWN, window).exits == []


def test_k4_a_virtual_interrupt_wakes_hlt_but_not_shutdown() -> None:
    request = virtual_interrupt(0x40)
    woken = asleep_with(HLT, request, on=VIRTUAL_INTERRUPTS)
    assert woken.vectors == [0x40]
    assert woken.end.activity == ACTIVE
    assert asleep_with(SHUTDOWN, request, on=VIRTUAL_INTERRUPTS).delivered == []


def test_o6_a_debug_trap_wakes_hlt() -> None:
    moves = (enter(), run("hlt"))
    seen = play(*moves, on="single-step")
    assert seen.vectors == [DB]
    assert seen.end.activity == ACTIVE


def test_o6_a_debug_trap_that_exits_out_of_hlt_saves_hlt() -> None:
    seen = play(intercept(DB), enter(), run("hlt"), on="single-step")
    assert seen.exit.interruption == event(HARDWARE_EXCEPTION, DB)
    assert seen.exit.activity == HLT
    assert seen.exit.rip == CODE_BASE + 1


def test_o6_shutdown_drops_pending_debug_exceptions_for_good() -> None:
    moves = (vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS), vmwrite(GUEST_ACTIVITY, SHUTDOWN))
    seen = play(*moves, enter(), nmi(), off=NMI_DELIVERY)
    assert seen.vectors == [NMI_VECTOR]


def test_o8_the_tpr_exit_comes_out_of_hlt() -> None:
    seen = asleep_with(HLT, *TPR_EXIT, on="tpr-shadow")
    assert seen.exit.reason == TPR_BELOW_THRESHOLD
    assert seen.exit.activity == HLT


def test_o8_the_tpr_exit_waits_in_shutdown() -> None:
    assert asleep_with(SHUTDOWN, *TPR_EXIT, on="tpr-shadow").exits == []


def test_o8_the_tpr_exit_follows_the_wake_up_from_shutdown() -> None:
    moves = (*TPR_EXIT, vmwrite(GUEST_ACTIVITY, SHUTDOWN), enter(), nmi())
    seen = play(*moves, on="tpr-shadow", off=NMI_DELIVERY)
    assert seen.vectors == [NMI_VECTOR]
    assert seen.exit.reason == TPR_BELOW_THRESHOLD


def test_o8_an_injection_that_wakes_from_shutdown_is_followed_by_the_tpr_exit() -> None:
    moves = (*TPR_EXIT, vmwrite(GUEST_ACTIVITY, SHUTDOWN), inject(NMI, 2), enter())
    seen = play(*moves, on="tpr-shadow")
    assert seen.vectors == [NMI_VECTOR]
    assert seen.exit.reason == TPR_BELOW_THRESHOLD


def test_m1_mtf_after_an_nmi_that_woke_from_shutdown() -> None:
    moves = (control("monitor-trap-flag"), vmwrite(GUEST_ACTIVITY, SHUTDOWN), enter(), nmi())
    seen = play(*moves, off=NMI_DELIVERY)
    assert seen.vectors == [NMI_VECTOR]
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.activity == ACTIVE


def test_a1_l2_runs_nothing_while_it_sleeps() -> None:
    seen = asleep(HLT, run("nop"))
    assert seen.retired == 0
    assert seen.machine.skipped == 1


def test_a1_an_intercepted_hlt_is_active() -> None:
    seen = play(enter(), run("hlt"), on="hlt-exiting")
    assert seen.exit.reason == HLT_EXIT
    assert seen.exit.activity == ACTIVE
    assert seen.exit.rip == CODE_BASE


def test_a1_an_interrupt_that_waited_behind_sti_wakes_hlt_at_once() -> None:
    """The shadow of STI; HLT covers HLT only."""
    moves = (enter(), interrupt(0x40), run("sti"), run("hlt"))
    seen = play(*moves, off=f"{INTERRUPT_DELIVERY} interrupts-on")
    assert seen.vectors == [0x40]
    assert seen.delivered[0].return_rip == CODE_BASE + 2


# -- A2, A3 ----


def test_a2_init_in_root_operation_exits_right_after_the_next_entry() -> None:
    seen = play(init(), enter())
    assert seen.exit.reason == INIT_SIGNAL
    assert seen.exit.rip == CODE_BASE
    assert seen.end.init_latched == 0


def test_a2_init_in_root_operation_stays_latched() -> None:
    seen = play(enter(), run("cpuid"), init(), init())
    assert seen.end.init_latched == 1


def test_a2_init_comes_after_the_injection() -> None:
    seen = play(init(AT_ENTRY), inject(NMI, 2), enter())
    assert seen.vectors == [NMI_VECTOR]
    assert seen.exit.reason == INIT_SIGNAL


def test_a3_a_triple_fault_is_no_shutdown() -> None:
    gates = (gate(GP, GATE_NOT_PRESENT), gate(DF, GATE_NOT_PRESENT))
    seen = play(*gates, enter(), run("gp"))
    assert seen.exit.reason == TRIPLE_FAULT
    assert seen.exit.activity == ACTIVE


def test_a3_an_entry_may_put_a_guest_into_shutdown() -> None:
    assert asleep(SHUTDOWN).end.activity == SHUTDOWN


def test_a1_an_nmi_exit_is_not_the_exception_of_a_wake_up() -> None:
    assert asleep(HLT, nmi()).exit.reason == EXCEPTION_NMI
