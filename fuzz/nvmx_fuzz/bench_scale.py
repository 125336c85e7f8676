"""Measures what grows: cost a step by scenario length, rate by corpus size, rate by processes.

`scripts/bench --scale`. Each row is a ratio to its first column in the same run; 1.0 is what a linear cost,
a flat rate and two independent processes would show.
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.bench_rates import rates
from nvmx_fuzz.bench_settings import CHILD
from nvmx_fuzz.codec import encode
from nvmx_fuzz.generate import random_scenario
from nvmx_fuzz.json_line import in_child

LENGTHS: Final = (4, 8, 16, 32, 64, 128, 256)
CORPUS_SIZES: Final = (100, 1_000, 10_000, 100_000)
FEEDBACK: Final = "states"

_STEPS_EACH: Final = 20_000
_RUNS: Final = 10_000


class Row(NamedTuple):
    """One quantity at growing sizes."""

    name: str
    unit: str
    sizes: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Each value by the first."""
        return tuple(value / self.values[0] for value in self.values)


def scenarios_of(length: int) -> list[Scenario]:
    """Random scenarios of exactly *length* steps, one behind the other until long enough."""
    seeds = count()
    found = []
    for _ in range(_STEPS_EACH // length):
        scenario = random_scenario(next(seeds))
        steps = scenario.steps
        while len(steps) < length:
            steps += random_scenario(next(seeds)).steps
        found.append(scenario._replace(steps=steps[:length]))
    return found


def cost_by_length() -> dict[int, float]:
    """Microseconds a step, both machines and all oracles, by number of steps; the imported build."""
    costs = {}
    for length in LENGTHS:
        inputs = [encode(scenario) for scenario in scenarios_of(length)]
        rates(inputs)  # fills caches
        _, steps_per_second = rates(inputs)
        costs[length] = 1e6 / steps_per_second
    return costs


def lengths(core: str) -> Row:
    """Cost a step by scenario length; linear work shows the same everywhere."""
    costs = in_child(CHILD, "lengths", core)["microseconds"]
    return Row(f"{core}: a step, by steps of the scenario", "us", LENGTHS, tuple(costs.values()))


def corpus_growth(core: str) -> Row:
    """Executions a second while libFuzzer holds so many inputs: it is told to keep every seed."""
    return Row(
        f"{core}: rate, by inputs in the corpus",
        "executions/s",
        CORPUS_SIZES,
        tuple(_rate_with(core, size) for size in CORPUS_SIZES),
    )


def _rate_with(core: str, size: int) -> float:
    with tempfile.TemporaryDirectory(prefix="nvmx-bench-") as folder:
        for seed in range(size):
            (Path(folder) / f"{seed:06}").write_bytes(encode(random_scenario(seed)))
        words = ("target", str(size + _RUNS // 5), str(_RUNS), folder, f"{core}:{FEEDBACK}")
        rate: float = in_child(CHILD, *words, "-keep_seed=1")["executions_per_second"]
    return rate


def two_processes(core: str) -> Row:
    """Executions a second of one campaign process, and of two at the same time together."""
    return Row(
        f"{core}: rate, by processes",
        "executions/s",
        (1, 2),
        (_together(core, 1), _together(core, 2)),
    )


def _together(core: str, processes: int) -> float:
    def one(_number: int) -> float:
        with tempfile.TemporaryDirectory(prefix="nvmx-bench-") as folder:
            words = ("target", str(_RUNS // 5), str(2 * _RUNS), folder, f"{core}:{FEEDBACK}")
            return float(in_child(CHILD, *words)["executions_per_second"])

    with ThreadPoolExecutor(processes) as pool:
        return sum(pool.map(one, range(processes)))


def rows(cores: list[str]) -> Iterator[Row]:
    """All of it, for each of *cores*."""
    for core in cores:
        yield lengths(core)
        yield two_processes(core)
        yield corpus_growth(core)
