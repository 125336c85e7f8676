"""EVENT-RANK: events of one boundary come in the order of their ranks, whoever they are for (V4, P16).

An exit to L1 and an event that L0 injects into L2 are judged alike: nothing of a higher rank may be open at
that boundary. What is open, and at which rank, is judged by ``l0.audit``, not by L0. Exits and exceptions
that an instruction or a delivery causes do not belong to a boundary and have no rank here.
"""

from collections.abc import Iterator
from typing import Final

from nvmx_core.arch.events import (
    DB,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI,
    TYPE_MASK,
    TYPE_SHIFT,
    VECTOR_MASK,
    info_text,
)
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    exit_name,
)
from nvmx_core.l0.log import HARDWARE_ENTRY, INJECT, NESTED_EXIT
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.timeline import step_of
from nvmx_core.oracle.violation import Violation

ORACLE: Final = "EVENT-RANK"

FIRST: Final = 0
"""The rank of what does not wait for a boundary."""

RANK_OF_REASON: Final[dict[int, int]] = {
    INIT_SIGNAL: 5,
    MONITOR_TRAP_FLAG: 6,
    PREEMPTION_TIMER: 8,
    NMI_WINDOW: 9,
    INTERRUPT_WINDOW: 11,
    EXTERNAL_INTERRUPT_EXIT: 12,
}
_RANK_NAMES: Final[dict[int, str]] = {
    4: "SMI",
    5: "INIT",
    6: "MTF",
    7: "#DB trap",
    8: "preemption timer",
    9: "NMI window",
    10: "NMI",
    11: "interrupt window",
}


def event_rank(nested: Nested) -> Iterator[Violation]:
    """Judge every boundary event that L0 gave to L1 or to L2."""
    injected = 0
    for index, record in enumerate(nested.vcpu.log):
        kind = record[0]
        if kind == NESTED_EXIT:
            rank = rank_of_exit(record[2], nested.journal[record[1]][3])
            if record[6] < rank:
                name = exit_name(record[2])
                what = f"exit {name}"
                yield _violation(nested, index, record[1], what, record[6], what)
        elif kind == INJECT:
            injected = record[2]
        elif kind == HARDWARE_ENTRY and record[8] < rank_of_event(injected):
            what = f"{info_text(injected)} for L2"
            yield _violation(nested, index, record[1], "event for L2", record[8], what)


def rank_of_exit(reason: int, interruption: int) -> int:
    """The rank of an exit to L1 among the events of a boundary; FIRST for the others."""
    if reason == EXCEPTION_NMI:
        return rank_of_event(interruption)
    return RANK_OF_REASON.get(reason, FIRST)


def rank_of_event(info: int) -> int:
    """The rank of an event among those of a boundary; FIRST for faults.

    Every hardware exception #DB is a trap here: code breakpoints and general detect are not modelled.
    """
    event_type = (info & TYPE_MASK) >> TYPE_SHIFT
    if event_type == NMI:
        return 10
    if event_type == EXTERNAL_INTERRUPT:
        return 12
    return 7 if event_type == HARDWARE_EXCEPTION and info & VECTOR_MASK == DB else FIRST


def _violation(
    nested: Nested, index: int, position: int, kind: str, rank: int, what: str
) -> Violation:
    return Violation(
        ORACLE,
        "V4",
        f"{kind} before {_RANK_NAMES[rank]}",
        step_of(nested.log_starts, index),
        position,
        (),
        f"{what} comes although this of higher rank is due: {_RANK_NAMES[rank]} (P{rank})",
    )
