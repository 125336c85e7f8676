"""One measurement under atheris, in a process of its own: libFuzzer has no second run.

`bench.py` starts it as `python -m nvmx_fuzz.bench_child KIND …` and reads one line of JSON from its
standard output:

    empty WARM_UP RUNS CORPUS                  a target that does nothing
    target WARM_UP RUNS CORPUS SETTING [OPTION…]   the real one, with mutator and counters
    find L0 SEED SECONDS SETTING [OPTION…]  until a rule is broken
    reach SEED SECONDS SETTING [OPTION…]    until `REACH_GOAL` situations were reached
    plain CORE                                 scenarios without atheris
    lengths CORE                               the same by scenario length

SETTING is one of `bench_settings.py`; OPTIONs go to libFuzzer. The first WARM_UP executions load seeds and
fill caches; of the others, a thousand inputs are in the result, so that the same can be run without atheris.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import atheris

from nvmx_fuzz import CODE_UNDER_TEST
from nvmx_fuzz.bench_settings import FEEDBACKS, Feedback
from nvmx_fuzz.cli_options import FIXED
from nvmx_fuzz.core_choice import choose
from nvmx_fuzz.feedback import ExtraCounters, Probes, instrument, setup
from nvmx_fuzz.json_line import SearchRun, finish

_MOMENTS: Final = 10
_SAMPLE: Final = 1000

REACH_GOAL: Final = 60
"""So many situations are what every campaign reaches within a minute; the rest is luck."""


def resident_kib() -> int:
    """The memory that this process has in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


