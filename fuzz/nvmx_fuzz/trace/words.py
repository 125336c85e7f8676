"""What one exit says by itself: rules that need no history.

They hold for every VM exit, whoever shows it: for an exit of the processor (`kvm_exit`,
`kvm_nested_vmexit`) and for one that L0 shows to L1 (`kvm_nested_vmexit_inject`). A failed VM entry
leaves the two words as an earlier exit wrote them (E0), so it is not judged; neither is a reason that the
tables do not know.
"""

from functools import lru_cache
from typing import Final, NamedTuple

from nvmx_core.arch.events import (
    DB,
    DOUBLE_FAULT_INFO,
    ERROR_CODE_VALID,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_UNBLOCKING_BY_IRET,
    NMI_VECTOR,
    OTHER_EVENT,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    RESERVED_TYPE,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    VECTORS_WITH_ERROR_CODE,
    info_text,
)
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    TRIPLE_FAULT,
    may_carry_idt_vectoring,
)
from nvmx_core.oracle.exit_info import BOUNDARY_REASONS
from nvmx_fuzz.trace.reasons import REASONS, reason_name

UNKNOWN: Final = -1
"""A value that the trace does not show."""

EVENT_MASK: Final = VALID | ERROR_CODE_VALID | TYPE_MASK | VECTOR_MASK
"""What names an event in any of the three words; bit 12 is left out."""

_CONTROL_PROTECTION: Final = 21
_MAY_HAVE_ERROR_CODE: Final = VECTORS_WITH_ERROR_CODE | 1 << _CONTROL_PROTECTION
_RESERVED: Final = 0x7FFFC000
"""Bits 30:14; bit 13 has a use on processors with FRED, bit 12 has one in two of the words."""

_KNOWN_REASONS: Final = frozenset(REASONS.values())
_BUS_LOCK: Final = 74
_UNDECIDED_REASONS: Final = frozenset({_BUS_LOCK})
"""No source says whether such an exit can come while an event is being delivered."""

_OTHER_EVENT_VECTOR_MAX: Final = 2
"""MTF, and two more on processors with FRED."""


class Fault(NamedTuple):
    """A broken rule: its id, and what is wrong in one sentence."""

    rule: str
    sentence: str


@lru_cache(maxsize=4096)
def judge_exit(reason: int, vectoring: int, interruption: int, who: str) -> tuple[Fault, ...]:
    """Judge the two event words of an exit that is no failed entry.

    Args:
        reason: the basic reason.
        vectoring: IDT-vectoring information, or UNKNOWN.
        interruption: VM-exit interruption information, or UNKNOWN.
        who: what to call the exit, as in "nested exit".

    Returns:
        What is wrong, in the order of the words.
    """
    if reason not in _KNOWN_REASONS:
        return ()
    faults: list[Fault] = []
    name = f"{who} {reason_name(reason)}"
    if vectoring > 0 and vectoring & VALID:
        faults += _judge_vectoring(name, reason, vectoring, interruption)
    if interruption != UNKNOWN:
        faults += _judge_interruption(name, reason, interruption)
    return tuple(faults)


def _judge_vectoring(name: str, reason: int, vectoring: int, interruption: int) -> list[Fault]:
    faults: list[Fault] = []
    told = f"valid IDT-vectoring information ({info_text(vectoring)})"
    is_judged = reason not in _UNDECIDED_REASONS and (
        reason != EXCEPTION_NMI or (interruption != UNKNOWN and interruption & VALID)
    )
    if is_judged and not may_carry_idt_vectoring(reason, max(interruption, 0)):
        rule = _vectoring_rule(reason, interruption)
        faults.append(Fault(rule, f"{name} carries {told}, a pair that no processor returns"))
    event_type = (vectoring & TYPE_MASK) >> TYPE_SHIFT
    if event_type in (RESERVED_TYPE, OTHER_EVENT) or not _vector_fits(event_type, vectoring):
        faults.append(Fault("X4", f"{name} carries {told}, an event that cannot be delivered"))
    elif vectoring & _RESERVED:
        faults.append(
            Fault("X4", f"{name}: reserved bits of IDT-vectoring information {vectoring:#x}")
        )
    elif vectoring & ERROR_CODE_VALID and event_type != HARDWARE_EXCEPTION:
        faults.append(Fault("X4", f"{name} carries {told}, but the event has no error code"))
    return faults


def _vectoring_rule(reason: int, interruption: int) -> str:
    """The rule against this pair, as the oracle EXIT-INFO cites it."""
    if reason in BOUNDARY_REASONS:
        return "X3"
    if reason == TRIPLE_FAULT:
        return "X2"
    if reason == EXCEPTION_NMI:
        return "X3" if interruption & TYPE_MASK == NMI << TYPE_SHIFT else "X2"
    return "X1"


