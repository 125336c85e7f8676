"""Measures how fast the fuzzer is, and where the time goes: `scripts/bench`.

Every figure is the median of several repetitions, with the smallest and the largest. Repetitions of
different figures take turns, so that what the machine does meanwhile hits all of them: ratios hold
where absolute numbers depend on the machine. The line "plain loop" says how fast that is.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from nvmx_core.bugs.catalogue import CATALOGUE
from nvmx_core.bugs.planted import PLANTED
from nvmx_core.machines.bare import Bare
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.judge import judge
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz import module_command
from nvmx_fuzz.bench_find import (
    DEEP_GOALS,
    DEEP_SETTINGS,
    GOALS,
    REACH,
    SETTINGS,
    Search,
    engine_settings,
    searches,
)
from nvmx_fuzz.bench_jobs import JobsRow, compare_jobs
from nvmx_fuzz.bench_rates import rates, scenarios
from nvmx_fuzz.bench_scale import Row, rows
from nvmx_fuzz.bench_settings import CHILD, campaign_setting
from nvmx_fuzz.cli_bugs import hunt_and_show
from nvmx_fuzz.cli_options import known_l0s
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.core_choice import has_branch_counters, why_not_compiled
from nvmx_fuzz.hunt import METHODS, missing_for
from nvmx_fuzz.json_line import in_child
from nvmx_fuzz.mutate import mutate
from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback

MODES: Final = ("fast", "branches", "stock", "states")

_SEEDS: Final = 200
_LOOP: Final = 1_000_000
_EMPTY_RUNS_FACTOR: Final = 40
_MEMORY_SKIP: Final = 2

Measurement = dict[str, float]


@dataclass
class Figure:
    """One measured quantity: what it is, its unit, and what the repetitions gave."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """How far smallest and largest lie apart, in per cent of the median."""
        return 100 * (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    def to_json(self) -> dict[str, Any]:
        """All that is known."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "spread_percent": self.spread,
            "repetitions": len(self.values),
        }


# -- without atheris -------------------------------------------------------------------------------


def plain_loop() -> Measurement:
    """How fast this machine runs Python just now."""
    start = time.perf_counter()
    total = 0
    for number in range(_LOOP):
        total += number
    return {"plain loop [M/s]": _LOOP / (time.perf_counter() - start) / 1e6}


def uninstrumented(inputs: list[bytes]) -> Measurement:
    """The fixed scenarios without atheris."""
    executions, steps = rates(inputs)
    return {"uninstrumented [executions/s]": executions, "uninstrumented [steps/s]": steps}


def shares(inputs: list[bytes]) -> Measurement:
    """How the time of an execution divides, in per cent; each part runs over all inputs at once."""
    decoded, seconds = _timed(lambda: [decode(data) for data in inputs])
    parts = {"decode": seconds}
    _, parts["mutate"] = _timed(
        lambda: [mutate(data, 520, seed) for seed, data in enumerate(inputs)]
    )
    configs = [config_for(scenario.config) for scenario in decoded]
    bares = [Bare(config) for config in configs]
    nesteds = [Nested(config) for config in configs]
    # Building the machines belongs to running them.
    _, building_bare = _timed(lambda: [Bare(config) for config in configs])
    _, building_nested = _timed(lambda: [Nested(config) for config in configs])
    _, parts["bare"] = _timed(partial(_run_all, bares, decoded))
    _, parts["nested"] = _timed(partial(_run_all, nesteds, decoded))
    parts["bare"] += building_bare
    parts["nested"] += building_nested
    _, parts["oracles"] = _timed(lambda: list(map(judge, bares, nesteds)))
    feedback = StateFeedback(bytearray(COUNTERS))
    _, parts["state feedback"] = _timed(partial(_record_all, feedback, nesteds))
    total = sum(parts.values())
    return {f"{name} [% of time]": 100 * part / total for name, part in parts.items()}