class Meter:
    """Counts executions, and ends the process with rates when there were enough."""

    def __init__(self, warm_up: int, runs: int, one_input: Callable[[bytes], int]) -> None:
        """Measure *runs* executions of *one_input*, which returns the number of its steps."""
        self._warm_up: Final = warm_up
        self._runs: Final = runs
        self._one_input: Final = one_input
        self._moment: Final = max(runs // _MOMENTS, 1)
        self._every: Final = max(runs // _SAMPLE, 1)
        self._sample: Final[list[str]] = []
        self._executions = 0
        self._steps = 0
        self._steps_at_begin = 0
        self._started = 0.0
        self._resident: list[int] = []

    def test_one_input(self, data: bytes) -> None:
        """What libFuzzer calls."""
        self._steps += self._one_input(data)
        executions = self._executions = self._executions + 1
        measured = executions - self._warm_up
        if measured == 0:
            self._steps_at_begin = self._steps
            self._started = time.perf_counter()
        elif measured > 0:
            if measured % self._every == 0:
                self._sample.append(data.hex())
            if measured % self._moment == 0:
                self._resident.append(resident_kib())
        if measured == self._runs:
            seconds = time.perf_counter() - self._started
            finish(
                {
                    "executions_per_second": measured / seconds,
                    "steps_per_second": (self._steps - self._steps_at_begin) / seconds,
                    "resident_kib": self._resident,
                    "sample": self._sample,
                }
            )


def arguments(seed: str, *corpus: str) -> list[str]:
    """The arguments for libFuzzer; a fixed seed, so that repetitions do the same."""
    return [
        "nvmx-bench",
        f"-seed={seed}",
        "-reload=0",
        "-verbosity=0",
        "-print_final_stats=0",
        *corpus,
    ]


def empty_harness(warm_up: int, runs: int, corpus: str) -> None:
    """Measure atheris and libFuzzer alone."""
    meter = Meter(warm_up, runs, lambda _data: 0)
    setup(arguments("1", corpus), meter.test_one_input)
    atheris.Fuzz()


def target(warm_up: int, runs: int, corpus: str, setting: str, *options: str) -> None:
    """Measure the target with everything that a campaign has."""
    feedback = chosen(setting)
    with instrument(CODE_UNDER_TEST, feedback.mode) as probes:
        from nvmx_fuzz import codec, nested_events  # noqa: PLC0415

    states, recorder = state_counters(feedback)
    events = nested_events.NestedEvents(nested_events.FIXED, recorder)

    def one_input(data: bytes) -> int:
        scenario = codec.decode(data)
        events.run(scenario)
        return len(scenario.steps)

    meter = Meter(warm_up, runs, one_input)
    fuzz([*arguments("1", corpus), *options], meter.test_one_input, probes, states)


def find(l0_name: str, seed: str, seconds: float, setting: str, *options: str) -> None:
    """Measure how long it takes to violate a rule."""
    search(l0_name, seed, seconds, setting, options, lambda verdict: bool(verdict.violations))


def reach(seed: str, seconds: float, setting: str, *options: str) -> None:
    """Measure how long it takes to reach `REACH_GOAL` situations on `fixed`."""
    reached: set[int] = set()

    def is_far(verdict: Any) -> bool:
        counts = verdict.nested.vcpu.reach
        reached.update(place for place in range(len(counts)) if counts[place])
        return len(reached) >= REACH_GOAL

    search(FIXED, seed, seconds, setting, options, is_far)


def search(
    l0_name: str,
    seed: str,
    seconds: float,
    setting: str,
    options: tuple[str, ...],
    is_goal: Callable[[Any], bool],
) -> None:
    """Fuzz from an empty corpus that is kept in memory, until a verdict is the goal."""
    feedback = chosen(setting)
    with instrument(CODE_UNDER_TEST, feedback.mode) as probes:
        from nvmx_fuzz import codec, nested_events  # noqa: PLC0415

    states, recorder = state_counters(feedback)
    events = nested_events.NestedEvents(l0_name, recorder)
    run = SearchRun(seconds)

    def test_one_input(data: bytes) -> None:
        run.executed(is_goal(events.run(codec.decode(data))), lambda: data)

    fuzz([*arguments(seed), *options], test_one_input, probes, states, run.begin)


def chosen(setting: str) -> Feedback:
    """The feedback of *setting*, with the build of the model chosen that it names."""
    core, _, name = setting.partition(":")
    choose(core)
    return FEEDBACKS[name]


def state_counters(feedback: Feedback) -> tuple[ExtraCounters, Any]:
    """The counters of states, and what writes them."""
    from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback  # noqa: PLC0415

    states = ExtraCounters(COUNTERS)
    return states, StateFeedback(
        states.buffer, reach=feedback.reach, transitions=feedback.transitions
    )


def plain(core: str) -> None:
    """Measure the scenarios of `bench.py` on one build, without atheris."""
    choose(core)
    from nvmx_fuzz.bench_rates import rates, scenarios  # noqa: PLC0415 - after the choice
    from nvmx_fuzz.codec import encode  # noqa: PLC0415

    inputs = [encode(scenario) for scenario in scenarios()]
    rates(inputs)  # fills caches
    executions, steps = rates(inputs)
    finish({"executions_per_second": executions, "steps_per_second": steps})


def lengths(core: str) -> None:
    """Measure microseconds a step for scenarios of several lengths, on one build, without atheris."""
    choose(core)
    from nvmx_fuzz.bench_scale import cost_by_length  # noqa: PLC0415 - after the choice

    finish({"microseconds": cost_by_length()})


def fuzz(
    words: list[str],
    test_one_input: Callable[[bytes], None],
    probes: Probes,
    states: ExtraCounters,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Fuzz with the mutator of the target, once *begin* was called; does not return."""
    from nvmx_fuzz import mutate, nested_events  # noqa: PLC0415 - after `instrument`

    mutator = mutate.Mutator()
    setup(
        nested_events.with_defaults(words),
        test_one_input,
        probes=probes,
        counters=[states],
        custom_mutator=mutator.mutate,
        custom_crossover=mutator.crossover,
    )
    begin()
    atheris.Fuzz()


def main(kind: str, *words: str) -> int:
    """Measure; only a wrong KIND returns."""
    if kind == "find":
        l0_name, seed, seconds, *rest = words
        find(l0_name, seed, float(seconds), *rest)
    if kind == "reach":
        seed, seconds, *rest = words
        reach(seed, float(seconds), *rest)
    if kind == "plain":
        plain(*words)
    if kind == "lengths":
        lengths(*words)
    warm_up, runs, corpus, *setting = words
    if kind == "empty":
        empty_harness(int(warm_up), int(runs), corpus)
    elif kind == "target":
        target(int(warm_up), int(runs), corpus, *setting)
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
