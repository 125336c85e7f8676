"""The account of L1's injections: each one ends exactly once (V2).

The record behind an accepted entry tells the end: the event is delivered, or handed back as IDT-vectoring
information, or an exception that its delivery can raise has replaced it (D4, also as #DF or triple fault),
or the entry failed and the event is untouched in its field. An event is compared as far as a record shows
it: vector and error code when it is delivered, type and instruction length as well when it is handed back.
The type of a delivery shows in L0's log, which has every word that was put into the entry field again.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from nvmx_core.arch.events import (
    BENIGN,
    DB,
    DF,
    DOUBLE_FAULT,
    DOUBLE_FAULT_INFO,
    ERROR_CODE_VALID,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_UNBLOCKING_BY_IRET,
    NMI_VECTOR,
    NP,
    OTHER_EVENT,
    PAGE_FAULT,
    PF,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    event_class,
    info_text,
)
from nvmx_core.arch.exits import EXCEPTION_NMI, FAILED_ENTRY, TRIPLE_FAULT, is_soft
from nvmx_core.arch.fields import POISON
from nvmx_core.arch.state import RFLAGS_RF
from nvmx_core.cpu.delivery import ERROR_EXT, ERROR_IDT, PF_WRITE
from nvmx_core.guests.memory import handler_rip
from nvmx_core.journal import DELIVER, END, EXIT, L1_ENTRY, RETIRE, VM_DEAD, VMFAIL, Record
from nvmx_core.l0.log import HIDDEN_EXIT, NESTED_ENTRY, REINJECT
from nvmx_core.l0.reach import (
    REINJECT_EXCEPTION,
    REINJECT_INTERRUPT,
    REINJECT_NMI,
    REINJECT_SOFT,
)
from nvmx_core.machines.nested import Nested

LOST: Final = "injection lost"
CHANGED: Final = "injection changed"
ERASED: Final = "injection erased by a failed entry"
REPEATED: Final = "injection delivered twice"
HANDED_BACK_TOO: Final = "injection delivered and handed back"

_SENTENCES: Final[dict[str, str]] = {
    LOST: "the event that L1 injected ({}) is neither delivered nor handed back",
    CHANGED: "the event that L1 injected ({}) comes out as another one with the same vector",
    ERASED: "the entry failed, but the event that L1 wants to inject ({}) is gone from its field",
    REPEATED: "the event that L1 injected once ({}) is delivered twice",
    HANDED_BACK_TOO: "the event that L1 injected ({}) is delivered and then handed back as interrupted",
}

_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    ERASED: ("entry interruption info", "entry error code", "entry instruction length"),
    HANDED_BACK_TOO: ("IDT-vectoring info",),
}

_DELIVERY_FAULTS: Final = (DF, NP, GP, PF)
_REASON: Final = 1
_INTERRUPTION: Final = 3
_VECTORING: Final = 5
_VECTORING_ERROR_CODE: Final = 6
_LENGTH: Final = 7
_ENTRY_FIELDS: Final = slice(19, 22)


class BrokenInjection(NamedTuple):
    """An injection that did not end exactly once: how, in which record of the journal, in a sentence.

    ``fields`` are the fields of that record which tell it.
    """

    situation: str
    position: int
    sentence: str
    fields: tuple[str, ...]


class Injection(NamedTuple):
    """One event in the entry field: its word, its error code (POISON for none), its instruction length."""

    info: int
    error_code: int
    length: int


def broken_injections(nested: Nested) -> Iterator[BrokenInjection]:
    """Follow every injection from L1's entry to its end."""
    journal = nested.journal
    delivered: Injection | None = None
    for position, record in enumerate(journal):
        kind = record[0]
        if kind == EXIT and delivered is not None:
            if _hands_back(delivered, record) and not _interrupted(nested, position):
                yield _broken(HANDED_BACK_TOO, delivered, position)
            delivered = None
        elif kind == L1_ENTRY:
            delivered = None
            if record[1] & VALID:
                injection = _injection(record)
                ending = journal[position + 1]
                situation = _judge(injection, record, ending, journal[position + 2 : position + 3])
                if not situation and _changed_on_the_way(nested, injection, position + 1):
                    situation = CHANGED
                if situation:
                    where = position + 2 if situation == REPEATED else position + 1
                    yield _broken(situation, injection, where)
                elif ending[0] == DELIVER:
                    delivered = injection


def _injection(entry: Record) -> Injection:
    _kind, info, error_code, length = entry
    return Injection(info, error_code if info & ERROR_CODE_VALID else POISON, length)


def _broken(situation: str, injection: Injection, position: int) -> BrokenInjection:
    sentence = _SENTENCES[situation].format(info_text(injection.info))
    return BrokenInjection(situation, position, sentence, _FIELDS.get(situation, ()))


def _judge(injection: Injection, entry: Record, ending: Record, following: list[Record]) -> str:
    """The situation that the record behind the entry shows; "" when the injection ends as it may."""
    kind = ending[0]
    if kind == EXIT and ending[_REASON] & FAILED_ENTRY:
        return "" if ending[_ENTRY_FIELDS] == entry[1:4] else ERASED
    if kind == VMFAIL or kind == VM_DEAD:
        return ""
    if injection.info & TYPE_MASK == OTHER_EVENT << TYPE_SHIFT:
        # M5: the MTF exit, or what outranks it, comes before anything of L2.
        return LOST if kind in (DELIVER, RETIRE, END) else ""
    return judge_ending(injection, ending, following)


def judge_ending(injection: Injection, ending: Record, following: list[Record]) -> str:
    """The situation that the first record behind the injection of a vectored event shows.

    "" when the event is delivered, handed back, or replaced by a fault of its delivery.
    """
    kind = ending[0]
    if kind == DELIVER:
        return _judge_delivery(injection, ending, following)
    return _judge_exit(injection, ending) if kind == EXIT else LOST


