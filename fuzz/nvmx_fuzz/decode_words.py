"""Numbers as a person reads them: exit reasons, interruption words, flags, addresses, VMCS fields.

Two tables say which decoder a value has: by the name of a journal field and by the name of a VMCS
field. Hexadecimal is lower case with 0x; a field that the manual leaves undefined is ``-``.
"""

from collections.abc import Callable
from typing import Final

from nvmx_core.arch.controls import (
    CONTROLS,
    CPU_SECONDARY_CONTROLS,
    SECONDARY_EPT,
    SECONDARY_UNRESTRICTED_GUEST,
)
from nvmx_core.arch.events import DB, PF, VALID, VECTOR_MASK, VECTOR_NAMES
from nvmx_core.arch.exits import (
    EPT_FETCH,
    EPT_READ,
    EPT_VIOLATION,
    EPT_WRITE,
    EXCEPTION_NMI,
    FAILED_ENTRY,
    exit_name,
)
from nvmx_core.arch.fields import FIELD_BY_NAME, POISON
from nvmx_core.arch.state import (
    ACTIVITY_NAMES,
    PENDING_DBG_BS,
    PENDING_DBG_ENABLED_BP,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_OF,
    RFLAGS_RF,
    RFLAGS_TF,
)
from nvmx_core.guests.memory import CODE_BASE, PAGE_NAMES
from nvmx_core.journal import EXIT, RECORD_FIELDS, Record
from nvmx_core.l0.log import WAIT_NAMES
from nvmx_core.machines.modes import MODE_NAMES
from nvmx_core.scenario.words import (
    show_address,
    show_exception,
    show_info,
    show_interruptibility,
    show_vector_set,
)

UNDEFINED: Final = "-"
_EXCEPTIONS_NAMED_MAX: Final = 8

_RFLAGS_BITS: Final = (
    (RFLAGS_TF, "TF"),
    (RFLAGS_IF, "IF"),
    (RFLAGS_OF, "OF"),
    (RFLAGS_NT, "NT"),
    (RFLAGS_RF, "RF"),
)
_DEBUG_BITS: Final = (
    *((1 << number, f"B{number}") for number in range(4)),
    (PENDING_DBG_ENABLED_BP, "enabled-breakpoint"),
    (PENDING_DBG_BS, "BS"),
)
_EPT_BITS: Final = ((EPT_READ, "read"), (EPT_WRITE, "write"), (EPT_FETCH, "fetch"))

# The VM-instruction errors that the model's checks can raise; SDM, "VM Instruction Error Numbers".
_ERRORS: Final[dict[int, str]] = {
    4: "VMLAUNCH with a launched VMCS",
    5: "VMRESUME with a VMCS that is not launched",
    7: "invalid control fields",
    8: "invalid host-state fields",
    26: "events blocked by MOV SS",
}


# -- words -----------------------------------------------------------------------------------------


def hexadecimal(value: int) -> str:
    """A number in lower-case hexadecimal; a single digit is plain, an undefined one is ``-``."""
    if value == POISON:
        return UNDEFINED
    return f"{value:#x}" if value > 9 else str(value)


def decimal(value: int) -> str:
    """A count."""
    return UNDEFINED if value == POISON else str(value)


def yes_no(value: int) -> str:
    """A truth."""
    return "yes" if value else "no"


def reason_word(reason: int) -> str:
    """An exit reason by the name of KVM's trace points; a failed entry says so."""
    name = exit_name(reason)
    return f"{name} (failed entry)" if reason & FAILED_ENTRY else name


def event_word(info: int) -> str:
    """The event of an interruption word: ``external-interrupt 0x40``, ``nmi``, or ``invalid``."""
    if info == POISON:
        return UNDEFINED
    return show_info(info).replace(":", " ", 1)


def vector_word(vector: int) -> str:
    """A vector that L2 takes: ``0x40``, ``vector 0x2 (NMI)``.

    The name is what the vector is meant for; an interrupt may have the same one.
    """
    name = VECTOR_NAMES.get(vector)
    return f"{vector:#x}" if name is None else f"vector {vector:#x} ({name})"


