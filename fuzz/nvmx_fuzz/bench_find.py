"""Measures how soon something is found, by feedback: `scripts/bench --find N`.

More executions a second are worth nothing if each tells less. So for each kind of feedback: how much
CPU time passes from an empty corpus to the first violation of a bug, or, on `fixed`, to a number of
different situations; medians of N runs with N seeds.
"""

import statistics
import tempfile
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from nvmx_core.bugs.catalogue import FIXED, L0_BY_NAME
from nvmx_fuzz.bench_child import COMPILED, in_child
from nvmx_fuzz.core_choice import why_not_compiled

SECONDS_MAX: Final = 60

# Feedback, and what libFuzzer is told besides.
FEEDBACKS: Final[tuple[tuple[str, ...], ...]] = (
    ("states",),
    ("states", "-entropic=0", "-reduce_inputs=0"),
    ("fast",),
    ("fast", "-entropic=0", "-reduce_inputs=0"),
    ("branches",),
    ("stock",),
    (COMPILED,),
)


class Search(NamedTuple):
    """What N runs towards one goal came to; times are CPU seconds, also of runs that gave up."""

    l0: str
    feedback: str
    runs: int
    found: int
    median_seconds: float
    worst_seconds: float
    median_executions: float


def searches(runs: int) -> Iterator[Search]:
    """One search for each L0 and feedback; seeds take turns, so that noise hits all alike."""
    missing = COMPILED if why_not_compiled() else ""
    feedbacks = [feedback for feedback in FEEDBACKS if feedback[0] != missing]
    cells = [(l0, feedback) for l0 in sorted(L0_BY_NAME) for feedback in feedbacks]
    results: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for seed in range(1, runs + 1):
        for l0, feedback in cells:
            results[l0, feedback].append(_run(l0, seed, feedback))
    for (l0, feedback), rows in results.items():
        seconds = [row["seconds"] for row in rows]
        yield Search(
            l0 if l0 != FIXED else f"{FIXED}: reach",
            " ".join(feedback),
            runs,
            sum(row["found"] for row in rows),
            statistics.median(seconds),
            max(seconds),
            statistics.median(row["executions"] for row in rows),
        )


def _run(l0: str, seed: int, feedback: tuple[str, ...]) -> dict[str, Any]:
    mode, *options = feedback
    with tempfile.TemporaryDirectory(prefix="nvmx-bench-") as corpus:
        return in_child("find", l0, str(seed), str(SECONDS_MAX), corpus, mode, *options)
