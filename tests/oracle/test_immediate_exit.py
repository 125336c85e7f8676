"""IMMEDIATE-EXIT (O7, O11, M1, B5, B6, V10): each of its halves fires on a planted wrong core."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_VECTOR,
    UD,
)
from nvmx_core.arch.exits import (
    EXTERNAL_INTERRUPT_EXIT,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
)
from nvmx_core.arch.fields import GUEST_PREEMPTION_TIMER
from nvmx_core.bugs.ordering import Bug3
from nvmx_core.guests.memory import IDT_HIGH
from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.immediate_exit import (
    NEEDLESS_REQUEST,
    NO_REEVALUATION,
    NO_REQUEST,
    ORACLE,
)
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, IN_EMULATION
from tests.nested_support import drop_page
from tests.oracle.planted import Planted, name_of, run_fixed, run_wrong, told_by
from tests.support import (
    control,
    enter,
    inject,
    interrupt,
    rsm,
    run,
    smi,
    timer,
    vmwrite,
)


class BusyForNothing(Kvm):
    """Wrong: a re-injection alone asks for an immediate exit (bug23)."""

    def check_nested_events(self) -> bool:
        return super().check_nested_events() or self.needs_reinjection()


class ForgetsToLook(Kvm):
    """Wrong: nobody asks for the evaluation that the immediate exit is for (bug15, res1)."""

    def request_immediate_exit(self) -> None:
        super().request_immediate_exit()
        self.request_event = False


class OnlyReinjects(Kvm):
    """Wrong: with a re-injected event the nested-event check is left out (bug4)."""

    def check_and_inject_events(self) -> bool:
        if not self.needs_reinjection():
            return super().check_and_inject_events()
        self.reinject()
        self.update_windows()
        return False


class EntersWithoutLooking(Kvm):
    """Wrong: what was pending before L1's entry is not looked at (bug16)."""

    def request_event_at_entry(self) -> None:
        """No request."""


class OwesNoMtf(Kvm):
    """Wrong: an MTF exit that is owed does not bring the processor back (bug50's follow-up)."""

    def check_mtf(self, blocked: bool) -> int:
        return super().check_mtf(blocked) if not blocked else 0

    def has_events_for_injection(self) -> bool:
        return self.timer_expired


class AsksForNoWindow(Kvm):
    """Wrong: the processor is not told of the windows that L1 asked for."""

    def l1_windows(self) -> int:
        return 0


INTERRUPT_AT_ENTRY: Final = (interrupt(0x51, AT_ENTRY), inject(EXTERNAL_INTERRUPT, 0x40), enter())
INTERRUPT_BEFORE_ENTRY: Final = (interrupt(0x51), inject(EXTERNAL_INTERRUPT, 0x40), enter())
INTERRUPT_IN_REPAIR: Final = (
    drop_page(IDT_HIGH),
    interrupt(0x51, IN_DELIVERY),
    inject(EXTERNAL_INTERRUPT, 0x40),
    enter(),
)
TIMER_AT_ENTRY: Final = (
    vmwrite(GUEST_PREEMPTION_TIMER, 0),
    inject(EXTERNAL_INTERRUPT, 0x40),
    enter(),
)
MTF_ACROSS_SMM: Final = (
    control("monitor-trap-flag"),
    enter(),
    smi(IN_EMULATION),
    run("out"),
    rsm(),
)

