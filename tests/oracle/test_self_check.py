"""SELF-CHECK (V5, V6, X1, E0): each of L0's own warnings fires on a planted wrong core."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_VECTOR,
    SOFTWARE_EXCEPTION,
    TYPE_MASK,
    TYPE_SHIFT,
)
from nvmx_core.arch.fields import GUEST_RFLAGS
from nvmx_core.bugs.ordering import Bug2
from nvmx_core.guests.memory import IDT_HIGH, IDT_LOW
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.log import (
    CHECK_ENTRY_FAILED,
    CHECK_EVENT_FOR_L1,
    CHECK_EXIT_WHILE_RUN_PENDING,
    CHECK_RUN_PENDING_OUTSIDE_GUEST,
    CHECK_VECTORING_WITH_REASON,
    SELF_CHECKS,
)
from nvmx_core.oracle.self_check import ORACLE, RULE_OF_CHECK
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY
from tests.nested_support import drop_page
from tests.oracle.planted import Planted, name_of, run_fixed, run_wrong, told_by
from tests.support import enter, ept, inject, interrupt, vmwrite


class ExitsBeforeEntry(Kvm):
    """Wrong: an interrupt exits although the accepted entry has not happened yet (bug6's kind)."""

    def check_interrupt(self, blocked: bool) -> int:
        return super().check_interrupt(blocked and not self.nested_run_pending)

    def exit_for_interrupt(self) -> None:
        super().exit_for_interrupt()
        self.nested_run_pending = False


class KeepsRunPending(Kvm):
    """Wrong: a failed entry leaves the nested run pending (bug58)."""

    def fail_entry(self, reason: int, qualification: int) -> None:
        super().fail_entry(reason, qualification)
        self.nested_run_pending = True


class KeepsNmiBlocked(Kvm):
    """Wrong: an NMI is injected again under the blocking that its first delivery has set (G8)."""

    def unblock_nmi_for_reinjection(self) -> None:
        """Nothing."""


class NormalisesTypes(Kvm):
    """Wrong: a software exception other than #BP and #OF comes back as a hardware exception (res2)."""

    def requeue(self, info: int, error_code: int, length: int) -> None:
        if info & TYPE_MASK == SOFTWARE_EXCEPTION << TYPE_SHIFT:
            info = info & ~TYPE_MASK | HARDWARE_EXCEPTION << TYPE_SHIFT
        super().requeue(info, error_code, length)


class KeepsQueues(Kvm):
    """Wrong: a nested exit does not empty L2's queues (bug8's leak)."""

    def forget_queues(self) -> None:
        """Nothing."""


PLANTED: Final = (
    Planted(
        "V5",
        SELF_CHECKS[CHECK_EXIT_WHILE_RUN_PENDING],
        ExitsBeforeEntry,
        (interrupt(0x51, AT_ENTRY), enter()),
    ),
    Planted(
        "V5",
        SELF_CHECKS[CHECK_RUN_PENDING_OUTSIDE_GUEST],
        KeepsRunPending,
        (vmwrite(GUEST_RFLAGS, 0), enter()),
    ),
    Planted(
        "V6",
        SELF_CHECKS[CHECK_EVENT_FOR_L1],
        KeepsQueues,
        (ept(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter()),
    ),
    Planted(
        "X1",
        SELF_CHECKS[CHECK_VECTORING_WITH_REASON],
        Bug2,
        (
            drop_page(IDT_HIGH),
            interrupt(0x51, IN_DELIVERY),
            inject(EXTERNAL_INTERRUPT, 0x40),
            enter(),
        ),
    ),
    Planted(
        "E0",
        SELF_CHECKS[CHECK_ENTRY_FAILED],
        KeepsNmiBlocked,
        (drop_page(IDT_LOW), inject(NMI, NMI_VECTOR), enter()),
    ),
    Planted(
        "E0",
        SELF_CHECKS[CHECK_ENTRY_FAILED],
        NormalisesTypes,
        (drop_page(IDT_LOW), inject(SOFTWARE_EXCEPTION, GP, length=1), enter()),
    ),
)


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_fires_on_the_wrong_core(planted: Planted) -> None:
    assert told_by(ORACLE, run_wrong(planted)) == [(planted.rule, planted.situation)]


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_silent_on_the_fixed_core(planted: Planted) -> None:
    assert run_fixed(planted).violations == ()


def test_every_self_check_has_a_wrong_core() -> None:
    planted = {(wrong.rule, wrong.situation) for wrong in PLANTED}
    assert planted == {(RULE_OF_CHECK[code], text) for code, text in enumerate(SELF_CHECKS)}
