"""What a scenario shows of L0 that others may not: situations, transitions and edges.

Situations are those of `nvmx_core/l0/reach.py`, transitions those of `state_feedback.py`, both of a run on
`fixed`. An edge is a pair of lines of `nvmx_core/l0` that ran one after the other; it can be traced in the
Python build of the model only, and the compiled one has none. All is a function of scenario and sources.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple
from zlib import crc32

import nvmx_core.l0.kvm
from nvmx_core.l0.reach import REACH_COUNT, REACH_NAMES
from nvmx_core.oracle.judge import Verdict, run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.codec import encode
from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback

Feature = tuple[str, int, int]
"""A kind of KINDS, and two numbers that tell features of a kind apart."""

REACH: Final = "reach"
TRANSITION: Final = "transitions"
EDGE: Final = "edges"
KINDS: Final = (EDGE, TRANSITION, REACH)

_L0_FOLDER: Final = str(Path(nvmx_core.l0.kvm.__file__).parent)
HAS_EDGES: Final = nvmx_core.l0.kvm.__file__.endswith(".py")


class Measured(NamedTuple):
    """A scenario with its name, its canonical bytes and its features."""

    name: str
    data: bytes
    features: frozenset[Feature]


class FeatureMeter:
    """Measures scenarios."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._buffer: Final = bytearray(COUNTERS)
        self._states: Final = StateFeedback(self._buffer)
        self._places: Final[dict[CodeType, int]] = {}

    def measure(self, name: str, scenario: Scenario) -> Measured:
        """Run *scenario* on `fixed` and collect its features."""
        edges: set[Feature] = set()
        verdict = self._traced(edges, scenario) if HAS_EDGES else _run(scenario)
        vcpu = verdict.nested.vcpu
        self._buffer[:] = bytes(COUNTERS)
        self._states.record(vcpu.reach, vcpu.log)
        edges.update(
            (REACH, place, 0) if place < REACH_COUNT else (TRANSITION, place - REACH_COUNT, 0)
            for place, count in enumerate(self._buffer)
            if count
        )
        return Measured(name, encode(scenario), frozenset(edges))

    def _traced(self, edges: set[Feature], scenario: Scenario) -> Verdict:
        places = self._places

        def enter(frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
            code = frame.f_code
            if not code.co_filename.startswith(_L0_FOLDER):
                return None
            place = places.get(code)
            if place is None:
                place = places[code] = _place(code)
            before = 0

            def line(frame: FrameType, event: str, _argument: object) -> Callable[..., Any]:
                nonlocal before
                if event == "line":
                    edges.add((EDGE, place | before, frame.f_lineno))
                    before = frame.f_lineno
                return line

            return line

        outer = sys.gettrace()
        sys.settrace(enter)
        try:
            return _run(scenario)
        finally:
            sys.settrace(outer)


def _place(code: CodeType) -> int:
    """A number for a function, the same in every process; its lines fit below it."""
    where = f"{Path(code.co_filename).name}:{code.co_firstlineno}:{code.co_name}"
    return crc32(where.encode()) << 16


def _run(scenario: Scenario) -> Verdict:
    return run_and_judge(scenario, config_for(scenario.config))


def counts(features: Iterable[Feature]) -> dict[str, int]:
    """How many features there are of each kind."""
    found = dict.fromkeys(KINDS, 0)
    for kind, _, _ in features:
        found[kind] += 1
    return found


def reached(features: Iterable[Feature]) -> list[str]:
    """The names of the situations among *features*."""
    return [REACH_NAMES[place] for kind, place, _ in sorted(features) if kind == REACH]


def union(measured: Iterable[Measured]) -> set[Feature]:
    """All features of several scenarios."""
    found: set[Feature] = set()
    for one in measured:
        found |= one.features
    return found


def additions(measured: Sequence[Measured], known: set[Feature]) -> list[Measured]:
    """Those that add a feature to *known* and to those before them, the smallest first."""
    seen = set(known)
    kept = []
    for one in sorted(measured, key=_size):
        if not one.features <= seen:
            seen |= one.features
            kept.append(one)
    return kept


def cover(measured: Sequence[Measured]) -> list[Measured]:
    """Few scenarios that have all features together: greedy, by features still missing, then by size."""
    missing = union(measured)
    left = sorted(measured, key=_size)
    kept = []
    while missing:
        best = max(left, key=lambda one: len(one.features & missing))
        left.remove(best)
        missing -= best.features
        kept.append(best)
    return sorted(kept, key=_size)


def _size(one: Measured) -> tuple[int, bytes]:
    return len(one.data), one.data