NO_REQUESTS: Final = (
    Planted("O11", NO_REQUEST, Bug3, INTERRUPT_AT_ENTRY),
    Planted("O11", NO_REQUEST, EntersWithoutLooking, INTERRUPT_BEFORE_ENTRY),
    Planted("O11", NO_REQUEST, OnlyReinjects, INTERRUPT_IN_REPAIR),
    Planted("O7", NO_REQUEST, Bug3, TIMER_AT_ENTRY, on="preemption-timer"),
    Planted("M1", NO_REQUEST, OwesNoMtf, MTF_ACROSS_SMM),
)
NEEDLESS: Final = Planted(
    "V10",
    NEEDLESS_REQUEST,
    BusyForNothing,
    (drop_page(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter()),
)
FORGOTTEN: Final = Planted("V10", NO_REEVALUATION, ForgetsToLook, INTERRUPT_AT_ENTRY)
RUN_PAST: Final = (
    Planted("O11", "L2 runs past external interrupt", Bug3, (*INTERRUPT_AT_ENTRY, run("nop"))),
    Planted(
        "O7",
        "L2 runs past preemption timer",
        Bug3,
        (*TIMER_AT_ENTRY, run("nop")),
        on="preemption-timer",
    ),
)
HANDLER_OPENS: Final = (
    inject(EXTERNAL_INTERRUPT, 0x40),
    enter(),
    run("sti"),
    run("nop"),
    run("nop"),
)
"""The window opens behind the shadow of the STI, in the handler of what L1 injected."""
WINDOWS: Final = (
    Planted(
        "B5",
        "L2 runs past interrupt window",
        AsksForNoWindow,
        (control("interrupt-window-exiting"), *HANDLER_OPENS),
    ),
    Planted(
        "B5",
        "L2 runs past interrupt window",
        AsksForNoWindow,
        (
            control("interrupt-window-exiting"),
            inject(HARDWARE_EXCEPTION, UD),
            enter(),
            run("iret"),
            run("nop"),
        ),
    ),
    Planted(
        "B6",
        "L2 runs past NMI window",
        AsksForNoWindow,
        (control("nmi-window-exiting"), inject(EXTERNAL_INTERRUPT, 0x40), enter(), run("nop")),
    ),
    Planted(
        "B6",
        "L2 runs past NMI window",
        AsksForNoWindow,
        (
            control("nmi-window-exiting"),
            inject(NMI, NMI_VECTOR),
            enter(),
            run("iret"),
            run("nop"),
        ),
    ),
)
ALL: Final = (*NO_REQUESTS, NEEDLESS, FORGOTTEN, *RUN_PAST, *WINDOWS)


@pytest.mark.parametrize("planted", NO_REQUESTS, ids=name_of)
def test_v10_first_half_fires_when_nothing_brings_l2_back(planted: Planted) -> None:
    assert told_by(ORACLE, run_wrong(planted)) == [(planted.rule, planted.situation)]


def test_v10_second_half_fires_on_a_needless_request() -> None:
    """A useless round trip changes nothing that L1 or L2 see: only this oracle can tell."""
    pair = run_wrong(NEEDLESS)
    assert [(rule, situation) for _oracle, rule, situation in pair.rules] == [
        ("V10", NEEDLESS_REQUEST)
    ]


def test_v10_third_half_fires_when_the_evaluation_is_forgotten() -> None:
    """The immediate exit is for nothing, and the next entry has no cause to be short."""
    told = told_by(ORACLE, run_wrong(FORGOTTEN))
    assert told == [("V10", NO_REEVALUATION), ("O11", NO_REQUEST)]


@pytest.mark.parametrize("planted", RUN_PAST, ids=name_of)
def test_v3_fires_when_an_instruction_runs_past_a_due_exit(planted: Planted) -> None:
    """O11, O7: the retired instruction is reported beside the entry that allowed it."""
    told = told_by(ORACLE, run_wrong(planted))
    assert told == [(planted.rule, NO_REQUEST), (planted.rule, planted.situation)]


@pytest.mark.parametrize("planted", WINDOWS, ids=name_of)
def test_v3_fires_when_an_instruction_runs_past_an_open_window(planted: Planted) -> None:
    """B5, B6: no entry was wrong in itself; the instruction behind the injection is."""
    assert told_by(ORACLE, run_wrong(planted)) == [(planted.rule, planted.situation)]


@pytest.mark.parametrize("planted", ALL, ids=name_of)
def test_silent_on_the_fixed_core(planted: Planted) -> None:
    assert run_fixed(planted).violations == ()


def test_the_fixed_core_takes_each_exit_that_was_due() -> None:
    """The scenarios do put the rule to the test: without the mistake L1 gets the exit."""
    reasons = {reason for planted in ALL for reason in run_fixed(planted).seen.reasons}
    assert reasons >= {
        EXTERNAL_INTERRUPT_EXIT,
        PREEMPTION_TIMER,
        MONITOR_TRAP_FLAG,
        INTERRUPT_WINDOW,
        NMI_WINDOW,
    }


def test_v10_is_silent_when_a_kick_brings_l2_back_instead() -> None:
    """A timer that expires in L2 is an arrival: the host's kick ends L2, not the timer of 0."""
    moves = (enter(), timer(1000), run("nop"))
    pair = run_fixed(Planted("V10", NO_REQUEST, Kvm, moves, on="preemption-timer"))
    assert pair.seen.exit.reason == PREEMPTION_TIMER
    assert pair.violations == ()
