"""Single mutations of a scenario: each changes one thing that a person could name.

A step more, a step less, another vector, an arrival one step earlier. Insertions look at where they are: what
L1 prepares goes right before an ``enter``, what L2 runs goes behind one. Records that a mutation writes are
canonical. None is called with an empty list but ``insert_first``.
"""

from collections.abc import Callable
from typing import Final

from nvmx_core.arch.instructions import INSTRUCTION_INDEX
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
from nvmx_fuzz.codec import RECORD_SIZE, encode_step
from nvmx_fuzz.generate import Draw, Swarm, grow_round, pick
from nvmx_fuzz.idioms import IDIOMS
from nvmx_fuzz.palette import (
    ALL,
    AROUND_ENTRY,
    ARRIVALS,
    AT_MOMENT,
    ENTER_RECORDS,
    INTERRUPT_VECTORS,
)

Records = list[bytes]
Mutation = Callable[[Records, Draw, Swarm], None]

_PLAIN_ENTER: Final = bytes((ENTER,)) + bytes(RECORD_SIZE - 1)
_VMCALL: Final = encode_step(canonical(RUN, INSTRUCTION_INDEX["vmcall"], 0, 0))
_OF_L2: Final = frozenset({ENTER, RUN})
"""What L1 prepares for an entry stands behind these."""
_WITH_VECTOR: Final = frozenset({INJECT, INTERRUPT, POST_INTERRUPT, VIRTUAL_INTERRUPT, L2_GATE})

LONG: Final = 24
"""From this many steps on, half of the mutations shorten."""


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


def _meet(steps: Records, draw: Draw, swarm: Swarm) -> None:
    """Something more at the moment of an arrival, or around an entry; what meets there has to be ranked."""
    place = draw() * len(steps) >> 8
    for index in (*range(place, len(steps)), *range(place)):
        step = steps[index]
        if step[0] == ENTER:
            meeting = AROUND_ENTRY
        elif step[0] in ARRIVALS:
            meeting = AT_MOMENT[step[1] % len(AT_MOMENT)]
        else:
            continue
        steps.insert(index, pick_evenly(meeting, draw))
        return
    _insert_prepare(steps, draw, swarm)


def pick_evenly(choices: tuple[tuple[bytes, ...], ...], draw: Draw) -> bytes:
    """A record of one of several operations, each as likely as the others."""
    records = choices[draw() * len(choices) >> 8]
    return records[draw() * len(records) >> 8]


def leave_before_entries(steps: Records) -> None:
    """Let L2 exit before everything that L1 prepares; while L2 runs, L1 does nothing."""
    index = len(steps) - 1
    while index > 0:
        if steps[index][0] == ENTER:
            while index and steps[index - 1][0] not in _OF_L2:
                index -= 1
            if index:
                steps.insert(index, _VMCALL)
        index -= 1


def _leave(steps: Records, _draw: Draw, _swarm: Swarm) -> None:
    leave_before_entries(steps)


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


def insert_first(steps: Records, draw: Draw, swarm: Swarm) -> None:
    """One round where nothing is."""
    steps += grow_round(draw, swarm)


_GROW: Final[tuple[Mutation, ...]] = (
    *(_insert_prepare,) * 9,
    *(_insert_during,) * 6,
    *(_insert_enter,) * 4,
    *(_insert_round,) * 3,
    *(_insert_idiom,) * 8,
    *(_meet,) * 8,
    *(_leave,) * 4,
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
SHRINK: Final[tuple[Mutation, ...]] = (
    *(_delete,) * 6,
    *(_delete_some,) * 2,
    _truncate,
)
ANY: Final = _GROW + _CHANGE + SHRINK
BURST: Final = (2, 2, 3, 3, 4, 4, 6, 8)
"""How many mutations at once. A single one hardly leaves what was seen already."""
