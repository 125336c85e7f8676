"""What the predicates on differences ask of records and of what came before."""

from nvmx_core.arch.events import OTHER_EVENT, TYPE_MASK, TYPE_SHIFT, VALID, VECTOR_MASK
from nvmx_core.arch.exits import INVALID_STATE, TRIPLE_FAULT
from nvmx_core.guests.memory import HANDLER_BASE, HANDLER_SHIFT
from nvmx_core.journal import DELIVER, END, EXIT, L1_ENTRY, L1_INTERRUPT, Record
from nvmx_fuzz.bochs.predicates import field, is_exit
from nvmx_fuzz.compare import Difference


def event_of(info: int) -> tuple[int, int]:
    """Type and vector of an interruption word."""
    return (info & TYPE_MASK) >> TYPE_SHIFT, info & VECTOR_MASK


def injects_mtf(found: Difference) -> bool:
    """Whether L1 injects a pending MTF exit with the entry."""
    return bool(found.injected & VALID) and event_of(found.injected)[0] == OTHER_EVENT


def records_since_entry(found: Difference) -> tuple[Record, ...]:
    """What both machines have shown since the last entry of L1."""
    start = max((n for n, record in enumerate(found.history) if record[0] == L1_ENTRY), default=-1)
    return found.history[start + 1 :]


def first_of_the_entry(found: Difference) -> bool:
    """Whether the difference is the first record behind an entry of L1."""
    return bool(found.history) and found.history[-1][0] == L1_ENTRY


def handler_of(record: Record) -> int:
    """In which handler L2 stands, or stood, by its vector; a negative number in none."""
    rip = field(record, "rip") or field(record, "return rip")
    return rip - HANDLER_BASE >> HANDLER_SHIFT


def goes_on(record: Record) -> bool:
    """Whether L2 just runs on, to an exit of its own, the end, or an event: it does not die, and entered."""
    if record[:1] == (EXIT,):
        return not is_exit(record, TRIPLE_FAULT, INVALID_STATE)
    return record[:1] in ((END,), (DELIVER,), (L1_ENTRY,), (L1_INTERRUPT,))
