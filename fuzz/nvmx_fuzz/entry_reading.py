"""A second reading of the checks on VM entry, as a table of what is forbidden.

`nvmx_core.cpu.*_checks` decides by functions, in the order of a processor. This table was written from the
rules (`nvmx_core/arch/rules_entry.py`) and takes bit numbers from the manual's own tables, not from
the model's constants. A row forbids a combination::

    Row("E3", VMFAIL, 7, "valid=1 type=3 vector>31")

Its terms are NAME=VALUES, NAME!=VALUES or NAME>LIMIT: values are numbers with ``|`` between them, a limit
is a number or another name. All terms of a row must hold for it to forbid. Names are bits of VMCS fields
(`_BITS`), capabilities (``cap.hlt``), or what L1 is about to do.

What the processors of this model offer and leave out is in docs/ARCHITECTURE.md; those rows have the rule E0.

Source: SDM, "VM Entries", "Checks on VMX Controls and Host-State Area", "Checking and Loading Guest State".
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from nvmx_core.arch.capabilities import Capabilities
from nvmx_core.arch.fields import FIELD_BY_NAME, Vmcs

VMFAIL: Final = "VMfail"
EXIT: Final = "exit"


class Row(NamedTuple):
    """One forbidden combination: the rule, how the entry fails, and the terms.

    ``number`` is the VM-instruction error (0: VMfailInvalid) or the exit reason; ``qualification`` counts
    for exits only.
    """

    rule: str
    how: str
    number: int
    terms: str
    qualification: int = 0


class Entry(NamedTuple):
    """What decides about the first entry of L1: the VMCS, the virtual TPR, the processor, and L1's way."""

    vmcs: Vmcs
    vtpr: int
    caps: Capabilities
    has_current: bool = True
    behind_mov_ss: bool = False
    force_resume: bool = False


# Rows of an earlier class win; within a class the manual leaves the order open.
PERMISSION: Final[tuple[tuple[Row, ...], ...]] = (
    (Row("E0", VMFAIL, 0, "current=0"),),
    (Row("E0", VMFAIL, 26, "mov-ss-now=1"),),
    (Row("E0", VMFAIL, 5, "force-resume=1"),),
)
"""Error 4 needs a VMCS that was launched before; here it is L1's first entry."""

CONTROLS: Final[tuple[Row, ...]] = (
    Row("E0", VMFAIL, 7, "pin.reserved!=0"),
    Row("E0", VMFAIL, 7, "cpu.reserved!=0"),
    Row("E0", VMFAIL, 7, "cpu.secondary=0"),
    Row("E0", VMFAIL, 7, "cpu.mtf=1 cap.monitor_trap_flag=0"),
    Row("E0", VMFAIL, 7, "secondary.reserved!=0"),
    Row("E0", VMFAIL, 7, "ept=0 cap.ept=1"),
    Row("E0", VMFAIL, 7, "ept=1 cap.ept=0"),
    Row("E0", VMFAIL, 7, "unrestricted=1 cap.ept=0"),
    Row("E0", VMFAIL, 7, "pml=1 cap.ept=0"),
    Row("E0", VMFAIL, 7, "exit.reserved!=0"),
    Row("E0", VMFAIL, 7, "entry.reserved!=0"),
    Row("C1", VMFAIL, 7, "virtual-nmis=1 nmi-exiting=0"),
    Row("C2", VMFAIL, 7, "nmi-window=1 virtual-nmis=0"),
    Row("C3", VMFAIL, 7, "virtual-interrupts=1 interrupt-exiting=0"),
    Row("C3", VMFAIL, 7, "virtual-interrupts=1 tpr-shadow=0"),
    Row("C4", VMFAIL, 7, "posted=1 virtual-interrupts=0"),
    Row("C4", VMFAIL, 7, "posted=1 acknowledge=0"),
    Row("C4", VMFAIL, 7, "posted=1 notification>255"),
    Row("C4", VMFAIL, 7, "posted=1 descriptor.low!=0"),
    Row("C5", VMFAIL, 7, "save-timer=1 timer=0"),
    Row("C6", VMFAIL, 7, "tpr-shadow=1 virtual-interrupts=0 threshold>15"),
    Row("C6", VMFAIL, 7, "tpr-shadow=1 virtual-interrupts=0 apic-accesses=0 threshold.class>vtpr.class"),
    Row("G12", VMFAIL, 7, "to-smm=1"),
    Row("E1", VMFAIL, 7, "valid=1 type=1"),
    Row("E1", VMFAIL, 7, "valid=1 type=7 cap.monitor_trap_flag=0"),
    Row("E2", VMFAIL, 7, "valid=1 type=2 vector!=2"),
    Row("E3", VMFAIL, 7, "valid=1 type=3 vector>31"),
    Row("E4", VMFAIL, 7, "valid=1 type=7 vector!=0"),
    Row("E5", VMFAIL, 7, "valid=1 type!=3 error=1"),
    Row("E5", VMFAIL, 7, "valid=1 type=3 error=1 unrestricted=1 pe=0"),
    Row("E5", VMFAIL, 7, "valid=1 type=3 error=1 vector!=8|10|11|12|13|14|17 cap.error_code_optional=0"),
    Row("E5", VMFAIL, 7, "valid=1 type=3 error=0 vector=8|10|11|12|13|14|17 cap.error_code_optional=0 pe=1"),
    Row(
        "E5", VMFAIL, 7,
        "valid=1 type=3 error=0 vector=8|10|11|12|13|14|17 cap.error_code_optional=0 unrestricted=0",
    ),
    Row("E6", VMFAIL, 7, "valid=1 info.reserved!=0"),
    Row("E7", VMFAIL, 7, "valid=1 error=1 error-code.high!=0"),
    Row("E8", VMFAIL, 7, "valid=1 type=4|5|6 length>15"),
    Row("E8", VMFAIL, 7, "valid=1 type=4|5|6 length=0 cap.zero_length_injection=0"),
    Row("E0", VMFAIL, 8, "host-rip.high!=0|0x1ffff"),
)  # fmt: skip

