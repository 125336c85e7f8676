"""Makes scenarios smaller on a machine where a run costs a boot: in rounds, many candidates at a time.

``minimise.py`` asks after each change. Here a **round** asks a whole generation at once: for each kind of
difference every single change of its smallest scenario so far, and, of the changes that succeeded in the
round before, all together, each half of them, and so on. The smallest candidate that shows the kind is what
the next round begins with; when no smaller candidate is left that was not asked, it is done. The best of a
kind only ever gets smaller, and the result is a function of the starts and of what the machine shows.

The same changes as in ``shrink.py`` and ``minimise.py`` are tried, and sizes are compared in the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Final, NamedTuple

from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAG_BIT
from nvmx_core.scenario.steps import ENTER, RUN, Scenario, Step, canonical
from nvmx_fuzz.codec import encode
from nvmx_fuzz.minimise import size_of
from nvmx_fuzz.outcomes import DIFFERENT, INCIDENT, Comparer, Kind, Outcome, Shown, key_of
from nvmx_fuzz.shrink import without_bits

PAIRS_UP_TO: Final = 8
"""Longer scenarios get shorter by runs of steps first; pairs would be too many for one boot."""
CANDIDATES_MAX: Final = 200
"""Of one kind in one round, the smallest first."""
_PLAIN_STEPS: Final[tuple[Step, ...]] = (canonical(ENTER, 0, 0, 0), canonical(RUN, 0, 0, 0))


class Change(NamedTuple):
    """A way to make a scenario smaller.

    Steps that go, steps that come instead (with their index), choices of the configuration that become 0,
    flags of it that become the default. ``is_joint``: it is several changes that succeeded alone.
    """

    without: frozenset[int] = frozenset()
    steps: tuple[tuple[int, Step], ...] = ()
    choices: frozenset[int] = frozenset()
    flags: int = 0
    is_joint: bool = False

    def applied(self, scenario: Scenario) -> Scenario:
        """The scenario with this change."""
        flags, *choices = scenario.config
        kept = [0 if index in self.choices else choice for index, choice in enumerate(choices)]
        replaced = dict(self.steps)
        steps = tuple(
            replaced.get(index, step)
            for index, step in enumerate(scenario.steps)
            if index not in self.without
        )
        return Scenario((flags ^ self.flags, kept[0], kept[1], kept[2]), steps)


def kind_of(machine: Comparer, content: bytes, outcome: Outcome) -> Kind | None:
    """The kind that a scenario shows; None where it shows no difference and no incident."""
    if outcome.verdict not in (DIFFERENT, INCIDENT):
        return None
    return Kind(machine.known(content, outcome), key_of(outcome))


class Rounds:
    """Minimises the scenarios of some kinds side by side."""

    def __init__(
        self,
        machine: Comparer,
        starts: dict[Kind, Shown],
        improved: Callable[[Kind, Shown], None] = lambda _kind, _shown: None,
    ) -> None:
        self._machine: Final = machine
        self._improved: Final = improved
        self._seen: dict[bytes, tuple[Kind | None, Outcome]] = {}
        self._good: dict[Kind, tuple[Scenario, list[Change]]] = {}
        self.best: Final[dict[Kind, Shown]] = dict(starts)
        self.rounds = 0

    @property
    def asked(self) -> int:
        """How many scenarios the machine was asked about."""
        return len(self._seen)

    def run(self, guesses: Sequence[Scenario] = ()) -> dict[Kind, Shown]:
        """The smallest scenario of each kind. *guesses* are asked first; any of them may be wrong.

        Raises: UnavailableError.
        """
        if guesses:
            self._ask({encode(guess): guess for guess in guesses})
        while True:
            wanted = {kind: self._candidates(kind) for kind in self.best}
            asked = {
                encode(one): one for candidates in wanted.values() for one in candidates.values()
            }
            if not asked:
                return self.best
            origins = {kind: shown.scenario for kind, shown in self.best.items()}
            self._ask(asked)
            for kind, candidates in wanted.items():
                good = [
                    change
                    for change, one in candidates.items()
                    if self._seen[encode(one)][0] == kind
                ]
                self._good[kind] = (
                    origins[kind],
                    [change for change in good if not change.is_joint],
                )

    def _candidates(self, kind: Kind) -> dict[Change, Scenario]:
        """What to ask of a kind next: smaller scenarios that were not asked yet, the smallest first."""
        scenario = self.best[kind].scenario
        size = size_of(scenario)
        origin, good = self._good.get(kind, (scenario, []))
        tried = [(change, change.applied(origin)) for change in _joined(good)]
        tried += [(change, change.applied(scenario)) for change in changes(scenario)]
        fresh: dict[bytes, tuple[Change, Scenario]] = {}
        for change, candidate in tried:
            content = encode(candidate)
            if content not in self._seen and size_of(candidate) < size:
                fresh.setdefault(content, (change, candidate))
        found = sorted(fresh.values(), key=lambda one: (not one[0].is_joint, size_of(one[1])))
        return dict(found[:CANDIDATES_MAX])

    def _ask(self, asked: dict[bytes, Scenario]) -> None:
        """Run a generation, and keep what is smaller than the best of its kind."""
        self.rounds += 1
        contents = [content for content in asked if content not in self._seen]
        smaller: dict[Kind, None] = {}
        for content, outcome in zip(contents, self._machine.compare(contents), strict=True):
            kind = kind_of(self._machine, content, outcome)
            self._seen[content] = (kind, outcome)
            if kind is None or kind not in self.best:
                continue
            if size_of(asked[content]) < size_of(self.best[kind].scenario):
                self.best[kind] = Shown(asked[content], outcome)
                smaller[kind] = None
        for kind in smaller:
            self._improved(kind, self.best[kind])


def changes(scenario: Scenario) -> Iterator[Change]:
    """Every single change that may make a scenario smaller: those of ``shrink`` and ``minimise``."""
    count = len(scenario.steps)
    length = max(count // 2, 1)
    while count:
        for end in range(count, 0, -length):
            yield Change(frozenset(range(max(end - length, 0), end)))
        if length == 1:
            break
        length //= 2
    if count <= PAIRS_UP_TO:
        for pair in combinations(range(count), 2):
            yield Change(frozenset(pair))
    flags, *choices = scenario.config
    for index, choice in enumerate(choices):
        if choice:
            yield Change(choices=frozenset((index,)))
    for bit in FLAG_BIT.values():
        if (flags ^ DEFAULT_FLAGS) & bit:
            yield Change(flags=bit)
    for index, step in enumerate(scenario.steps):
        for other in (*_plainer(step), *_PLAIN_STEPS):
            if other != step:
                yield Change(steps=((index, other),))


def _plainer(step: Step) -> Iterator[Step]:
    """The step with an operand of 0, and with each bit of one left out."""
    for place in range(1, len(step)):
        value = step[place]
        bits = [1 << number for number in range(value.bit_length()) if value >> number & 1]
        for mask in (value, *bits):
            other = without_bits(step, place, mask)
            if other < step:
                yield other


def _joined(good: Sequence[Change]) -> Iterator[Change]:
    """Changes that succeeded alone, all at once and in halves, quarters and so on."""
    length = len(good)
    while length > 1:
        for start in range(0, len(good), length):
            part = good[start : start + length]
            if len(part) > 1:
                yield _joint(part)
        length = (length + 1) // 2


def _joint(parts: Sequence[Change]) -> Change:
    """Some changes as one; of two that change one step the first counts."""
    replaced: dict[int, Step] = {}
    without: frozenset[int] = frozenset()
    choices: frozenset[int] = frozenset()
    flags = 0
    for part in parts:
        without |= part.without
        choices |= part.choices
        flags |= part.flags
        for index, step in part.steps:
            replaced.setdefault(index, step)
    return Change(without, tuple(sorted(replaced.items())), choices, flags, is_joint=True)
