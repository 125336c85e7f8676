"""Measures what a second job is worth: `scripts/bench --jobs N`.

Campaigns of one job and of two, with and without an exchange of inputs, take turns with the same seeds,
so that what the machine does meanwhile hits all of them. Two quantities: executions a second, and the time
until something is found from nothing, which is a broken rule of one of the harder bugs, or a number of
features on `fixed`. Both by the clock, which is what people wait for, and by the CPU time of a job, which is
what the clock would show on a machine with a core for each job. Starting Python is nobody's fault, and is
taken away.
"""

import resource
import statistics
import sys
import tempfile
from collections.abc import Iterator
from math import exp, log
from pathlib import Path
from typing import Final, NamedTuple

from nvmx_core.bugs.versions import FIXED
from nvmx_fuzz.campaign import Campaign, Signals
from nvmx_fuzz.core_choice import agree
from nvmx_fuzz.launcher import RELOAD_SECONDS, FuzzingProcess, Plan, output_folder
from nvmx_fuzz.status import Status

BUGS: Final = ("bug29", "bug40", "bug45", "bug58", "bug59", "res6")
"""Those of the catalogue that take a guided search the longest (docs/POWER.md)."""

FEATURES: Final = 3000
"""So many features are what one job has after some ten seconds on `fixed`."""

_FIND_SECONDS: Final = 120


class Setting(NamedTuple):
    """How many jobs, and how often each looks for what the others found (seconds; 0: never)."""

    jobs: int
    reload: int

    def __str__(self) -> str:
        """For people."""
        if self.jobs == 1:
            return "1 job"
        how = f"exchange every {self.reload} s" if self.reload else "no exchange"
        return f"{self.jobs} jobs, {how}"


SETTINGS: Final = (Setting(1, 0), Setting(2, RELOAD_SECONDS), Setting(2, 10), Setting(2, 0))


class Turn(NamedTuple):
    """What one campaign came to; *cpu* is the CPU time of all its jobs."""

    executions: int
    seconds: float
    cpu: float


class JobsRow(NamedTuple):
    """One quantity with one setting: the value by the clock and by the CPU time of a job.

    Rates are executions a second, times are seconds; both are geometric means. How many times better than one
    job is the median of the turns for rates, and the ratio of the means for times, which scatter.
    """

    goal: str
    setting: str
    by_clock: float
    by_cpu: float
    times_by_clock: float
    times_by_cpu: float


class _Goal:
    """Watches a campaign, and asks it to stop when something is found."""

    def __init__(self, signals: Signals, features: int) -> None:
        self._signals: Final = signals
        self._features: Final = features
        self.seconds = 0.0

    def show(self, status: Status) -> None:
        """Look whether the goal is reached."""
        is_reached = len(status.findings) if not self._features else (
            status.coverage().features >= self._features
        )  # fmt: skip
        if is_reached and not self.seconds:
            self.seconds = status.seconds
            self._signals.count += 1

    def tell(self, line: str) -> None:
        """Nobody listens."""

    def close(self) -> None:
        """There is nothing to undo."""


def campaign(
    l0: str, seed: int, setting: Setting, seconds: float, runs: int = 0, features: int = 0
) -> Turn:
    """One campaign from nothing, until *seconds* or *runs* are over or its goal is reached."""
    core, feedback = agree(None, "auto", l0)
    before = _cpu_of_children()
    with tempfile.TemporaryDirectory(prefix="nvmx-bench-") as folder:
        plan = Plan(
            l0, core, seconds, runs, None, Path(folder), seed, feedback, "", *setting
        )  # fmt: skip
        signals = Signals()
        goal = _Goal(signals, features)
        with output_folder(plan):
            processes = [FuzzingProcess(plan, number) for number in range(plan.jobs)]
            done = Campaign(plan, processes, signals)
            done.run(goal)
        status = done.status
        return Turn(
            status.progress.executions,
            goal.seconds or status.seconds,
            _cpu_of_children() - before,
        )


def compare_jobs(turns: int, seconds: float) -> Iterator[JobsRow]:
    """Rates over *seconds* each, and times to find; *turns* of everything."""
    start = {s: campaign(FIXED, 1, s, 0, runs=s.jobs).cpu for s in SETTINGS}
    rates = _taken(turns, start, FIXED, seconds, sys.maxsize)
    yield from _rows("executions a second", [_rates(turn) for turn in rates])
    found = _taken(turns, start, FIXED, _FIND_SECONDS, FEATURES)
    yield from _rows(f"seconds to {FEATURES} features", [_times(turn) for turn in found])
    each = [_taken(turns, start, bug, _FIND_SECONDS, 0) for bug in BUGS]
    yield from _rows("seconds to a finding", [_times(turn) for bug in each for turn in bug])


Taken = dict[Setting, Turn]
Values = dict[Setting, tuple[float, float]]


def _taken(
    turns: int, start: dict[Setting, float], l0: str, seconds: float, features: int
) -> list[Taken]:
    """Each setting in turn; the CPU time is that of a job, without its start."""
    taken = []
    for seed in range(1, turns + 1):
        sys.stderr.write(f"{l0}: turn {seed} of {turns}\n")
        turn: Taken = {}
        for setting in SETTINGS:
            one = campaign(l0, seed, setting, seconds, features=features)
            turn[setting] = one._replace(cpu=max(one.cpu - start[setting], 1e-3) / setting.jobs)
        taken.append(turn)
    return taken


def _rates(turn: Taken) -> Values:
    return {s: (one.executions / one.seconds, one.executions / one.cpu) for s, one in turn.items()}


def _times(turn: Taken) -> Values:
    return {s: (one.seconds, one.cpu) for s, one in turn.items()}


def _rows(goal: str, taken: list[Values]) -> Iterator[JobsRow]:
    is_rate = "a second" in goal
    ones = taken[0][SETTINGS[0]]
    for setting in SETTINGS:
        means = [_mean([turn[setting][i] for turn in taken]) for i in range(2)]
        if is_rate:
            times = [
                statistics.median(turn[setting][i] / turn[SETTINGS[0]][i] for turn in taken)
                for i in range(2)
            ]
        else:
            times = [one / mean for one, mean in zip(ones, means, strict=True)]
        if setting == SETTINGS[0]:
            ones = (means[0], means[1])
            times = [1.0, 1.0]
        yield JobsRow(goal, str(setting), *means, *times)


def _mean(values: list[float]) -> float:
    return exp(statistics.fmean(log(max(value, 1e-3)) for value in values))


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