def _run_all(machines: list[Bare] | list[Nested], chosen: list[Scenario]) -> None:
    for machine, scenario in zip(machines, chosen, strict=True):
        machine.run_unmarked(scenario)


def _record_all(feedback: StateFeedback, machines: list[Nested]) -> None:
    for machine in machines:
        feedback.record(machine.vcpu.reach, machine.vcpu.log)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


# -- under atheris ---------------------------------------------------------------------------------


def child(kind: str, runs: int, seeds: Path, *setting: str) -> dict[str, Any]:
    """Measure in a process of its own, on a corpus folder of its own."""
    with tempfile.TemporaryDirectory(prefix="nvmx-bench-") as folder:
        for seed in seeds.iterdir():
            (Path(folder) / seed.name).write_bytes(seed.read_bytes())
        return in_child(CHILD, kind, str(_SEEDS + runs // 5), str(runs), folder, *setting)


def under_atheris(mode: str, runs: int, seeds: Path) -> Measurement:
    """The target with mutator, crossover and counters, in one mode of branch feedback."""
    result = child("target", runs, seeds, f"python:{mode}")
    # A campaign prefers scenarios in which much happens, so only the same inputs can be compared.
    same = [bytes.fromhex(text) for text in result["sample"]]
    rates(same)  # fills caches
    plain, _ = rates(same)
    executions = result["executions_per_second"]
    return {
        f"atheris, {mode} [executions/s]": executions,
        f"atheris, {mode} [steps/s]": result["steps_per_second"],
        f"atheris, {mode} / uninstrumented [% on the same inputs]": 100 * executions / plain,
    }


def compiled(runs: int, seeds: Path) -> Measurement:
    """The compiled core, without atheris and in a campaign."""
    without = in_child(CHILD, "plain", "compiled")
    found = {
        "compiled core [executions/s]": without["executions_per_second"],
        "compiled core [steps/s]": without["steps_per_second"],
    }
    for mode in ("states", "fast") if has_branch_counters() else ("states",):
        guided = child("target", runs, seeds, f"compiled:{mode}")
        name = f"compiled core, atheris, {mode}"
        found[f"{name} [executions/s]"] = guided["executions_per_second"]
        found[f"{name} [steps/s]"] = guided["steps_per_second"]
    return found


def empty_harness(runs: int, seeds: Path) -> Measurement:
    """What atheris and libFuzzer allow at most."""
    result = child("empty", runs * _EMPTY_RUNS_FACTOR, seeds)
    return {"empty harness [executions/s]": result["executions_per_second"]}


def start_up() -> Measurement:
    """A whole campaign of one execution: more than the time to the first execution."""
    with tempfile.TemporaryDirectory(prefix="nvmx-bench-") as folder:
        command = [sys.executable, "-m", "nvmx_fuzz.cli", "run", "--runs", "1", "--no-seeds"]
        start = time.perf_counter()
        subprocess.run([*command, "--out", folder], capture_output=True, check=True)
        return {"campaign of 1 execution [s]": time.perf_counter() - start}


def memory(runs: int, seeds: Path) -> dict[str, Any]:
    """Resident memory at ten moments of a long run, and how flat it is after the first fifth."""
    result = child("target", runs, seeds, campaign_setting())
    settled = result["resident_kib"][_MEMORY_SKIP - 1 :]
    growth = 100 * (max(settled) - min(settled)) / max(min(settled), 1)
    return {
        "executions": runs,
        "resident_kib": result["resident_kib"],
        "growth_percent": growth,
        "executions_per_second": result["executions_per_second"],
    }


# -- together --------------------------------------------------------------------------------------


def measure(runs: int, seeds: Path, inputs: list[bytes]) -> Iterator[Measurement]:
    """One repetition of everything."""
    yield plain_loop()
    yield uninstrumented(inputs)
    for mode in MODES:
        yield under_atheris(mode, runs, seeds)
    if not why_not_compiled():
        yield compiled(runs, seeds)
    yield empty_harness(runs, seeds)
    yield shares(inputs)
    yield start_up()


def with_ratios(repetition: Measurement) -> Measurement:
    """Add the ratios, each within its repetition."""
    plain = repetition["uninstrumented [steps/s]"]
    ratios = {
        "uninstrumented / plain loop [steps per 1000]": plain / repetition["plain loop [M/s]"] / 1e3
    }
    if "compiled core [steps/s]" in repetition:
        fast, guided = (
            "compiled core [executions/s]",
            "compiled core, atheris, states [executions/s]",
        )
        ratios["compiled / Python, uninstrumented [times]"] = (
            repetition[fast] / repetition["uninstrumented [executions/s]"]
        )
        ratios["compiled / stock Python, atheris [times]"] = (
            repetition[guided] / repetition["atheris, stock [executions/s]"]
        )
    codec = repetition["decode [% of time]"] + repetition["mutate [% of time]"]
    return repetition | ratios | {"decode + mutate [% of time]": codec}


def figures(repetitions: list[Measurement]) -> list[Figure]:
    """One figure per quantity, in the order of the first repetition."""
    found = []
    for key in repetitions[0]:
        name, _, unit = key.removesuffix("]").rpartition(" [")
        found.append(Figure(name, unit, [repetition[key] for repetition in repetitions]))
    return found


@click.command("bench")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), metavar="N",
              help="Repetitions of each figure.")  # fmt: skip
