"""Mutation and crossover that know what a scenario is, for libFuzzer through atheris.

``mutate`` cuts the bytes into records, lets two to eight small mutations work on the list, and joins
it again. What one mutation does stands in ``mutations.py``.

Records that a mutation writes are canonical, so a corpus that starts empty holds no two spellings
of one scenario. Everything follows from the arguments of ``mutate`` and ``crossover``; there is no state.

A campaign calls them through a ``Mutator``, which opens with scenarios of the generator, with an exit before
everything that L1 prepares: what is easy to find is found by looking everywhere first, not by looking closely
at the first input.

libFuzzer starts an empty corpus with a size limit of 4 bytes and raises it slowly. That suits
parsers; a scenario needs 16 bytes for its first step. Targets pass ``-len_control=0`` and
``-max_len``.
"""

from struct import Struct
from typing import Final

from nvmx_core.scenario.text import STEPS_MAX
from nvmx_fuzz.codec import HEADER_SIZE, RECORD_SIZE, SIZE_MAX, VERSION
from nvmx_fuzz.generate import (
    DEFAULT_HEADER,
    generate,
    noise,
    random_bytes,
    shake_header,
    swarm_of,
    vary_header,
)
from nvmx_fuzz.mutations import (
    ANY,
    BURST,
    LONG,
    SHRINK,
    Records,
    insert_first,
    leave_before_entries,
)

_SPLIT: Final = tuple(
    Struct(f"{RECORD_SIZE}s" * count).unpack_from for count in range(STEPS_MAX + 1)
)


OPENING: Final = 512
"""How many mutations of a campaign are new scenarios; so many run in about 30 ms."""
_OPENING_ROUNDS: Final = 4

# -- what libFuzzer calls --------------------------------------------------------------------------


def mutate(data: bytes, size_max: int, seed: int) -> bytes:
    """A neighbour of the scenario in *data*, in at most *size_max* bytes.

    *seed* is any integer that is not negative; the same arguments give the same bytes. From input
    without steps, such as the empty input that libFuzzer starts with, a scenario of one to four
    rounds grows.
    """
    draw = noise(seed)
    swarm = swarm_of(draw)
    first = draw()
    if len(data) < HEADER_SIZE + RECORD_SIZE or first < 4:
        return generate(draw, swarm, 1 + (first & 3), size_max)[:size_max]
    header = _header(data)
    if first < 24:
        header = (shake_header if draw() & 1 else vary_header)(header, draw)
    steps = _records(data)
    if first >= 16:
        for _ in range(BURST[first & 7]):
            choices = SHRINK if len(steps) >= LONG and draw() & 1 else ANY
            if not steps:
                choices = (insert_first,)
            choices[draw() * len(choices) >> 8](steps, draw, swarm)
    return _join(header, steps, size_max)


def crossover(left: bytes, right: bytes, size_max: int, seed: int) -> bytes:
    """A child of two scenarios, in at most *size_max* bytes.

    It is the head of one and the tail of the other, or one with a piece of the other inside.
    """
    draw = noise(seed)
    if draw() & 1:
        left, right = right, left
    steps = _records(left)
    donor = _records(right)
    header = _header(left if steps else right)
    place = draw() * (len(steps) + 1) >> 8
    start = draw() * (len(donor) + 1) >> 8
    choice = draw()
    if choice < 96:
        steps[place:] = donor[start:]
    else:
        piece = donor[start : start + 1 + (choice & 7)]
        stop = place + len(piece) if choice & 8 else place
        steps[place:stop] = piece
    return _join(header, steps, size_max)


class Mutator:
    """`mutate` and `crossover` behind an opening of scenarios that the generator draws."""

    __slots__ = ("_opening",)

    def __init__(self, opening: int = OPENING) -> None:
        """Begin with *opening* new scenarios."""
        self._opening = opening

    def mutate(self, data: bytes, size_max: int, seed: int) -> bytes:
        """What libFuzzer calls to change an input."""
        if self._opening > 0:
            return self._open(size_max, seed)
        return mutate(data, size_max, seed)

    def crossover(self, left: bytes, right: bytes, size_max: int, seed: int) -> bytes:
        """What libFuzzer calls to cross two inputs."""
        if self._opening > 0:
            return self._open(size_max, seed)
        return crossover(left, right, size_max, seed)

    def _open(self, size_max: int, seed: int) -> bytes:
        self._opening -= 1
        data = random_bytes(seed, _OPENING_ROUNDS)
        steps = _records(data)
        leave_before_entries(steps)
        return _join(data[:HEADER_SIZE], steps, size_max)


def _records(data: bytes) -> Records:
    """The whole records of *data* that count."""
    count = min(len(data), SIZE_MAX) - HEADER_SIZE >> 3
    return list(_SPLIT[count](data, HEADER_SIZE)) if count > 0 else []


def _header(data: bytes) -> bytes:
    """The header of *data*, whole, and of this version."""
    if len(data) < HEADER_SIZE:
        return DEFAULT_HEADER
    if data[0] != VERSION:
        return DEFAULT_HEADER[:1] + data[1:HEADER_SIZE]
    return data[:HEADER_SIZE]


def _join(header: bytes, steps: Records, size_max: int) -> bytes:
    limit = min(size_max, SIZE_MAX) - HEADER_SIZE >> 3
    if len(steps) > limit:
        if limit <= 0:
            return header[:size_max]
        del steps[limit:]
    return header + b"".join(steps)
