"""Writes `docs/POWER.md` and its plot from records of hunts: `python -m nvmx_fuzz.power RECORD…`.

A table of bugs and methods, a summary of each method, and a survival curve: how many (bug, run) pairs were
still not found after so many CPU seconds. A run that several records hold counts once, as the last of them
has it. Needs the extra "report" for the plot.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nvmx_core.bugs.catalogue import BUG_BY_NAME
from nvmx_fuzz import hunt
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.files import BadFile, write_whole

PAGE: Final = ROOT / "docs" / "POWER.md"
PLOT: Final = ROOT / "docs" / "power.svg"

MARK: Final = "<!-- from here on written by: python -m nvmx_fuzz.power RECORD -->"

_HARD_EXECUTIONS: Final = 10_000
"""A bug is hard when random scenarios need more executions than that in the median."""


def methods_of(runs: Sequence[hunt.Run]) -> list[str]:
    """The methods in the order of `hunt.METHODS`."""
    there = {run.method for run in runs}
    return [method for method in hunt.METHODS if method in there]


def table(runs: Sequence[hunt.Run]) -> list[str]:
    """One row a bug: for each method found runs, median and worst CPU seconds, median executions."""
    methods = methods_of(runs)
    results = {(result.bug, result.method): result for result in hunt.results(runs)}
    lines = [
        "| bug | rule | " + " | ".join(methods) + " |",
        "|---|---|" + "---|" * len(methods),
    ]
    for name in BUG_BY_NAME:
        cells = []
        for method in methods:
            result = results.get((name, method))
            if result is None:
                cells.append("-")
            elif not result.found:
                cells.append(f"0/{result.runs} in {result.worst_seconds:.0f} s")
            else:
                cells.append(
                    f"{result.found}/{result.runs}, {result.median_seconds:.2f}"
                    f" ({result.worst_seconds:.2f}) s, {result.median_executions:,.0f}"
                )
        lines.append(f"| {name} | {BUG_BY_NAME[name].rule} | " + " | ".join(cells) + " |")
    return lines


def summary(runs: Sequence[hunt.Run]) -> list[str]:
    """For each method what its runs found, and what it found and cost within the same CPU time for all."""
    budget = min(run.limit for run in runs)
    heads = (
        "method", "runs", "limit, s", "found in all runs", "in some", "in none", "median of bugs, s",
        "worst run, s", f"runs that found within {budget:g} s", "mean CPU time to there, s", "executions/s",
        "setting",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method in methods_of(runs):
        own = [run for run in runs if run.method == method]
        results = hunt.results(own)
        every = sum(result.found == result.runs for result in results)
        some = sum(0 < result.found < result.runs for result in results)
        in_time = sum(run.found and run.seconds <= budget for run in own)
        cells = [
            method,
            ", ".join(sorted({str(result.runs) for result in results})),
            ", ".join(sorted({f"{run.limit:g}" for run in own})),
            every,
            some,
            len(results) - every - some,
            f"{statistics.median(result.median_seconds for result in results):.2f}",
            f"{max(run.seconds for run in own):.1f}",
            f"{100 * in_time / len(own):.1f} %",
            f"{statistics.mean(min(run.seconds, budget) for run in own):.2f}",
            f"{sum(run.executions for run in own) / sum(run.seconds for run in own):,.0f}",
            ", ".join(sorted({run.setting for run in own})),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def harder_half(runs: Sequence[hunt.Run]) -> list[str]:
    """The bugs that random scenarios need many executions for: how many fewer the guided search needs."""
    results = {(result.bug, result.method): result for result in hunt.results(runs)}
    lines = ["| bug | random, executions | guided, executions | times |", "|---|---|---|---|"]
    ratios = []
    for name in BUG_BY_NAME:
        random, guided = results.get((name, "random")), results.get((name, hunt.GUIDED))
        if random is None or guided is None or random.median_executions <= _HARD_EXECUTIONS:
            continue
        ratio = random.median_executions / guided.median_executions
        ratios.append(ratio)
        at_least = ">= " if random.found * 2 < random.runs else ""
        lines.append(
            f"| {name} | {at_least}{random.median_executions:,.0f}"
            f" | {guided.median_executions:,.0f} | {at_least}{ratio:.1f} |"
        )
    if ratios:
        lines += ["", f"Median: {statistics.median(ratios):.1f} times fewer executions."]
    return lines


def plot(runs: Sequence[hunt.Run], path: Path) -> None:
    """The survival curve, one line a method."""
    import matplotlib as mpl  # noqa: PLC0415 - of the extra "report"

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = "nvmx-fuzz"
    figure, axes = plt.subplots(figsize=(7, 4))
    for method in methods_of(runs):
        own = [run for run in runs if run.method == method]
        times = sorted(max(run.seconds, 0.01) for run in own if run.found)
        left = [100 * (len(own) - number) / len(own) for number in range(len(times) + 1)]
        end = max(run.limit for run in own)
        axes.step([0.01, *times, end], [*left, left[-1]], where="post", label=method)
    axes.set_xscale("log")
    axes.set_xlabel("CPU seconds")
    axes.set_ylabel("not found yet, % of (bug, run)")
    axes.set_ylim(0, 100)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})


def main(*records: str) -> int:
    """Write the tables and the plot; the prose of the page stays."""
    try:
        runs = hunt.latest(run for record in records for run in hunt.read(Path(record)))
        if not runs:
            sys.stderr.write("power: no runs are recorded\n")
            return 2
        plot(runs, PLOT)
    except BadFile as error:
        sys.stderr.write(f"power: {error}\n")
        return 2
    except ModuleNotFoundError:
        sys.stderr.write("power: matplotlib is missing; try: pip install -e '.[report]'\n")
        return 2
    parts = ["## By method", "", *summary(runs), "", "![survival curve](power.svg)", ""]
    parts += ["## The harder bugs", "", *harder_half(runs), "", "## By bug", ""]
    parts += ["Found runs, median (worst) CPU seconds, median executions.", "", *table(runs)]
    prose = PAGE.read_text().partition(MARK)[0]
    write_whole(PAGE, f"{prose}{MARK}\n\n{chr(10).join(parts)}\n".encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
