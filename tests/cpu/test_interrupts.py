"""Acknowledge-on-exit, posted and virtual interrupts (K1 to K4), and the local APIC."""

from typing import Final

import pytest

from nvmx_core.arch.events import EXTERNAL_INTERRUPT, UD
from nvmx_core.arch.exits import EOI_INDUCED, EXTERNAL_INTERRUPT_EXIT
from nvmx_core.arch.fields import (
    EOI_EXIT_BITMAP,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_INTR_STATUS,
)
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import BLOCKING_BY_MOV_SS, BLOCKING_BY_STI, HLT
from nvmx_core.cpu.apic import NO_VECTOR, LocalApic
from nvmx_core.guests.manners import NO_EOI
from nvmx_core.guests.memory import CODE_BASE
from nvmx_core.journal import DELIVER, EXIT, L1_INTERRUPT
from nvmx_core.machines.bare import Bare
from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAG_BIT, NOTIFICATION_VECTOR, Config
from nvmx_core.scenario.steps import AT_ENTRY
from tests.support import (
    enter,
    event,
    interrupt,
    open_interrupts,
    play,
    post_interrupt,
    run,
    virtual_interrupt,
    vmptrld,
    vmwrite,
    vtpr,
)

ACK: Final = "acknowledge-interrupt-on-exit"
VIRTUAL: Final = "tpr-shadow virtual-interrupt-delivery"
POSTED: Final = f"{VIRTUAL} {ACK} posted-interrupts"

# -- K1, K2 ----


def test_k1_without_acknowledge_the_interrupt_stays_pending() -> None:
    seen = play(enter(), interrupt(0x40))
    assert seen.exit.reason == EXTERNAL_INTERRUPT_EXIT
    assert seen.exit.interruption == 0
    assert (seen.end.irr, seen.end.isr) == (1 << 0x40, 0)


def test_k1_with_acknowledge_the_vector_is_reported_and_in_service() -> None:
    seen = play(enter(), interrupt(0x40), on=ACK)
    assert seen.exit.interruption == event(EXTERNAL_INTERRUPT, 0x40)
    assert (seen.end.irr, seen.end.isr) == (0, 1 << 0x40)


def test_k1_without_acknowledge_the_host_takes_it_when_it_opens_interrupts() -> None:
    seen = play(enter(), interrupt(0x40), open_interrupts())
    assert (L1_INTERRUPT, 0x40) in seen.journal
    assert seen.end.irr == 0


def test_k1_the_highest_vector_is_acknowledged() -> None:
    seen = play(interrupt(0x40), interrupt(0x50), enter(), on=ACK)
    assert seen.exit.interruption == event(EXTERNAL_INTERRUPT, 0x50)
    assert seen.end.irr == 1 << 0x40


def test_k2_no_interrupt_exit_without_an_interrupt() -> None:
    seen = play(enter(), run("nop"), run("sti"), run("nop"))
    assert EXIT not in seen.kinds


@pytest.mark.parametrize("on", ["", ACK])
def test_k2_one_interrupt_makes_one_exit(on: str) -> None:
    seen = play(enter(), interrupt(0x40), enter(), run("nop"), on=on)
    assert seen.reasons == [EXTERNAL_INTERRUPT_EXIT]


def test_k2_an_interrupt_of_the_class_in_service_does_not_exit() -> None:
    moves = (enter(), interrupt(0x45), enter(NO_EOI), interrupt(0x40), run("nop"))
    seen = play(*moves, on=ACK)
    assert seen.reasons == [EXTERNAL_INTERRUPT_EXIT]
    assert seen.end.irr == 1 << 0x40


# -- K3 ----


def test_k3_the_notification_is_consumed_without_an_exit() -> None:
    seen = play(enter(), post_interrupt(0x60), on=POSTED)
    assert seen.exits == []
    assert seen.vectors == [0x60]
    assert (seen.end.irr, seen.end.isr) == (0, 0)


