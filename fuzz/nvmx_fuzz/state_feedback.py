"""Feedback beside branch coverage: the situations a run reached, and how L0 came from one to the next.

Branches tell which lines ran, not in which order. The bugs of this field are orders: an exit for L1
between a hidden exit and the re-injection that it made necessary. So every two neighbouring records
of L0's secret log, each reduced to what matters about it, mark one counter; and the reach counts of
the run are counters as they are. libFuzzer keeps an input that marks a new one.

Everything here is a function of the run alone: no `hash` of text, no order of a set.
"""

from collections.abc import Sequence
from typing import Final

from nvmx_core.arch.events import (
    ERROR_CODE_VALID,
    HARDWARE_EXCEPTION,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.l0.log import (
    ARRIVAL,
    CANCEL,
    HARDWARE_ENTRY,
    HIDDEN_EXIT,
    INJECT,
    LOG_NAMES,
    NESTED_ENTRY,
    NESTED_EXIT,
    POSTED,
    QUEUE_EXCEPTION,
    REINJECT,
    STUCK,
    USERSPACE,
    L0Record,
)
from nvmx_core.l0.reach import REACH_COUNT

TRANSITION_COUNTERS: Final = 1 << 12
COUNTERS: Final = REACH_COUNT + TRANSITION_COUNTERS

_MASK: Final = TRANSITION_COUNTERS - 1
_ABSTRACTION_MASK: Final = 2 * TRANSITION_COUNTERS - 1
"""What a transition reads of an abstraction: all bits of a counter's number, and the one above them."""
_KNOWN_MAX: Final = 1 << 12
_KINDS: Final = len(LOG_NAMES)

# Which operands of a record are information words, and which are too fine to tell states apart.
_INFO_OPERANDS: Final[dict[int, tuple[int, ...]]] = {
    HARDWARE_ENTRY: (0,),
    HIDDEN_EXIT: (1,),
    NESTED_EXIT: (1,),
    NESTED_ENTRY: (0,),
    REINJECT: (0,),
    INJECT: (0,),
    CANCEL: (0,),
    QUEUE_EXCEPTION: (0,),
}
_DROPPED_OPERANDS: Final[dict[int, tuple[int, ...]]] = {
    HARDWARE_ENTRY: (6,),
    NESTED_EXIT: (4,),
    ARRIVAL: (1,),
    USERSPACE: (0,),
    POSTED: (0, 1),
    STUCK: (0,),
}


def coarse_info(word: int) -> int:
    """An interruption-information word without what does not decide: which interrupt it is.

    Validity, type and error-code flag remain, and the vector of a hardware exception.
    """
    if not word & VALID:
        return 0
    event_type = (word & TYPE_MASK) >> TYPE_SHIFT
    vector = word & VECTOR_MASK if event_type == HARDWARE_EXCEPTION else 0
    return 1 + event_type + (8 if word & ERROR_CODE_VALID else 0) + 16 * vector


def abstraction(kind: int, operands: L0Record) -> int:
    """A number for a log record (without its position) and all records that mean the same."""
    infos = _INFO_OPERANDS.get(kind, ())
    dropped = _DROPPED_OPERANDS.get(kind, ())
    number = kind + 1
    for index, operand in enumerate(operands):
        if index in dropped:
            continue
        number = _mix(number, coarse_info(operand) if index in infos else operand)
    return number


def _mix(number: int, operand: int) -> int:
    """Spread two numbers over 32 bits (a multiplicative hash, the same everywhere)."""
    number = ((number << 5 ^ operand) * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF
    return number ^ number >> 15


class StateFeedback:
    """Writes the counters of one run into a buffer that libFuzzer reads.

    The buffer has `COUNTERS` bytes: first the reach counts, then the transitions.
    """

    def __init__(self, buffer: bytearray, *, reach: bool = True, transitions: bool = True) -> None:
        """Write into *buffer*, which whoever runs the target clears before each run.

        What is not wanted of *reach* and *transitions* stays 0: to measure what each is worth.
        """
        if len(buffer) != COUNTERS:
            raise ValueError(f"the buffer has {len(buffer)} bytes, but must have {COUNTERS}")
        self._buffer: Final = buffer
        self._has_reach: Final = reach
        self._has_transitions: Final = transitions
        self._known: Final[list[dict[L0Record, int]]] = [{} for _ in range(_KINDS)]

    def record(self, reach: Sequence[int], log: Sequence[L0Record]) -> None:
        """Mark what a run reached and every transition of its log."""
        buffer = self._buffer
        if self._has_reach:
            try:
                buffer[:REACH_COUNT] = bytes(reach)
            except ValueError:  # a count above 255
                buffer[:REACH_COUNT] = bytes([min(count, 255) for count in reach])
        if not self._has_transitions:
            return
        known = self._known
        before = 0
        for entry in log:
            operands = entry[2:]
            here = known[entry[0]].get(operands)
            if here is None:
                here = self._learn(entry[0], operands)
            buffer[REACH_COUNT + ((before ^ here) & _MASK)] = 1
            before = here >> 1

    def _learn(self, kind: int, operands: L0Record) -> int:
        """The abstraction of operands that were not seen lately, from now on among the known ones."""
        known = self._known[kind]
        if len(known) >= _KNOWN_MAX:
            known.clear()
        number = known[operands] = abstraction(kind, operands) & _ABSTRACTION_MASK
        return number


def feedback_beside(mode: str, buffer: bytearray) -> StateFeedback:
    """The state feedback that a campaign has beside the branch counters of a mode of `feedback.py`.

    Transitions where no branches are counted, nothing where they are: of all combinations these found bugs
    of several steps most often in equal CPU time (docs/PERFORMANCE.md). Reach is counted for people.
    """
    return StateFeedback(buffer, reach=False, transitions=mode == "states")
