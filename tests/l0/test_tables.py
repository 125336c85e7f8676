"""Who lacks a page: L2's tables, L1's EPT, L0; each level is asked in that order (S8)."""

from itertools import product
from typing import Final

import pytest

from nvmx_core.arch.events import PF
from nvmx_core.arch.exits import EPT_MISCONFIG, EPT_VIOLATION, PML_FULL
from nvmx_core.guests.memory import CODE, DATA
from nvmx_core.l0.log import REPAIR
from nvmx_core.scenario.steps import PAGE_ABSENT, PAGE_MISCONFIGURED, PAGE_PRESENT
from tests.nested_support import Pair, drop_page, transparent
from tests.support import absent, control, enter, ept, pml_log_full, run

PAGING: Final = ("", "l1-ept", "l0-ept")
LEVELS: Final = tuple(
    product((False, True), (PAGE_PRESENT, PAGE_ABSENT, PAGE_MISCONFIGURED), (False, True), PAGING)
)


def load_with(l2_lacks: bool, l1_state: int, l0_lacks: bool, off: str) -> Pair:
    """L2 reads its data page, which some levels lack."""
    moves = [ept(DATA, l1_state)]
    if l2_lacks:
        moves.append(absent(DATA))
    if l0_lacks:
        moves.append(drop_page(DATA))
    return transparent(*moves, enter(), run("load"), off=off)


@pytest.mark.parametrize(("l2_lacks", "l1_state", "l0_lacks", "off"), LEVELS)
def test_s8_the_first_level_that_lacks_the_page_decides(
    l2_lacks: bool, l1_state: int, l0_lacks: bool, off: str
) -> None:
    """#PF for L2, else L1's EPT if it has one, else L0 repairs and the read succeeds."""
    pair = load_with(l2_lacks, l1_state, l0_lacks, off)
    if l2_lacks:
        assert pair.seen.vectors == [PF]
    elif l1_state != PAGE_PRESENT and not off:
        wanted = EPT_VIOLATION if l1_state == PAGE_ABSENT else EPT_MISCONFIG
        assert pair.seen.reasons == [wanted]
    else:
        assert pair.seen.retired == 1
        assert pair.log(REPAIR) == ([(DATA,)] if l0_lacks else [])


def test_s8_a_page_is_repaired_once() -> None:
    pair = transparent(drop_page(DATA), enter(), run("load"), run("load"))
    assert pair.log(REPAIR) == [(DATA,)]


def test_s8_two_missing_pages_are_repaired_one_after_the_other() -> None:
    pair = transparent(drop_page(DATA), drop_page(CODE), enter(), run("load"))
    assert pair.log(REPAIR) == [(CODE,), (DATA,)]


def test_s8_reads_do_not_fill_the_log_of_l1() -> None:
    pair = transparent(control("pml"), pml_log_full(), enter(), run("load"))
    assert pair.seen.reasons == []


@pytest.mark.parametrize(
    ("state", "reason"), [(PAGE_PRESENT, PML_FULL), (PAGE_ABSENT, EPT_VIOLATION)]
)
def test_s8_a_missing_page_of_l1_comes_before_its_full_log(state: int, reason: int) -> None:
    moves = (control("pml"), pml_log_full(), ept(DATA, state), enter(), run("store"))
    assert transparent(*moves).seen.exit.reason == reason


def test_s8_a_full_log_without_the_control_is_nobodys_business() -> None:
    assert transparent(pml_log_full(), enter(), run("store")).seen.reasons == []
