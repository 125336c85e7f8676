"""A comparison over many scenarios: counted, one smallest scenario of each kind of difference."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any, Final, NamedTuple

from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.bochs.divergences import Divergence, known
from nvmx_fuzz.bochs.worker import DIFFERENT, INCIDENT, NOT_REALISABLE, SAME, Outcome, Worker
from nvmx_fuzz.codec import SIZE_MAX, decode, encode
from nvmx_fuzz.generate import random_bytes
from nvmx_fuzz.mutate import mutate
from nvmx_fuzz.shrink import shrink

BATCH: Final = 200
SHRINK_RUNS: Final = 300
KINDS_MAX: Final = 50
"""More kinds of unlisted difference than anybody reads in one report."""


class Finding(NamedTuple):
    """An unlisted difference, or an incident, with its smallest scenario."""

    key: str
    scenario: Scenario
    outcome: Outcome

    def to_json(self, machine: str) -> dict[str, Any]:
        """The finding for a program."""
        difference = self.outcome.difference
        return {
            "key": self.key,
            "reason": self.outcome.reason,
            "rules": list(difference.rules()) if difference else [],
            "records": difference.lines(machine) if difference else [],
            "scenario": format_scenario(self.scenario),
        }


class Comparison:
    """Counts, and what was found."""

    def __init__(self, worker: Worker) -> None:
        self._worker: Final = worker
        self.verdicts: Counter[str] = Counter()
        self.divergences: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.findings: dict[str, Finding] = {}

    @property
    def compared(self) -> int:
        """How many scenarios ran on both machines."""
        return self.verdicts[SAME] + self.verdicts[DIFFERENT]

    def add(self, scenarios: Sequence[bytes]) -> list[Outcome]:
        """Compare scenarios and count them."""
        outcomes = list(self._worker.compare(scenarios))
        for content, outcome in zip(scenarios, outcomes, strict=True):
            self.verdicts[outcome.verdict] += 1
            if outcome.verdict == NOT_REALISABLE:
                self.reasons[outcome.reason] += 1
            elif outcome.verdict in (DIFFERENT, INCIDENT):
                self._keep(content, outcome)
        return outcomes

    def _keep(self, content: bytes, outcome: Outcome) -> None:
        divergence = divergence_of(outcome)
        if divergence:
            self.divergences[divergence.name] += 1
            return
        key = key_of(outcome)
        if key in self.findings or len(self.findings) >= KINDS_MAX:
            return
        small = shrink(decode(content), lambda scenario: self._shows(scenario, key), SHRINK_RUNS)
        again = next(self._worker.compare([encode(small)]))
        self.findings[key] = Finding(key, small, again)

    def _shows(self, scenario: Scenario, key: str) -> bool:
        outcome = next(self._worker.compare([encode(scenario)]))
        return key_of(outcome) == key and not divergence_of(outcome)


def divergence_of(outcome: Outcome) -> Divergence | None:
    """The known divergence that a difference is an instance of."""
    return known(outcome.difference) if outcome.difference else None


def key_of(outcome: Outcome) -> str:
    """What names the kind of an outcome."""
    difference = outcome.difference
    return difference.key() if difference else outcome.reason


def live(seeds: Sequence[bytes], start: int) -> Iterator[bytes]:
    """Random scenarios of the generator and mutants of *seeds* in turn, without end; *start* decides all."""
    for number in count(start):
        if seeds and number % 2:
            yield mutate(seeds[number // 2 % len(seeds)], SIZE_MAX, number)
        else:
            yield random_bytes(number, 1 + number // 2 % 4)


def compare_for(
    comparison: Comparison, scenarios: Iterator[bytes], seconds: float, told: Callable[[], None]
) -> float:
    """Compare scenarios of an endless stream for a time; the seconds it took."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        comparison.add(list(islice(scenarios, BATCH)))
        told()
    return time.monotonic() - started
