"""State feedback: what a run reached and the transitions of L0, as counters."""

import pytest

from nvmx_core.arch.events import ERROR_CODE_VALID, GP, PF, VALID
from nvmx_core.arch.exits import EPT_VIOLATION
from nvmx_core.l0.log import ARRIVAL, HIDDEN_EXIT, KICK, REINJECT, REPAIR
from nvmx_core.l0.reach import REACH_COUNT
from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback, abstraction, coarse_info

NOTHING_REACHED = [0] * REACH_COUNT
EXCEPTION = VALID | 3 << 8 | ERROR_CODE_VALID


def marks(log: list[tuple[int, ...]], reach: list[int] | None = None) -> bytes:
    """The counters after one run."""
    buffer = bytearray(COUNTERS)
    StateFeedback(buffer).record(reach or NOTHING_REACHED, log)
    return bytes(buffer)


def test_reach_counts_are_counters_and_saturate() -> None:
    counters = marks([], [0, 1, 255, 256, 1 << 20] + [0] * (REACH_COUNT - 5))
    assert counters[:5] == bytes([0, 1, 255, 255, 255])
    assert not any(counters[5:])


def test_each_transition_is_a_counter() -> None:
    hidden, repair, reinject = (HIDDEN_EXIT, 0, EPT_VIOLATION, 0), (REPAIR, 0, 1), (REINJECT, 0, 0)
    assert sum(marks([hidden])) == 1
    assert sum(marks([hidden, repair])) == 2
    assert marks([hidden, repair, reinject]) != marks([hidden, reinject, repair])


def test_position_in_the_journal_does_not_matter() -> None:
    assert marks([(KICK, 3), (REPAIR, 4, 1)]) == marks([(KICK, 30), (REPAIR, 31, 1)])


def test_interrupt_vectors_are_one_state_and_exceptions_are_not() -> None:
    assert coarse_info(VALID | 0x20) == coarse_info(VALID | 0x51)
    assert coarse_info(EXCEPTION | GP) != coarse_info(EXCEPTION | PF)
    assert coarse_info(EXCEPTION | PF) != coarse_info((EXCEPTION | PF) & ~ERROR_CODE_VALID)
    assert coarse_info(0x51) == 0


def test_operand_of_an_arrival_does_not_matter_but_its_kind_does() -> None:
    assert abstraction(ARRIVAL, (1, 0x51)) == abstraction(ARRIVAL, (1, 0x20))
    assert abstraction(ARRIVAL, (1, 0x51)) != abstraction(ARRIVAL, (2, 0x51))


def test_buffer_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must have"):
        StateFeedback(bytearray(COUNTERS + 1))
