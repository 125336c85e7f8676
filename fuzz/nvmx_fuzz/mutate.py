"""Mutation and crossover that know what a scenario is, for libFuzzer through atheris.

``mutate`` cuts the bytes into records, lets one to four small mutations work on the list, and joins
it again. Each mutation changes one thing that a person could name: a step more, a step less,
another vector, an arrival one step earlier. Insertions look at where they are: what L1 prepares
goes right before an ``enter``, what L2 runs goes behind one.

Records that a mutation writes are canonical, so a corpus that starts empty holds no two spellings
of one scenario. Everything follows from the arguments of ``mutate`` and ``crossover``; there is no state.

A campaign calls them through a ``Mutator``, which opens with scenarios of the generator: what is easy to find
is found by looking everywhere first, not by looking closely at the first input.

libFuzzer starts an empty corpus with a size limit of 4 bytes and raises it slowly. That suits
parsers; a scenario needs 16 bytes for its first step. Targets pass ``-len_control=0`` and
``-max_len``.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final

from nvmx_core.scenario.steps import (
    ENTER,
    INJECT,
    INTERRUPT,
    L2_GATE,
    OPERATIONS,
    POST_INTERRUPT,
    RUN,
    VIRTUAL_INTERRUPT,
    canonical,
)
from nvmx_core.scenario.text import STEPS_MAX
from nvmx_fuzz.codec import (
    HEADER_SIZE,
    RECORD_SIZE,
    SIZE_MAX,
    VERSION,
    encode_step,
)
from nvmx_fuzz.generate import (
    DEFAULT_HEADER,
    Draw,
    Swarm,
    generate,
    grow_round,
    noise,
    pick,
    random_bytes,
    swarm_of,
    vary_header,
)
from nvmx_fuzz.idioms import IDIOMS
from nvmx_fuzz.palette import ALL, ENTER_RECORDS, INTERRUPT_VECTORS

Records = list[bytes]
Mutation = Callable[[Records, Draw, Swarm], None]

_SPLIT: Final = tuple(
    Struct(f"{RECORD_SIZE}s" * count).unpack_from for count in range(STEPS_MAX + 1)
)
_PLAIN_ENTER: Final = bytes((ENTER,)) + bytes(RECORD_SIZE - 1)
_WITH_VECTOR: Final = frozenset({INJECT, INTERRUPT, POST_INTERRUPT, VIRTUAL_INTERRUPT, L2_GATE})
_LONG: Final = 24
"""From this many steps on, half of the mutations shorten."""


# -- single mutations; none of them is called with an empty list -----------------------------------


def _insert_round(steps: Records, draw: Draw, swarm: Swarm) -> None:
    place = draw() * (len(steps) + 1) >> 8
    steps[place:place] = grow_round(draw, swarm)


def _insert_enter(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    place = draw() * (len(steps) + 1) >> 8
    steps.insert(place, ENTER_RECORDS[draw() * len(ENTER_RECORDS) >> 8])


def _insert_prepare(steps: Records, draw: Draw, swarm: Swarm) -> None:
    """Before the next entry; when none follows, at the end and with an entry."""
    place = draw() * len(steps) >> 8
    record = pick(swarm.prepare, draw)
    for index in range(place, len(steps)):
        if steps[index][0] == ENTER:
            steps.insert(index, record)
            return
    steps += (record, _PLAIN_ENTER)


def _insert_during(steps: Records, draw: Draw, swarm: Swarm) -> None:
    """Behind the next entry, or at the end."""
    place = draw() * len(steps) >> 8
    record = pick(swarm.during, draw)
    for index in range(place, len(steps)):
        if steps[index][0] == ENTER:
            steps.insert(index + 1, record)
            return
    steps.append(record)


def _insert_idiom(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    """Steps that belong together, in a row."""
    place = draw() * (len(steps) + 1) >> 8
    steps[place:place] = IDIOMS[draw() * len(IDIOMS) >> 8]


def _delete(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    del steps[draw() * len(steps) >> 8]


def _delete_some(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    place = draw() * len(steps) >> 8
    del steps[place : place + 2 + (draw() & 3)]


def _truncate(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    del steps[1 + (draw() * len(steps) >> 8) :]


def _duplicate(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    """Repeat one to four steps, at once or at the end."""
    place = draw() * len(steps) >> 8
    choice = draw()
    piece = steps[place : place + 1 + (choice & 3)]
    target = place if choice & 4 else len(steps)
    steps[target:target] = piece


def _swap(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    """Exchange a step with one of its four neighbours; order is what most bugs are about."""
    left = draw() * len(steps) >> 8
    right = (left + 1 + (draw() & 1)) % len(steps)
    steps[left], steps[right] = steps[right], steps[left]


def _move(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    record = steps.pop(draw() * len(steps) >> 8)
    steps.insert(draw() * (len(steps) + 1) >> 8, record)


def _replace(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    """Another typical step of the same operation."""
    place = draw() * len(steps) >> 8
    records = ALL[steps[place][0] % len(OPERATIONS)]
    steps[place] = records[draw() * len(records) >> 8]


def _change_operand(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    """One operand place from another typical step of the same operation."""
    place = draw() * len(steps) >> 8
    old = steps[place]
    records = ALL[old[0] % len(OPERATIONS)]
    new = records[draw() * len(records) >> 8]
    which = draw() % 3
    if which == 0:
        mixed = old[:1] + new[1:2] + old[2:]
    elif which == 1:
        mixed = old[:2] + new[2:4] + old[4:]
    else:
        mixed = old[:4] + new[4:]
    # Only an instruction decides by one operand whether another one counts.
    steps[place] = _in_range(int.from_bytes(mixed, "little")) if old[0] == RUN else mixed


def _flip_bit(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    """One bit of one operand: this is how values outside the palette come in."""
    place = draw() * len(steps) >> 8
    steps[place] = _in_range(int.from_bytes(steps[place], "little") ^ 256 << draw() % 56)


def _in_range(record: int) -> bytes:
    """The canonical form of a record given as a little-endian number."""
    return encode_step(
        canonical(record & 0xFF, record >> 8 & 0xFF, record >> 16 & 0xFFFF, record >> 32)
    )


def _borrow_vector(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    """Give a step the vector of another one, or its neighbour in priority or class."""
    place = draw() * len(steps) >> 8
    target = -1
    vector = INTERRUPT_VECTORS[draw() * len(INTERRUPT_VECTORS) >> 8]
    for index in (*range(place, len(steps)), *range(place)):
        if steps[index][0] in _WITH_VECTOR:
            if target >= 0:
                vector = steps[index][2]
                break
            target = index
    if target >= 0:
        old = steps[target]
        vector = (vector + (0, 0, 0, 1, 255, 16, 240, 0)[draw() & 7]) & 0xFF
        steps[target] = old[:2] + bytes((vector,)) + old[3:]


def _run_more(steps: Records, draw: Draw, _swarm: Swarm) -> None:
    """One to four instructions in a row behind a step; L2 hardly ever runs just one."""
    place = 1 + (draw() * len(steps) >> 8)
    records = ALL[RUN]
    count = 1 + (draw() & 3)
    steps[place:place] = [records[draw() * len(records) >> 8] for _ in range(count)]


_GROW: Final[tuple[Mutation, ...]] = (
    *(_insert_prepare,) * 9,
    *(_insert_during,) * 6,
    *(_insert_enter,) * 4,
    *(_insert_round,) * 3,
    *(_insert_idiom,) * 8,
    *(_run_more,) * 2,
    *(_duplicate,) * 3,
)
_CHANGE: Final[tuple[Mutation, ...]] = (
    *(_change_operand,) * 8,
    *(_replace,) * 6,
    *(_borrow_vector,) * 4,
    *(_flip_bit,) * 2,
    *(_swap,) * 4,
    *(_move,) * 3,
)
_SHRINK: Final[tuple[Mutation, ...]] = (
    *(_delete,) * 6,
    *(_delete_some,) * 2,
    _truncate,
)
_ANY: Final = _GROW + _CHANGE + _SHRINK
_BURST: Final = (1, 1, 1, 1, 2, 2, 3, 4)


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
    count = min(len(data), SIZE_MAX) - HEADER_SIZE >> 3
    first = draw()
    if count <= 0 or first < 4:
        return generate(draw, swarm, 1 + (first & 3), size_max)[:size_max]
    header = _header(data)
    if first < 24:
        header = vary_header(header, draw)
    steps = list(_SPLIT[count](data, HEADER_SIZE))
    if first >= 16:
        for _ in range(_BURST[first & 7]):
            choices = _SHRINK if len(steps) >= _LONG and draw() & 1 else _ANY
            if not steps:
                choices = (_insert_first,)
            choices[draw() * len(choices) >> 8](steps, draw, swarm)
    return _join(header, steps, size_max)


def crossover(left: bytes, right: bytes, size_max: int, seed: int) -> bytes:
    """A child of two scenarios, in at most *size_max* bytes.

    It is the head of one and the tail of the other, or one with a piece of the other inside.
    """
    draw = noise(seed)
    if draw() & 1:
        left, right = right, left
    left_count = max(min(len(left), SIZE_MAX) - HEADER_SIZE >> 3, 0)
    right_count = max(min(len(right), SIZE_MAX) - HEADER_SIZE >> 3, 0)
    header = _header(left if left_count else right)
    steps = list(_SPLIT[left_count](left, HEADER_SIZE)) if left_count else []
    donor = _SPLIT[right_count](right, HEADER_SIZE) if right_count else ()
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
        return random_bytes(seed, _OPENING_ROUNDS)[:size_max]


def _insert_first(steps: Records, draw: Draw, swarm: Swarm) -> None:
    steps += grow_round(draw, swarm)


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
