"""The nested-event check: each pair of concurrent events, on bare metal and under L0 (P4-P12, V4).

Two events meet at three kinds of boundary: at the entry (an accepted entry makes them wait), while L0 repairs
a page in a delivery (the re-injection makes them wait), and after an instruction that L0 emulates (nothing
makes them wait). Both machines must show the same journal, and the higher rank must show first.
"""

from itertools import combinations
from typing import Final, NamedTuple

import pytest

from nvmx_core.arch.events import DB, EXTERNAL_INTERRUPT, NMI_VECTOR, SOFTWARE_INTERRUPT
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
)
from nvmx_core.arch.fields import GUEST_PREEMPTION_TIMER, GUEST_RFLAGS
from nvmx_core.arch.state import RFLAGS_FIXED, RFLAGS_IF, RFLAGS_TF
from nvmx_core.guests.memory import IDT_HIGH, handler_rip
from nvmx_core.journal import DELIVER, EXIT, L1_ENTRY, SMM_ENTRY
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, IN_EMULATION, Step
from tests.nested_support import Pair, drop_page, transparent
from tests.support import (
    control,
    enter,
    init,
    inject,
    intercept,
    interrupt,
    nmi,
    run,
    smi,
    timer,
    vmwrite,
)

Shown = tuple[int, ...]


class Contender(NamedTuple):
    """An event of one rank: what L1 prepares, when it arrives, how it shows."""

    prepare: tuple[Step, ...] = ()
    arrives: tuple[Step, ...] = ()
    flags: str = ""
    shows: Shown = ()


def arriving(when: int) -> dict[int, Contender]:
    """The contenders that an arrival makes, all at one moment, and the windows that L1 has open."""
    return {
        4: Contender((), (smi(when),), "", (SMM_ENTRY,)),
        5: Contender((), (init(when),), "", (EXIT, INIT_SIGNAL)),
        8: Contender((), (timer(1000, when),), "preemption-timer", (EXIT, PREEMPTION_TIMER)),
        9: Contender((control("nmi-window-exiting"),), (), "", (EXIT, NMI_WINDOW)),
        10: Contender((), (nmi(when),), "", (EXIT, EXCEPTION_NMI, NMI_VECTOR)),
        12: Contender((), (interrupt(0x51, when),), "", (EXIT, EXTERNAL_INTERRUPT_EXIT)),
    }


AT_AN_ENTRY: Final = arriving(AT_ENTRY) | {
    8: Contender(
        (vmwrite(GUEST_PREEMPTION_TIMER, 0),), (), "preemption-timer", (EXIT, PREEMPTION_TIMER)
    ),
    11: Contender((control("interrupt-window-exiting"),), (), "", (EXIT, INTERRUPT_WINDOW)),
}
IN_A_REPAIR: Final = arriving(IN_DELIVERY)
AFTER_EMULATION: Final = arriving(IN_EMULATION) | {
    6: Contender((control("monitor-trap-flag"),), (), "", (EXIT, MONITOR_TRAP_FLAG)),
    7: Contender(
        (intercept(DB), vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF | RFLAGS_TF)),
        (),
        "",
        (EXIT, EXCEPTION_NMI, DB),
    ),
}


def pairs(contenders: dict[int, Contender]) -> list[tuple[int, int]]:
    """All pairs of ranks, the higher rank first."""
    return list(combinations(sorted(contenders), 2))


def first_shown(pair: Pair, after: int) -> Shown:
    """The first event after the record at *after*, reduced to what tells contenders apart."""
    for record in pair.seen.journal[after:]:
        if record[0] == EXIT:
            vector = (record[3] & 0xFF,) if record[1] == EXCEPTION_NMI else ()
            return EXIT, record[1], *vector
        if record[0] == SMM_ENTRY:
            return (SMM_ENTRY,)
    return ()


def meet(first: Contender, second: Contender, *moves: Step) -> Pair:
    """Both are pending on one boundary; the one of lower rank came first."""
    return transparent(
        *second.prepare,
        *first.prepare,
        *second.arrives,
        *first.arrives,
        *moves,
        on=f"{first.flags} {second.flags}",
    )


@pytest.mark.parametrize(("high", "low"), pairs(AT_AN_ENTRY))
def test_p16_at_an_entry_without_injection(high: int, low: int) -> None:
    """V5: the accepted entry completes, then the higher rank shows."""
    pair = meet(AT_AN_ENTRY[high], AT_AN_ENTRY[low], enter())
    assert first_shown(pair, 0) == AT_AN_ENTRY[high].shows


@pytest.mark.parametrize(
    ("high", "low"), [ranks for ranks in pairs(AT_AN_ENTRY) if 11 not in ranks]
)
def test_p16_at_an_entry_with_injection(high: int, low: int) -> None:
    """O2, O11: first the injection; the windows of interrupts are closed in the handler."""
    moves = (inject(EXTERNAL_INTERRUPT, 0x40), enter())
    pair = meet(AT_AN_ENTRY[high], AT_AN_ENTRY[low], *moves)
    assert pair.seen.kinds[:2] == [L1_ENTRY, DELIVER]
    assert first_shown(pair, 2) == AT_AN_ENTRY[high].shows


