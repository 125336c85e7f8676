"""CONSERVATION (V7, V8, K2, Y1): each account fires when a planted wrong core cheats it.

The account of injections (V2) has a file of its own, ``test_injections.py``.
"""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    DB,
    NMI_INFO,
    PF,
)
from nvmx_core.arch.exits import EXCEPTION_NMI, EXTERNAL_INTERRUPT_EXIT
from nvmx_core.arch.fields import ENTRY_INTR_INFO
from nvmx_core.guests.memory import DATA, STACK
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.nested_check import NEXT, TAKEN
from nvmx_core.oracle.conservation import ORACLE
from tests.nested_support import drop_page
from tests.oracle.planted import Planted, name_of, run_fixed, run_wrong, told_by
from tests.support import (
    absent,
    control,
    enter,
    intercept,
    interrupt,
    l1_iret,
    nmi,
    run,
    virtual_interrupt,
)


class AcknowledgesOnly(Kvm):
    """Wrong: an interrupt for L2 is acknowledged and then forgotten."""

    def inject_interrupt(self) -> None:
        self.take_interrupt()


class NeverAcknowledges(Kvm):
    """Wrong: an interrupt for L2 is injected and stays pending in the controller."""

    def inject_interrupt(self) -> None:
        vector = self.apic.deliverable()
        super().inject_interrupt()
        self.apic.acknowledged.remove(vector)
        self.apic.isr &= ~(1 << vector)
        self.apic.irr |= 1 << vector


class ZeroesInjectedInterrupt(Kvm):
    """Wrong: an interrupt for L2 is injected, and its entry field and queue are emptied behind it."""

    def inject_interrupt(self) -> None:
        super().inject_interrupt()
        self.vmcs02[ENTRY_INTR_INFO] = 0
        self.interrupt_injected = False


class ZeroesInjectedNmi(Kvm):
    """Wrong: an NMI for L2 is injected, and its entry field and queue are emptied behind it."""

    def inject_nmi(self) -> None:
        super().inject_nmi()
        self.vmcs02[ENTRY_INTR_INFO] = 0
        self.nmi_injected = False


class ZeroesEntryFieldOnly(Kvm):
    """Wrong: the interrupt never reaches the entry field, although the queue still names it."""

    def inject_interrupt(self) -> None:
        super().inject_interrupt()
        self.vmcs02[ENTRY_INTR_INFO] = 0


class DropsInFlight(Kvm):
    """Wrong: an interrupt or NMI whose delivery an exit interrupted is not injected again."""

    def reinject(self) -> None:
        self.interrupt_injected = False
        self.nmi_injected = False
        super().reinject()


class NmiQueueOutlivesDelivery(Kvm):
    """Wrong: an NMI for L2 stays in its queue when it has been delivered, and is injected again."""

    def complete_interrupts(self) -> None:
        queued = self.nmi_injected
        super().complete_interrupts()
        self.nmi_injected |= queued


class DropsRequests(Kvm):
    """Wrong: a nested exit loses what the controller had latched."""

    def forget_queues(self) -> None:
        super().forget_queues()
        self.apic.irr = 0


class NmiInjectionIsNoOperation(Kvm):
    """Wrong: injecting an NMI into L2 does nothing but is marked done (bug10)."""

    def inject_nmi(self) -> None:
        self.nmi_pending = False


class NmiExitKeepsNmi(Kvm):
    """Wrong: the NMI of an NMI exit stays pending (K1's rule for interrupts, used for NMIs)."""

    def check_nmi(self, blocked: bool) -> int:
        if blocked or not (self.nmi_pending and self.l1_wants_nmis()):
            return super().check_nmi(blocked)
        self.nested_vmexit(EXCEPTION_NMI, 0, NMI_INFO)
        return TAKEN


class WindowIsInterruptExit(Kvm):
    """Wrong: an open interrupt window becomes an external-interrupt exit (bug19)."""

    def check_interrupt_window(self, blocked: bool) -> int:
        if blocked or not self.interrupts_open():
            return NEXT
        self.nested_vmexit(EXTERNAL_INTERRUPT_EXIT)
        return TAKEN


class WritesPayloadEarly(Kvm):
    """Wrong: CR2 and DR6 are written when an exception is queued, intercepted or not (bug51)."""

    def queue_vmexit(
        self, info: int, error_code: int, payload: int, length: int, trap: bool
    ) -> None:
        self.deliver_payload(info & 0xFF, payload)
        super().queue_vmexit(info, error_code, payload, length, trap)


FOR_L2: Final = "external-interrupt-exiting"
NMI_FOR_L2: Final = "nmi-exiting virtual-nmis"

PLANTED: Final = (
    Planted("V7", "interrupt lost", AcknowledgesOnly, (enter(), interrupt(0x51)), off=FOR_L2),
    Planted("V7", "interrupt doubled", NeverAcknowledges, (enter(), interrupt(0x51)), off=FOR_L2),
    Planted(
        "V7",
        "interrupt lost in the controller",
        DropsRequests,
        (interrupt(0x51), enter()),
    ),
    Planted(
        "V8",
        "NMI lost",
        NmiInjectionIsNoOperation,
        (enter(), nmi(), run("nop")),
        off=NMI_FOR_L2,
    ),
    Planted(
        "V7",
        "interrupt lost on its way into L2",
        ZeroesInjectedInterrupt,
        (enter(), interrupt(0x51), run("nop")),
        off=FOR_L2,
    ),
    Planted(
        "V7",
        "interrupt lost on its way into L2",
        ZeroesEntryFieldOnly,
        (enter(), interrupt(0x51)),
        off=FOR_L2,
    ),
    Planted(
        "V7",
        "interrupt lost on its way into L2",
        DropsInFlight,
        (enter(), drop_page(STACK), interrupt(0x51), run("nop")),
        off=FOR_L2,
    ),
    Planted(
        "V7",
        "interrupt lost on its way into L2",
        DropsInFlight,
        (drop_page(STACK), virtual_interrupt(0x51), enter(), run("nop")),
        on="tpr-shadow virtual-interrupt-delivery",
    ),
    Planted(
        "V8",
        "NMI lost on its way into L2",
        ZeroesInjectedNmi,
        (enter(), nmi(), run("nop")),
        off=NMI_FOR_L2,
    ),
    Planted(
        "V8",
        "NMI lost on its way into L2",
        DropsInFlight,
        (enter(), drop_page(STACK), nmi(), run("nop")),
        off=NMI_FOR_L2,
    ),
    Planted(
        "V8",
        "NMI delivered to L2 twice",
        NmiQueueOutlivesDelivery,
        (enter(), nmi(), interrupt(0x51)),
        off=NMI_FOR_L2,
    ),
    Planted("V8", "NMI doubled", NmiExitKeepsNmi, (enter(), nmi(), l1_iret())),
    Planted(
        "K2",
        "interrupt exit without interrupt",
        WindowIsInterruptExit,
        (control("interrupt-window-exiting"), enter()),
    ),
    Planted(
        "Y1",
        "CR2 changed without a delivered #PF",
        WritesPayloadEarly,
        (absent(DATA), intercept(PF), enter(), run("load")),
        off="l0-ept",
    ),
    Planted(
        "Y1",
        "DR6 changed without a delivered #DB",
        WritesPayloadEarly,
        (intercept(DB), enter(), run("out")),
        on="single-step",
    ),
)


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_fires_on_the_wrong_core(planted: Planted) -> None:
    assert told_by(ORACLE, run_wrong(planted)) == [(planted.rule, planted.situation)]


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_silent_on_the_fixed_core(planted: Planted) -> None:
    assert run_fixed(planted).violations == ()
