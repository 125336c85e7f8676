"""A look at the inputs that a campaign kept: how long they are, and which take the longest to run.

Times are measured here, by running each input again on both machines without instrumentation; they are of
this machine and this moment.
"""

import heapq
import os
import time
from collections import Counter
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final

from nvmx_core.bugs.versions import l0_class
from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.judge import violations_of
from nvmx_fuzz.codec import decode
from nvmx_fuzz.files import is_kept, is_whole

SLOWEST: Final = 8
_CANDIDATES: Final = 3 * SLOWEST
_REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class KeptInput:
    """One file of the corpus; ``seconds`` is how long it takes to run and judge it."""

    path: Path
    steps: int
    seconds: float


class Survey:
    """Looks at each input once; a report that is made again and again runs only what is new.

    Attributes:
        left: how many inputs there was no time for.
    """

    def __init__(self) -> None:
        """Nothing looked at yet."""
        self._seen: Final[dict[tuple[str, Path], KeptInput]] = {}
        self._measured: Final[dict[KeptInput, KeptInput]] = {}
        self._now: list[KeptInput] = []
        self._l0: type[Kvm] = Kvm
        self.left = 0

    def look(self, l0_name: str, *folders: Path, seconds: float = inf) -> None:
        """Run what is new in *folders* with the L0 called *l0_name*, for *seconds* at most."""
        self._l0 = l0_class(l0_name)
        self._now = []
        self.left = 0
        until = time.monotonic() + seconds
        for folder in folders:
            for path in _files(folder):
                key = (l0_name, path)
                if key not in self._seen:
                    if time.monotonic() > until:
                        self.left += 1
                        continue
                    kept = self._run(path)
                    if kept is None:
                        continue
                    self._seen[key] = kept
                self._now.append(self._seen[key])

    @property
    def steps(self) -> dict[int, int]:
        """How many inputs have so many steps, in the order of steps."""
        counts = Counter(kept.steps for kept in self._now)
        return {steps: counts[steps] for steps in sorted(counts)}

    def slowest(self) -> list[KeptInput]:
        """The slowest ones, the slowest first; each the best of several runs, to tell them from noise."""
        candidates = heapq.nlargest(_CANDIDATES, self._now, key=lambda kept: kept.seconds)
        for kept in candidates:
            if kept not in self._measured:
                runs = [self._run(kept.path) for _ in range(_REPEATS)]
                times = [run.seconds for run in runs if run is not None]
                best = min((*times, kept.seconds))
                self._measured[kept] = KeptInput(kept.path, kept.steps, best)
        measured = [self._measured[kept] for kept in candidates]
        return heapq.nlargest(SLOWEST, measured, key=lambda kept: kept.seconds)

    def _run(self, path: Path) -> KeptInput | None:
        try:
            data = path.read_bytes()
        except OSError:
            return None  # a running campaign has replaced it
        if not is_whole(path.name, data):
            return None
        scenario = decode(data)
        started = time.perf_counter()
        try:
            violations_of(scenario, self._l0)
        except Exception:  # noqa: BLE001 - our own bug, which the report shows elsewhere
            return None
        return KeptInput(path, len(scenario.steps), time.perf_counter() - started)


def _files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if is_kept(entry))
    except OSError:
        return []