def address_word(address: int) -> str:
    """An address of L2 by page, handler or code offset: ``handler:0x40+0x1``, ``code+0x0``."""
    if address == POISON:
        return UNDEFINED
    if not address:
        return "0"
    return "code+0x0" if address == CODE_BASE else show_address(address)


def page_word(page: int) -> str:
    """A page of L2 by name."""
    return PAGE_NAMES[page] if 0 <= page < len(PAGE_NAMES) else str(page)


def activity_word(activity: int) -> str:
    """An activity state by name."""
    if 0 <= activity < len(ACTIVITY_NAMES):
        return ACTIVITY_NAMES[activity]
    return hexadecimal(activity)


def blocking_word(interruptibility: int) -> str:
    """Interruptibility bits by name."""
    if interruptibility == POISON:
        return UNDEFINED
    return show_interruptibility(interruptibility)


def vectors_word(bits: int) -> str:
    """A 256-bit register of vectors as a list."""
    return UNDEFINED if bits == POISON else show_vector_set(bits)


def error_word(error: int) -> str:
    """The outcome of a VMLAUNCH or VMRESUME that failed early."""
    if not error:
        return "VMfailInvalid"
    return f"VMfailValid {error} ({_ERRORS[error]})" if error in _ERRORS else f"VMfailValid {error}"


def waiting_word(mask: int) -> str:
    """What waits for an instruction boundary of L2."""
    names = [name for bit, name in enumerate(WAIT_NAMES) if mask >> bit & 1]
    return ", ".join(names) if names else "nothing"


def mode_word(mode: int) -> str:
    """Who runs at the end of a run."""
    return MODE_NAMES[mode] if 0 <= mode < len(MODE_NAMES) else str(mode)


def _bits(value: int, names: tuple[tuple[int, str], ...]) -> str:
    """The names of the bits that are set, ``none`` without any."""
    return " ".join(name for bit, name in names if value & bit) or "none"


def _flagged(names: tuple[tuple[int, str], ...]) -> Callable[[int], str]:
    def word(value: int) -> str:
        known = _bits(value, names)
        if value in (POISON, 0) or known == "none":
            return hexadecimal(value)
        return f"{value:#x} ({known})"

    return word


rflags_word: Final = _flagged(_RFLAGS_BITS)
pending_debug_word: Final = _flagged(_DEBUG_BITS)


def qualification_word(reason: int, info: int, qualification: int) -> str:
    """An exit qualification, decoded for the exits where its bits or its address say something."""
    if qualification == POISON:
        return UNDEFINED
    if reason == EPT_VIOLATION:
        return f"{qualification:#x} ({_bits(qualification, _EPT_BITS)})"
    if reason == EXCEPTION_NMI and info & VALID:
        if info & VECTOR_MASK == PF:
            return address_word(qualification)
        if info & VECTOR_MASK == DB:
            return pending_debug_word(qualification)
    return hexadecimal(qualification)


# -- journal fields --------------------------------------------------------------------------------

_RECORD_DECODERS: Final[dict[str, Callable[[int], str]]] = {
    "reason": reason_word,
    "interruption info": event_word,
    "IDT-vectoring info": event_word,
    "entry interruption info": event_word,
    "event": event_word,
    "guest linear address": address_word,
    "guest physical address": address_word,
    "rip": address_word,
    "return rip": address_word,
    "cr2": address_word,
    "rflags": rflags_word,
    "interruptibility": blocking_word,
    "activity": activity_word,
    "pending debug exceptions": pending_debug_word,
    "dr6": pending_debug_word,
    "preemption timer": decimal,
    "instruction length": decimal,
    "entry instruction length": decimal,
    "rsp": decimal,
    "ss_dpl": decimal,
    "VM-instruction error": error_word,
    "vector": vector_word,
    "irr": vectors_word,
    "isr": vectors_word,
    "mode": mode_word,
    "in L2": yes_no,
    "nmi latched": yes_no,
    "nmi blocked in L1": yes_no,
    "init latched": yes_no,
    "smi latched": yes_no,
}


