"""Virtual and posted interrupts of L1, which L0 has to weave into the check (K1-K4, P11)."""

from typing import Final

import pytest

from nvmx_core.arch.events import EXTERNAL_INTERRUPT, NMI_VECTOR
from nvmx_core.arch.exits import (
    EOI_INDUCED,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INTERRUPT_WINDOW,
)
from nvmx_core.arch.fields import EOI_EXIT_BITMAP, GUEST_ACTIVITY
from nvmx_core.arch.state import HLT
from nvmx_core.guests.memory import IDT_HIGH, handler_rip
from nvmx_core.l0.log import POSTED
from nvmx_core.scenario.config import NOTIFICATION_VECTOR
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, IN_EMULATION
from tests.nested_support import drop_page, transparent
from tests.support import (
    control,
    enter,
    inject,
    interrupt,
    nmi,
    post_interrupt,
    run,
    virtual_interrupt,
    vmwrite,
    vtpr,
)

VIRTUAL: Final = "tpr-shadow virtual-interrupt-delivery"
POSTING: Final = f"{VIRTUAL} acknowledge-interrupt-on-exit posted-interrupts"


def test_k4_a_virtual_interrupt_is_delivered_at_the_entry() -> None:
    assert transparent(virtual_interrupt(0x61), enter(), on=VIRTUAL).seen.vectors == [0x61]


def test_k4_the_virtual_tpr_holds_a_virtual_interrupt() -> None:
    moves = (virtual_interrupt(0x61), vtpr(7), enter(), run("nop"))
    assert transparent(*moves, on=VIRTUAL).seen.vectors == []


def test_k4_lowering_the_virtual_tpr_lets_it_through() -> None:
    moves = (virtual_interrupt(0x61), vtpr(7), enter(), run("mov-cr8", 0))
    assert transparent(*moves, on=VIRTUAL).seen.vectors == [0x61]


def test_k4_an_eoi_of_l2_exits_if_l1_asked_for_it() -> None:
    moves = (
        vmwrite(EOI_EXIT_BITMAP, 1 << 0x21),
        virtual_interrupt(0x21),
        enter(),
        run("apic-eoi"),
    )
    seen = transparent(*moves, on=VIRTUAL).seen.exit
    assert seen.reason == EOI_INDUCED
    assert seen.qualification == 0x21


def test_p11_a_virtual_interrupt_comes_before_an_interrupt_exit() -> None:
    """bug48: it needs a real boundary of L2, which a timer of 0 does not give."""
    moves = (virtual_interrupt(0x61), interrupt(0x51, AT_ENTRY), enter())
    pair = transparent(*moves, on=VIRTUAL)
    assert pair.seen.vectors == [0x61]
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT
    assert pair.seen.exit.rip == handler_rip(0x61)


def test_p11_it_does_so_after_an_emulation_too() -> None:
    moves = (
        virtual_interrupt(0x61),
        enter(),
        interrupt(0x51, IN_EMULATION),
        run("out"),
        run("sti"),
        run("nop"),
    )
    pair = transparent(*moves, on=VIRTUAL, off="interrupts-on")
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT


def test_p10_an_nmi_exit_comes_before_a_virtual_interrupt() -> None:
    pair = transparent(virtual_interrupt(0x61), nmi(AT_ENTRY), enter(), on=VIRTUAL)
    assert pair.seen.vectors == []
    assert pair.seen.exit.reason == EXCEPTION_NMI
    assert pair.seen.exit.vector == NMI_VECTOR


def test_p11_the_window_of_l1_takes_the_place_of_a_virtual_interrupt() -> None:
    moves = (control("interrupt-window-exiting"), virtual_interrupt(0x61), enter())
    pair = transparent(*moves, on=VIRTUAL)
    assert pair.seen.vectors == []
    assert pair.seen.exit.reason == INTERRUPT_WINDOW


# -- K3: posted interrupts ------------------------------------------------------------------------


def test_k3_a_notification_delivers_what_was_posted() -> None:
    """bug47: no exit; the vector is consumed."""
    pair = transparent(enter(), post_interrupt(0x61), on=POSTING)
    assert pair.seen.vectors == [0x61]
    assert pair.seen.reasons == []
    assert pair.log(POSTED) == [(NOTIFICATION_VECTOR, 0x61)]


@pytest.mark.parametrize("when", [AT_ENTRY, IN_DELIVERY])
def test_k3_a_notification_waits_for_the_injection(when: int) -> None:
    """The handler of the injected event has IF = 0; what was posted comes with its IRET."""
    moves = (
        drop_page(IDT_HIGH),
        post_interrupt(0x61, when),
        inject(EXTERNAL_INTERRUPT, 0x40),
        enter(),
        run("iret"),
    )
    assert transparent(*moves, on=POSTING).seen.vectors == [0x40, 0x61]


def test_k3_a_notification_that_was_pending_in_l1_is_taken_at_the_entry() -> None:
    """bug46: L1 had its interrupts closed."""
    pair = transparent(post_interrupt(0x61), enter(), on=POSTING)
    assert pair.seen.vectors == [0x61]
    assert pair.seen.reasons == []


def test_k3_without_the_control_the_notification_is_an_interrupt() -> None:
    """bug49's kind: nothing is posted for a VMCS that does not use it."""
    pair = transparent(enter(), post_interrupt(0x61), on=f"{VIRTUAL} acknowledge-interrupt-on-exit")
    assert pair.seen.exit.vector == NOTIFICATION_VECTOR


def test_k3_another_interrupt_exits_as_usual() -> None:
    pair = transparent(enter(), interrupt(0x51), on=POSTING)
    assert pair.seen.exit.vector == 0x51


def test_k3_a_posted_interrupt_wakes_l2() -> None:
    """bug40."""
    moves = (vmwrite(GUEST_ACTIVITY, HLT), enter(), post_interrupt(0x61))
    assert transparent(*moves, on=POSTING).seen.vectors == [0x61]


def test_k3_a_posted_interrupt_below_the_priority_does_not_wake_l2() -> None:
    moves = (vtpr(7), vmwrite(GUEST_ACTIVITY, HLT), enter(), post_interrupt(0x61))
    pair = transparent(*moves, on=POSTING)
    assert pair.seen.vectors == []
    assert pair.seen.end.activity == HLT
