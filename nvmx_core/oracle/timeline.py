"""Where a record belongs: positions in the journal and in L0's log, mapped to steps."""

from bisect import bisect_right


def step_of(starts: list[int], index: int) -> int:
    """The step during which the record at *index* was written; the number of steps for the end.

    *starts* are ``step_starts`` for the journal or ``log_starts`` for the log.
    """
    return max(bisect_right(starts, index) - 1, 0)