@click.option("--runs", default=5000, show_default=True, type=click.IntRange(100), metavar="N",
              help="Executions of each measurement under atheris.")  # fmt: skip
@click.option("--memory", "memory_runs", default=0, metavar="N",
              help="Also watch the memory over N executions.")  # fmt: skip
@click.option("--find", "searches_each", default=0, type=click.IntRange(0), metavar="N",
              help="Only measure how soon each kind of feedback finds, N runs each.")  # fmt: skip
@click.option("--deep", "deep_each", default=0, type=click.IntRange(0), metavar="N",
              help="Only measure how soon each abstraction finds deep bugs, N runs each.")  # fmt: skip
@click.option("--engine", "engine_each", default=0, type=click.IntRange(0), metavar="N",
              help="Only measure how soon other options of libFuzzer find, N runs each.")  # fmt: skip
@click.option("--hunt", "hunts_each", default=0, type=click.IntRange(0), metavar="N",
              help="Only hunt every bug of the catalogue by every method, N runs each.")  # fmt: skip
@click.option("--seconds", default=60, show_default=True, type=click.IntRange(1), metavar="S",
              help="CPU seconds after which a run of --find, --deep, --engine, --hunt gives up.")  # fmt: skip
@click.option("--scale", is_flag=True,
              help="Only measure growth: scenario length, corpus size, processes.")  # fmt: skip
@click.option("--jobs", "jobs_turns", default=0, type=click.IntRange(0), metavar="N",
              help="Only compare campaigns of one and of two jobs, N turns of each.")  # fmt: skip
