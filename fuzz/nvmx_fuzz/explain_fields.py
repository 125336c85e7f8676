"""Part 3 of an explanation: for each field in the violated rule, how its value came about.

Which fields these are follows from the violation: those that it names; else, when an exit stands where
bare metal shows something different, the fields of that exit; else what decides about an immediate exit,
and the events that wait for one. For each, a table says which variables its value travels through.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from nvmx_core.arch.events import NMI, TYPE_MASK, TYPE_SHIFT, VALID, VECTOR_MASK
from nvmx_core.arch.exits import BASIC_REASON_MASK
from nvmx_core.journal import (
    DELIVER,
    END,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    L1_NMI,
    RECORD_FIELDS,
    SMM_ENTRY,
    Record,
)
from nvmx_core.l0 import log as l0_log
from nvmx_core.oracle.violation import Violation
from nvmx_fuzz.decode_words import (
    address_word,
    event_word,
    has_field,
    hexadecimal,
    pending_debug_word,
    record_field,
    record_word,
    vectors_word,
    vmcs_meaning,
)
from nvmx_fuzz.explain_history import EXIT_VARIABLES, TIMER_02, Change, History
from nvmx_fuzz.explain_replay import Place, PlayedStep
from nvmx_fuzz.explain_report import FieldStory, Write
from nvmx_fuzz.explain_timeline import differing_fields

WRITES_MAX: Final = 8
"""The last so many changes of a field are told."""

_ENTRY_12: Final = "vmcs12.ENTRY_INTR_INFO"
_ENTRY_02: Final = "vmcs02.ENTRY_INTR_INFO"
_VECTORING_02: Final = "vmcs02.IDT_VECTORING_INFO"
_RUN_PENDING: Final = "nested_run_pending"

# The way an event takes: only the writes of this very event are told.
_EVENT_WAY: Final[dict[str, tuple[str, ...]]] = {
    "IDT-vectoring info": (_ENTRY_12, _ENTRY_02, _VECTORING_02),
    "vector": (_ENTRY_12, _ENTRY_02),
}
_CAUSES: Final[dict[int, str]] = {
    1: "IRR", 3: "init_pending", 37: "mtf_pending", 52: "preemption_timer_expired",
}  # fmt: skip
_CAUSES_OF_KIND: Final[dict[int, str]] = {
    L1_INTERRUPT: "IRR",
    L1_NMI: "nmi_pending",
    SMM_ENTRY: "smi_pending",
}
_WAITING: Final[dict[int, str]] = {
    l0_log.WAITS_SMI: "smi_pending",
    l0_log.WAITS_INIT: "init_pending",
    l0_log.WAITS_MTF: "mtf_pending",
    l0_log.WAITS_TRAP: "exception_vmexit.pending",
    l0_log.WAITS_TIMER: "preemption_timer_expired",
    l0_log.WAITS_NMI: "nmi_pending",
    l0_log.WAITS_INTERRUPT: "IRR",
    l0_log.WAITS_FAULT: "exception_vmexit.pending",
}
_PENDING: Final = frozenset(_WAITING.values())
_OF_ONE_EXIT: Final = frozenset(RECORD_FIELDS[EXIT][:9])
"""Exit information: every exit writes it anew."""

_END_VARIABLES: Final[dict[str, str]] = {
    "irr": "IRR",
    "isr": "ISR",
    "nmi latched": "nmi_pending",
    "nmi blocked in L1": "nmi_blocked_in_l1",
    "init latched": "init_pending",
    "smi latched": "smi_pending",
    "rip": "vmcs02.GUEST_RIP",
    "rflags": "vmcs02.GUEST_RFLAGS",
    "interruptibility": "vmcs02.GUEST_INTERRUPTIBILITY",
    "activity": "mp_state",
}
_CHECKED: Final[dict[int, tuple[str, ...]]] = {
    l0_log.CHECK_EXIT_WHILE_RUN_PENDING: (_RUN_PENDING, "vmcs12.EXIT_REASON"),
    l0_log.CHECK_RUN_PENDING_OUTSIDE_GUEST: (_RUN_PENDING,),
    l0_log.CHECK_VECTORING_WITH_REASON: (_VECTORING_02, "vmcs02.EXIT_REASON"),
    l0_log.CHECK_ENTRY_FAILED: (
        _ENTRY_02,
        "vmcs02.GUEST_INTERRUPTIBILITY",
        "vmcs02.GUEST_RFLAGS",
        "vmcs02.GUEST_PENDING_DBG",
    ),
    l0_log.CHECK_EVENT_FOR_L1: ("interrupt.injected", "exception.injected", "nmi_injected"),
}
# Fields of an exit that say why it stands in the wrong place.
_OF_MISPLACED_EXIT: Final = ("reason", "IDT-vectoring info", "interruption info", "rip", "activity")

_OF_OTHER_EXIT: Final = ("reason", "IDT-vectoring info", "interruption info", "cr2", "dr6")
"""Fields that are told when the exit is another one; the others are only its details."""


def stories(
    played: Sequence[PlayedStep], violation: Violation, place: Place
) -> tuple[FieldStory, ...]:
    """The stories of all fields in the violated rule."""
    history = History(played)
    until = history.order_of(played, place.moment)
    told = _Told(history, until)
    if place.moment.hidden:
        return tuple(told.of_log(place.moment.record))
    return tuple(told.of_journal(place, violation.fields))


class _Told:
    """Tells stories of variables up to one record of the run."""

    def __init__(self, history: History, until: int) -> None:
        self.history = history
        self.until = until

    def of_log(self, record: l0_log.L0Record) -> Iterator[FieldStory]:
        """A record of L0's log is wrong: an entry, a failed self-check, a loop."""
        kind = record[0]
        if kind == l0_log.HARDWARE_ENTRY:
            yield from self._of_entry(record)
        elif kind == l0_log.RAN_PAST:
            yield from self.of_waiting(record[2])
            yield self.plain(TIMER_02, "0 (immediate exit) at the entry before")
        elif kind == l0_log.SELF_CHECK:
            for variable in _CHECKED.get(record[2], ()):
                yield self.plain(variable, "")
        else:
            yield self.plain(_ENTRY_02, "")
            yield self.plain(TIMER_02, "")

    def _of_entry(self, record: l0_log.L0Record) -> Iterator[FieldStory]:
        immediate, run_pending, reinjection, waiting = record[3:7]
        if waiting and not immediate:
            yield self.plain(TIMER_02, "0 (immediate exit)")
        elif not waiting:
            yield self.plain(TIMER_02, "no immediate exit: nothing waits")
        else:
            yield self.plain("KVM_REQ_EVENT", "1")
        yield from self.of_waiting(waiting)
        if (run_pending or reinjection) and record[2] & VALID:
            yield self.plain(_ENTRY_02, "", self._event_writes(_ENTRY_02, {record[2]}))
        if run_pending:
            yield self.plain(_RUN_PENDING, "")

    def of_waiting(self, waiting: int) -> Iterator[FieldStory]:
        """The events that wait for a boundary."""
        for bit, variable in _WAITING.items():
            if waiting & bit and self.history.of(variable, self.until):
                yield self.plain(variable, "")

    def of_journal(self, place: Place, fields: Sequence[str]) -> Iterator[FieldStory]:
        """A record of the journal is wrong: in *fields*, or by standing where it stands."""
        seen, expected = place.moment.record, place.expected
        comparable = expected is not None and expected[0] == seen[0]
        named = [name for name in fields if has_field(seen, name)]
        if "reason" in named:
            named = [name for name in named if name in _OF_OTHER_EXIT]
        if not named and seen[0] == EXIT:
            different = differing_fields(expected, seen) if comparable and expected else ()
            named = [name for name in _OF_MISPLACED_EXIT if name == "reason" or name in different]
        for name in named:
            yield self.field(seen, name, expected if comparable else None)
        if expected is None or (expected[0] == seen[0] and _reason(expected) == _reason(seen)):
            return
        if expected[0] == DELIVER:
            yield self.plain(_ENTRY_02, "")
        cause = _cause(expected)
        if cause and self.history.of(cause, self.until):
            # What it is for, and whether L0 arranged to be back in time.
            yield self.plain(cause, "")
            yield self.plain(TIMER_02, "")

    # -- one story --------------------------------------------------------------------------------

    def field(self, seen: Record, name: str, expected: Record | None) -> FieldStory:
        """The story of one journal field."""
        values = {record_field(seen, name)}
        expected_text = ""
        if expected is not None and record_field(expected, name) != record_field(seen, name):
            values.add(record_field(expected, name))
            expected_text = _shown(expected, name)
        changes: list[Change] = []
        for variable in _EVENT_WAY.get(name, ()):
            changes += self._event_writes(variable, values)
        if name == "reason":
            changes += self.history.of("vmcs02.EXIT_REASON", self.until)[-1:]
        if name in ("reason", "interruption info"):
            changes += self.history.pending(_cause(seen), self.until)
        variable = variable_of(seen, name)
        if variable:
            writes_max = 1 if name in _OF_ONE_EXIT else WRITES_MAX
            changes += self.history.of(variable, self.until)[-writes_max:]
        return FieldStory(name, _shown(seen, name), expected_text, _writes(changes))

    def plain(
        self, variable: str, expected: str, changes: Iterable[Change] | None = None
    ) -> FieldStory:
        """The story of one variable of the vCPU or of a VMCS."""
        if changes is None:
            changes = self._own_changes(variable)
        changes = list(changes)
        last = self.history.of(variable, self.until)
        value = last[-1].new if last else self.history.values.get(variable, 0)
        number, meaning = value_texts(variable, value)
        seen = f"{number} ({meaning})" if meaning else number
        return FieldStory(variable, seen, expected, _writes(changes))

    def _own_changes(self, variable: str) -> list[Change]:
        if variable in _PENDING:
            return self.history.pending(variable, self.until)
        if variable == TIMER_02:
            return self.history.of(variable, self.until)[-1:]
        return self.history.of(variable, self.until)

    def _event_writes(self, variable: str, infos: Iterable[int]) -> list[Change]:
        """The writes of these events, whatever else the variable held in the meantime."""
        events = {_event(info) for info in infos if info > 0 and info & VALID}
        return [
            change
            for change in self.history.of(variable, self.until)
            if change.new > 0 and change.new & VALID and _event(change.new) in events
        ]


