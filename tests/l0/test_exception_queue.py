"""Exceptions that L0 raises in L2: intercepted first, merged second, written last (D4, F1, Y1)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    DB,
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    PF,
    SOFTWARE_INTERRUPT,
)
from nvmx_core.arch.exits import EXCEPTION_NMI, TRIPLE_FAULT
from nvmx_core.arch.fields import GUEST_PENDING_DBG
from nvmx_core.arch.state import PENDING_DBG_BS
from nvmx_core.guests.memory import DATA, IDT_HIGH, IDT_LOW, STACK, page_address
from nvmx_core.scenario.steps import IN_EMULATION
from tests.nested_support import Pair, transparent
from tests.support import absent, enter, event, init, inject, intercept, run, vmwrite

SHADOW: Final = "l0-ept"
INJECTED_PF: Final = event(HARDWARE_EXCEPTION, PF, error_code=True)


def test_section_8_interception_is_decided_before_the_merge() -> None:
    """bug5: L1 intercepts the second #PF, so there is no #DF."""
    moves = (intercept(PF), absent(STACK), inject(HARDWARE_EXCEPTION, PF, error=4), enter())
    seen = transparent(*moves, off=SHADOW).seen.exit
    assert seen.vector == PF
    assert seen.vectoring == INJECTED_PF
    assert seen.vectoring_error_code == 4


def test_f1_l0_merges_two_page_faults_into_a_double_fault() -> None:
    moves = (intercept(DF), absent(STACK), inject(HARDWARE_EXCEPTION, PF), enter())
    pair = transparent(*moves, off=SHADOW)
    assert pair.reached("double-fault-merged-by-l0") == 1
    assert pair.seen.exit.vector == DF
    assert pair.seen.exit.vectoring == 0


@pytest.mark.parametrize("injected", [DF, PF])
def test_f4_l0_turns_a_fault_in_a_double_fault_into_a_triple_fault(injected: int) -> None:
    """bug21: exit 2 for L1, not the end of the virtual machine; the #DF may be L1's or merged by L0."""
    moves = (absent(STACK), inject(HARDWARE_EXCEPTION, injected), enter())
    pair = transparent(*moves, off=SHADOW)
    assert pair.reached("triple-fault-by-l0") == 1
    assert pair.seen.exit.reason == TRIPLE_FAULT


@pytest.mark.parametrize(
    ("event_type", "vector", "page"),
    [
        (EXTERNAL_INTERRUPT, 0x40, IDT_HIGH),
        (SOFTWARE_INTERRUPT, 0x80, IDT_HIGH),
    ],
)
def test_d4_a_page_fault_replaces_a_benign_event(event_type: int, vector: int, page: int) -> None:
    """bug8: the event in flight is lost, as on metal."""
    moves = (absent(page), inject(event_type, vector, length=2 * (event_type != 0)), enter())
    pair = transparent(*moves, off=SHADOW)
    assert pair.seen.vectors == [PF]


def test_d4_the_new_event_counts_in_the_next_merge() -> None:
    """#GP, then #PF takes its place, then the #PF of that delivery makes it a #DF."""
    moves = (intercept(DF), absent(STACK), inject(HARDWARE_EXCEPTION, GP), enter())
    pair = transparent(*moves, off=SHADOW)
    assert pair.seen.exit.vector == DF


# -- Y1 -------------------------------------------------------------------------------------------


def faulting_load(*before: int, off: str = SHADOW, pf_filter: int = 0) -> Pair:
    """L2 reads a page that its own tables lack; *before* are the vectors that L1 intercepts."""
    moves = (*(intercept(vector) for vector in before), absent(DATA), enter(), run("load"))
    return transparent(*moves, off=off, pf_filter=pf_filter)


def test_y1_an_intercepted_page_fault_leaves_cr2() -> None:
    """bug51: the address is in the qualification alone."""
    seen = faulting_load(PF).seen.exit
    assert seen.qualification == page_address(DATA)
    assert seen.cr2 == 0


def test_y1_a_delivered_page_fault_writes_cr2() -> None:
    pair = faulting_load()
    assert pair.reached("exception-for-l2-queued") == 1
    assert [seen.cr2 for seen in pair.seen.delivered] == [page_address(DATA)]


@pytest.mark.parametrize(("pf_filter", "exits"), [(0, True), (1, False), (2, True), (3, False)])
def test_section_2_the_filter_of_l1_holds_under_shadow_paging(pf_filter: int, exits: bool) -> None:
    """bug24, bug28: L0 sees every #PF and asks mask and match itself; a read has bit 1 clear."""
    pair = faulting_load(PF, pf_filter=pf_filter)
    assert pair.seen.reasons == ([EXCEPTION_NMI] if exits else [])


@pytest.mark.parametrize("pf_filter", range(4))
def test_section_2_the_filter_is_the_same_when_l0_wants_page_faults(pf_filter: int) -> None:
    """With EPT hardware filters; when L0 intercepts #PF too, L0 does it."""
    moves = (intercept(PF), absent(DATA), enter(), run("load"))
    by_hardware = transparent(*moves, pf_filter=pf_filter)
    by_l0 = transparent(*moves, pf_filter=pf_filter, l0_exceptions=1)
    assert by_hardware.seen.journal == by_l0.seen.journal


def test_y1_an_intercepted_trap_of_an_emulated_instruction_leaves_dr6() -> None:
    """I2, Y1: the single step is in the qualification."""
    seen = transparent(intercept(DB), enter(), run("out"), on="single-step").seen.exit
    assert seen.vector == DB
    assert seen.qualification == PENDING_DBG_BS
    assert seen.dr6 == 0


def test_y6_a_trap_that_another_exit_overtakes_is_pending_again() -> None:
    """The single step that L0 queued returns to the pending-debug field under an INIT exit (P5, P7)."""
    moves = (intercept(DB), enter(), init(IN_EMULATION), run("out"))
    seen = transparent(*moves, on="single-step").seen.exit
    assert seen.pending_dbg == PENDING_DBG_BS


def test_i2_a_trap_held_by_mov_ss_joins_the_single_step() -> None:
    """The emulated instruction in the shadow pays for both boundaries at once."""
    moves = (enter(), run("mov-ss"), run("out"))
    pair = transparent(*moves, on="single-step")
    assert pair.seen.vectors == [DB]
    assert pair.reached("debug-trap-by-l0") == 1


def test_p7_a_trap_of_the_entry_is_withheld_for_init() -> None:
    """L0 takes the trap of vmcs12 into its own hands, so that INIT comes first, and hands it back."""
    moves = (vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS), init(), enter())
    pair = transparent(*moves)
    assert pair.reached("debug-trap-withheld") == 1
    assert pair.seen.exit.pending_dbg == PENDING_DBG_BS


def test_f1_an_absent_idt_makes_every_delivery_a_triple_fault() -> None:
    pair = transparent(absent(IDT_LOW), enter(), run("ud2"), off=SHADOW)
    assert pair.seen.exit.reason == TRIPLE_FAULT
