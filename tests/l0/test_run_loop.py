"""The loop of L0: the immediate exit as the processor executes it, sleep, and coming to rest (S1-S9)."""

from typing import Final

import pytest

from nvmx_core.arch.controls import PIN_PREEMPTION_TIMER
from nvmx_core.arch.events import (
    DB,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI_VECTOR,
)
from nvmx_core.arch.exits import (
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
)
from nvmx_core.arch.fields import (
    GUEST_ACTIVITY,
    GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER,
    PIN_BASED,
)
from nvmx_core.arch.state import (
    HLT,
    PENDING_DBG_BS,
    PENDING_DBG_ENABLED_BP,
    SHUTDOWN,
    WAIT_FOR_SIPI,
)
from nvmx_core.guests.memory import IDT_HIGH, handler_rip
from nvmx_core.journal import SMM_ENTRY, SMM_RETURN
from nvmx_core.l0.log import HIDDEN_EXIT, SLEEP, WAITS_INTERRUPT, WAITS_TIMER, WAKE
from nvmx_core.l0.run_loop import TIMER_IDLE
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, IN_EMULATION
from tests.nested_support import Pair, cancel_entry, drop_page, transparent
from tests.support import (
    control,
    enter,
    init,
    inject,
    intercept,
    interrupt,
    nmi,
    rsm,
    run,
    sipi,
    smi,
    timer,
    virtual_interrupt,
    vmwrite,
)

INJECTED: Final = inject(EXTERNAL_INTERRUPT, 0x40)


def hidden_reasons(pair: Pair) -> list[int]:
    """The reasons of the hardware exits that L0 saw from L2."""
    return [reason for reason, _vectoring in pair.log(HIDDEN_EXIT)]


# -- S6: the immediate exit -----------------------------------------------------------------------


def test_v10_an_immediate_exit_is_a_timer_of_zero_that_the_processor_executes() -> None:
    """O7: injection, then hardware exit 52 for L0, then exit 1 for L1."""
    pair = transparent(interrupt(0x51, AT_ENTRY), INJECTED, enter())
    assert [(entry.immediate, entry.run_pending) for entry in pair.entries] == [(True, True)]
    assert hidden_reasons(pair) == [PREEMPTION_TIMER]
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT


def test_v10_an_immediate_exit_raises_the_request_to_evaluate() -> None:
    pair = transparent(interrupt(0x51, AT_ENTRY), INJECTED, enter())
    assert [entry.will_evaluate for entry in pair.entries] == [True]


def test_v10_an_immediate_exit_for_a_reinjection() -> None:
    """bug4: the interrupt arrived while L0 repaired the page."""
    moves = (drop_page(IDT_HIGH), interrupt(0x51, IN_DELIVERY), INJECTED, enter())
    first, second = transparent(*moves).entries
    assert not first.immediate
    assert second.immediate
    assert second.reinjection
    assert second.waiting == WAITS_INTERRUPT


def test_v10_an_entry_with_nothing_waiting_is_not_short() -> None:
    pair = transparent(INJECTED, enter(), run("nop"))
    assert [entry.immediate for entry in pair.entries] == [False]


def test_v10_an_event_for_l2_that_is_blocked_asks_for_nothing() -> None:
    """bug23's kind: an interrupt for L2 with IF = 0 waits for a window, not for an immediate exit."""
    moves = (interrupt(0x51, AT_ENTRY), enter())
    pair = transparent(*moves, off="external-interrupt-exiting interrupts-on")
    assert not any(entry.immediate for entry in pair.entries)


def test_p7_a_debug_trap_comes_before_the_immediate_exit() -> None:
    """P7 before P8 in hardware: the #DB of the pending-debug field is delivered, then L0 is back."""
    moves = (vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS), interrupt(0x51, AT_ENTRY), enter())
    pair = transparent(*moves)
    assert pair.seen.vectors == [DB]
    assert pair.seen.exit.rip == handler_rip(DB)


def test_o7_the_timer_of_l1_is_never_in_vmcs02() -> None:
    """S6: L0's timer control is always on and its value idle, whatever L1 asked for."""
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 7), enter())
    vmcs02 = transparent(*moves, on="preemption-timer").nested.vcpu.vmcs02
    assert vmcs02[PIN_BASED] & PIN_PREEMPTION_TIMER
    assert vmcs02[GUEST_PREEMPTION_TIMER] == TIMER_IDLE


