"""Part 2 of an explanation: the scenario with what happened in L1, in L2 and, hidden, in L0.

Records become lines one by one, except where two of L0's belong together for anyone who knows KVM: a
re-injection or a nested entry and the hardware entry that carries it out, a kick and what it is for, a
hardware exit that is reflected. The first line of a step carries the step itself.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from nvmx_core.arch.events import NMI, TYPE_MASK, TYPE_SHIFT, VALID
from nvmx_core.arch.exits import EXCEPTION_NMI, EXTERNAL_INTERRUPT_EXIT, PREEMPTION_TIMER
from nvmx_core.arch.fields import ENTRY_INTR_INFO, IDT_VECTORING_INFO
from nvmx_core.journal import (
    DELIVER,
    END,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    L1_NMI,
    L1_SPURIOUS_EVENT,
    RECORD_FIELDS,
    RETIRE,
    Record,
)
from nvmx_core.l0 import log as l0_log
from nvmx_core.oracle.transparency import first_difference
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario import steps
from nvmx_core.scenario.step_text import format_step
from nvmx_core.scenario.steps import LOWEST_VECTOR, OPERATIONS, Step
from nvmx_fuzz.decode_words import address_word, record_field, record_word
from nvmx_fuzz.explain_arrows import drawn
from nvmx_fuzz.explain_records import (
    entry_text,
    field_texts,
    hardware_exit_text,
    is_plain_entry,
    log_by,
    log_text,
    nested_exit_text,
    record_text,
    seen_by,
)
from nvmx_fuzz.explain_replay import Moment, PlayedStep
from nvmx_fuzz.explain_report import Line
from nvmx_fuzz.explain_steps import entry_instruction, own_effect, place_of

_EXPECTED_MAX: Final = 3
"""How many records of bare metal stand for the one that differs."""

# Oracles that judge L0's log: which of its records a violation is about, the most telling first.
_LOG_KINDS: Final[dict[str, tuple[int, ...]]] = {
    "IMMEDIATE-EXIT": (l0_log.RAN_PAST, l0_log.HARDWARE_ENTRY),
    "EVENT-RANK": (l0_log.NESTED_EXIT, l0_log.INJECT),
    "SELF-CHECK": (l0_log.SELF_CHECK,),
    "LIVENESS": (l0_log.STUCK,),
}


_INJECTIONS: Final = (l0_log.REINJECT, l0_log.INJECT)


class _Draft(NamedTuple):
    """A line to be, with the moments that it tells."""

    moments: tuple[Moment, ...]
    who: str
    text: str


def timeline(
    played: Sequence[PlayedStep],
    bare: list[Record],
    nested: list[Record],
    wrong: Moment | None,
    ept: bool,
    free: Mapping[int, Collection[int]],
) -> tuple[Line, ...]:
    """All lines of a run.

    *wrong*: the record of the violation; *ept*: whether L0 uses EPT; *free*: the operands that do not matter,
    by the index of their step.
    """
    difference = first_difference(bare, nested) if bare != nested else None
    armed = _ArmedSteps()
    lines: list[Line] = []
    for step in played:
        drafts = list(_drafts(step, ept, armed))
        rows = _lines(step, drafts)
        for index, draft in enumerate(drafts):
            for moment in draft.moments:
                row = index + len(rows) - len(drafts)
                if moment is wrong:
                    rows[row] = replace(rows[row], wrong=True, expected=_expected_of_log(moment))
                if difference is not None and _is_at(moment, difference):
                    rows[row] = replace(rows[row], expected=expected_text(bare, nested, difference))
        if step.step is not None and (places := free.get(step.number - 1)):
            rows[0] = replace(rows[0], needed=_action(step.step, places))
        lines += rows
    return tuple(lines)


def _action(step: Step, free: Collection[int] = ()) -> str:
    """A step without its actor."""
    text = format_step(step, compact=True, free=free)
    return text.removeprefix(OPERATIONS[step[0]].actor).strip()


def _is_at(moment: Moment, position: int) -> bool:
    return not moment.hidden and moment.position == position


# -- where it is wrong -----------------------------------------------------------------------------


def wrong_moment(played: Sequence[PlayedStep], violation: Violation) -> Moment | None:
    """The record that a violation is about: of the log for what judges L0, else of the journal."""
    kinds = _LOG_KINDS.get(violation.oracle, ())
    for kind in kinds:
        for step in played:
            for moment in step.moments:
                if (
                    moment.hidden
                    and moment.record[0] == kind
                    and step.number == violation.step + 1
                    and moment.position == violation.position
                ):
                    return moment
    for step in played:
        for moment in step.moments:
            if _is_at(moment, violation.position):
                return moment
    return None


def _expected_of_log(moment: Moment) -> str:
    """What L0 should have done instead, where its log alone tells."""
    if not moment.hidden or moment.record[0] != l0_log.HARDWARE_ENTRY:
        return ""
    immediate, waiting, requested = moment.record[3], moment.record[6], moment.record[7]
    if waiting and not immediate:
        return "preemption timer 0 (immediate exit)"
    if not waiting:
        return "no immediate exit: nothing is due"
    return "" if requested else "KVM_REQ_EVENT raised again together with the immediate exit"


def expected_text(bare: list[Record], nested: list[Record], position: int) -> str:
    """What bare metal shows from *position* on: the fields that differ, or the records instead."""
    if position >= len(bare) or position >= len(nested):
        return ""
    expected, seen = bare[position], nested[position]
    if expected[0] == seen[0] and (expected[0] != EXIT or expected[1] == seen[1]):
        return ", ".join(field_texts(expected, differing_fields(expected, seen)))
    records = [expected]
    if expected[0] in (DELIVER, RETIRE) and seen[0] == EXIT:
        for record in bare[position + 1 : position + _EXPECTED_MAX]:
            records.append(record)
            if record[0] not in (DELIVER, RETIRE):
                break
    return ", then ".join(_clause(record, seen) for record in records)


_WORTH_NAMING: Final = ("interruption info", "IDT-vectoring info", "activity")
_NEEDS_SUBJECT: Final = frozenset({RETIRE, L1_INTERRUPT, L1_NMI, L1_SPURIOUS_EVENT})


def _clause(record: Record, seen: Record) -> str:
    """A record of bare metal as a clause; what L1 and L2 do needs its subject."""
    kind = record[0]
    if kind == DELIVER:
        return f"L2 takes {record_word(record, 'vector')}"
    if kind == L1_ENTRY:
        return "a VM entry by L1"
    if kind == END:
        return f"nothing more: {record_text(record)}"
    fields = differing_fields(record, seen) if kind == seen[0] == EXIT else ()
    text = record_text(record, [name for name in fields if name in _WORTH_NAMING])
    return f"{seen_by(record)} {text}" if kind in _NEEDS_SUBJECT else text


def differing_fields(left: Record, right: Record) -> tuple[str, ...]:
    """The names of the fields in which two records of one kind differ."""
    return tuple(
        name
        for name, a, b in zip(RECORD_FIELDS[left[0]], left[1:], right[1:], strict=True)
        if a != b
    )


# -- drafts ----------------------------------------------------------------------------------------


class _ArmedSteps:
    """The steps whose event arrives at a later moment."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Step]] = []

    def arm(self, played: PlayedStep) -> None:
        """Remember a step that is tied to a moment."""
        step = played.step
        if step is not None and step[0] in _ARRIVALS and step[1] != steps.NOW:
            self.waiting.append((played.number, step))

    def origin(self, moments: Sequence[Moment], index: int) -> str:
        """The step that armed the arrival at *index*, taken from the list."""
        _kind, _position, op, operand = moments[index].record
        when = _when(moments[:index])
        for entry in self.waiting:
            number, step = entry
            if step[1] == when and _is_arrival_of(step, op, operand):
                self.waiting.remove(entry)
                return f" (step {number})"
        return ""