@pytest.mark.parametrize(("high", "low"), pairs(IN_A_REPAIR))
def test_p16_while_l0_repairs_a_page_in_a_delivery(high: int, low: int) -> None:
    """X3, X13: the event in flight is delivered first, then the higher rank shows."""
    moves = (drop_page(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    pair = meet(IN_A_REPAIR[high], IN_A_REPAIR[low], *moves)
    assert pair.seen.kinds[:2] == [L1_ENTRY, DELIVER]
    assert first_shown(pair, 2) == IN_A_REPAIR[high].shows


@pytest.mark.parametrize(("high", "low"), [ranks for ranks in pairs(IN_A_REPAIR) if 9 not in ranks])
def test_p16_while_l0_repairs_a_page_in_a_delivery_of_l2(high: int, low: int) -> None:
    """The same with an INT n of L2 in flight; an open NMI window would exit before L2 runs."""
    first, second = IN_A_REPAIR[high], IN_A_REPAIR[low]
    moves = (enter(), drop_page(IDT_HIGH), *second.arrives, *first.arrives, run("int", 0x80))
    pair = transparent(*moves, on=f"{first.flags} {second.flags}")
    assert pair.seen.vectors == [0x80]
    assert first_shown(pair, 0) == first.shows


@pytest.mark.parametrize(
    ("high", "low"), [ranks for ranks in pairs(AFTER_EMULATION) if 9 not in ranks]
)
def test_p16_after_an_instruction_that_l0_emulates(high: int, low: int) -> None:
    """Nothing is in flight: the check alone ranks what is pending."""
    pair = meet(AFTER_EMULATION[high], AFTER_EMULATION[low], enter(), run("out"))
    assert first_shown(pair, 0) == AFTER_EMULATION[high].shows


@pytest.mark.parametrize("rank", AFTER_EMULATION.keys() - {9})
def test_p16_every_contender_shows_when_it_is_alone(rank: int) -> None:
    contender = AFTER_EMULATION[rank]
    moves = (*contender.prepare, enter(), *contender.arrives, run("out"))
    assert first_shown(transparent(*moves, on=contender.flags), 0) == contender.shows


# -- V4: rank before destination ------------------------------------------------------------------


def test_v4_an_nmi_for_l2_comes_before_an_interrupt_for_l1() -> None:
    """P10 before P12, although only the interrupt exits."""
    moves = (enter(), interrupt(0x51, IN_EMULATION), nmi(IN_EMULATION), run("out"))
    pair = transparent(*moves, off="nmi-exiting virtual-nmis")
    assert pair.seen.vectors == [NMI_VECTOR]
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT
    assert pair.seen.exit.rip == handler_rip(NMI_VECTOR)


def test_v4_a_debug_trap_for_l2_comes_before_the_timer_of_l1() -> None:
    """P7 before P8 (bug13): the single step is delivered, the timer exits at the handler."""
    moves = (enter(), timer(1000, IN_EMULATION), run("out"))
    pair = transparent(*moves, on="preemption-timer single-step")
    assert pair.seen.vectors == [DB]
    assert pair.seen.exit.reason == PREEMPTION_TIMER
    assert pair.seen.exit.rip == handler_rip(DB)


def test_v4_an_mtf_exit_comes_before_a_debug_trap_for_l2() -> None:
    """P6 before P7, M4."""
    moves = (control("monitor-trap-flag"), enter(), run("out"))
    seen = transparent(*moves, on="single-step").seen
    assert seen.vectors == []
    assert seen.exit.reason == MONITOR_TRAP_FLAG


# -- what blocks ----------------------------------------------------------------------------------


def test_b4_an_nmi_exit_is_not_held_by_virtual_nmi_blocking() -> None:
    pair = transparent(inject(2, NMI_VECTOR), nmi(AT_ENTRY), enter())
    assert pair.seen.vectors == [NMI_VECTOR]
    assert pair.seen.exit.vector == NMI_VECTOR


def test_b4_without_virtual_nmis_blocking_holds_the_nmi_exit() -> None:
    moves = (inject(2, NMI_VECTOR), nmi(AT_ENTRY), enter(), run("iret"), run("nop"))
    pair = transparent(*moves, off="virtual-nmis")
    assert pair.seen.reasons == []
    assert pair.seen.end.nmi_latched == 1


def test_b3_an_interrupt_exit_is_not_held_by_if() -> None:
    pair = transparent(interrupt(0x51), enter(), off="interrupts-on")
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT


@pytest.mark.parametrize("off", ["", "in-kernel-apic"])
def test_k1_acknowledge_on_exit_reports_the_vector(off: str) -> None:
    """K1: IRR to ISR once; from the controller in the kernel or in userspace."""
    pair = transparent(enter(), interrupt(0x51), on="acknowledge-interrupt-on-exit", off=off)
    assert pair.seen.exit.vector == 0x51
    assert pair.seen.end.isr == 1 << 0x51


def test_k1_without_acknowledge_the_interrupt_stays_pending() -> None:
    pair = transparent(enter(), interrupt(0x51))
    assert pair.seen.exit.interruption == 0
    assert pair.seen.end.irr == 1 << 0x51


def test_n2_the_second_nmi_is_latched_after_an_nmi_exit() -> None:
    """res5: an NMI that arrives while L1 has NMIs blocked is kept."""
    pair = transparent(enter(), nmi(), nmi())
    assert pair.seen.end.nmi_latched == 1
    assert pair.seen.end.nmi_blocked_in_l1 == 1


def test_o11_an_event_in_flight_of_l2_is_never_reported_with_a_boundary_exit() -> None:
    """The original bug with L2's own INT n."""
    moves = (enter(), drop_page(IDT_HIGH), interrupt(0x51, IN_DELIVERY), run("int", 0x80))
    seen = transparent(*moves).seen.exit
    assert seen.vectoring == 0
    assert seen.rip == handler_rip(0x80)


def test_o11_a_soft_injection_completes_before_the_exit() -> None:
    moves = (interrupt(0x51, AT_ENTRY), inject(SOFTWARE_INTERRUPT, 0x80, length=2), enter())
    assert transparent(*moves).seen.exit.rip == handler_rip(0x80)
