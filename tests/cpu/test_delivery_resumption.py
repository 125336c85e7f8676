"""How a host goes on after an exit in the middle of a delivery (X11 to X14)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    BP,
    DB,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    UD,
)
from nvmx_core.arch.exits import (
    EPT_FINAL_TRANSLATION,
    EPT_LINEAR_VALID,
    EPT_READ,
    EPT_VIOLATION,
    EPT_WRITE,
    EXTERNAL_INTERRUPT_EXIT,
    TASK_SWITCH,
)
from nvmx_core.arch.fields import (
    POISON,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_NMI,
)
from nvmx_core.guests.manners import NO_REINJECT, NO_REPAIR
from nvmx_core.guests.memory import (
    DATA,
    GATE_TASK,
    GDT,
    HANDLER,
    IDT_HIGH,
    IDT_LOW,
    STACK,
    TSS,
    page_address,
)
from nvmx_core.journal import L1_ENTRY
from nvmx_core.scenario.steps import IN_DELIVERY, Step
from tests.support import (
    absent,
    enter,
    ept,
    event,
    gate,
    inject,
    intercept,
    interrupt,
    play,
    run,
)

Moves = tuple[Step, ...]

INTERRUPT_40: Final = event(EXTERNAL_INTERRUPT, 0x40)

ALL_TYPES: Final = (
    (EXTERNAL_INTERRUPT, 0x40, False),
    (NMI, 2, False),
    (HARDWARE_EXCEPTION, UD, False),
    (HARDWARE_EXCEPTION, GP, True),
    (SOFTWARE_INTERRUPT, 0x80, False),
    (PRIVILEGED_SOFTWARE_EXCEPTION, DB, False),
    (SOFTWARE_EXCEPTION, BP, False),
)


@pytest.mark.parametrize(("event_type", "vector", "has_error_code"), ALL_TYPES)
def test_x11_the_host_resumes_the_delivery(
    event_type: int, vector: int, has_error_code: bool
) -> None:
    seen = play(ept(STACK), inject(event_type, vector, error=0x77, length=4), enter(), enter())
    assert seen.vmfails == []
    assert seen.reasons == [EPT_VIOLATION]
    assert seen.vectors == [vector]
    assert seen.delivered[0].error_code == (0x77 if has_error_code else POISON)


def test_x11_an_nmi_needs_bit_3_cleared_first() -> None:
    """With the bit left as it was saved, G8 refuses the entry."""
    moves = (ept(STACK), inject(NMI, 2), enter(), inject(NMI, 2), enter(NO_REINJECT))
    seen = play(*moves)
    assert [exit_.failed_entry for exit_ in seen.exits] == [False, True]


def iret_under_nmi_blocking(*moves: Step) -> Moves:
    """The steps to an IRET in L2's NMI handler, after *moves*."""
    return (inject(NMI, 2), enter(), *moves, run("iret"))


def test_x12_a_faulting_iret_reports_that_it_unblocked_nmis() -> None:
    seen = play(intercept(PF), *iret_under_nmi_blocking(absent(STACK)))
    assert seen.exit.vector == PF
    assert seen.exit.nmi_unblocking
    assert seen.exit.interruptibility & BLOCKING_BY_NMI == 0


def test_x12_an_ept_violation_of_iret_reports_it_in_the_qualification() -> None:
    """The stack goes missing with an exit between the NMI and its IRET."""
    moves = (inject(NMI, 2), enter(), run("cpuid"), ept(STACK), enter(), run("iret"))
    seen = play(*moves)
    assert seen.exits[1].reason == EPT_VIOLATION
    assert seen.exits[1].qualification & 1 << 12
    assert seen.exits[1].interruptibility & BLOCKING_BY_NMI == 0


def test_x12_without_nmi_blocking_there_was_nothing_to_unblock() -> None:
    moves = (inject(EXTERNAL_INTERRUPT, 0x40), enter(), absent(STACK), run("iret"))
    seen = play(intercept(PF), *moves)
    assert seen.exit.vector == PF
    assert not seen.exit.nmi_unblocking