def test_o7_a_timer_of_zero_exits_before_the_first_instruction() -> None:
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 0), INJECTED, enter(), run("nop"))
    pair = transparent(*moves, on="preemption-timer")
    assert pair.entries[0].waiting == WAITS_TIMER
    assert pair.seen.exit.reason == PREEMPTION_TIMER
    assert pair.seen.exit.rip == handler_rip(0x40)
    assert pair.seen.retired == 0


def test_o7_a_timer_of_one_has_not_expired() -> None:
    """bug55: only 0 is immediate."""
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 1), enter(), run("nop"), timer(1))
    pair = transparent(*moves, on="preemption-timer")
    assert pair.seen.retired == 1
    assert pair.seen.exit.reason == PREEMPTION_TIMER


def test_o7_the_timer_survives_a_cancelled_entry() -> None:
    """bug15."""
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 0), cancel_entry(), enter(), run("nop"))
    pair = transparent(*moves, on="preemption-timer")
    assert pair.seen.retired == 0


@pytest.mark.parametrize("off", ["", "l0-ept", "in-kernel-apic"])
def test_o11_what_was_pending_before_the_entry_exits_at_once(off: str) -> None:
    """bug3, bug16: L1 had its interrupts closed."""
    pair = transparent(interrupt(0x51), INJECTED, enter(), run("nop"), off=off)
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT
    assert pair.seen.retired == 0


def test_a2_an_init_that_was_latched_in_l1_exits_at_once() -> None:
    """bug42."""
    pair = transparent(init(), enter(), run("nop"))
    assert pair.seen.exit.reason == INIT_SIGNAL
    assert pair.seen.retired == 0


# -- S9: sleep ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN, WAIT_FOR_SIPI])
def test_o12_l2_that_starts_asleep_sleeps_in_the_hands_of_l0(activity: int) -> None:
    pair = transparent(vmwrite(GUEST_ACTIVITY, activity), enter())
    assert pair.log(SLEEP) == [(activity,)]
    assert pair.entries == []
    assert pair.seen.end.activity == activity


def test_o3_an_injection_wakes_l2_at_the_entry() -> None:
    pair = transparent(vmwrite(GUEST_ACTIVITY, HLT), INJECTED, enter())
    assert pair.seen.vectors == [0x40]
    assert pair.log(SLEEP) == []


@pytest.mark.parametrize("starts_in_hlt", [True, False])
def test_y4_an_interrupt_exit_out_of_hlt_records_hlt(starts_in_hlt: bool) -> None:
    """bug37: the check runs before the vCPU leaves the halted state."""
    asleep = (vmwrite(GUEST_ACTIVITY, HLT), enter()) if starts_in_hlt else (enter(), run("hlt"))
    seen = transparent(*asleep, interrupt(0x51)).seen.exit
    assert seen.reason == EXTERNAL_INTERRUPT_EXIT
    assert seen.activity == HLT


def test_a1_an_interrupt_for_l2_wakes_it() -> None:
    pair = transparent(enter(), run("hlt"), interrupt(0x51), off="external-interrupt-exiting")
    assert pair.log(WAKE) == [(HLT,)]
    assert pair.seen.vectors == [0x51]


def test_a1_an_nmi_for_l2_wakes_it() -> None:
    pair = transparent(enter(), run("hlt"), nmi(), off="nmi-exiting virtual-nmis")
    assert pair.seen.vectors == [NMI_VECTOR]


def test_a1_an_interrupt_does_not_wake_l2_with_interrupts_off() -> None:
    moves = (enter(), run("hlt"), interrupt(0x51))
    pair = transparent(*moves, off="external-interrupt-exiting interrupts-on")
    assert pair.seen.end.activity == HLT


def test_a1_an_interrupt_that_comes_while_hlt_is_emulated_wakes_l2() -> None:
    moves = (enter(), interrupt(0x51, IN_EMULATION), run("hlt"))
    pair = transparent(*moves, off="external-interrupt-exiting")
    assert pair.seen.vectors == [0x51]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("interrupt-window-exiting", INTERRUPT_WINDOW), ("nmi-window-exiting", NMI_WINDOW)],
)
def test_o10_an_open_window_ends_the_sleep_at_the_entry(name: str, reason: int) -> None:
    """bug38."""
    seen = transparent(control(name), vmwrite(GUEST_ACTIVITY, HLT), enter()).seen.exit
    assert seen.reason == reason
    assert seen.activity == HLT


def test_k4_a_virtual_interrupt_wakes_l2() -> None:
    """bug40: RVI above VPPR."""
    moves = (virtual_interrupt(0x61), vmwrite(GUEST_ACTIVITY, HLT), enter())
    pair = transparent(*moves, on="tpr-shadow virtual-interrupt-delivery")
    assert pair.seen.vectors == [0x61]


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN])
def test_a1_the_timer_ends_the_sleep(activity: int) -> None:
    moves = (vmwrite(GUEST_ACTIVITY, activity), enter(), timer(1000))
    seen = transparent(*moves, on="preemption-timer").seen.exit
    assert seen.reason == PREEMPTION_TIMER
    assert seen.activity == activity


