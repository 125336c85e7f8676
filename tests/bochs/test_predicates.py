"""A predicate takes in what its divergence is, and nothing beside it."""

import pytest

from nvmx_core.arch.controls import SECONDARY_PML, SECONDARY_VIRTUAL_INTR_DELIVERY
from nvmx_core.arch.exits import (
    CPUID_EXIT,
    EPT_VIOLATION,
    EXTERNAL_INTERRUPT_EXIT,
    INVALID_STATE,
    PML_FULL,
)
from nvmx_core.arch.state import RFLAGS_RF
from nvmx_core.journal import DELIVER, EXIT, RECORD_FIELDS, RETIRE, VMFAIL, Record
from nvmx_fuzz.bochs.predicates import (
    full_log,
    posted_without_virtual_interrupts,
    virtual_interrupt_not_reported,
)
from nvmx_fuzz.compare import Difference, Entry

VIRTUAL = Entry("", SECONDARY_VIRTUAL_INTR_DELIVERY)
INTERRUPT_40 = 0x80000040
INTERRUPT_50 = 0x80000050
BP = 0x80000603


def an_exit(reason: int, **values: int) -> Record:
    """An exit record; other fields by their names with _ for blanks and hyphens."""
    names = [name.replace(" ", "_").replace("-", "_") for name in RECORD_FIELDS[EXIT]]
    assert values.keys() <= set(names)
    return (EXIT, reason, *(values.get(name, 0) for name in names[1:]))


def in_delivery(vectoring: int, **values: int) -> Record:
    return an_exit(EPT_VIOLATION, IDT_vectoring_info=vectoring, **values)


def virtual(ours: Record, theirs: Record, entry: Entry = VIRTUAL, injected: int = 0) -> bool:
    return virtual_interrupt_not_reported(Difference(3, ours, theirs, entry, injected))


def test_a_virtual_interrupt_that_is_not_reported() -> None:
    assert virtual(in_delivery(INTERRUPT_40), in_delivery(0))
    assert virtual(
        in_delivery(INTERRUPT_40), in_delivery(BP, instruction_length=1, rflags=RFLAGS_RF)
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "entry", "injected"),
    [
        pytest.param(INTERRUPT_40, 0, Entry(), 0, id="no virtual interrupts"),
        pytest.param(INTERRUPT_40, 0, VIRTUAL, INTERRUPT_40, id="the injected one"),
        pytest.param(BP, 0, VIRTUAL, 0, id="no interrupt"),
        pytest.param(0, INTERRUPT_40, VIRTUAL, 0, id="reported by Bochs alone"),
    ],
)
def test_other_events_are_reported(ours: int, theirs: int, entry: Entry, injected: int) -> None:
    assert not virtual(in_delivery(ours), in_delivery(theirs), entry, injected)


def test_a_virtual_interrupt_excuses_no_other_field() -> None:
    ours = in_delivery(INTERRUPT_40)
    assert not virtual(ours, in_delivery(INTERRUPT_40, instruction_length=2))
    assert not virtual(ours, in_delivery(INTERRUPT_40, rflags=RFLAGS_RF))
    assert not virtual(ours, in_delivery(0, rflags=1))
    assert not virtual(ours, in_delivery(0, cr2=1))


REFUSED = (VMFAIL, 7)
ENTERED = (RETIRE, 0x1000)


@pytest.mark.parametrize("theirs", [ENTERED, an_exit(CPUID_EXIT), an_exit(INVALID_STATE)])
def test_posted_interrupts_enter_without_virtual_ones(theirs: Record) -> None:
    assert posted_without_virtual_interrupts(Difference(1, REFUSED, theirs, Entry("C4")))


@pytest.mark.parametrize(
    ("ours", "theirs", "entry"),
    [
        pytest.param(REFUSED, ENTERED, Entry("C3"), id="another rule"),
        pytest.param(
            REFUSED, ENTERED, Entry("C4", SECONDARY_VIRTUAL_INTR_DELIVERY), id="another need of C4"
        ),
        pytest.param(REFUSED, (VMFAIL, 8), Entry("C4"), id="another error of Bochs"),
        pytest.param((VMFAIL, 8), ENTERED, Entry("C4"), id="another error of the model"),
        pytest.param(REFUSED, (), Entry("C4"), id="Bochs shows nothing"),
    ],
)
def test_other_refusals_are_no_posted_interrupts(
    ours: Record, theirs: Record, entry: Entry
) -> None:
    assert not posted_without_virtual_interrupts(Difference(1, ours, theirs, entry))


FULL = Entry("", SECONDARY_PML, log_is_full=True)
LOGGED = an_exit(PML_FULL)


@pytest.mark.parametrize(
    "ours",
    [
        (RETIRE, 0x1000),
        (DELIVER, 0x40, 0, 0, 0, 0, 0),
        an_exit(CPUID_EXIT),
        an_exit(PML_FULL, IDT_vectoring_info=BP),
    ],
)
def test_a_full_log_ends_a_walk(ours: Record) -> None:
    assert full_log(Difference(1, ours, LOGGED, FULL))


@pytest.mark.parametrize(
    ("ours", "theirs", "entry"),
    [
        pytest.param(ENTERED, LOGGED, Entry("", SECONDARY_PML), id="room in the log"),
        pytest.param(ENTERED, LOGGED, Entry("", 0, log_is_full=True), id="no log"),
        pytest.param(ENTERED, an_exit(EPT_VIOLATION), FULL, id="another exit of Bochs"),
        pytest.param(an_exit(EXTERNAL_INTERRUPT_EXIT), LOGGED, FULL, id="an exit of a boundary"),
        pytest.param(
            an_exit(0, interruption_info=0x80000202), LOGGED, FULL, id="an NMI that exits"
        ),
        pytest.param(an_exit(INVALID_STATE), LOGGED, FULL, id="a failed entry"),
        pytest.param(REFUSED, LOGGED, FULL, id="VMfail"),
        pytest.param(an_exit(PML_FULL, cr2=1), LOGGED, FULL, id="the same exit, another CR2"),
    ],
)
def test_a_full_log_excuses_nothing_else(ours: Record, theirs: Record, entry: Entry) -> None:
    assert not full_log(Difference(1, ours, theirs, entry))