GUEST_STATE: Final[tuple[Row, ...]] = (
    Row("E0", EXIT, 33, "rip.high!=0"),
    Row("E0", EXIT, 33, "cr0.others!=0"),
    Row("E0", EXIT, 33, "pe=0 unrestricted=0"),
    Row("E0", EXIT, 33, "dpl!=0|3"),
    Row("E0", EXIT, 33, "dpl!=0 pe=0"),
    Row("G11", EXIT, 33, "rflags.one=0"),
    Row("G11", EXIT, 33, "rflags.reserved!=0"),
    Row("G1", EXIT, 33, "activity>3"),
    Row("G1", EXIT, 33, "activity=1 cap.hlt=0"),
    Row("G1", EXIT, 33, "activity=2 cap.shutdown=0"),
    Row("G1", EXIT, 33, "activity=3 cap.wait_for_sipi=0"),
    Row("G2", EXIT, 33, "activity=1 dpl!=0"),
    Row("G3", EXIT, 33, "sti=1 activity!=0"),
    Row("G3", EXIT, 33, "mov-ss=1 activity!=0"),
    Row("G4", EXIT, 33, "valid=1 activity=1 type=4|5|6"),
    Row("G4", EXIT, 33, "valid=1 activity=1 type=3 vector!=1|18"),
    Row("G4", EXIT, 33, "valid=1 activity=2 type=0|4|5|6|7"),
    Row("G4", EXIT, 33, "valid=1 activity=2 type=3 vector!=18"),
    Row("G4", EXIT, 33, "valid=1 activity=3"),
    Row("G5", EXIT, 33, "interruptibility.reserved!=0"),
    Row("G5", EXIT, 33, "sti=1 mov-ss=1"),
    Row("G5", EXIT, 33, "sti=1 if=0"),
    Row("G5", EXIT, 33, "smi-blocking=1"),
    Row("G6", EXIT, 33, "valid=1 type=0 if=0"),
    Row("G6", EXIT, 33, "valid=1 type=0 sti=1"),
    Row("G6", EXIT, 33, "valid=1 type=0 mov-ss=1"),
    Row("G7", EXIT, 33, "valid=1 type=2 mov-ss=1"),
    Row("G7", EXIT, 33, "valid=1 type=2 sti=1 cap.sti_blocks_nmi=1", 3),
    Row("G8", EXIT, 33, "valid=1 type=2 virtual-nmis=1 nmi-blocking=1"),
    Row("G9", EXIT, 33, "sti=1 tf=1 bs=0"),
    Row("G9", EXIT, 33, "sti=1 tf=0 bs=1"),
    Row("G9", EXIT, 33, "mov-ss=1 tf=1 bs=0"),
    Row("G9", EXIT, 33, "mov-ss=1 tf=0 bs=1"),
    Row("G9", EXIT, 33, "activity=1 tf=1 bs=0"),
    Row("G9", EXIT, 33, "activity=1 tf=0 bs=1"),
    Row("G10", EXIT, 33, "pending-debug.reserved!=0"),
    Row("E0", EXIT, 33, "link-pointer!=0xffffffffffffffff", 4),
)


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