def test_k3_another_vector_exits() -> None:
    seen = play(enter(), interrupt(0x40), on=POSTED)
    assert seen.exit.interruption == event(EXTERNAL_INTERRUPT, 0x40)


def test_k3_the_vectors_are_compared_when_the_interrupt_is_acknowledged() -> None:
    """The notification was pending before the entry; it is processed all the same."""
    seen = play(post_interrupt(0x60), enter(), on=POSTED)
    assert seen.exits == []
    assert seen.vectors == [0x60]


def test_k3_posted_requests_gather_and_are_delivered_by_priority() -> None:
    moves = (post_interrupt(0x60, AT_ENTRY), post_interrupt(0x90, AT_ENTRY), enter())
    seen = play(*moves, run("apic-eoi"), run("iret"), on=POSTED)
    assert seen.vectors == [0x90, 0x60]


def test_k3_a_bare_notification_raises_nothing() -> None:
    seen = play(enter(), interrupt(NOTIFICATION_VECTOR), run("nop"), on=POSTED)
    assert seen.exits == []
    assert seen.delivered == []


def test_k3_if_0_does_not_hold_the_processing() -> None:
    seen = play(
        enter(), post_interrupt(0x60), run("sti"), run("nop"), on=POSTED, off="interrupts-on"
    )
    assert seen.retired == 2
    assert seen.vectors == [0x60]


def test_k3_without_the_control_the_notification_exits() -> None:
    seen = play(enter(), post_interrupt(0x60), on=f"{VIRTUAL} {ACK}")
    assert seen.exit.interruption == event(EXTERNAL_INTERRUPT, NOTIFICATION_VECTOR)


def test_k3_a_notification_wakes_hlt_only_with_something_to_deliver() -> None:
    hlt = vmwrite(GUEST_ACTIVITY, HLT)
    assert play(hlt, enter(), post_interrupt(0x60), on=POSTED).vectors == [0x60]
    assert play(hlt, enter(), interrupt(NOTIFICATION_VECTOR), on=POSTED).end.activity == HLT


# -- K4 ----


@pytest.mark.parametrize(("vector", "is_recognised"), [(0x3F, False), (0x40, True)])
def test_k4_the_class_of_rvi_must_exceed_that_of_vppr(vector: int, is_recognised: bool) -> None:
    seen = play(vtpr(3), virtual_interrupt(vector), enter(), on=VIRTUAL)
    assert seen.vectors == ([vector] if is_recognised else [])


def test_k4_delivery_moves_rvi_to_svi_without_an_exit() -> None:
    moves = (virtual_interrupt(0x40), virtual_interrupt(0x31), enter(), run("cpuid"))
    seen = play(*moves, on=VIRTUAL)
    assert seen.vectors == [0x40]
    assert seen.exit.interrupt_status == 0x40 << 8 | 0x31


def test_k4_a_vector_in_service_raises_vppr() -> None:
    moves = (virtual_interrupt(0x40), virtual_interrupt(0x45), enter(), run("sti"), run("nop"))
    seen = play(*moves, on=VIRTUAL)
    assert seen.vectors == [0x45]


def test_k4_delivery_needs_if() -> None:
    moves = (virtual_interrupt(0x40), enter(), run("sti"), run("nop"))
    seen = play(*moves, on=VIRTUAL, off="interrupts-on")
    assert seen.delivered[0].return_rip == CODE_BASE + 2


@pytest.mark.parametrize("blocking", [BLOCKING_BY_STI, BLOCKING_BY_MOV_SS])
def test_k4_delivery_waits_for_the_end_of_a_shadow(blocking: int) -> None:
    moves = (vmwrite(GUEST_INTERRUPTIBILITY, blocking), virtual_interrupt(0x40), enter())
    assert play(*moves, on=VIRTUAL).delivered == []
    assert play(*moves, run("nop"), on=VIRTUAL).vectors == [0x40]


