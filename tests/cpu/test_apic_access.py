"""APIC-access exits against what the same access may meet besides (X1, X14).

SDM, "Priority of APIC-Access VM Exits": an access that would cause a page fault or an EPT violation causes
no APIC-access exit; against everything else the exit has the rank that those would have.
"""

from typing import Final

import pytest

from nvmx_core.arch.events import EXTERNAL_INTERRUPT, PF
from nvmx_core.arch.exits import (
    APIC_ACCESS,
    APIC_ACCESS_IN_EVENT_DELIVERY,
    APIC_ACCESS_WRITE,
    EPT_LINEAR_VALID,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    PML_FULL,
)
from nvmx_core.guests.memory import DATA, GDT, IDT_HIGH, STACK, page_address
from nvmx_core.scenario.steps import PAGE_MISCONFIGURED, Step
from tests.nested_support import drop_page, transparent
from tests.support import (
    absent,
    apic_page,
    control,
    enter,
    ept,
    event,
    inject,
    intercept,
    play,
    pml_log_full,
    run,
)

APIC_ACCESSES: Final = control("virtualize-apic-accesses")
INTERRUPT: Final = inject(EXTERNAL_INTERRUPT, 0x40)

OUTRANKS: Final[dict[str, tuple[tuple[Step, ...], int]]] = {
    "a page fault": ((intercept(PF), absent(DATA)), EXCEPTION_NMI),
    "an EPT violation": ((ept(DATA),), EPT_VIOLATION),
    "an EPT misconfiguration": ((ept(DATA, PAGE_MISCONFIGURED),), EPT_MISCONFIG),
    "a full log": ((control("pml"), pml_log_full()), PML_FULL),
}


@pytest.mark.parametrize("name", OUTRANKS)
def test_x1_what_outranks_the_apic_access_of_an_instruction(name: str) -> None:
    moves, reason = OUTRANKS[name]
    seen = play(APIC_ACCESSES, apic_page(DATA), *moves, enter(), run("store"))
    assert (seen.exit.reason, seen.exit.vectoring) == (reason, 0)
    assert seen.retired == 0


def test_x1_once_ept_allows_it_the_access_exits() -> None:
    """L1 repairs its EPT, and the same instruction starts again."""
    moves = (
        APIC_ACCESSES,
        apic_page(DATA),
        ept(DATA),
        enter(),
        run("store"),
        enter(),
        run("store"),
    )
    seen = play(*moves)
    assert seen.reasons == [EPT_VIOLATION, APIC_ACCESS]
    assert seen.exits[1].qualification == APIC_ACCESS_WRITE
    assert {exit_seen.rip for exit_seen in seen.exits} == {seen.exits[0].rip}


def test_x14_in_a_delivery_the_ept_violation_of_the_same_access_comes_first() -> None:
    seen = play(APIC_ACCESSES, apic_page(STACK), ept(STACK), INTERRUPT, enter(), enter())
    assert seen.reasons == [EPT_VIOLATION, APIC_ACCESS]
    assert seen.exits[0].qualification & EPT_LINEAR_VALID
    assert seen.exits[0].physical_address == page_address(STACK)
    assert seen.exits[1].qualification == APIC_ACCESS_IN_EVENT_DELIVERY
    assert [found.vectoring for found in seen.exits] == [event(EXTERNAL_INTERRUPT, 0x40)] * 2


@pytest.mark.parametrize(
    ("apic", "missing", "reasons"),
    [
        (GDT, STACK, [APIC_ACCESS, EPT_VIOLATION]),
        (STACK, GDT, [EPT_VIOLATION, APIC_ACCESS]),
        (IDT_HIGH, GDT, [APIC_ACCESS, EPT_VIOLATION]),
    ],
)
def test_x14_of_two_accesses_of_a_delivery_the_first_one_exits(
    apic: int, missing: int, reasons: list[int]
) -> None:
    """IDT, GDT, stack: the priority is one of a single access, not of the whole delivery."""
    seen = play(APIC_ACCESSES, apic_page(apic), ept(missing), INTERRUPT, enter(), enter(), enter())
    assert seen.reasons == reasons
    assert seen.vectors == [0x40]


@pytest.mark.parametrize("off", ["", "l0-ept", "l1-ept"])
@pytest.mark.parametrize("page", [IDT_HIGH, GDT, STACK])
def test_x14_a_page_that_l0_dropped_does_not_show_before_the_apic_access(
    page: int, off: str
) -> None:
    """L0's own violation comes first in the processor; L1 sees the APIC access alone, with the event."""
    moves = (APIC_ACCESSES, apic_page(page), drop_page(page), INTERRUPT, enter(), enter())
    pair = transparent(*moves, off=off)
    assert pair.seen.reasons == [APIC_ACCESS]
    assert pair.seen.exit.vectoring == event(EXTERNAL_INTERRUPT, 0x40)
    assert pair.reached("repair-in-delivery") == 1
    assert pair.seen.vectors == [0x40]


@pytest.mark.parametrize("name", OUTRANKS)
def test_v11_nested_keeps_the_order(name: str) -> None:
    moves, reason = OUTRANKS[name]
    pair = transparent(APIC_ACCESSES, apic_page(DATA), *moves, enter(), run("store"))
    assert pair.seen.exit.reason == reason