_ARRIVALS: Final = frozenset(
    index
    for index, operation in enumerate(OPERATIONS)
    if operation.actor == steps.OUTSIDE and index != steps.RSM
)


def _is_arrival_of(step: Step, op: int, operand: int) -> bool:
    if step[0] == steps.POST_INTERRUPT:
        return op == steps.INTERRUPT
    if op == steps.INTERRUPT == step[0]:
        vector = step[2]
        return operand == (vector if vector >= LOWEST_VECTOR else vector + LOWEST_VECTOR)
    return op == step[0]


def _when(before: Sequence[Moment]) -> int:
    """Which moment an arrival is tied to, by the record that came right before it."""
    for moment in reversed(before):
        if moment.hidden and moment.record[0] == l0_log.EMULATE:
            return steps.IN_EMULATION
        if not moment.hidden and moment.record[0] == L1_ENTRY:
            return steps.AT_ENTRY
        if not (moment.hidden and moment.record[0] in (l0_log.ARRIVAL, l0_log.KICK)):
            break
    return steps.IN_DELIVERY


def _drafts(played: PlayedStep, ept: bool, armed: _ArmedSteps) -> Iterator[_Draft]:
    armed.arm(played)
    arrives_now = played.step is not None and played.step[0] in _ARRIVALS
    moments = played.moments
    index = 0
    while index < len(moments):
        moment = moments[index]
        origin = ""
        if moment.hidden and moment.record[0] == l0_log.ARRIVAL and not arrives_now:
            origin = armed.origin(moments, index)
        merged = _merged(moments[index : index + 3], origin)
        if merged:
            yield _Draft((moment, moments[index + 1]), log_by(moment.record), merged)
            index += 1
        elif moment.hidden:
            text = _log_text(moments, index, ept) + origin
            yield _Draft((moment,), log_by(moment.record), text)
        else:
            yield _Draft((moment,), seen_by(moment.record), _journal_text(played, moment))
        index += 1