def _judge_interruption(name: str, reason: int, interruption: int) -> list[Fault]:
    is_valid = interruption & VALID != 0
    told = f"interruption information ({info_text(interruption)})"
    if reason == EXCEPTION_NMI:
        if not is_valid:
            return [Fault("X6", f"{name} says of no event that it caused it")]
        if not _is_cause(interruption):
            return [Fault("X6", f"{name} carries {told}, which cannot be the cause of it")]
    elif reason == EXTERNAL_INTERRUPT_EXIT:
        if is_valid and interruption & (TYPE_MASK | ERROR_CODE_VALID | NMI_UNBLOCKING_BY_IRET):
            return [Fault("K1", f"{name} carries {told}, which is no external interrupt")]
    elif is_valid:
        return [Fault("X6", f"{name} carries {told} that it cannot have")]
    if is_valid and interruption & _RESERVED:
        return [Fault("X6", f"{name}: reserved bits of interruption information {interruption:#x}")]
    return []


def _is_cause(interruption: int) -> bool:
    """Whether an exception or NMI can be described by this word."""
    event_type = (interruption & TYPE_MASK) >> TYPE_SHIFT
    vector = interruption & VECTOR_MASK
    if event_type in (EXTERNAL_INTERRUPT, RESERVED_TYPE, SOFTWARE_INTERRUPT, OTHER_EVENT):
        return False
    if not _vector_fits(event_type, interruption):
        return False
    if event_type == SOFTWARE_EXCEPTION and vector not in (3, 4):
        return False
    if event_type == PRIVILEGED_SOFTWARE_EXCEPTION and vector != DB:
        return False
    return not interruption & ERROR_CODE_VALID or (
        event_type == HARDWARE_EXCEPTION and _MAY_HAVE_ERROR_CODE >> vector & 1 != 0
    )


def judge_hardware_interrupt(reason: int, interruption: int) -> tuple[Fault, ...]:
    """K1 where L0 is KVM: it always asks for the acknowledgement, so an exit 1 names its vector.

    Source: Linux, arch/x86/kvm/vmx/vmx.h, KVM_REQUIRED_VMX_VM_EXIT_CONTROLS.
    """
    if reason == EXTERNAL_INTERRUPT_EXIT and interruption != UNKNOWN and not interruption & VALID:
        return (
            Fault("K1", "exit EXTERNAL_INTERRUPT names no vector, although L0 asks for the acknowledgement"),
        )  # fmt: skip
    return ()


def judge_entry(event: int) -> tuple[Fault, ...]:
    """E1–E6: an injection that no processor accepts, in an entry that was carried out.

    E5 is judged where every processor agrees: only a hardware exception has an error code.
    """
    if event < 0 or not event & VALID:
        return ()
    event_type = (event & TYPE_MASK) >> TYPE_SHIFT
    vector = event & VECTOR_MASK
    told = f"L2 was entered with the injection {event:#x} ({info_text(event)})"
    if event_type == RESERVED_TYPE:
        return (Fault("E1", f"{told}, whose type is reserved"),)
    if not _vector_fits(event_type, event):
        rule = "E2" if event_type == NMI else "E3"
        return (Fault(rule, f"{told}, whose vector is not one of its type"),)
    if event_type == OTHER_EVENT and vector > _OTHER_EVENT_VECTOR_MAX:
        return (Fault("E4", f"{told}, a vector that no processor has a use for"),)
    if event & (_RESERVED | NMI_UNBLOCKING_BY_IRET):
        return (Fault("E6", f"{told}, in which reserved bits are set"),)
    if event & ERROR_CODE_VALID and event_type != HARDWARE_EXCEPTION:
        return (Fault("E5", f"{told}, an event that has no error code"),)
    return ()


def _vector_fits(event_type: int, info: int) -> bool:
    """Types 2 and 3 have vectors of their own."""
    vector = info & VECTOR_MASK
    if event_type == NMI:
        return vector == NMI_VECTOR
    return event_type != HARDWARE_EXCEPTION or vector <= 31


def same_event(one: int, other: int) -> bool:
    """Whether two words name one event, with or without an error code."""
    return (one ^ other) & EVENT_MASK == 0


def names_event(word: int, vector: int, types: tuple[int, ...]) -> bool:
    """Whether a word is an event with this vector and one of these types."""
    return word & VECTOR_MASK == vector and (word & TYPE_MASK) >> TYPE_SHIFT in types


def is_boundary_exit(reason: int, interruption: int) -> bool:
    """Whether an exit is recognised on an instruction boundary: X3."""
    is_nmi = interruption & (VALID | TYPE_MASK) == VALID | NMI << TYPE_SHIFT
    return reason in BOUNDARY_REASONS or (reason == EXCEPTION_NMI and is_nmi)


def drops_event(reason: int, interruption: int) -> bool:
    """Whether an exit ends a delivery without reporting it: a triple fault, an intercepted #DF (X2)."""
    is_double_fault = reason == EXCEPTION_NMI and same_event(interruption, DOUBLE_FAULT_INFO)
    return reason == TRIPLE_FAULT or is_double_fault
