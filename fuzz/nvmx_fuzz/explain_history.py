"""Who wrote what: the changes of every VMCS field and vCPU variable over a run, in time order.

Inside a step the records tell the values, and what L0 was doing. What the records do not tell is seen as a
difference between the snapshots around the step and is put down to the step's actor.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from nvmx_core.arch.events import (
    EXTERNAL_INTERRUPT,
    NMI,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import INIT_SIGNAL
from nvmx_core.arch.fields import FIELDS
from nvmx_core.journal import (
    DELIVER,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    L1_NMI,
    RECORD_FIELDS,
    SMM_ENTRY,
    Record,
)
from nvmx_core.l0 import log as l0_log
from nvmx_core.scenario import steps
from nvmx_core.scenario.step_text import format_step
from nvmx_core.scenario.steps import OPERATIONS
from nvmx_fuzz.decode_words import event_word, reason_word, record_field, record_word
from nvmx_fuzz.explain_replay import Moment, PlayedStep

NOT_LOADED: Final = -1
"""The value of what nobody has written yet (vmcs02, exit information), and of undefined fields."""

TIMER_02: Final = "vmcs02.GUEST_PREEMPTION_TIMER"
TIMER_IDLE: Final = 1 << 31

EXIT_VARIABLES: Final[dict[str, str]] = {
    "reason": "vmcs12.EXIT_REASON",
    "qualification": "vmcs12.EXIT_QUALIFICATION",
    "interruption info": "vmcs12.EXIT_INTR_INFO",
    "interruption error code": "vmcs12.EXIT_INTR_ERROR_CODE",
    "IDT-vectoring info": "vmcs12.IDT_VECTORING_INFO",
    "IDT-vectoring error code": "vmcs12.IDT_VECTORING_ERROR_CODE",
    "instruction length": "vmcs12.EXIT_INSTRUCTION_LEN",
    "guest linear address": "vmcs12.GUEST_LINEAR_ADDRESS",
    "guest physical address": "vmcs12.GUEST_PHYSICAL_ADDRESS",
    "rip": "vmcs12.GUEST_RIP",
    "rsp": "vmcs12.GUEST_RSP",
    "rflags": "vmcs12.GUEST_RFLAGS",
    "ss_dpl": "vmcs12.GUEST_SS_DPL",
    "interruptibility": "vmcs12.GUEST_INTERRUPTIBILITY",
    "activity": "vmcs12.GUEST_ACTIVITY",
    "pending debug exceptions": "vmcs12.GUEST_PENDING_DBG",
    "preemption timer": "vmcs12.GUEST_PREEMPTION_TIMER",
    "interrupt status": "vmcs12.GUEST_INTR_STATUS",
    "entry interruption info": "vmcs12.ENTRY_INTR_INFO",
    "entry error code": "vmcs12.ENTRY_ERROR_CODE",
    "entry instruction length": "vmcs12.ENTRY_INSTRUCTION_LEN",
    "cr2": "CR2",
    "dr6": "DR6",
}
"""The variable behind each field of an exit record."""

assert tuple(EXIT_VARIABLES) == RECORD_FIELDS[EXIT]

_ENTRY_FIELDS: Final = ("entry interruption info", "entry error code", "entry instruction length")
_ARRIVAL_VARIABLES: Final[dict[int, str]] = {
    steps.NMI: "nmi_pending",
    steps.SMI: "smi_pending",
    steps.INIT: "init_pending",
}


class Change(NamedTuple):
    """One variable got a new value. ``order`` counts all records of the run."""

    order: int
    step: int
    who: str
    variable: str
    old: int
    new: int
    by: str


class _Seen(NamedTuple):
    """One variable has this value now."""

    who: str
    variable: str
    value: int
    by: str


_ENTERED: Final = _Seen("L0", "nested_run_pending", 0, "vmcs02 has been entered")


class History:
    """The changes of all variables; ``order_of`` finds the place of a record among them.

    The preemption timer of vmcs02 is written at every hardware entry, and each of these counts.
    """

    def __init__(self, played: Sequence[PlayedStep]) -> None:
        self.values: dict[str, int] = {}
        self.changes: dict[str, list[Change]] = {}
        self._orders: dict[tuple[int, int], int] = {}
        self._start(played[0])
        order = 0
        for step in played:
            touched: set[str] = set()
            for index, moment in enumerate(step.moments):
                self._orders[step.number, index] = order
                for seen in self._of_moment(moment):
                    self._note(order, step.number, seen)
                    touched.add(seen.variable)
                order += 1
                if moment.hidden and moment.record[0] == l0_log.HARDWARE_ENTRY:
                    self._note(order, step.number, _ENTERED)
                    order += 1
            for seen in _of_snapshots(step, touched):
                self._note(order, step.number, seen)
            order += 1
        self.end: int = order

    def order_of(self, played: Sequence[PlayedStep], moment: Moment) -> int:
        """The place of a record in the order of all records."""
        for step in played:
            for index, other in enumerate(step.moments):
                if other is moment:
                    return self._orders[step.number, index]
        return self.end

    def of(self, variable: str, until: int) -> list[Change]:
        """The changes of a variable up to and including the record *until*."""
        return [change for change in self.changes.get(variable, ()) if change.order <= until]

    def pending(self, variable: str, until: int) -> list[Change]:
        """The changes of a variable that waits for something, since it was last empty; none if it is."""
        changes = self.of(variable, until)
        if changes and not changes[-1].new and changes[-1].order < until:
            return []
        starts = [index for index, change in enumerate(changes) if not change.old]
        return changes[starts[-1] :] if starts else changes

    def _start(self, first: PlayedStep) -> None:
        before = first.before
        self.values |= before.state
        for field in FIELDS:
            never_written = field.group == "exit"
            value = NOT_LOADED if never_written else before.vmcs12[field.place]
            self.values[f"vmcs12.{field.name}"] = value
            self.values[f"vmcs02.{field.name}"] = NOT_LOADED

    def _note(self, order: int, step: int, seen: _Seen) -> None:
        old = self.values.get(seen.variable, 0)
        if old == seen.value and seen.variable != TIMER_02:
            return
        self.values[seen.variable] = seen.value
        change = Change(order, step, seen.who, seen.variable, old, seen.value, seen.by)
        self.changes.setdefault(seen.variable, []).append(change)

    def _of_moment(self, moment: Moment) -> Iterator[_Seen]:
        if moment.hidden:
            yield from self._of_log(moment.record)
        else:
            yield from _of_journal(moment.record)
            yield from self._of_taken(moment.record)

    def _of_log(self, record: l0_log.L0Record) -> Iterator[_Seen]:
        kind = record[0]
        if kind == l0_log.ARRIVAL:
            yield from self._of_arrival(record)
        elif kind == l0_log.NESTED_ENTRY:
            by = "nested entry, from vmcs12"
            yield _Seen("L0", "nested_run_pending", 1, "accepts L1's entry")
            yield _Seen("L0", "vmcs02.ENTRY_INTR_INFO", record[2], by)
        elif kind == l0_log.HARDWARE_ENTRY:
            yield _Seen("L0", "nested_run_pending", record[4], "RSM or restore")
            yield _Seen("L0", "vmcs02.ENTRY_INTR_INFO", record[2], "hardware entry")
            yield _Seen("L0", TIMER_02, 0 if record[3] else TIMER_IDLE, "hardware entry")
        elif kind == l0_log.HIDDEN_EXIT:
            by = f"exit {reason_word(record[2])}"
            yield _Seen("processor", "vmcs02.EXIT_REASON", record[2], by)
            yield _Seen("processor", "vmcs02.IDT_VECTORING_INFO", record[3], by)
            yield _Seen("processor", "vmcs02.ENTRY_INTR_INFO", 0, by)
        elif kind == l0_log.NESTED_EXIT:
            by = f"nested exit {reason_word(record[2])}"
            yield _Seen("L0", "vmcs12.EXIT_REASON", record[2], by)
            yield _Seen("L0", "vmcs12.IDT_VECTORING_INFO", record[3], by)
        elif kind == l0_log.REINJECT:
            yield _Seen("L0", "vmcs02.ENTRY_INTR_INFO", record[2], "re-injection")
        elif kind == l0_log.INJECT:
            by = f"injects {event_word(record[2])}"
            yield from self._of_event(record[2], "L0", by)
            yield _Seen("L0", "vmcs02.ENTRY_INTR_INFO", record[2], by)
        elif kind == l0_log.POSTED:
            info = VALID | record[2]
            yield from self._of_event(info, "L0", "posted-interrupt processing")
        elif kind == l0_log.CANCEL:
            yield _Seen("L0", "vmcs02.ENTRY_INTR_INFO", 0, "cancelled entry")

    def _of_arrival(self, record: l0_log.L0Record) -> Iterator[_Seen]:
        op, operand = record[2], record[3]
        if op == steps.INTERRUPT:
            requests = self.values["IRR"] | 1 << operand
            yield _Seen("outside", "IRR", requests, f"interrupt {operand:#x} arrives")
        elif op in _ARRIVAL_VARIABLES:
            variable = _ARRIVAL_VARIABLES[op]
            name = variable.removesuffix("_pending").upper()
            yield _Seen("outside", variable, 1, f"{name} arrives")

    def _of_taken(self, record: Record) -> Iterator[_Seen]:
        """What was pending for L1 and is not any more, because L1 or the SMM handler has it."""
        kind = record[0]
        if kind == EXIT:
            info = record_field(record, "interruption info")
            yield from self._of_event(info, "L0", "becomes this exit")
            if record_field(record, "reason") == INIT_SIGNAL:
                yield _Seen("L0", "init_pending", 0, "nested exit INIT_SIGNAL")
        elif kind == L1_INTERRUPT:
            info = VALID | record_field(record, "vector")
            yield from self._of_event(info, "L1", "takes it through its own IDT")
        elif kind == L1_NMI:
            yield _Seen("L1", "nmi_pending", 0, "takes it through its own IDT")
        elif kind == SMM_ENTRY:
            yield _Seen("L0", "smi_pending", 0, "enters SMM")

    def _of_event(self, info: int, who: str, by: str) -> Iterator[_Seen]:
        """An interrupt or NMI that leaves the state pending."""
        if info & VALID and info & TYPE_MASK == EXTERNAL_INTERRUPT << TYPE_SHIFT:
            yield _Seen(who, "IRR", self.values["IRR"] & ~(1 << (info & VECTOR_MASK)), by)
        elif info & VALID and info & TYPE_MASK == NMI << TYPE_SHIFT:
            yield _Seen(who, "nmi_pending", 0, by)


def _of_journal(record: Record) -> Iterator[_Seen]:
    kind = record[0]
    if kind == EXIT:
        by = f"nested exit {record_word(record, 'reason')}"
        for name, variable in EXIT_VARIABLES.items():
            yield _Seen("L0", variable, record_field(record, name), by)
    elif kind == L1_ENTRY:
        for name in _ENTRY_FIELDS:
            value = record_field(record, name)
            yield _Seen("L1", EXIT_VARIABLES[name], value, "before it enters L2")
    elif kind == DELIVER:
        by = f"delivery of {record_word(record, 'vector')}"
        yield _Seen("processor", "CR2", record_field(record, "cr2"), by)
        yield _Seen("processor", "DR6", record_field(record, "dr6"), by)


def _of_snapshots(step: PlayedStep, touched: set[str]) -> Iterator[_Seen]:
    """What changed in a step without a record that says so."""
    if step.step is None:
        return
    actor = OPERATIONS[step.step[0]].actor
    by = format_step(step.step, compact=True).removeprefix(actor).strip()
    runs_l1 = actor == steps.L1
    before, after = step.before, step.after
    doing = _last_writer_of_vmcs02(step, by)
    for field in FIELDS:
        name = f"vmcs12.{field.name}"
        old, new = before.vmcs12[field.place], after.vmcs12[field.place]
        if old != new and name not in touched:
            yield _Seen("L1" if runs_l1 else "L0", name, new, by)
        name = f"vmcs02.{field.name}"
        old, new = before.vmcs02[field.place], after.vmcs02[field.place]
        if old != new and name not in touched and name != TIMER_02:
            yield _Seen("L0", name, new, doing)
    for name, value in after.state.items():
        yield _Seen("L1" if runs_l1 and not step.moments else "L0", name, value, by)


def _last_writer_of_vmcs02(step: PlayedStep, by: str) -> str:
    """What wrote vmcs02 as a whole last: an exit, an entry, a restore; L0 may have added to it."""
    for moment in reversed(step.moments):
        kind = moment.record[0] if moment.hidden else -1
        if kind == l0_log.HIDDEN_EXIT:
            return f"after exit {reason_word(moment.record[2])}"
        if kind == l0_log.NESTED_ENTRY:
            return "nested entry, from vmcs12"
        if kind == l0_log.SAVE_RESTORE:
            return "restore, from vmcs12"
    return by