@click.option("--bugs", default=",".join(PLANTED), show_default=True, metavar="NAMES", callback=known_l0s,
              help="What the searches of --jobs and --engine look for.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    repeat: int,
    runs: int,
    memory_runs: int,
    searches_each: int,
    deep_each: int,
    engine_each: int,
    hunts_each: int,
    seconds: int,
    scale: bool,
    jobs_turns: int,
    bugs: list[str],
    as_json: bool,
) -> None:
    """Measure executions and steps per second, on one core, and where the time goes."""
    if searches_each:
        _show_searches(list(searches(GOALS, SETTINGS, searches_each, seconds)), as_json)
        return
    if deep_each:
        _show_searches(list(searches(DEEP_GOALS, DEEP_SETTINGS, deep_each, seconds)), as_json)
        return
    if engine_each:
        found = searches((*bugs, REACH), engine_settings(), engine_each, seconds)
        _show_searches(list(found), as_json)
        return
    if hunts_each:
        for method in filter(missing_for, METHODS):
            click.echo(f"without {method}, which is not installed", err=True)
        methods = tuple(method for method in METHODS if not missing_for(method))
        catalogue = [bug.name for bug in CATALOGUE]
        hunt_and_show(catalogue, methods, hunts_each, seconds, None, 1, as_json)
        return
    if jobs_turns:
        _show_jobs(list(compare_jobs(jobs_turns, bugs)), as_json)
        return
    if scale:
        _show_rows(rows(["python"] if why_not_compiled() else ["python", "compiled"]), as_json)
        return
    inputs = [encode(scenario) for scenario in scenarios()]
    with tempfile.TemporaryDirectory(prefix="nvmx-bench-") as folder:
        seeds = Path(folder)
        for index, data in enumerate(inputs[:_SEEDS]):
            (seeds / f"{index:04}").write_bytes(data)
        uninstrumented(inputs)  # fills caches
        start_up()
        repetitions: list[Measurement] = []
        for number in range(repeat):
            click.echo(f"repetition {number + 1} of {repeat}", err=True)
            results: Measurement = {}
            for result in measure(runs, seeds, inputs):
                results |= result
            repetitions.append(with_ratios(results))
        resident = memory(memory_runs, seeds) if memory_runs else None
    _show(figures(repetitions), resident, as_json)


def _show(found: list[Figure], resident: dict[str, Any] | None, as_json: bool) -> None:
    if as_json:
        result = {"figures": [figure.to_json() for figure in found], "memory": resident}
        click.echo(json.dumps(result, indent=2))
        return
    from rich.console import Console  # noqa: PLC0415 - JSON needs no table
    from rich.table import Table  # noqa: PLC0415

    table = Table("figure", "unit", box=None, pad_edge=False)
    for heading in ("median", "min", "max", "spread"):
        table.add_column(heading, justify="right")
    for figure in found:
        low, high = min(figure.values), max(figure.values)
        numbers = [f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
                   for value in (figure.median, low, high)]  # fmt: skip
        table.add_row(figure.name, figure.unit, *numbers, f"{figure.spread:.0f} %")
    Console(width=110).print(table)
    if resident is not None:
        moments = ", ".join(f"{kib / 1024:.1f}" for kib in resident["resident_kib"])
        click.echo(
            f"\nresident memory over {resident['executions']:,} executions: {moments} MiB;"
            f" after the first fifth within {resident['growth_percent']:.1f} %"
        )


def _show_searches(found: list[Search], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([search._asdict() for search in found], indent=2))
        return
    width = max(len(search.feedback) for search in found)
    click.echo(
        f"{'L0':14} {'feedback':{width}}  found  median CPU s   worst  median executions    mean"
    )
    for search in found:
        click.echo(
            f"{search.goal:14} {search.feedback:{width}} {search.found:3}/{search.runs:<3}"
            f"{search.median_seconds:13.2f}{search.worst_seconds:8.2f}"
            f"{search.median_executions:19,.0f}{search.mean_executions:8,.0f}"
        )


def _show_jobs(found: list[JobsRow], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([row._asdict() for row in found], indent=2))
        return
    click.echo(f"{'':50}{'clock':>20}{'CPU of a job':>20}{'executions of a job':>22}")
    for row in found:
        clock, cpu, executions = (
            f"{value:,.2f} ({times:.2f} x)" if value else ""
            for value, times in zip(row.values, row.times, strict=True)
        )
        click.echo(f"{row.goal:25}{row.setting:25}{clock:>20}{cpu:>20}{executions:>22}")


def _show_rows(found: Iterable[Row], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([row._asdict() for row in found], indent=2))
        return
    for row in found:
        click.echo(f"{row.name} [{row.unit}]")
        for size, value, ratio in zip(row.sizes, row.values, row.ratios, strict=True):
            click.echo(f"  {size:9,}{value:12,.2f}{ratio:8.2f}")


if __name__ == "__main__":
    sys.exit(module_command.run(main, "scripts/bench"))