def _event(info: int) -> int:
    return info & (TYPE_MASK | VECTOR_MASK)


def _reason(record: Record) -> int:
    """The reason of an exit; -1 for another record."""
    return record_field(record, "reason") if record[0] == EXIT else -1


def _cause(record: Record) -> str:
    """The variable in which a record's reason waits, or ""."""
    if record[0] != EXIT:
        return _CAUSES_OF_KIND.get(record[0], "")
    reason = record_field(record, "reason") & BASIC_REASON_MASK
    info = record_field(record, "interruption info")
    if reason == 0:
        is_nmi = info & TYPE_MASK == NMI << TYPE_SHIFT
        return "nmi_pending" if is_nmi else "exception_vmexit.pending"
    return _CAUSES.get(reason, "")


def variable_of(record: Record, name: str) -> str:
    """The variable whose value a journal field shows, or ""."""
    if record[0] == EXIT:
        return EXIT_VARIABLES[name]
    if record[0] == END:
        return _END_VARIABLES.get(name, "")
    if record[0] == L1_ENTRY:
        return EXIT_VARIABLES.get(name, "")
    if record[0] == DELIVER:
        return {"cr2": "CR2", "dr6": "DR6"}.get(name, "")
    return ""


def _shown(record: Record, name: str) -> str:
    """A journal field: its number, and what it means where that says more."""
    assert name in RECORD_FIELDS[record[0]]
    number, word = hexadecimal(record_field(record, name)), record_word(record, name)
    if word.startswith(number) or number == "-" or name in ("irr", "isr"):
        return word
    return f"{number} ({word})"


