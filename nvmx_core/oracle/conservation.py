"""CONSERVATION: nothing is lost and nothing happens twice.

An injection by L1 ends exactly once (V2, see ``injections``). An interrupt that the controller accepted is
pending, or was acknowledged and taken exactly once (V7). An NMI is taken once or latched; two may become one
only while one is latched (V8). What L0 says it injected for L2 counts as taken, and has to arrive there (V7,
V8, see ``in_flight``). CR2 and DR6 change only when #PF or #DB is delivered (Y1).

There is no account of virtual interrupts before the processor takes them out of VIRR, posted or not.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from nvmx_core.arch.events import (
    DF,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI,
    TYPE_MASK,
    TYPE_SHIFT,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import EXCEPTION_NMI, EXTERNAL_INTERRUPT_EXIT, TRIPLE_FAULT
from nvmx_core.journal import DELIVER, END, EXIT, L1_INTERRUPT, L1_NMI, Record
from nvmx_core.l0.log import ARRIVAL, INJECT, NESTED_EXIT, POSTED
from nvmx_core.l0.reach import (
    INTERRUPT_INJECTED_FOR_L2,
    NESTED_EXIT_INTERRUPT,
    NESTED_EXIT_NMI,
    NMI_INJECTED_FOR_L2,
    POSTED_INTERRUPT_PROCESSED,
)
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.in_flight import broken_flights
from nvmx_core.oracle.injections import broken_injections
from nvmx_core.oracle.timeline import step_of
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario.steps import NMI as NMI_STEP

ORACLE: Final = "CONSERVATION"

_CR2: Final = 5
_DR6: Final = 6
_EXIT_CR2: Final = 22
_EXIT_DR6: Final = 23
_END_NMI_LATCHED: Final = 4


def conservation(nested: Nested) -> Iterator[Violation]:
    """Balance every account of the run."""
    yield from _injections(nested)
    yield from _registers(nested)
    yield from _interrupts(nested)
    yield from _nmis(nested)
    yield from _flights(nested)


def _violation(
    nested: Nested, rule: str, situation: str, position: int, sentence: str, *fields: str
) -> Violation:
    step = step_of(nested.step_starts, position)
    return Violation(ORACLE, rule, situation, step, position, fields, sentence)


# -- injections -------------------------------------------------------------------------------------------


def _injections(nested: Nested) -> Iterator[Violation]:
    for situation, position, sentence, fields in broken_injections(nested):
        yield _violation(nested, "V2", situation, position, sentence, *fields)


def _flights(nested: Nested) -> Iterator[Violation]:
    for rule, situation, position, sentence in broken_flights(nested):
        yield _violation(nested, rule, situation, position, sentence)


# -- CR2 and DR6 ------------------------------------------------------------------------------------------


def _registers(nested: Nested) -> Iterator[Violation]:
    cr2 = dr6 = 0
    for position, record in enumerate(nested.journal):
        kind = record[0]
        if kind == DELIVER:
            cr2 = record[_CR2]
            dr6 = record[_DR6]
        elif kind == EXIT:
            if record[_EXIT_CR2] != cr2 and not _wrote(record):
                yield _violation(
                    nested,
                    "Y1",
                    "CR2 changed without a delivered #PF",
                    position,
                    f"CR2 changed from {cr2:#x} to {record[_EXIT_CR2]:#x} although no #PF was delivered",
                    "cr2",
                )
            if record[_EXIT_DR6] != dr6 and not _wrote(record):
                yield _violation(
                    nested,
                    "Y1",
                    "DR6 changed without a delivered #DB",
                    position,
                    f"DR6 changed from {dr6:#x} to {record[_EXIT_DR6]:#x} although no #DB was delivered",
                    "dr6",
                )
            cr2 = record[_EXIT_CR2]
            dr6 = record[_EXIT_DR6]


def _wrote(record: Record) -> bool:
    """Whether the exit cut off a delivery in which exceptions had happened (X10): #PF or #DB may be one.

    An exception that another one replaced (D4) has written its register, and only the last is reported.
    """
    vectoring = record[5]
    reason = record[1]
    if reason == TRIPLE_FAULT or (reason == EXCEPTION_NMI and record[3] & VECTOR_MASK == DF):
        return True
    return vectoring & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT


# -- interrupts -------------------------------------------------------------------------------------------


def _interrupts(nested: Nested) -> Iterator[Violation]:
    if nested.vcpu.apic.accepted and not _balances(nested):
        yield from _ledger(nested)
    if not nested.vcpu.reach[NESTED_EXIT_INTERRUPT]:
        return
    for record in nested.vcpu.log:
        if record[0] == NESTED_EXIT and record[2] == EXTERNAL_INTERRUPT_EXIT and not record[5]:
            yield _violation(
                nested,
                "K2",
                "interrupt exit without interrupt",
                record[1],
                "L1 gets an external-interrupt exit although no interrupt is there",
                "reason",
            )


def _balances(nested: Nested) -> bool:
    """Whether accepted = acknowledged + pending and acknowledged = taken, vector by vector."""
    apic = nested.vcpu.apic
    acknowledged = sorted(apic.acknowledged)
    if acknowledged != sorted(_taken_interrupts(nested)):
        return False
    if not apic.irr:
        return acknowledged == sorted(apic.accepted)
    pending: list[int] = []
    requests = apic.irr
    while requests:
        pending.append(requests.bit_length() - 1)
        requests &= ~(1 << pending[-1])
    return sorted(apic.acknowledged + pending) == sorted(apic.accepted)


def _ledger(nested: Nested) -> Iterator[Violation]:
    apic = nested.vcpu.apic
    accepted = Counter(apic.accepted)
    acknowledged = Counter(apic.acknowledged)
    taken = Counter(_taken_interrupts(nested))
    last = len(nested.journal) - 1
    for vector in sorted(accepted):
        pending = apic.irr >> vector & 1
        if accepted[vector] != acknowledged[vector] + pending:
            yield _violation(
                nested, "V7", "interrupt lost in the controller", last,
                f"interrupt {vector:#x}: {accepted[vector]} accepted, {acknowledged[vector]} "
                f"acknowledged, {pending} pending", "irr",
            )  # fmt: skip
        elif acknowledged[vector] != taken[vector] and not nested.vcpu.dead:
            word = "lost" if acknowledged[vector] > taken[vector] else "doubled"
            yield _violation(
                nested, "V7", f"interrupt {word}", last,
                f"interrupt {vector:#x} was acknowledged {acknowledged[vector]} times but taken "
                f"{taken[vector]} times", "isr",
            )  # fmt: skip


def _taken_interrupts(nested: Nested) -> list[int]:
    """The vectors that were taken: by L1, as an exit, for L2, or as a posted-interrupt notification."""
    taken: list[int] = []
    for record in nested.journal:
        kind = record[0]
        if kind == L1_INTERRUPT:
            taken.append(record[1])
        elif kind == EXIT and record[1] == EXTERNAL_INTERRUPT_EXIT and record[3]:
            taken.append(record[3] & VECTOR_MASK)
    reached = nested.vcpu.reach
    if reached[INTERRUPT_INJECTED_FOR_L2] or reached[POSTED_INTERRUPT_PROCESSED]:
        for entry in nested.vcpu.log:
            if entry[0] == INJECT and entry[2] & TYPE_MASK == EXTERNAL_INTERRUPT << TYPE_SHIFT:
                taken.append(entry[2] & VECTOR_MASK)
            elif entry[0] == POSTED:
                taken.append(entry[2])
    return taken


# -- NMIs -------------------------------------------------------------------------------------------------


def _nmis(nested: Nested) -> Iterator[Violation]:
    """Replay arrivals and takings in order against one latch."""
    reached = nested.vcpu.reach
    if not (
        nested.arrived >> NMI_STEP & 1 or reached[NESTED_EXIT_NMI] or reached[NMI_INJECTED_FOR_L2]
    ):
        return
    events = _nmi_events(nested)
    latched = False
    for position, arrives in events:
        if arrives:
            latched = True
        elif not latched:
            yield _violation(
                nested, "V8", "NMI doubled", position, "an NMI is taken that did not arrive"
            )
        else:
            latched = False
    end = nested.journal[-1]
    if end[0] == END and not nested.vcpu.dead and latched != (end[_END_NMI_LATCHED] != 0):
        yield _violation(
            nested,
            "V8",
            "NMI lost",
            len(nested.journal) - 1,
            "an NMI arrived that is neither taken nor latched",
            "nmi latched",
        )


def _nmi_events(nested: Nested) -> list[tuple[int, bool]]:
    """(journal position, arrives) of every arrival and taking, in order."""
    events: list[tuple[int, bool]] = []
    for record in nested.vcpu.log:
        if record[0] == ARRIVAL and record[2] == NMI_STEP:
            events.append((record[1], True))
        elif record[0] == INJECT and record[2] & TYPE_MASK == NMI << TYPE_SHIFT:
            events.append((record[1], False))
    for position, entry in enumerate(nested.journal):
        if entry[0] == L1_NMI or (
            entry[0] == EXIT
            and entry[1] == EXCEPTION_NMI
            and entry[3] & TYPE_MASK == NMI << TYPE_SHIFT
        ):
            events.append((position, False))
    # An arrival at journal position p happened before the record p was written; a taking for L2 is logged
    # likewise. The sort is stable, so the order within the log is kept.
    events.sort(key=lambda event: event[0])
    return events
