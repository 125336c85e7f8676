"""EVENT-RANK (V4): an event that overtakes one of higher rank is told, whoever the two are for."""

from typing import Final

import pytest

from nvmx_core.arch.events import DB, EXTERNAL_INTERRUPT, HARDWARE_EXCEPTION, NMI_INFO, PF
from nvmx_core.arch.exits import (
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
)
from nvmx_core.arch.fields import GUEST_PREEMPTION_TIMER
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.nested_check import NEXT
from nvmx_core.oracle.event_rank import FIRST, ORACLE, rank_of_event, rank_of_exit
from nvmx_core.scenario.steps import AT_ENTRY, IN_EMULATION
from tests.oracle.planted import Planted, name_of, run_fixed, run_wrong, told_by
from tests.support import (
    control,
    enter,
    event,
    init,
    intercept,
    interrupt,
    nmi,
    run,
    smi,
    timer,
    vmwrite,
)


class NmiBeforeTimer(Kvm):
    """Wrong: rank 10 is looked at before rank 8."""

    def check_timer(self, blocked: bool) -> int:
        result = self.check_nmi(blocked)
        return result or super().check_timer(blocked)


class SmiLast(Kvm):
    """Wrong: an SMI is taken only when nothing is left for L1 (res7)."""

    def check_smi(self, blocked: bool) -> int:
        return NEXT if self.init_pending else super().check_smi(blocked)


class TrapBeforeMtf(Kvm):
    """Wrong: a debug trap that L1 intercepts is looked at before the MTF exit."""

    def check_mtf(self, blocked: bool) -> int:
        return self.check_debug_traps() or super().check_mtf(blocked)


class OnlyTrapsOfL1(Kvm):
    """Wrong: a debug trap counts only if L1 intercepts it (bug13): destination first, rank second."""

    def check_debug_traps(self) -> int:
        return super().check_debug_traps() if self.vmexit_pending else NEXT


class InterruptOfL2First(Kvm):
    """Wrong: with an interrupt for L2 at hand the timer of L1 is not looked at."""

    def check_timer(self, blocked: bool) -> int:
        return NEXT if self.has_interrupt() else super().check_timer(blocked)


class ForgetsWindows(Kvm):
    """Wrong: L1's windows are left to the processor, also when an event of lower rank is taken here."""

    def check_nmi_window(self, blocked: bool) -> int:
        return NEXT if self.nmi_pending else super().check_nmi_window(blocked)

    def check_interrupt_window(self, blocked: bool) -> int:
        return NEXT if self.has_interrupt() else super().check_interrupt_window(blocked)


TRAP_AND_TIMER: Final = (enter(), timer(1000, IN_EMULATION), run("out"))

PLANTED: Final = (
    Planted(
        "V4",
        "exit EXCEPTION_NMI before preemption timer",
        NmiBeforeTimer,
        (vmwrite(GUEST_PREEMPTION_TIMER, 0), nmi(AT_ENTRY), enter()),
        on="preemption-timer",
    ),
    Planted(
        "V4",
        "exit INIT_SIGNAL before SMI",
        SmiLast,
        (enter(), smi(IN_EMULATION), init(IN_EMULATION), run("out")),
    ),
    Planted(
        "V4",
        "exit EXCEPTION_NMI before MTF",
        TrapBeforeMtf,
        (control("monitor-trap-flag"), intercept(DB), enter(), run("out")),
        on="single-step",
    ),
    Planted(
        "V4",
        "exit PREEMPTION_TIMER before #DB trap",
        OnlyTrapsOfL1,
        TRAP_AND_TIMER,
        on="single-step preemption-timer",
    ),
    Planted(
        "V4",
        "event for L2 before preemption timer",
        InterruptOfL2First,
        (enter(), timer(1000, IN_EMULATION), interrupt(0x51, IN_EMULATION), run("out")),
        on="preemption-timer",
        off="external-interrupt-exiting",
    ),
    Planted(
        "V4",
        "exit EXCEPTION_NMI before NMI window",
        ForgetsWindows,
        (control("nmi-window-exiting"), nmi(AT_ENTRY), enter()),
    ),
    Planted(
        "V4",
        "exit EXTERNAL_INTERRUPT before interrupt window",
        ForgetsWindows,
        (control("interrupt-window-exiting"), interrupt(0x51, AT_ENTRY), enter()),
    ),
)


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_v4_fires_on_the_wrong_core(planted: Planted) -> None:
    assert told_by(ORACLE, run_wrong(planted)) == [(planted.rule, planted.situation)]


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_v4_is_silent_on_the_fixed_core(planted: Planted) -> None:
    assert run_fixed(planted).violations == ()


def test_v4_ranks_of_the_exits_are_those_of_the_boundary() -> None:
    """P5 to P12."""
    reasons = (
        (INIT_SIGNAL, 0, 5),
        (MONITOR_TRAP_FLAG, 0, 6),
        (EXCEPTION_NMI, event(HARDWARE_EXCEPTION, DB), 7),
        (PREEMPTION_TIMER, 0, 8),
        (NMI_WINDOW, 0, 9),
        (EXCEPTION_NMI, NMI_INFO, 10),
        (INTERRUPT_WINDOW, 0, 11),
        (EXTERNAL_INTERRUPT_EXIT, event(EXTERNAL_INTERRUPT, 0x51), 12),
    )
    assert [rank_of_exit(reason, info) for reason, info, _rank in reasons] == [
        rank for _reason, _info, rank in reasons
    ]


def test_v4_faults_and_exits_of_instructions_have_no_rank() -> None:
    fault = event(HARDWARE_EXCEPTION, PF, error_code=True)
    assert rank_of_exit(EPT_VIOLATION, 0) == FIRST
    assert rank_of_exit(EXCEPTION_NMI, fault) == rank_of_event(fault) == FIRST