def record_field(record: Record, name: str) -> int:
    """The value of a journal field by its name in ``RECORD_FIELDS``."""
    return record[RECORD_FIELDS[record[0]].index(name) + 1]


def has_field(record: Record, name: str) -> bool:
    """Whether records of this kind have a field of that name."""
    return name in RECORD_FIELDS.get(record[0], ())


def record_word(record: Record, name: str) -> str:
    """The value of a journal field, decoded."""
    value = record_field(record, name)
    if name == "qualification" and record[0] == EXIT:
        info = record_field(record, "interruption info")
        return qualification_word(record_field(record, "reason"), info, value)
    return _RECORD_DECODERS.get(name, hexadecimal)(value)


# -- VMCS fields -----------------------------------------------------------------------------------


_NOT_SWITCHED: Final[dict[str, tuple[tuple[int, str], ...]]] = {
    "CPU_BASED": ((CPU_SECONDARY_CONTROLS, "secondary-controls"),),
    "SECONDARY": ((SECONDARY_EPT, "ept"), (SECONDARY_UNRESTRICTED_GUEST, "unrestricted-guest")),
}
"""Bits that no step of a scenario switches: they follow from the configuration."""


def _control_names(field: str) -> tuple[tuple[int, str], ...]:
    index = FIELD_BY_NAME[field].place
    names = tuple((control.bit, control.name) for control in CONTROLS if control.field == index)
    return names + _NOT_SWITCHED.get(field, ())


def _exceptions_word(bitmap: int) -> str:
    names = [show_exception(vector) for vector in range(32) if bitmap >> vector & 1]
    if len(names) > _EXCEPTIONS_NAMED_MAX:
        return "all" if len(names) == 32 else f"{bitmap:#x}"
    return ",".join(names) or "none"


_CONTROL_BITS: Final = {
    field: _control_names(field)
    for field in ("PIN_BASED", "CPU_BASED", "SECONDARY", "EXIT_CONTROLS", "ENTRY_CONTROLS")
}

_VMCS_DECODERS: Final[dict[str, Callable[[int], str]]] = {
    "ENTRY_INTR_INFO": event_word,
    "EXIT_INTR_INFO": event_word,
    "IDT_VECTORING_INFO": event_word,
    "EXIT_REASON": reason_word,
    "GUEST_RIP": address_word,
    "GUEST_LINEAR_ADDRESS": address_word,
    "GUEST_PHYSICAL_ADDRESS": address_word,
    "GUEST_INTERRUPTIBILITY": blocking_word,
    "GUEST_ACTIVITY": activity_word,
    "GUEST_RFLAGS": lambda value: _bits(value, _RFLAGS_BITS),
    "GUEST_PENDING_DBG": lambda value: _bits(value, _DEBUG_BITS),
    "EXCEPTION_BITMAP": _exceptions_word,
}


def vmcs_meaning(field: str, value: int) -> str:
    """What the value of a VMCS field says beyond the number; "" where the number says it all."""
    if value == POISON:
        return "undefined"
    if field in _VMCS_DECODERS:
        return _VMCS_DECODERS[field](value)
    if field in _CONTROL_BITS:
        return _bits(value, _CONTROL_BITS[field])
    return ""


def vmcs_change(field: str, old: int, new: int) -> str:
    """A write to a VMCS field on one line; of controls and bitmaps only the bits that change."""
    if field in _CONTROL_BITS and old != POISON and new != POISON:
        switched = [
            f"{name} {1 if old & bit else 0} -> {1 if new & bit else 0}"
            for bit, name in _CONTROL_BITS[field]
            if (old ^ new) & bit
        ]
        if switched:
            return ", ".join(switched)
    if field == "EXCEPTION_BITMAP":
        return f"{_exceptions_word(old)} -> {_exceptions_word(new)}"
    meaning = vmcs_meaning(field, new)
    numbers = f"{hexadecimal(old)} -> {hexadecimal(new)}"
    return f"{numbers} ({meaning})" if meaning not in ("", "undefined") else numbers