def test_a1_shutdown_holds_an_interrupt_exit() -> None:
    pair = transparent(vmwrite(GUEST_ACTIVITY, SHUTDOWN), enter(), interrupt(0x51))
    assert pair.seen.reasons == []


def test_a1_an_nmi_exits_out_of_shutdown() -> None:
    seen = transparent(vmwrite(GUEST_ACTIVITY, SHUTDOWN), enter(), nmi()).seen.exit
    assert seen.vector == NMI_VECTOR
    assert seen.activity == SHUTDOWN


def test_section_11_a_sipi_exits_out_of_wait_for_sipi() -> None:
    """bug44: the qualification is the vector."""
    seen = transparent(vmwrite(GUEST_ACTIVITY, WAIT_FOR_SIPI), enter(), sipi(0x10)).seen.exit
    assert seen.reason == SIPI_SIGNAL
    assert seen.qualification == 0x10


@pytest.mark.parametrize("event", [interrupt(0x51), nmi(), init(), smi()])
def test_section_11_wait_for_sipi_holds_everything_else(event: tuple[int, int, int, int]) -> None:
    pair = transparent(vmwrite(GUEST_ACTIVITY, WAIT_FOR_SIPI), enter(), event)
    assert pair.seen.reasons == []
    assert SMM_ENTRY not in pair.seen.kinds


def test_section_11_a_sipi_for_an_active_l2_is_discarded() -> None:
    """bug45: the interrupt that comes with it is not."""
    pair = transparent(enter(), sipi(0x10), interrupt(0x51))
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT


def test_p7_a_trap_wakes_a_sleeping_l2() -> None:
    """A data breakpoint in the pending-debug field of an entry into HLT is delivered."""
    breakpoint_0 = PENDING_DBG_ENABLED_BP | 1
    moves = (vmwrite(GUEST_ACTIVITY, HLT), vmwrite(GUEST_PENDING_DBG, breakpoint_0), enter())
    assert transparent(*moves).seen.vectors == [DB]


# -- SMM ------------------------------------------------------------------------------------------


def test_b8_rsm_completes_into_l2_before_an_interrupt_exits() -> None:
    """bug56: nested_run_pending is set by RSM too."""
    moves = (enter(), smi(), interrupt(0x51), rsm())
    pair = transparent(*moves)
    assert pair.entries[-1].run_pending
    assert pair.entries[-1].immediate
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT


def test_b8_an_mtf_exit_survives_smm() -> None:
    """res7: the exit that the emulated instruction owes comes after RSM."""
    moves = (control("monitor-trap-flag"), enter(), smi(IN_EMULATION), run("out"), rsm())
    pair = transparent(*moves)
    assert pair.seen.kinds[-3] == SMM_RETURN
    assert pair.seen.exit.rip == pair.metal.exit.rip


def test_b8_the_timer_goes_on_counting_in_smm() -> None:
    moves = (enter(), smi(), timer(1000), rsm())
    pair = transparent(*moves, on="preemption-timer")
    assert pair.seen.exit.reason == PREEMPTION_TIMER


def test_b8_an_smi_takes_a_sleeping_l2_and_rsm_puts_it_back() -> None:
    pair = transparent(enter(), run("hlt"), smi(), rsm())
    assert pair.seen.end.activity == HLT


def test_b8_l1_is_interrupted_by_an_smi_too() -> None:
    pair = transparent(smi(), rsm(), enter(), run("nop"))
    assert pair.seen.kinds[:2] == [SMM_ENTRY, SMM_RETURN]


# -- L1 and rest ----------------------------------------------------------------------------------


def test_v6_an_nmi_reaches_l1_through_its_own_idt() -> None:
    pair = transparent(nmi(), enter(), run("nop"))
    assert pair.seen.end.nmi_latched == 0
    assert pair.seen.retired == 1


def test_s1_the_loop_rests_after_every_step() -> None:
    """Each rest needs few round trips; the bound of the liveness oracle is far away."""
    moves = (
        drop_page(IDT_HIGH),
        interrupt(0x51, IN_DELIVERY),
        intercept(DB),
        inject(HARDWARE_EXCEPTION, DB),
        enter(),
        run("nop"),
    )
    assert transparent(*moves).nested.vcpu.round_trips < 8
