"""Part 4 of an explanation: the violated rule and the rules that it rests on, with their sources."""

from collections.abc import Iterable
from typing import Final

from nvmx_core.arch.exits import BASIC_REASON_MASK
from nvmx_core.arch.rules import RULES
from nvmx_core.journal import DELIVER, EXIT, L1_INTERRUPT, L1_NMI, RETIRE, SMM_ENTRY, VMFAIL, Record
from nvmx_core.oracle.violation import Violation
from nvmx_fuzz.decode_words import record_field
from nvmx_fuzz.explain_replay import Place
from nvmx_fuzz.explain_report import RuleText

RULES_MAX: Final = 5
"""A rule and at most so many less one that it rests on."""

# Rule -> the rules to read with it.
_RELATED: Final[dict[str, tuple[str, ...]]] = {
    "X1": ("X3", "X4", "S8"),
    "X2": ("X1", "F4"),
    "X3": ("X13", "O11", "S4"),
    "X4": ("X11", "X13"),
    "X6": ("K1", "X1"),
    "O7": ("P8", "S6", "V3"),
    "O11": ("V3", "V10", "S6"),
    "M1": ("P6", "I2", "V10"),
    "B5": ("O10", "V3"),
    "B6": ("O10", "V3"),
    "V2": ("X13", "D4", "X11"),
    "V3": ("O11", "V10", "S6"),
    "V4": ("P16", "S4"),
    "V5": ("O2", "S4"),
    "V6": ("Y5", "X1"),
    "V7": ("K1", "K2"),
    "V8": ("N2", "X11"),
    "V9": ("Y1",),
    "V10": ("S4", "S6", "O11"),
    "K2": ("K1", "P12"),
    "S1": ("S4", "S6"),
    "E0": ("O2", "S4"),
}
# A field that differs from bare metal -> the rules that say what it holds.
_OF_FIELD: Final[dict[str, tuple[str, ...]]] = {
    "interruption info": ("K1", "X6"),
    "interruption error code": ("X6", "D5"),
    "IDT-vectoring info": ("X1", "X3", "X4"),
    "IDT-vectoring error code": ("X4",),
    "instruction length": ("X9",),
    "rip": ("X7", "Y2"),
    "rsp": ("X7",),
    "rflags": ("X8", "Y3"),
    "interruptibility": ("X10", "X12", "N3"),
    "activity": ("Y4", "A1"),
    "pending debug exceptions": ("Y6", "M4"),
    "preemption timer": ("O7",),
    "interrupt status": ("K3", "K4"),
    "entry interruption info": ("D6",),
    "entry error code": ("D6",),
    "entry instruction length": ("D6",),
    "cr2": ("Y1",),
    "dr6": ("Y1",),
    "return rip": ("Y2",),
    "error code": ("F5", "D5"),
    "irr": ("K1", "V7"),
    "isr": ("K1", "V7"),
    "nmi latched": ("N2", "V8"),
    "nmi blocked in L1": ("Y5",),
    "init latched": ("A2",),
    "smi latched": ("B8",),
}
# An exit that comes too early, too late or not at all -> the rules that say when it comes.
_OF_REASON: Final[dict[int, tuple[str, ...]]] = {
    0: ("P14", "Y1"), 1: ("O11", "P12"), 2: ("F4",), 3: ("P5", "A2"), 4: ("A1",), 7: ("P11", "B5"),
    8: ("P9", "B6"), 33: ("E0",), 34: ("E0",), 37: ("P6", "M1"), 43: ("O8", "P2"),
    48: ("X1", "X14"), 49: ("X1", "X14"), 52: ("P8", "O7"),
}  # fmt: skip
_OF_KIND: Final[dict[int, tuple[str, ...]]] = {
    DELIVER: ("O2", "X13"),
    RETIRE: ("V3",),
    L1_INTERRUPT: ("V7", "K2"),
    L1_NMI: ("V8", "N2"),
    SMM_ENTRY: ("P4", "B8"),
    VMFAIL: ("E0",),
}


def rule_texts(violation: Violation | None, place: Place | None) -> tuple[RuleText, ...]:
    """The violated rule first; without a violation the one that holds, transparency."""
    first = "V11" if violation is None else violation.rule
    related = _RELATED.get(first, ())
    if violation is not None and place is not None and not related:
        seen = None if place.moment.hidden else place.moment.record
        related = by_situation(violation.fields, seen, place.expected)
    ids = list(dict.fromkeys((first, *related)))[:RULES_MAX]
    return tuple(
        RuleText(*RULES[rule_id], violated=violation is not None and rule_id == first)
        for rule_id in ids
        if rule_id in RULES
    )


def by_situation(
    fields: Iterable[str], seen: Record | None, expected: Record | None
) -> tuple[str, ...]:
    """The rules about what differs: *fields* of two records, or the records themselves.

    *expected* is the record of bare metal. For properties that only say that something differs.
    """
    found: list[str] = []
    other_exit = "reason" in fields
    for field in fields:
        if not other_exit or field == "IDT-vectoring info":
            found += _OF_FIELD.get(field, ())
    if other_exit or not found:
        if _vectoring(seen) != _vectoring(expected):
            found += ("X3", "X13")
        for record in (expected, seen):
            if record is not None and record[0] == EXIT:
                reason = record_field(record, "reason") & BASIC_REASON_MASK
                found += _OF_REASON.get(reason, ("P14",))
            elif record is not None:
                found += _OF_KIND.get(record[0], ())
    return tuple(found)


def _vectoring(record: Record | None) -> int:
    """The IDT-vectoring information of an exit; 0 for other records."""
    if record is None or record[0] != EXIT:
        return 0
    return record_field(record, "IDT-vectoring info")
