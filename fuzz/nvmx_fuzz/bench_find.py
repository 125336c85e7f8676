"""Measures how soon something is found, by feedback: `scripts/bench --find N`, `--deep N`, `--engine N`.

More executions a second are worth nothing if each tells less. So for each kind of feedback: how much
CPU time passes from an empty corpus to the first violation of a bug, or, on `fixed`, to a number of
different situations; medians of N runs with N seeds. A run that finds nothing within its CPU time counts
with that time.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from nvmx_core.bugs.planted import PLANTED
from nvmx_core.bugs.versions import FIXED
from nvmx_fuzz.bench_settings import campaign_setting, is_usable, reach, search

# Build and feedback, and what libFuzzer is told besides.
Setting = tuple[str, ...]
SETTINGS: Final[tuple[Setting, ...]] = (
    ("python:states",),
    ("python:fast",),
    ("python:branches",),
    ("python:stock",),
    ("compiled:states",),
    ("compiled:fast",),
)
REACH: Final = f"{FIXED}: reach"
GOALS: Final = ("bug1", "bug3", REACH)

ABSTRACTIONS: Final = (
    "edges",
    "edges+reach",
    "edges+transitions",
    "transitions",
    "states",
    "fast",
)
DEEP_SETTINGS: Final[tuple[Setting, ...]] = tuple(
    (f"{core}:{abstraction}",) for core in ("python", "compiled") for abstraction in ABSTRACTIONS
)
DEEP_GOALS: Final = tuple(PLANTED)

ENGINE_OPTIONS: Final = ((), ("-entropic=1",), ("-reduce_inputs=0",))
"""What libFuzzer may be told otherwise than a target does, see `nested_events.with_defaults`."""


def engine_settings() -> tuple[Setting, ...]:
    """Each of ENGINE_OPTIONS with the core and the feedback of a campaign."""
    return tuple((campaign_setting(), *options) for options in ENGINE_OPTIONS)


class Search(NamedTuple):
    """What N runs towards one goal came to; times are CPU seconds, also of runs that gave up."""

    goal: str
    feedback: str
    runs: int
    found: int
    median_seconds: float
    worst_seconds: float
    median_executions: float
    mean_executions: float


def searches(
    goals: Sequence[str], settings: Sequence[Setting], runs: int, seconds: int
) -> Iterator[Search]:
    """One search for each goal (an L0, or REACH) and setting; in turns, so that noise hits all alike."""
    cells = [(goal, setting) for goal in goals for setting in settings if is_usable(setting[0])]
    results: dict[tuple[str, Setting], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for seed in range(1, runs + 1):
        for goal, setting in cells:
            results[goal, setting].append(_one(goal, seed, seconds, setting))
    for (goal, setting), found in results.items():
        times = [result["seconds"] for result in found]
        yield Search(
            goal,
            " ".join(setting),
            runs,
            sum(result["found"] for result in found),
            statistics.median(times),
            max(times),
            statistics.median(result["executions"] for result in found),
            statistics.fmean(result["executions"] for result in found),
        )


def _one(goal: str, seed: int, seconds: int, setting: Setting) -> dict[str, Any]:
    if goal == REACH:
        return reach(seed, seconds, *setting)
    return search(goal, seed, seconds, *setting)