def test_x12_another_instruction_under_nmi_blocking_does_not_set_it() -> None:
    moves = (inject(NMI, 2), enter(), absent(DATA), run("load"))
    seen = play(intercept(PF), *moves)
    assert not seen.exit.nmi_unblocking
    assert seen.exit.interruptibility & BLOCKING_BY_NMI


def test_x12_physical_nmis_are_reported_the_same_way() -> None:
    moves = iret_under_nmi_blocking(absent(STACK))
    seen = play(intercept(PF), *moves, off="nmi-exiting virtual-nmis")
    assert seen.exit.nmi_unblocking
    assert seen.exit.interruptibility & BLOCKING_BY_NMI == 0


def test_x12_nmi_exiting_alone_unblocks_nothing() -> None:
    moves = iret_under_nmi_blocking(absent(STACK))
    seen = play(intercept(PF), *moves, off="virtual-nmis")
    assert seen.exit.vector == PF
    assert seen.exit.interruptibility & BLOCKING_BY_NMI


def test_x12_bit_12_is_undefined_with_idt_vectoring_information() -> None:
    """The #PF of IRET is delivered, and its delivery exits: nobody may rely on bit 12 there."""
    gates = (gate(PF, GATE_TASK),)
    seen = play(*gates, *iret_under_nmi_blocking(absent(STACK)))
    assert seen.exit.reason == TASK_SWITCH
    assert seen.exit.interruptibility & BLOCKING_BY_NMI == 0
    assert not seen.exit.nmi_unblocking


def test_x12_the_host_blocks_nmis_again_before_the_iret_runs_again() -> None:
    moves = (*iret_under_nmi_blocking(absent(STACK)), enter())
    seen = play(intercept(PF), *moves)
    assert seen.end.interruptibility & BLOCKING_BY_NMI


def test_x13_the_interrupted_event_comes_before_a_new_one() -> None:
    moves = (ept(STACK), inject(NMI, 2), interrupt(0x50, IN_DELIVERY), enter(), enter())
    seen = play(*moves)
    assert seen.vectors == [2]
    assert seen.reasons == [EPT_VIOLATION, EXTERNAL_INTERRUPT_EXIT]


def test_x13_an_entry_injects_one_event_only() -> None:
    seen = play(inject(NMI, 2), inject(HARDWARE_EXCEPTION, UD), enter())
    assert seen.vectors == [UD]
    assert seen.kinds.count(L1_ENTRY) == 1


def test_x13_the_host_may_drop_the_event_knowingly() -> None:
    seen = play(ept(STACK), inject(NMI, 2), enter(), enter(NO_REINJECT))
    assert seen.vectors == []
    assert seen.in_l2


@pytest.mark.parametrize(
    ("page", "access"),
    [(IDT_HIGH, EPT_READ), (GDT, EPT_READ), (TSS, EPT_READ), (STACK, EPT_WRITE)],
)
def test_x14_tables_and_stack_belong_to_the_delivery(page: int, access: int) -> None:
    seen = play(ept(page), inject(EXTERNAL_INTERRUPT, 0x40), enter(), on="user-mode")
    assert seen.exit.vectoring == INTERRUPT_40
    assert seen.exit.physical_address == page_address(page)
    assert seen.exit.linear_address == page_address(page)
    assert seen.exit.qualification == access | EPT_LINEAR_VALID | EPT_FINAL_TRANSLATION


def test_x14_exceptions_use_the_lower_half_of_the_idt() -> None:
    seen = play(ept(IDT_LOW), inject(HARDWARE_EXCEPTION, UD), enter())
    assert seen.exit.vectoring == event(HARDWARE_EXCEPTION, UD)


def test_x14_the_tss_is_read_only_on_a_change_of_privilege() -> None:
    assert play(ept(TSS), inject(EXTERNAL_INTERRUPT, 0x40), enter()).exits == []


def test_x14_the_first_fetch_of_the_handler_does_not_belong_to_it() -> None:
    moves = (intercept(PF), absent(HANDLER), inject(NMI, 2), enter(NO_REPAIR), run("nop"))
    seen = play(*moves)
    assert seen.vectors == [2]
    assert seen.exit.vectoring == 0
