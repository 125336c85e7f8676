"""Events and the three interruption-information words that carry them.

One 32-bit layout serves VM-entry interruption information, VM-exit interruption information and
IDT-vectoring information: vector 7:0, type 10:8, error-code bit 11, bit 12, valid bit 31.

Source: SDM, "VM-Entry Controls for Event Injection", "Information for VM Exits Due to Vectored Events",
"Information for VM Exits That Occur During Event Delivery", "Interrupt 8 - Double Fault Exception".
"""

from typing import Final

VECTOR_MASK: Final = 0xFF
TYPE_SHIFT: Final = 8
TYPE_MASK: Final = 7 << TYPE_SHIFT
ERROR_CODE_VALID: Final = 1 << 11
NMI_UNBLOCKING_BY_IRET: Final = 1 << 12
VALID: Final = 1 << 31
INFO_RESERVED: Final = 0x7FFFF000

EXTERNAL_INTERRUPT: Final = 0
RESERVED_TYPE: Final = 1
NMI: Final = 2
HARDWARE_EXCEPTION: Final = 3
SOFTWARE_INTERRUPT: Final = 4
PRIVILEGED_SOFTWARE_EXCEPTION: Final = 5
SOFTWARE_EXCEPTION: Final = 6
OTHER_EVENT: Final = 7

TYPE_NAMES: Final = (
    "external-interrupt",
    "reserved",
    "nmi",
    "hardware-exception",
    "software-interrupt",
    "privileged-software-exception",
    "software-exception",
    "other-event",
)

DE: Final = 0
DB: Final = 1
NMI_VECTOR: Final = 2
BP: Final = 3
OF: Final = 4
BR: Final = 5
UD: Final = 6
NM: Final = 7
DF: Final = 8
TS: Final = 10
NP: Final = 11
SS: Final = 12
GP: Final = 13
PF: Final = 14
MF: Final = 16
AC: Final = 17
MC: Final = 18

VECTOR_NAMES: Final[dict[int, str]] = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM",
}  # fmt: skip

VECTORS_WITH_ERROR_CODE: Final = sum(1 << vector for vector in (8, 10, 11, 12, 13, 14, 17))

# Rule F1: which pairs of exceptions merge into a double fault is decided by class.
BENIGN: Final = 0
CONTRIBUTORY: Final = 1
PAGE_FAULT: Final = 2
DOUBLE_FAULT: Final = 3

EXCEPTION_CLASS: Final[tuple[int, ...]] = tuple(
    CONTRIBUTORY
    if vector in (DE, TS, NP, SS, GP)
    else PAGE_FAULT
    if vector == PF
    else DOUBLE_FAULT
    if vector == DF
    else BENIGN
    for vector in range(256)
)

NMI_INFO: Final = VALID | NMI << TYPE_SHIFT | NMI_VECTOR
DOUBLE_FAULT_INFO: Final = VALID | ERROR_CODE_VALID | HARDWARE_EXCEPTION << TYPE_SHIFT | DF


def interruption_info(event_type: int, vector: int, has_error_code: bool) -> int:
    """The information word of an event: valid bit set, bit 11 for the error code."""
    return VALID | event_type << TYPE_SHIFT | vector | (ERROR_CODE_VALID if has_error_code else 0)


def event_class(info: int) -> int:
    """The double-fault class of the event in *info*; only hardware exceptions are not benign (F1)."""
    if info & TYPE_MASK != HARDWARE_EXCEPTION << TYPE_SHIFT:
        return BENIGN
    return EXCEPTION_CLASS[info & VECTOR_MASK]


def merges_to_double_fault(first_class: int, second_class: int) -> bool:
    """Whether the second exception, raised while the first is delivered, becomes #DF."""
    if first_class == PAGE_FAULT:
        return second_class in (CONTRIBUTORY, PAGE_FAULT)
    return first_class == CONTRIBUTORY and second_class == CONTRIBUTORY


def is_vectoring(info: int) -> bool:
    """Whether an injected event is delivered through the IDT: valid and not of type 7 or 1."""
    return (
        info & VALID != 0
        and info & TYPE_MASK != OTHER_EVENT << TYPE_SHIFT
        and info & TYPE_MASK != RESERVED_TYPE << TYPE_SHIFT
    )


def vector_name(vector: int) -> str:
    """The name a reader expects: the exception's mnemonic, else the vector in hexadecimal."""
    return VECTOR_NAMES.get(vector, f"{vector:#04x}")


def info_text(info: int) -> str:
    """An information word decoded for people, e.g. ``hardware-exception #PF, error code``."""
    if not info & VALID:
        return "invalid"
    event_type = (info & TYPE_MASK) >> TYPE_SHIFT
    vector = info & VECTOR_MASK
    name = vector_name(vector) if event_type in (2, 3, 5, 6) else f"{vector:#04x}"
    words = f"{TYPE_NAMES[event_type]} {name}"
    if info & ERROR_CODE_VALID:
        words += ", error code"
    if info & NMI_UNBLOCKING_BY_IRET:
        words += ", NMI unblocking by IRET"
    return words
