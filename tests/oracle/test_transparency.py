"""TRANSPARENCY (V11): whatever no named rule catches still differs from bare metal."""

from typing import Final

import pytest

from nvmx_core.arch.events import DB, NMI, NMI_UNBLOCKING_BY_IRET, NMI_VECTOR, PF
from nvmx_core.arch.fields import GUEST_PREEMPTION_TIMER
from nvmx_core.guests.memory import DATA, STACK
from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.transparency import first_difference
from nvmx_core.scenario.steps import AT_ENTRY
from tests.nested_support import drop_page
from tests.oracle.planted import Planted, name_of, run_fixed, run_wrong, told_by
from tests.support import absent, control, enter, inject, intercept, interrupt, nmi, run, vmwrite

ORACLE: Final = "TRANSPARENCY"


class LosesFaultAddress(Kvm):
    """Wrong: a #PF that L0 injects does not write CR2 (Y1)."""

    def deliver_payload(self, vector: int, payload: int) -> None:
        if vector != PF:
            super().deliver_payload(vector, payload)


class OwesNoDebugTrap(Kvm):
    """Wrong: the single step over an emulated instruction is lost (I2)."""

    def owe_debug_trap(self) -> None:
        """Nothing."""


class ForgetsNmiUnblocking(Kvm):
    """Wrong: NMI blocking that an IRET had ended is not restored when the IRET runs again (X12)."""

    def before_resuming(self, unblocking: int) -> None:
        super().before_resuming(unblocking & ~NMI_UNBLOCKING_BY_IRET)


class NmiBeforeTimer(Kvm):
    """Wrong: rank 10 is looked at before rank 8 (P8)."""

    def check_timer(self, blocked: bool) -> int:
        result = self.check_nmi(blocked)
        return result or super().check_timer(blocked)


PLANTED: Final = (
    Planted(
        "V11",
        "event delivered in L2: cr2",
        LosesFaultAddress,
        (absent(DATA), enter(), run("load")),
        off="l0-ept",
    ),
    Planted(
        "V11",
        "L2 instruction retired instead of VM exit to L1",
        OwesNoDebugTrap,
        (intercept(DB), enter(), run("out"), run("nop")),
        on="single-step",
    ),
    Planted(
        "V11",
        "VM exit to L1 instead of L2 instruction retired",
        ForgetsNmiUnblocking,
        (
            control("nmi-window-exiting"),
            inject(NMI, NMI_VECTOR),
            enter(),
            drop_page(STACK),
            run("iret"),
        ),
    ),
    Planted(
        "V11",
        "VM exit to L1: reason, interruption info",
        NmiBeforeTimer,
        (vmwrite(GUEST_PREEMPTION_TIMER, 0), nmi(AT_ENTRY), enter()),
        on="preemption-timer",
    ),
)


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_fires_on_the_wrong_core(planted: Planted) -> None:
    assert told_by(ORACLE, run_wrong(planted)) == [(planted.rule, planted.situation)]


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_silent_on_the_fixed_core(planted: Planted) -> None:
    assert run_fixed(planted).violations == ()


def test_a_shorter_journal_differs_at_its_end() -> None:
    journal = run_fixed(Planted("", "", Kvm, (interrupt(0x40, AT_ENTRY), enter()))).seen.journal
    assert first_difference(journal, journal[:2]) == 2
