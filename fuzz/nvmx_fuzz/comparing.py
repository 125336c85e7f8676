"""A comparison over many scenarios: counted, one smallest scenario of each kind of difference."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count, islice
from statistics import median
from typing import Final, NamedTuple

from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.bochs.divergences import Divergence, known
from nvmx_fuzz.codec import SIZE_MAX, decode, encode
from nvmx_fuzz.generate import random_bytes
from nvmx_fuzz.minimise import size_of
from nvmx_fuzz.mutate import mutate
from nvmx_fuzz.outcomes import (
    DIFFERENT,
    INCIDENT,
    NOT_REALISABLE,
    SAME,
    Comparer,
    Kind,
    Outcome,
    Shown,
    key_of,
)
from nvmx_fuzz.shrink import shrink

KINDS_MAX: Final = 50
"""More kinds of unlisted difference than anybody reads in one report; the others are only counted."""
SHOWN_MAX: Final = 200
"""Kinds, listed ones too, of which a scenario is kept."""
SLICE_SECONDS: Final = 5.0
"""How long a rate is measured."""
SETTLED: Final = 10_000
"""Scenarios after which the worker's memory should not grow any more."""


class Finding(NamedTuple):
    """An unlisted difference, or an incident, with its smallest scenario."""

    key: str
    scenario: Scenario
    outcome: Outcome


class Comparison:
    """Counts, what was found, and how fast."""

    def __init__(self, worker: Comparer) -> None:
        self._worker: Final = worker
        self._digest: Final = hashlib.sha256()
        self.verdicts: Counter[str] = Counter()
        self.divergences: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.unlisted: Counter[str] = Counter()
        self.findings: dict[str, Finding] = {}
        self.shown: dict[Kind, Shown] = {}
        self.rates: list[float] = []
        self.memory: list[int] = []

    @property
    def compared(self) -> int:
        """How many scenarios ran on both machines."""
        return self.verdicts[SAME] + self.verdicts[DIFFERENT]

    @property
    def restarts(self) -> int:
        """How often the emulator's process ended and was replaced."""
        return self._worker.restarts

    @property
    def median_rate(self) -> float:
        """Scenarios compared in a second, the median over slices; 0.0 for a short comparison."""
        return median(self.rates) if self.rates else 0.0

    def digest(self) -> str:
        """What both machines showed, of all scenarios in order: equal for equal comparisons."""
        return self._digest.hexdigest()

    def add(self, scenarios: Sequence[bytes]) -> list[Outcome]:
        """Compare scenarios and count them."""
        outcomes = list(self._worker.compare(scenarios))
        for content, outcome in zip(scenarios, outcomes, strict=True):
            self._digest.update(f"{outcome}\n".encode())
            self.verdicts[outcome.verdict] += 1
            if outcome.verdict == NOT_REALISABLE:
                self.reasons[outcome.reason] += 1
            elif outcome.verdict in (DIFFERENT, INCIDENT):
                self._keep(content, outcome)
        return outcomes

    def add_live(self, scenarios: Iterator[bytes], seconds: float) -> float:
        """Compare the scenarios of a stream, at most for a time; the seconds it took.

        An interrupt of the keyboard ends it too.
        """
        started = slice_start = time.monotonic()
        compared = slice_compared = self.compared
        try:
            while time.monotonic() - started < seconds:
                batch = list(islice(scenarios, self._worker.batch_size))
                if not batch:
                    break
                self.add(batch)
                if self.compared - compared > SETTLED * (len(self.memory) + 1):
                    self.memory.append(self._worker.memory())
                now = time.monotonic()
                if now - slice_start >= SLICE_SECONDS:
                    self.rates.append((self.compared - slice_compared) / (now - slice_start))
                    slice_start, slice_compared = now, self.compared
        except KeyboardInterrupt:
            pass
        return time.monotonic() - started

    def _keep(self, content: bytes, outcome: Outcome) -> None:
        known = self._worker.known(content, outcome)
        key = key_of(outcome)
        self._remember(Kind(known, key), Shown(decode(content), outcome))
        if known:
            self.divergences[known] += 1
            return
        self.unlisted[key] += 1
        if key in self.findings or len(self.findings) >= KINDS_MAX:
            return
        scenario = decode(content)
        self.findings[key] = self._smallest(Finding(key, scenario, outcome))

    def _remember(self, kind: Kind, shown: Shown) -> None:
        """Keep the smallest scenario of a kind, listed or not, for who wants to make it smaller."""
        before = self.shown.get(kind)
        if before is None and len(self.shown) >= SHOWN_MAX:
            return
        if before is None or size_of(shown.scenario) < size_of(before.scenario):
            self.shown[kind] = shown

    def replace(self, smaller: dict[Kind, Shown]) -> None:
        """Show smaller scenarios of unlisted differences instead of those that were found."""
        for kind, shown in smaller.items():
            if not kind.known and kind.key in self.findings:
                self.findings[kind.key] = Finding(kind.key, shown.scenario, shown.outcome)

    def _smallest(self, finding: Finding) -> Finding:
        runs, key = self._worker.shrink_runs, finding.key
        if not runs:
            return finding
        small = shrink(finding.scenario, lambda candidate: self._shows(candidate, key), runs)
        again = next(self._worker.compare([encode(small)]))
        # An incident need not happen again.
        return Finding(key, small, again) if key_of(again) == key else finding

    def _shows(self, scenario: Scenario, key: str) -> bool:
        content = encode(scenario)
        outcome = next(self._worker.compare([content]))
        return key_of(outcome) == key and not self._worker.known(content, outcome)


def divergence_of(outcome: Outcome) -> Divergence | None:
    """The known divergence that a difference is an instance of."""
    return known(outcome.difference) if outcome.difference else None


def live(seeds: Sequence[bytes], start: int) -> Iterator[bytes]:
    """Random scenarios of the generator and mutants of *seeds* in turn, without end; *start* decides all."""
    for number in count(start):
        if seeds and number % 2:
            yield mutate(seeds[number // 2 % len(seeds)], SIZE_MAX, number)
        else:
            yield random_bytes(number, 1 + number // 2 % 4)
