"""Save and restore of the vCPU, at every moment, changes nothing that L1 or L2 see (V11; bug58, bug59)."""

from typing import Final, NamedTuple

import pytest

from nvmx_core.arch.events import (
    DB,
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_VECTOR,
    OTHER_EVENT,
    PF,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
)
from nvmx_core.arch.fields import GUEST_ACTIVITY, GUEST_PREEMPTION_TIMER
from nvmx_core.arch.state import HLT, WAIT_FOR_SIPI
from nvmx_core.guests.memory import STACK
from nvmx_core.l0.log import SAVE_RESTORE
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, IN_EMULATION, NOW, Step
from tests.nested_support import MOMENTS, both, cancel_entry, drop_page, save_restore, transparent
from tests.support import (
    absent,
    control,
    enter,
    eoi,
    ept,
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


class Life(NamedTuple):
    """A scenario with something in every queue that its name says."""

    moves: tuple[Step, ...]
    on: str = ""
    off: str = ""


LIVES: Final[dict[str, Life]] = {
    "plain run": Life((enter(), run("nop"), run("cpuid"), enter(), run("nop"))),
    "interrupt in flight": Life(
        (drop_page(STACK), inject(EXTERNAL_INTERRUPT, 0x40), enter(), run("iret"))
    ),
    "nmi in flight": Life((drop_page(STACK), inject(NMI, NMI_VECTOR), enter(), run("iret"))),
    "exception in flight": Life(
        (drop_page(STACK), inject(HARDWARE_EXCEPTION, GP, error=8), enter(), run("iret"))
    ),
    "soft interrupt in flight": Life(
        (drop_page(STACK), inject(SOFTWARE_INTERRUPT, 0x80, length=2), enter(), run("iret"))
    ),
    "soft exception in flight": Life(
        (drop_page(STACK), inject(SOFTWARE_EXCEPTION, GP, length=3), enter(), run("iret"))
    ),
    "int n of l2 in flight": Life((enter(), drop_page(STACK), run("int", 0x80), run("iret"))),
    "reflected and given back": Life(
        (ept(STACK), inject(SOFTWARE_INTERRUPT, 0x80, length=2), enter(), enter(), run("nop"))
    ),
    "interrupt at the entry": Life(
        (interrupt(0x51, AT_ENTRY), inject(EXTERNAL_INTERRUPT, 0x40), enter(), enter())
    ),
    "interrupt during the repair": Life(
        (
            drop_page(STACK),
            interrupt(0x51, IN_DELIVERY),
            inject(EXTERNAL_INTERRUPT, 0x40),
            enter(),
            enter(),
        )
    ),
    "acknowledged interrupt": Life(
        (enter(), interrupt(0x51), eoi(), enter(), run("nop")), "acknowledge-interrupt-on-exit"
    ),
    "interrupt for l2 behind a window": Life(
        (enter(), interrupt(0x51), run("sti"), run("nop"), run("iret")),
        off="external-interrupt-exiting interrupts-on",
    ),
    "two nmis": Life((enter(), nmi(), nmi(), enter(), run("nop"))),
    "nmi for l2 while blocked": Life(
        (inject(NMI, NMI_VECTOR), enter(), nmi(), run("iret"), run("iret")),
        off="nmi-exiting virtual-nmis",
    ),
    "physical nmi blocking": Life(
        (inject(NMI, NMI_VECTOR), enter(), nmi(), run("iret"), run("cpuid"), enter()),
        off="virtual-nmis",
    ),
    "mtf injected": Life((inject(OTHER_EVENT, 0), enter(), run("nop"))),
    "mtf owed": Life((control("monitor-trap-flag"), enter(), run("out"), enter(), run("nop"))),
    "timer": Life(
        (vmwrite(GUEST_PREEMPTION_TIMER, 9), enter(), timer(4), run("nop"), timer(5)),
        "preemption-timer save-preemption-timer",
    ),
    "timer of zero": Life(
        (vmwrite(GUEST_PREEMPTION_TIMER, 0), inject(EXTERNAL_INTERRUPT, 0x40), enter(), enter()),
        "preemption-timer",
    ),
    "hlt": Life((enter(), run("hlt"), interrupt(0x51), enter())),
    "starts in hlt": Life((vmwrite(GUEST_ACTIVITY, HLT), enter(), nmi(), enter())),
    "wait for sipi": Life((vmwrite(GUEST_ACTIVITY, WAIT_FOR_SIPI), enter(), sipi(0x10), enter())),
    "smm": Life((enter(), smi(), interrupt(0x51), rsm(), enter(), run("nop"))),
    "smm with mtf owed": Life(
        (control("monitor-trap-flag"), enter(), smi(IN_EMULATION), run("out"), rsm(), enter())
    ),
    "init latched": Life((init(), enter(), enter(), run("nop"))),
    "single step": Life((enter(), run("nop"), run("out"), run("iret")), "single-step"),
    "trap held by mov ss": Life((enter(), run("mov-ss"), run("nop"), run("nop")), "single-step"),
    "trap for l1": Life((intercept(DB), enter(), run("out"), enter(), run("nop")), "single-step"),
    "page fault by l0": Life(
        (intercept(PF), absent(STACK), inject(HARDWARE_EXCEPTION, PF), enter(), enter()),
        off="l0-ept",
    ),
    "triple fault": Life(
        (absent(STACK), inject(HARDWARE_EXCEPTION, DF), enter(), enter(), run("nop")),
        off="l0-ept",
    ),
    "cancelled entry": Life(
        (cancel_entry(), inject(EXTERNAL_INTERRUPT, 0x40), enter(), run("iret"))
    ),
    "virtual interrupt": Life(
        (virtual_interrupt(0x61), enter(), run("iret"), run("apic-eoi"), run("cpuid"), enter()),
        "tpr-shadow virtual-interrupt-delivery",
    ),
    "failed entry": Life((vmwrite(GUEST_ACTIVITY, 7), enter(), enter(), run("nop"))),
}

SAVED: Final[list[tuple[str, int]]] = [
    (name, place) for name, life in LIVES.items() for place in range(len(life.moves) + 1)
]


@pytest.mark.parametrize("name", LIVES)
def test_v11_the_lives_are_transparent(name: str) -> None:
    life = LIVES[name]
    assert transparent(*life.moves, on=life.on, off=life.off).violations == ()


@pytest.mark.parametrize("when", MOMENTS)
@pytest.mark.parametrize(("name", "place"), SAVED)
def test_v11_saving_between_any_two_steps_changes_nothing(name: str, place: int, when: int) -> None:
    """Now, at the next entry, in the next delivery, in the next emulation."""
    life = LIVES[name]
    moves = (*life.moves[:place], save_restore(when), *life.moves[place:])
    saved = both(*moves, on=life.on, off=life.off)
    assert saved.violations == ()
    assert saved.seen.journal == both(*life.moves, on=life.on, off=life.off).seen.journal


@pytest.mark.parametrize("name", LIVES)
def test_v11_saving_everywhere_changes_nothing(name: str) -> None:
    life = LIVES[name]
    moves = [save_restore()]
    for step in life.moves:
        moves += [step, save_restore()]
    saved = both(*moves, on=life.on, off=life.off)
    assert saved.seen.journal == both(*life.moves, on=life.on, off=life.off).seen.journal


def test_v11_the_lives_save_in_flight() -> None:
    """The comparison above is worth something: events are in flight when the vCPU is saved."""
    moves = (save_restore(IN_DELIVERY), *LIVES["interrupt in flight"].moves)
    pair = transparent(*moves)
    assert pair.reached("save-restore-in-flight") == 1
    assert pair.seen.vectors == [0x40]


def test_d6_an_event_that_hardware_has_not_seen_is_saved_once() -> None:
    """bug58: saved between the nested entry and the hardware entry."""
    moves = (save_restore(AT_ENTRY), inject(EXTERNAL_INTERRUPT, 0x40), enter(), run("nop"))
    pair = transparent(*moves)
    assert pair.log(SAVE_RESTORE) == [(1,)]
    assert pair.seen.vectors == [0x40]


def test_o7_the_rest_of_the_timer_is_saved() -> None:
    """bug55: the deadline is fixed at the entry."""
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 9), enter(), timer(8), save_restore(), run("nop"))
    pair = transparent(*moves, timer(1), on="preemption-timer")
    assert pair.seen.retired == 1
    assert len(pair.seen.reasons) == 1


@pytest.mark.parametrize("when", [NOW, IN_EMULATION])
def test_y4_a_sleeping_l2_sleeps_on_after_the_restore(when: int) -> None:
    pair = transparent(enter(), save_restore(IN_EMULATION), run("hlt"), save_restore(when))
    assert pair.seen.end.activity == HLT