def _others(width: int, *numbers: int) -> int:
    """All bits of a field but these."""
    return (1 << width) - 1 & ~_bits(*numbers)


def _range(high: int, low: int) -> int:
    return (1 << high + 1) - (1 << low)


# Name -> (field, mask); a name's value is what the mask selects, moved down to bit 0.
_BITS: Final[dict[str, tuple[str, int]]] = {
    "interrupt-exiting": ("PIN_BASED", _bits(0)),
    "nmi-exiting": ("PIN_BASED", _bits(3)),
    "virtual-nmis": ("PIN_BASED", _bits(5)),
    "timer": ("PIN_BASED", _bits(6)),
    "posted": ("PIN_BASED", _bits(7)),
    "pin.reserved": ("PIN_BASED", _others(32, 0, 3, 5, 6, 7)),
    "tpr-shadow": ("CPU_BASED", _bits(21)),
    "nmi-window": ("CPU_BASED", _bits(22)),
    "cpu.mtf": ("CPU_BASED", _bits(27)),
    "cpu.secondary": ("CPU_BASED", _bits(31)),
    "cpu.reserved": (
        "CPU_BASED",
        _others(32, 2, 7, 9, 10, 11, 12, 15, 19, 21, 22, 23, 24, 27, 29, 30, 31),
    ),
    "apic-accesses": ("SECONDARY", _bits(0)),
    "ept": ("SECONDARY", _bits(1)),
    "unrestricted": ("SECONDARY", _bits(7)),
    "virtual-interrupts": ("SECONDARY", _bits(9)),
    "pml": ("SECONDARY", _bits(17)),
    "secondary.reserved": ("SECONDARY", _others(32, 0, 1, 6, 7, 9, 17)),
    "acknowledge": ("EXIT_CONTROLS", _bits(15)),
    "save-timer": ("EXIT_CONTROLS", _bits(22)),
    "exit.reserved": ("EXIT_CONTROLS", _others(32, 15, 22)),
    "to-smm": ("ENTRY_CONTROLS", _bits(10)),
    "entry.reserved": ("ENTRY_CONTROLS", _others(32, 10)),
    "threshold": ("TPR_THRESHOLD", _range(31, 0)),
    "threshold.class": ("TPR_THRESHOLD", _range(3, 0)),
    "notification": ("POSTED_INTR_NV", _range(15, 0)),
    "descriptor.low": ("POSTED_INTR_DESC_ADDR", _range(5, 0)),
    "vector": ("ENTRY_INTR_INFO", _range(7, 0)),
    "type": ("ENTRY_INTR_INFO", _range(10, 8)),
    "error": ("ENTRY_INTR_INFO", _bits(11)),
    "info.reserved": ("ENTRY_INTR_INFO", _range(30, 12)),
    "valid": ("ENTRY_INTR_INFO", _bits(31)),
    "error-code.high": ("ENTRY_ERROR_CODE", _range(31, 16)),
    "length": ("ENTRY_INSTRUCTION_LEN", _range(31, 0)),
    "host-rip.high": ("HOST_RIP", _range(63, 47)),
    "pe": ("GUEST_CR0", _bits(0)),
    "cr0.others": ("GUEST_CR0", _others(64, 0)),
    "rflags.one": ("GUEST_RFLAGS", _bits(1)),
    "tf": ("GUEST_RFLAGS", _bits(8)),
    "if": ("GUEST_RFLAGS", _bits(9)),
    "rflags.reserved": ("GUEST_RFLAGS", _bits(3, 5, 15, 17) | _range(63, 22)),
    "dpl": ("GUEST_SS_DPL", _range(31, 0)),
    "sti": ("GUEST_INTERRUPTIBILITY", _bits(0)),
    "mov-ss": ("GUEST_INTERRUPTIBILITY", _bits(1)),
    "smi-blocking": ("GUEST_INTERRUPTIBILITY", _bits(2)),
    "nmi-blocking": ("GUEST_INTERRUPTIBILITY", _bits(3)),
    "interruptibility.reserved": ("GUEST_INTERRUPTIBILITY", _range(31, 4)),
    "activity": ("GUEST_ACTIVITY", _range(31, 0)),
    "bs": ("GUEST_PENDING_DBG", _bits(14)),
    "pending-debug.reserved": ("GUEST_PENDING_DBG", _others(64, 0, 1, 2, 3, 12, 14)),
    "link-pointer": ("VMCS_LINK_POINTER", _range(63, 0)),
    "rip.high": ("GUEST_RIP", _range(63, 32)),
}

