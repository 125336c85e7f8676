"""What a picture draws of a line of an explanation: its kind, and the lanes that its arrow goes through.

An arrow is a tuple of lanes, from where control or an event comes to where it goes; () is a mark on the
lane of who acts. A hardware exit that L0 reflects goes through three lanes.
"""

from collections.abc import Sequence
from typing import Final

from nvmx_core.arch.events import VALID
from nvmx_core.arch.exits import PREEMPTION_TIMER
from nvmx_core.journal import (
    DELIVER,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    L1_NMI,
    L1_SPURIOUS_EVENT,
    L1_UNEXPECTED_VECTORING,
    VM_DEAD,
    VMFAIL,
    Record,
)
from nvmx_core.l0 import log as l0_log
from nvmx_core.l0.log import L0Record
from nvmx_fuzz.explain_replay import Moment

OUTSIDE, L0, L1, L2 = LANES = ("outside", "L0", "L1", "L2")

ENTRY: Final = "entry"
INJECTION: Final = "injection"
HIDDEN_EXIT: Final = "hidden-exit"
IMMEDIATE_EXIT: Final = "immediate-exit"
EXIT_TO_L1: Final = "exit"
ARRIVAL: Final = "arrival"
FAULT: Final = "fault"
WARNING: Final = "warning"
PLAIN: Final = ""

KINDS: Final = (
    ENTRY, INJECTION, HIDDEN_EXIT, IMMEDIATE_EXIT, EXIT_TO_L1, ARRIVAL, FAULT, WARNING, PLAIN,
)  # fmt: skip

_SEEN: Final[dict[int, tuple[str, tuple[str, ...]]]] = {
    EXIT: (EXIT_TO_L1, ()),
    VMFAIL: (FAULT, (L0, L1)),
    L1_INTERRUPT: (ARRIVAL, (L0, L1)),
    L1_NMI: (ARRIVAL, (L0, L1)),
    L1_SPURIOUS_EVENT: (WARNING, (L0, L1)),
    L1_UNEXPECTED_VECTORING: (WARNING, ()),
    VM_DEAD: (FAULT, ()),
    DELIVER: (INJECTION, ()),
}
_SEEN_ON_BARE: Final[dict[int, tuple[str, tuple[str, ...]]]] = {
    EXIT: (EXIT_TO_L1, (L2, L1)),
    VMFAIL: (FAULT, ()),
    L1_INTERRUPT: (ARRIVAL, ()),
    L1_NMI: (ARRIVAL, ()),
    L1_SPURIOUS_EVENT: (WARNING, ()),
    L1_UNEXPECTED_VECTORING: (WARNING, ()),
    VM_DEAD: (FAULT, ()),
    DELIVER: (INJECTION, ()),
}
_DONE_BY_L0: Final[dict[int, tuple[str, tuple[str, ...]]]] = {
    l0_log.NESTED_EXIT: (EXIT_TO_L1, (L0, L1)),
    l0_log.REINJECT: (INJECTION, ()),
    l0_log.INJECT: (INJECTION, ()),
    l0_log.ARRIVAL: (ARRIVAL, (OUTSIDE, L0)),
    l0_log.QUEUE_EXCEPTION: (FAULT, ()),
    l0_log.REPAIR: (HIDDEN_EXIT, ()),
    l0_log.EMULATE: (HIDDEN_EXIT, (L2, L0)),
    l0_log.RAN_PAST: (WARNING, ()),
    l0_log.SELF_CHECK: (WARNING, ()),
    l0_log.STUCK: (WARNING, ()),
}


def drawn(moments: Sequence[Moment]) -> tuple[str, tuple[str, ...]]:
    """Kind and arrow of a line that tells these moments, on the machine nested."""
    if not moments[0].hidden:
        return _of_journal(moments[0].record, _SEEN, (L1, L0))
    records = [moment.record for moment in moments]
    kinds = [record[0] for record in records]
    if kinds == [l0_log.HIDDEN_EXIT, l0_log.NESTED_EXIT]:
        return EXIT_TO_L1, (L2, L0, L1)
    entries = [record for record in records if record[0] == l0_log.HARDWARE_ENTRY]
    if entries:
        return _of_entry(entries[0])
    if kinds[0] == l0_log.HIDDEN_EXIT:
        timer = records[0][2] == PREEMPTION_TIMER
        return (IMMEDIATE_EXIT if timer else HIDDEN_EXIT), (L2, L0)
    return _DONE_BY_L0.get(kinds[0], (PLAIN, ()))


def drawn_on_bare(record: Record) -> tuple[str, tuple[str, ...]]:
    """Kind and arrow of a journal record of the machine bare, where L0 is nobody."""
    return _of_journal(record, _SEEN_ON_BARE, (L1, L2))


def _of_journal(
    record: Record, table: dict[int, tuple[str, tuple[str, ...]]], entry: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    if record[0] == L1_ENTRY:
        return (INJECTION if record[1] & VALID else ENTRY), entry
    return table.get(record[0], (PLAIN, ()))


def _of_entry(record: L0Record) -> tuple[str, tuple[str, ...]]:
    """A hardware entry; a request for an immediate exit is what matters most about it."""
    if record[3]:
        return IMMEDIATE_EXIT, (L0, L2)
    return (INJECTION if record[2] & VALID else ENTRY), (L0, L2)
