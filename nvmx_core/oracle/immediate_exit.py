"""IMMEDIATE-EXIT: what had to wait for an injection comes right after it.

Three parts of one rule: L2 never executes an instruction while an exit for L1 is due (O11, O7; B5 and B6 for
the windows that L1 asked for); an immediate exit is requested exactly when something waits (V10); and each
request also asks for the evaluation that the exit is for (V10). What waits is judged by ``l0.audit``, not by
L0.
"""

from collections.abc import Iterator
from typing import Final

from nvmx_core.l0.log import (
    HARDWARE_ENTRY,
    KICK,
    RAN_PAST,
    WAIT_NAMES,
    WAITS_FOR_L2,
    WAITS_INTERRUPT_WINDOW,
    WAITS_MTF,
    WAITS_NMI_WINDOW,
    WAITS_TIMER,
    L0Record,
)
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.timeline import step_of
from nvmx_core.oracle.violation import Violation

ORACLE: Final = "IMMEDIATE-EXIT"

_RULE_OF_LONE_WAIT: Final[dict[int, str]] = {
    WAITS_TIMER: "O7",
    WAITS_NMI_WINDOW: "B6",
    WAITS_INTERRUPT_WINDOW: "B5",
}

NO_REQUEST: Final = "no immediate exit requested"
NEEDLESS_REQUEST: Final = "immediate exit requested without cause"
NO_REEVALUATION: Final = "immediate exit without re-evaluation"


def immediate_exit(nested: Nested) -> Iterator[Violation]:
    """Judge every hardware entry, and every L2 instruction that began although an exit was due."""
    kicked = False
    for index, record in enumerate(nested.vcpu.log):
        kind = record[0]
        if kind == HARDWARE_ENTRY:
            if record[3] or record[6]:
                yield from _judge_entry(nested, index, record, kicked)
        elif kind == RAN_PAST:
            yield _ran_past(nested, index, record)
        kicked = kind == KICK


def waiting_text(mask: int) -> str:
    """What waits, in words."""
    return ", ".join(name for bit, name in enumerate(WAIT_NAMES) if mask >> bit & 1)


def _judge_entry(nested: Nested, index: int, record: L0Record, kicked: bool) -> Iterator[Violation]:
    _kind, position, _info, immediate, _run_pending, _reinjection, waiting, requested, _ = record
    step = step_of(nested.log_starts, index)
    for_l1 = waiting & ~WAITS_FOR_L2  # an event for L2 itself may also come by a window
    if for_l1 and not immediate and not kicked:
        yield Violation(
            ORACLE,
            "O7" if waiting & WAITS_TIMER else "M1" if waiting & WAITS_MTF else "O11",
            NO_REQUEST,
            step,
            position,
            (),
            f"L0 enters L2 without an immediate exit although this waits: {waiting_text(waiting)}",
        )
    elif immediate and not waiting:
        yield Violation(
            ORACLE,
            "V10",
            NEEDLESS_REQUEST,
            step,
            position,
            (),
            "L0 enters L2 with an immediate exit although nothing waits",
        )
    elif immediate and not requested:
        yield Violation(
            ORACLE,
            "V10",
            NO_REEVALUATION,
            step,
            position,
            (),
            f"L0 requests an immediate exit but will not look at events after it, although this "
            f"waits: {waiting_text(waiting)}",
        )


def _ran_past(nested: Nested, index: int, record: L0Record) -> Violation:
    waiting = record[2] & ~WAITS_FOR_L2
    return Violation(
        ORACLE,
        _RULE_OF_LONE_WAIT.get(waiting, "O11"),
        f"L2 runs past {waiting_text(waiting)}",
        step_of(nested.log_starts, index),
        record[1],
        (),
        f"L2 executes an instruction although an exit to L1 is due: {waiting_text(waiting)}",
    )