# -- writes ----------------------------------------------------------------------------------------


def _writes(changes: Iterable[Change]) -> tuple[Write, ...]:
    ordered = sorted(set(changes), key=lambda change: change.order)
    return tuple(_write(change) for change in ordered[-WRITES_MAX:])


def _write(change: Change) -> Write:
    old, _meaning = value_texts(change.variable, change.old)
    new, meaning = value_texts(change.variable, change.new)
    return Write(change.step, change.who, change.variable, old, new, meaning, change.by)


_EVENTS: Final = frozenset({"exception.pending", "exception.injected", "exception_vmexit.pending"})


def value_texts(variable: str, value: int) -> tuple[str, str]:
    """A variable's value as a number, and its meaning where the number does not say it all."""
    if variable in ("IRR", "ISR"):
        return vectors_word(value), ""
    if variable == TIMER_02 and value >= 0:
        return hexadecimal(value), "no immediate exit" if value else "immediate exit"
    if variable in _EVENTS or variable == "interrupt.injected":
        return hexadecimal(value), event_word(value) if value else ""
    if variable == "CR2":
        return hexadecimal(value), address_word(value) if value else ""
    if variable == "DR6":
        return hexadecimal(value), pending_debug_word(value) if value else ""
    place, dot, field = variable.partition(".")
    if dot and place in ("vmcs12", "vmcs02"):
        meaning = vmcs_meaning(field, value)
        return hexadecimal(value), "" if meaning == hexadecimal(value) else meaning
    return hexadecimal(value), ""