def _judge_delivery(injection: Injection, ending: Record, following: list[Record]) -> str:
    vector, error_code = ending[1], ending[2]
    is_same_vector = vector == injection.info & VECTOR_MASK
    if is_same_vector and error_code == injection.error_code:
        return REPEATED if _is_repeated(injection, ending, following) else ""
    if can_be_replaced_by(injection.info, vector, error_code):
        return ""
    return CHANGED if is_same_vector else LOST


def _judge_exit(injection: Injection, ending: Record) -> str:
    vectoring = ending[_VECTORING]
    if not vectoring:
        return "" if _ends_in_double_fault(injection.info, ending) else LOST
    if _hands_back(injection, ending):
        return ""
    vector = vectoring & VECTOR_MASK
    if vectoring & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT and can_be_replaced_by(
        injection.info, vector, ending[_VECTORING_ERROR_CODE]
    ):
        return ""
    return CHANGED if vector == injection.info & VECTOR_MASK else LOST


def _hands_back(injection: Injection, record: Record) -> bool:
    """X4, X9: the exit reports this very event: word, error code, and for soft types the length."""
    return (
        record[_VECTORING] == injection.info
        and record[_VECTORING_ERROR_CODE] == injection.error_code
        and (not is_soft(injection.info) or record[_LENGTH] == injection.length)
    )


def can_be_replaced_by(event: int, vector: int, error_code: int) -> bool:
    """D4, F1, F5: whether the delivery of *event* can raise an exception that then takes its place.

    #NP and #GP can only come from the event's own gate, which their error code names: raised while a
    contributory exception or a #PF is delivered they would have become #DF. A #PF is an access of the
    delivery, never a fetch and never by the user. What a #DF meets is a triple fault.
    """
    first = event_class(event)
    if first == DOUBLE_FAULT:
        return False
    if vector == DF:
        return error_code == 0
    if vector == PF:
        return first != PAGE_FAULT and error_code in (0, PF_WRITE)
    if first != BENIGN:
        return False
    checks_dpl = event & TYPE_MASK in (
        SOFTWARE_INTERRUPT << TYPE_SHIFT,
        SOFTWARE_EXCEPTION << TYPE_SHIFT,
    )
    external = 0 if checks_dpl else ERROR_EXT
    names_gate = error_code == (event & VECTOR_MASK) << 3 | ERROR_IDT | external
    return names_gate and (vector == NP or (vector == GP and checks_dpl))


def _ends_in_double_fault(event: int, ending: Record) -> bool:
    """X2: faults of the delivery became a triple fault, or a #DF that L1 intercepts."""
    if ending[_REASON] == TRIPLE_FAULT:
        return True
    return (
        ending[_REASON] == EXCEPTION_NMI
        and ending[_INTERRUPTION] & ~NMI_UNBLOCKING_BY_IRET == DOUBLE_FAULT_INFO
        and event_class(event) != DOUBLE_FAULT
    )


def _is_repeated(injection: Injection, ending: Record, following: list[Record]) -> bool:
    """The same interrupt or NMI again at its handler's first instruction was injected twice.

    A fault of that instruction shows RF in its frame, INT n a return address behind itself. An interrupt
    with the vector of an NMI or of a #DB may be followed by one of these, which look the same.
    """
    event_type = (injection.info & TYPE_MASK) >> TYPE_SHIFT
    if event_type not in (EXTERNAL_INTERRUPT, NMI) or not following:
        return False
    if event_type == EXTERNAL_INTERRUPT and injection.info & VECTOR_MASK in (DB, NMI_VECTOR):
        return False
    if following[0][0] != DELIVER or following[0][1:3] != ending[1:3]:
        return False
    _kind, vector, _error_code, return_rip, rflags, _cr2, _dr6 = following[0]
    return return_rip == handler_rip(vector) and not rflags & RFLAGS_RF


# -- what L0's log adds -----------------------------------------------------------------------------------


def _changed_on_the_way(nested: Nested, injection: Injection, end: int) -> bool:
    """X4: whether L0 put the event into the entry field again with the same vector, but as another event.

    *end* is the position of the record that ends the injection: what is logged there happened before it.
    """
    reach = nested.vcpu.reach
    if not (
        reach[REINJECT_EXCEPTION]
        or reach[REINJECT_SOFT]
        or reach[REINJECT_INTERRUPT]
        or reach[REINJECT_NMI]
    ):
        return False
    event = injection.info
    return any(
        record[0] == REINJECT
        and record[1] == end
        and record[2] != event
        and record[2] & VECTOR_MASK == event & VECTOR_MASK
        and not _may_be_delivery_fault(event, record[2])
        for record in nested.vcpu.log
    )


def _may_be_delivery_fault(event: int, info: int) -> bool:
    """Whether another word with the vector of *event* may be a fault that has replaced it."""
    return (
        info & (TYPE_MASK | ERROR_CODE_VALID) == HARDWARE_EXCEPTION << TYPE_SHIFT | ERROR_CODE_VALID
        and info & VECTOR_MASK in _DELIVERY_FAULTS
        and event_class(event) == BENIGN
    )


def _interrupted(nested: Nested, position: int) -> bool:
    """Whether the processor itself reported an event in delivery at the last exit before a record."""
    vectoring = 0
    for record in nested.vcpu.log:
        if record[1] > position:
            break
        if record[0] == HIDDEN_EXIT:
            vectoring = record[3]
        elif record[0] == NESTED_ENTRY:
            vectoring = 0
    return vectoring != 0
