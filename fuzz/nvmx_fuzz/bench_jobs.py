"""Measures what a second job is worth: `scripts/bench --jobs N`.

Campaigns of one job and of two, with and without an exchange of inputs, take turns, so that what the machine
does meanwhile hits all of them. Each has seeds of its own: the first of two jobs would repeat the one.
Two quantities: executions a second, and the time until something is found from nothing, which is a broken
rule of a bug that hides behind several steps, or a number of features on `fixed`.

Both by the clock, which is what people wait for, and by the CPU time of a job, which is what the clock would
show on a machine with a core for each job; and what is found also by the executions of a job, which no
machine changes. Starting Python is nobody's fault, and is taken away.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final, NamedTuple

from nvmx_core.bugs.versions import FIXED
from nvmx_fuzz.campaign import Campaign, Signals
from nvmx_fuzz.core_choice import agree
from nvmx_fuzz.launcher import RELOAD_SECONDS, FuzzingProcess, Plan, output_folder
from nvmx_fuzz.progress import Message
from nvmx_fuzz.status import Reporter, Status

FEATURES: Final = 3000
"""So many features are what one job has after some seconds on `fixed`."""

RUNS: Final = 200_000
_FIND_SECONDS: Final = 300
_SEEDS_APART: Final = 1000
_FIND_TURNS: Final = 6
"""A search is over in seconds, and chance decides in how many: so many for each turn of the others."""


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


SETTINGS: Final = (Setting(1, 0), Setting(2, RELOAD_SECONDS), Setting(2, 0))


class Turn(NamedTuple):
    """What one campaign came to; *cpu* is the CPU time of all its jobs."""

    executions: int
    seconds: float
    cpu: float


class JobsRow(NamedTuple):
    """One quantity with one setting: by the clock, by the CPU time of a job, by its executions (0: a rate).

    Rates are executions a second, times are seconds; all are means, which is what somebody waits for who
    searches often. `times` says how many times better than with one job each is.
    """

    goal: str
    setting: str
    values: tuple[float, float, float]
    times: tuple[float, float, float]


class _Goal:
    """Watches a campaign, and asks it to stop when it has so many features (0: never)."""

    def __init__(self, signals: Signals, features: int) -> None:
        self._signals: Final = signals
        self._features: Final = features
        self.seconds = 0.0
        self.executions = 0

    def show(self, status: Status) -> None:
        """Look whether the goal is reached."""
        is_reached = self._features and status.coverage().features >= self._features
        if is_reached and not self.seconds:
            self.seconds = status.seconds
            self.executions = status.progress.executions
            self._signals.count += 1

    def tell(self, line: str) -> None:
        """Nobody listens."""

    def close(self) -> None:
        """There is nothing to undo."""


class _Search(Campaign):
    """A campaign that ends with the arrival of its first finding, which nobody shrinks or explains.

    Attributes:
        found: seconds from the first job that was ready to that arrival, and the executions until then.
    """

    def __init__(self, plan: Plan, processes: list[FuzzingProcess], signals: Signals) -> None:
        """Search with *processes*."""
        super().__init__(plan, processes, signals)
        self.found: tuple[float, int] | None = None
        self._asked: Final = signals
        self._begun = 0.0

    def _take(self, message: Message, reporter: Reporter) -> None:
        if message.kind != "finding":
            self._begun = self._begun or time.monotonic()
            super()._take(message, reporter)
        elif self.found is None:
            self.found = (time.monotonic() - self._begun, self.status.progress.executions)
            self._asked.count += 1


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
            done = _Search(plan, processes, signals)
            done.run(goal)
        status = done.status
        seconds, executions = done.found or (goal.seconds, goal.executions)
        return Turn(
            executions or status.progress.executions,
            seconds or status.seconds,
            _cpu_of_children() - before,
        )


def compare_jobs(turns: int, bugs: Sequence[str]) -> Iterator[JobsRow]:
    """Rates over `RUNS` executions, and times to find features and *bugs*; *turns* of everything."""
    start = {s: campaign(FIXED, 1, s, 0, runs=s.jobs).cpu for s in SETTINGS}
    rates = _taken(turns, start, FIXED, runs=RUNS, features=sys.maxsize)
    yield from _rows("executions a second", [_rates(turn) for turn in rates], is_rate=True)
    found = _taken(turns, start, FIXED, features=FEATURES)
    yield from _rows(f"seconds to {FEATURES} features", [_times(turn) for turn in found])
    each = [_taken(turns * _FIND_TURNS, start, bug) for bug in bugs]
    times = [[_times(turn) for turn in bug] for bug in each]
    rows = list(_rows("seconds to a finding", [turn for bug in times for turn in bug]))
    yield from (*rows, _of_pairs(rows[0], [[turn[SETTINGS[0]] for turn in bug] for bug in times]))


Taken = dict[Setting, Turn]
Values = dict[Setting, tuple[float, float, float]]


def _taken(
    turns: int, start: dict[Setting, float], l0: str, runs: int = 0, features: int = 0
) -> list[Taken]:
    """Each setting in turn; CPU time and executions are those of a job, without its start."""
    taken = []
    seconds = 0 if runs else _FIND_SECONDS
    for seed in range(1, turns + 1):
        sys.stderr.write(f"{l0}: turn {seed} of {turns}\n")
        turn: Taken = {}
        for setting in SETTINGS:
            own = seed + _SEEDS_APART * SETTINGS.index(setting)
            one = campaign(l0, own, setting, seconds, runs, features)
            cpu = max(one.cpu - start[setting], 1e-3) / setting.jobs
            turn[setting] = Turn(one.executions // setting.jobs, one.seconds, cpu)
        taken.append(turn)
    return taken


def _rates(turn: Taken) -> Values:
    return {
        s: (s.jobs * one.executions / one.seconds, s.jobs * one.executions / one.cpu, 0.0)
        for s, one in turn.items()
    }


def _times(turn: Taken) -> Values:
    return {s: (one.seconds, one.cpu, float(one.executions)) for s, one in turn.items()}


def _rows(goal: str, taken: list[Values], *, is_rate: bool = False) -> Iterator[JobsRow]:
    means = {s: _means([turn[s] for turn in taken]) for s in SETTINGS}
    ones = means[SETTINGS[0]]
    for setting, values in means.items():
        ratios = (a / b if is_rate else b / a for a, b in zip(values, ones, strict=True))
        yield JobsRow(goal, str(setting), values, _three(ratios))


def _of_pairs(ones: JobsRow, bugs: list[list[tuple[float, float, float]]]) -> JobsRow:
    """What two searches of one job come to that know nothing of each other, each on a machine of its own.

    It is what chance leaves of a second job, and known better than the searches of two jobs tell: of N
    searches there are N * (N - 1) / 2 pairs.
    """
    sooner = [_three(map(sooner_of_two, zip(*bug, strict=True))) for bug in bugs]
    values = _means(sooner)
    ratios = (one / value for one, value in zip(ones.values, values, strict=True))
    return JobsRow(ones.goal, "1 job, sooner of two", values, _three(ratios))


def sooner_of_two(values: Iterable[float]) -> float:
    """The mean, over all pairs of *values*, of the smaller one; *values* are two or more."""
    ordered = sorted(values)
    behind = range(len(ordered) - 1, -1, -1)
    pairs = len(ordered) * (len(ordered) - 1) / 2
    return sum(value * number for value, number in zip(ordered, behind, strict=True)) / pairs


def _means(rows: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    return _three(max(fmean(column), 1e-3) for column in zip(*rows, strict=True))


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    one, two, three = values
    return one, two, three


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