def _log_text(moments: Sequence[Moment], index: int, ept: bool) -> str:
    """A record of the log, read together with the one before and the one after it."""
    record = moments[index].record
    before = moments[index - 1] if index else None
    after = moments[index + 1] if index + 1 < len(moments) else None
    if record[0] == l0_log.HARDWARE_ENTRY:
        named = before is not None and before.hidden and before.record[0] in _INJECTIONS
        return entry_text(record, named=before.record[2] if named and before else 0)
    if record[0] == l0_log.HIDDEN_EXIT:
        return hardware_exit_text(record, after.record if after and after.hidden else None)
    return log_text(record, ept)


def _merged(moments: Sequence[Moment], origin: str) -> str:
    """One text for the first two of these records, if they belong together, or ""."""
    if len(moments) < 2 or not (moments[0].hidden and moments[1].hidden):
        return ""
    first, second = moments[0].record, moments[1].record
    kinds = first[0], second[0]
    if kinds == (l0_log.NESTED_ENTRY, l0_log.HARDWARE_ENTRY) and is_plain_entry(second):
        return f"builds vmcs02, {entry_text(second)}"
    if kinds[0] in _INJECTIONS and kinds[1] == l0_log.HARDWARE_ENTRY and is_plain_entry(second):
        return f"{log_text(first)}, enters L2"
    if kinds == (l0_log.HIDDEN_EXIT, l0_log.NESTED_EXIT) and _is_reflected(moments):
        return nested_exit_text(second, reflected=True)
    if kinds == (l0_log.ARRIVAL, l0_log.KICK):
        return f"{log_text(first)}{origin}; L0 kicks the vCPU"
    return ""


def _is_reflected(moments: Sequence[Moment]) -> bool:
    """Whether a nested exit is the hardware exit before it: never for what the host takes itself."""
    reason = moments[0].record[2]
    if reason != moments[1].record[2] or reason in (EXTERNAL_INTERRUPT_EXIT, PREEMPTION_TIMER):
        return False
    if reason != EXCEPTION_NMI or len(moments) < 3 or moments[2].record[0] != EXIT:
        return True
    info = record_field(moments[2].record, "interruption info")
    return info & TYPE_MASK != NMI << TYPE_SHIFT


def _journal_text(played: PlayedStep, moment: Moment) -> str:
    record = moment.record
    text = record_text(record)
    if record[0] == L1_ENTRY:
        given_back = played.before.vmcs12[IDT_VECTORING_INFO] & VALID
        if record[1] & VALID and record[1] != played.before.vmcs12[ENTRY_INTR_INFO] and given_back:
            text = f"re-{text}"
        return f"{entry_instruction(played)}, {text}"
    if record[0] == RETIRE and _is_first_of_run(played, moment):
        return f"retires, rip {address_word(played.before.rip)} -> {address_word(record[1])}"
    return text


def _is_first_of_run(played: PlayedStep, moment: Moment) -> bool:
    """Whether this is the first thing seen of an L2 instruction that a step runs."""
    if played.step is None or played.step[0] != steps.RUN:
        return False
    return next(other for other in played.moments if not other.hidden) == moment


# -- lines -----------------------------------------------------------------------------------------


def _lines(played: PlayedStep, drafts: Sequence[_Draft]) -> list[Line]:
    """The lines of a step; the last ``len(drafts)`` of them are those of the drafts, in order."""
    rows = [_row(draft) for draft in drafts]
    step = played.step
    if step is None:
        return [replace(row, action="end", who="") for row in rows]
    actor = OPERATIONS[step[0]].actor
    action = _action(step)
    effect = own_effect(played)
    number = played.number
    hidden = actor == steps.L0
    if not effect and drafts and drafts[0].who == actor:
        rows[0] = replace(rows[0], step=number, action=action)
        return rows
    if not effect:
        effect = place_of(played) if step[0] == steps.RUN else "first takes what is pending"
    return [Line(number, actor, action, effect, hidden=hidden), *rows]


def _row(draft: _Draft) -> Line:
    kind, arrow = drawn(draft.moments)
    first = draft.moments[0]
    return Line(
        0,
        draft.who,
        "",
        draft.text,
        hidden=draft.who == "L0",
        kind=kind,
        arrow=arrow,
        record=-1 if first.hidden else first.position,
    )