def test_k4_lowering_the_tpr_recognises_the_interrupt() -> None:
    moves = (vtpr(5), virtual_interrupt(0x40), enter(), run("mov-cr8", 3))
    seen = play(*moves, on=VIRTUAL)
    assert seen.vectors == [0x40]


def test_k4_eoi_recognises_the_next_interrupt() -> None:
    moves = (virtual_interrupt(0x40), virtual_interrupt(0x45), enter(), run("sti"))
    seen = play(*moves, run("nop"), run("apic-eoi"), on=VIRTUAL)
    assert seen.vectors == [0x45, 0x40]


def test_k4_eoi_exits_if_the_bitmap_says_so() -> None:
    moves = (vmwrite(EOI_EXIT_BITMAP, 1 << 0x20), virtual_interrupt(0x20), enter())
    seen = play(*moves, run("apic-eoi"), on=VIRTUAL)
    assert seen.exit.reason == EOI_INDUCED
    assert seen.exit.qualification == 0x20
    assert seen.exit.interrupt_status == 0


def test_k4_without_the_control_rvi_means_nothing() -> None:
    assert play(virtual_interrupt(0x40), enter()).delivered == []


# -- the local APIC ----


def test_apic_offers_the_highest_request_above_the_class_in_service() -> None:
    apic = LocalApic()
    apic.request(0x31)
    apic.request(0x45)
    assert apic.deliverable() == 0x45
    apic.acknowledge(0x45)
    assert apic.deliverable() == NO_VECTOR
    apic.end_of_interrupt()
    assert apic.deliverable() == 0x31


def test_apic_a_vector_requested_twice_is_one_interrupt() -> None:
    apic = LocalApic()
    apic.request(0x40)
    apic.request(0x40)
    assert apic.accepted == [0x40]


def test_apic_eoi_with_nothing_in_service_does_nothing() -> None:
    apic = LocalApic()
    apic.end_of_interrupt()
    assert apic.isr == 0


def test_k2_vectors_below_16_are_none_of_the_apic() -> None:
    seen = play(enter(), interrupt(UD), on=ACK)
    assert seen.exit.interruption == event(EXTERNAL_INTERRUPT, UD + 16)


def test_k1_acknowledged_interrupts_need_no_control_of_l2() -> None:
    """Whether L2 has interrupts on plays no part."""
    seen = play(enter(), interrupt(0x40), on=ACK, off="interrupts-on")
    assert seen.exit.interruption == event(EXTERNAL_INTERRUPT, 0x40)


def test_k4_l1_enters_with_rvi_at_its_highest_request() -> None:
    """Requests for another VMCS of L1 stand in the same virtual-APIC page."""
    moves = (virtual_interrupt(0x50), vmptrld(1), virtual_interrupt(0x40), enter())
    assert play(*moves, on=VIRTUAL).vectors == [0x50]


def test_k4_a_delivery_ends_the_recognition() -> None:
    """With RVI below a request, which no L1 here leaves, the request would wait for an evaluation."""
    bare = Bare(
        Config(DEFAULT_FLAGS | FLAG_BIT["tpr-shadow"] | FLAG_BIT["virtual-interrupt-delivery"])
    )
    bare.memory.virr = 1 << 0x50 | 1 << 0x40
    vmcs = bare.l1.vmcs
    vmcs[GUEST_INTR_STATUS] = 0x40
    bare.cpu.complete_entry(vmcs)
    delivered = [record[1] for record in bare.journal if record[0] == DELIVER]
    assert (delivered, vmcs[GUEST_INTR_STATUS]) == ([0x40], 0x4050)
    bare.cpu.execute(INSTRUCTION_INDEX["sti"], 0)
    bare.cpu.execute(INSTRUCTION_INDEX["nop"], 0)
    assert [record[1] for record in bare.journal if record[0] == DELIVER] == [0x40]