_PLACES: Final[tuple[tuple[str, int, int, int], ...]] = tuple(
    (name, FIELD_BY_NAME[field].place, mask, (mask & -mask).bit_length() - 1)
    for name, (field, mask) in _BITS.items()
)
_OTHER_NAMES: Final = frozenset(
    {"vtpr.class", "current", "mov-ss-now", "force-resume"}
    | {f"cap.{name}" for name in Capabilities._fields}
)
_TERM: Final = re.compile(r"([a-z0-9._-]+)(!?=|>)([a-z0-9|._-]+)")


class _Term(NamedTuple):
    name: str
    operator: str
    values: frozenset[int]
    limit_name: str


def _compiled(row: Row) -> tuple[Row, tuple[_Term, ...]]:
    """A row with its terms taken apart; a mistake in the table fails here, at import."""
    terms = []
    for text in row.terms.split():
        match = _TERM.fullmatch(text)
        assert match, f"{row.rule}: {text!r} is no term"
        name, operator, value = match.groups()
        is_name = operator == ">" and not value[0].isdigit()
        for known in (name, value) if is_name else (name,):
            assert known in _BITS or known in _OTHER_NAMES, f"{row.rule}: no name {known!r}"
        values = frozenset() if is_name else frozenset(int(part, 0) for part in value.split("|"))
        terms.append(_Term(name, operator, values, value if is_name else ""))
    return row, tuple(terms)


CLASSES: Final[tuple[tuple[Row, ...], ...]] = (*PERMISSION, CONTROLS, GUEST_STATE)
_COMPILED: Final = tuple(tuple(_compiled(row) for row in rows) for rows in CLASSES)


def forbidden_by(entry: Entry) -> tuple[Row, ...]:
    """The rows of the first class that forbids an entry; empty when nothing does."""
    return next(filter(None, broken_by_class(entry)), ())


def broken_by_class(entry: Entry) -> Iterator[tuple[Row, ...]]:
    """The rows that forbid an entry, for each of `CLASSES`: also those that a processor does not come to."""
    values = _values(entry)
    for rows in _COMPILED:
        yield tuple(row for row, terms in rows if all(_holds(term, values) for term in terms))


def is_permission(rows: tuple[Row, ...]) -> bool:
    """Whether an entry fails before any field is looked at."""
    return any(row in allowed for row in rows for allowed in PERMISSION)


def _values(entry: Entry) -> dict[str, int]:
    """Every name of the table and its value."""
    vmcs = entry.vmcs
    values = {name: (vmcs[place] & mask) >> shift for name, place, mask, shift in _PLACES}
    values["vtpr.class"] = entry.vtpr >> 4
    values["current"] = entry.has_current
    values["mov-ss-now"] = entry.behind_mov_ss
    values["force-resume"] = entry.force_resume
    for name, offered in zip(Capabilities._fields, entry.caps, strict=True):
        values[f"cap.{name}"] = offered
    return values


def _holds(term: _Term, values: dict[str, int]) -> bool:
    value = values[term.name]
    if term.operator == "=":
        return value in term.values
    if term.operator == "!=":
        return value not in term.values
    limit = values[term.limit_name] if term.limit_name else min(term.values)
    return value > limit
