"""EXIT-INFO: every exit carries the information that a processor returns with it, and no other.

X3: an exit recognised at an instruction boundary never comes with valid IDT-vectoring information. X2: nor
does an NMI exit, a #DF exit, a triple fault. X1: nor does any reason outside the list; an exit on the list
carries it exactly if an event is being delivered. X6: interruption information is valid only for exceptions,
NMIs and acknowledged interrupts. X4: IDT-vectoring information is the event itself, and its error-code bit
goes with the event. This is the property that the project began with, and it is judged for every exit reason.

Which event is being delivered is what the processor reported at the last exit from vmcs02; no queue of L0 is
asked.
"""

from collections.abc import Iterator
from typing import Final

from nvmx_core.arch.events import (
    DF,
    ERROR_CODE_VALID,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI_UNBLOCKING_BY_IRET,
    TYPE_MASK,
    TYPE_SHIFT,
    VECTOR_MASK,
    info_text,
)
from nvmx_core.arch.exits import (
    APIC_WRITE,
    BASIC_REASON_MASK,
    EOI_INDUCED,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    FAILED_ENTRY,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
    exit_name,
    may_carry_idt_vectoring,
)
from nvmx_core.journal import EXIT, Record
from nvmx_core.l0.log import HIDDEN_EXIT, NESTED_ENTRY, NESTED_EXIT
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.timeline import step_of
from nvmx_core.oracle.violation import Violation

ORACLE: Final = "EXIT-INFO"

BOUNDARY_REASONS: Final = frozenset(
    {
        EXTERNAL_INTERRUPT_EXIT,
        INIT_SIGNAL,
        SIPI_SIGNAL,
        INTERRUPT_WINDOW,
        NMI_WINDOW,
        MONITOR_TRAP_FLAG,
        TPR_BELOW_THRESHOLD,
        EOI_INDUCED,
        PREEMPTION_TIMER,
        APIC_WRITE,
    }
)
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
    yield from _compare_with_delivery(nested)


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


def _compare_with_delivery(nested: Nested) -> Iterator[Violation]:
    """X1, X4: an exit that may report an event in delivery does so, and reports that one."""
    in_delivery = 0
    for record in nested.vcpu.log:
        kind = record[0]
        if kind == HIDDEN_EXIT:
            in_delivery = record[3] & ~NMI_UNBLOCKING_BY_IRET
        elif kind == NESTED_ENTRY:
            in_delivery = 0
        elif kind == NESTED_EXIT and record[3] != in_delivery:
            yield from _judge_delivery(nested, record[1], record[3], in_delivery)


def _judge_delivery(
    nested: Nested, position: int, vectoring: int, in_delivery: int
) -> Iterator[Violation]:
    exit_record = nested.journal[position]
    reason = exit_record[REASON] & BASIC_REASON_MASK
    if not may_carry_idt_vectoring(reason, exit_record[INTERRUPTION]):
        return
    name = exit_name(reason)
    if not vectoring:
        rule = "X1"
        situation = f"{name} without IDT-vectoring"
        sentence = (
            f"exit {name} does not report the event being delivered ({info_text(in_delivery)})"
        )
    elif not in_delivery:
        rule = "X1"
        situation = f"{name} with IDT-vectoring outside a delivery"
        sentence = f"exit {name} reports {info_text(vectoring)}, but nothing is being delivered"
    elif _error_code_bit_fits(vectoring):
        rule = "X4"
        situation = f"{name} with IDT-vectoring of another event"
        sentence = (
            f"exit {name} reports {info_text(vectoring)} instead of the event being delivered "
            f"({info_text(in_delivery)})"
        )
    else:
        return  # told already, by its error-code bit
    step = step_of(nested.step_starts, position)
    yield Violation(ORACLE, rule, situation, step, position, (_FIELD_VECTORING,), sentence)


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
