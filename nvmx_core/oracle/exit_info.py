"""EXIT-INFO: no exit carries information that a processor cannot return with it.

X3: an exit recognised at an instruction boundary never comes with valid IDT-vectoring information. X2: nor
does an NMI exit, a #DF exit, a triple fault. X1: nor does any reason outside the list. X6: interruption
information is valid only for exceptions, NMIs and acknowledged interrupts. X4: the error-code bit of
IDT-vectoring information goes with the event. This is the property that the project began with, and it is
judged for every exit reason.
"""

from collections.abc import Iterator
from typing import Final

from nvmx_core.arch.events import (
    DF,
    ERROR_CODE_VALID,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    TYPE_MASK,
    TYPE_SHIFT,
    VECTOR_MASK,
    info_text,
)
from nvmx_core.arch.exits import (
    BASIC_REASON_MASK,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    FAILED_ENTRY,
    TRIPLE_FAULT,
    exit_name,
    may_carry_idt_vectoring,
)
from nvmx_core.journal import EXIT, Record
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.timeline import step_of
from nvmx_core.oracle.violation import Violation

ORACLE: Final = "EXIT-INFO"

BOUNDARY_REASONS: Final = frozenset({1, 3, 4, 7, 8, 37, 43, 45, 52, 56})
_MAY_HAVE_INTERRUPTION: Final = frozenset({EXCEPTION_NMI, EXTERNAL_INTERRUPT_EXIT})
_FIELD_INTERRUPTION: Final = "interruption info"
_FIELD_VECTORING: Final = "IDT-vectoring info"

REASON: Final = 1
INTERRUPTION: Final = 3
VECTORING: Final = 5


def exit_info(nested: Nested) -> Iterator[Violation]:
    """Judge every exit that L1 saw."""
    for position, record in enumerate(nested.journal):
        if record[0] == EXIT and (record[VECTORING] or record[INTERRUPTION]):
            if record[REASON] & FAILED_ENTRY:
                continue
            yield from _judge(nested, position, record)


def _judge(nested: Nested, position: int, record: Record) -> Iterator[Violation]:
    reason = record[REASON] & BASIC_REASON_MASK
    interruption = record[INTERRUPTION]
    vectoring = record[VECTORING]
    step = step_of(nested.step_starts, position)
    name = exit_name(reason)
    if vectoring and not may_carry_idt_vectoring(reason, interruption):
        rule = _vectoring_rule(reason, interruption)
        yield Violation(
            ORACLE,
            rule,
            f"{name} with valid IDT-vectoring",
            step,
            position,
            ("reason", _FIELD_VECTORING),
            f"exit {name} carries valid IDT-vectoring information ({info_text(vectoring)}), a pair "
            f"that no processor returns",
        )
    if vectoring and not _error_code_bit_fits(vectoring):
        yield Violation(
            ORACLE,
            "X4",
            "error-code bit of IDT-vectoring",
            step,
            position,
            (_FIELD_VECTORING,),
            f"IDT-vectoring information {info_text(vectoring)} has an error-code bit that the event "
            f"cannot have",
        )
    if interruption and not _interruption_fits(reason, interruption):
        yield Violation(
            ORACLE,
            "X6",
            f"{name} with interruption information",
            step,
            position,
            ("reason", _FIELD_INTERRUPTION),
            f"exit {name} carries interruption information ({info_text(interruption)}) that it cannot "
            f"have",
        )


def _vectoring_rule(reason: int, interruption: int) -> str:
    if reason in BOUNDARY_REASONS:
        return "X3"
    if reason in (EXCEPTION_NMI, TRIPLE_FAULT):
        is_df = interruption & TYPE_MASK != 0 and interruption & VECTOR_MASK == DF
        return "X2" if reason == TRIPLE_FAULT or is_df else "X3"
    return "X1"


def _error_code_bit_fits(vectoring: int) -> bool:
    """Only hardware exceptions have an error code."""
    is_exception = vectoring & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
    return is_exception or not vectoring & ERROR_CODE_VALID


def _interruption_fits(reason: int, interruption: int) -> bool:
    if reason not in _MAY_HAVE_INTERRUPTION:
        return False
    is_interrupt = interruption & TYPE_MASK == EXTERNAL_INTERRUPT << TYPE_SHIFT
    return is_interrupt == (reason == EXTERNAL_INTERRUPT_EXIT)
