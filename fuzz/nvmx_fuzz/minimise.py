"""Makes a scenario as small as a property allows: fewer steps, a plainer configuration, plainer operands.

``shrink.py`` is the quick part; this goes on until no single change helps any more: pairs of steps that
only go together, steps that a plainer one can stand for. Sizes are compared as (steps, choices of the
configuration, operand bits, bytes), and no change makes the size larger, so that the result is never worse
than what it began with. It is a function of the scenario and the property alone.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Final

from nvmx_core.scenario.config import DEFAULT_FLAGS
from nvmx_core.scenario.steps import ENTER, RUN, Scenario, Step, canonical
from nvmx_fuzz.codec import encode
from nvmx_fuzz.shrink import shrink

Size = tuple[int, int, int, bytes]

_ENDLESS: Final = 1 << 30
_PLAIN_STEPS: Final[tuple[Step, ...]] = (canonical(ENTER, 0, 0, 0), canonical(RUN, 0, 0, 0))
_PAIRS_UP_TO: Final = 40
"""Longer scenarios have too many pairs; they get shorter by single steps first."""


def size_of(scenario: Scenario) -> Size:
    """What makes one scenario smaller than another."""
    flags, *choices = scenario.config
    chosen = (flags ^ DEFAULT_FLAGS).bit_count() + sum(choice.bit_count() for choice in choices)
    bits = sum(value.bit_count() for step in scenario.steps for value in step[1:])
    return len(scenario.steps), chosen, bits, encode(scenario)


def minimise(
    scenario: Scenario,
    holds: Callable[[Scenario], bool],
    improved: Callable[[Scenario], None] = lambda _scenario: None,
) -> Scenario:
    """The smallest scenario that single changes lead to, with *holds* true all the way.

    *holds* must be true for *scenario*. *improved* is told of every scenario on the way that is smaller than
    all before; one of them is as good a place to go on from as the first.
    """
    best = scenario
    while True:
        before = size_of(best)
        smaller = shrink(best, holds, _ENDLESS)
        if size_of(smaller) < before:
            best = smaller
            improved(best)
        for candidate in _changes(best):
            if size_of(candidate) < size_of(best) and holds(candidate):
                best = candidate
                improved(best)
                break
        if size_of(best) == before:
            return best


def _changes(scenario: Scenario) -> Iterator[Scenario]:
    """What ``shrink`` does not try: two steps at once, and a plainer step in the place of one."""
    steps = scenario.steps
    if len(steps) <= _PAIRS_UP_TO:
        for left, right in combinations(range(len(steps)), 2):
            rest = steps[:left] + steps[left + 1 : right] + steps[right + 1 :]
            yield scenario._replace(steps=rest)
    for index, step in enumerate(steps):
        for plain in _PLAIN_STEPS:
            if step != plain:
                yield scenario._replace(steps=(*steps[:index], plain, *steps[index + 1 :]))
