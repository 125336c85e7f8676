"""Random scenarios that make sense: rounds of preparing, entering and running L2.

A scenario drawn step by step at random hardly ever enters L2 with an event in its hands. So
scenarios grow in rounds, as L1 lives: some steps of the phase PREPARE, then ``enter``, then some of
DURING (see ``palette.py``). A quarter of all steps are ``enter``.

Swarm testing: a *swarm* switches a third of the operations off and gives the others very unequal
weights. A scenario with five INITs and no interrupt is drawn often by some swarm, and never by an
even hand.

Randomness is a stream of bytes (``noise``) that a seed picks out of a fixed table: making a
generator of the standard library costs more than a whole mutation may.
"""

from collections.abc import Callable
from functools import cache
from hashlib import shake_128
from itertools import cycle
from typing import Final, NamedTuple

from nvmx_core.scenario.config import FLAG_BIT, FLAGS_MASK
from nvmx_core.scenario.steps import (
    CANCEL_ENTRY,
    CONTROL,
    DROP_PAGE,
    EPT_PAGE,
    HOST_INTERRUPT,
    INJECT,
    INTERCEPT,
    INTERRUPT,
    L2_GATE,
    L2_PAGE,
    NMI,
    RSM,
    RUN,
    SAVE_RESTORE,
    SIPI,
    SMI,
    TIMER,
    VMWRITE,
    Scenario,
)
from nvmx_fuzz.codec import HEADER_SIZE, RECORD_SIZE, SIZE_MAX, VERSION, decode
from nvmx_fuzz.palette import DURING, ENTER_RECORDS, PREPARE, Palette

Draw = Callable[[], int]
"""Returns the next random byte, 0 to 255."""

DEFAULT_HEADER: Final = bytes((VERSION,)) + bytes(HEADER_SIZE - 1)

_NOISE_BITS: Final = 16
_NOISE_LENGTH_MAX: Final = 256
_NOISE: Final = shake_128(b"nvmx-fuzz").digest((1 << _NOISE_BITS) + _NOISE_LENGTH_MAX)
_GOLDEN: Final = 0x9E3779B97F4A7C15
_NOISE_MASK: Final = (1 << _NOISE_BITS) - 1

SWARMS: Final = 256
_BAG_SIZE: Final = 256

_PREPARE_WEIGHT: Final = {
    INJECT: 24, DROP_PAGE: 12, INTERRUPT: 12, EPT_PAGE: 12, L2_PAGE: 8, INTERCEPT: 6, CONTROL: 6,
    VMWRITE: 5, NMI: 5, L2_GATE: 3, SAVE_RESTORE: 3, CANCEL_ENTRY: 3, SMI: 2, TIMER: 2,
}  # fmt: skip
_DURING_WEIGHT: Final = {
    RUN: 48, INTERRUPT: 8, NMI: 5, TIMER: 4, RSM: 2, SMI: 2, SIPI: 2, DROP_PAGE: 6, L2_PAGE: 4,
    HOST_INTERRUPT: 2, SAVE_RESTORE: 3,
}  # fmt: skip

# How many steps of a phase a round has.
_PREPARE_COUNT: Final = (0, 1, 1, 2, 2, 2, 3, 3)
_DURING_COUNT: Final = (0, 0, 1, 1, 1, 2, 2, 3)


class Swarm(NamedTuple):
    """For each phase a bag of palettes of single operations; drawing from it is one index."""

    prepare: tuple[tuple[bytes, ...], ...]
    during: tuple[tuple[bytes, ...], ...]


def noise(seed: int, length: int = 64) -> Draw:
    """A stream of random bytes for a seed of any size; it repeats after *length*, at most 256.

    Two pieces of the table, at places that the seed decides, are added without carry: 2^32 streams.
    """
    mixed = (seed * _GOLDEN ^ seed >> 32) & 0xFFFFFFFFFFFFFFFF
    left = mixed >> 48
    right = mixed >> 32 & _NOISE_MASK
    bits = int.from_bytes(_NOISE[left : left + length], "little") ^ int.from_bytes(
        _NOISE[right : right + length], "little"
    )
    return cycle(bits.to_bytes(length, "little")).__next__


@cache
def swarm(index: int) -> Swarm:
    """One of SWARMS swarms; number 0 is the even hand, with every operation at its usual weight."""
    draw = noise(index * 0x10001 + 1, _NOISE_LENGTH_MAX)
    return Swarm(
        _bag(PREPARE, _PREPARE_WEIGHT, draw, even=index == 0),
        _bag(DURING, _DURING_WEIGHT, draw, even=index == 0),
    )


def swarm_of(draw: Draw) -> Swarm:
    """The even hand one time in four, else one of the others."""
    index = draw()
    return swarm(0 if index & 3 == 0 else index)


def _bag(
    palette: Palette, usual: dict[int, int], draw: Draw, *, even: bool
) -> tuple[tuple[bytes, ...], ...]:
    weights: list[int] = []
    for op in palette:
        factor = 4 if even else 0 if draw() < 85 else 1 << (draw() & 3)
        weights.append(usual.get(op, 1) * factor)
    if not any(weights):
        weights[0] = 1
    total = sum(weights)
    bag: list[tuple[bytes, ...]] = []
    reached = 0
    for records, weight in zip(palette.values(), weights, strict=True):
        reached += weight
        while len(bag) * total < reached * _BAG_SIZE:
            bag.append(records)
    return tuple(bag)


def pick(bag: tuple[tuple[bytes, ...], ...], draw: Draw) -> bytes:
    """A record from a bag."""
    records = bag[draw()]
    return records[draw() * len(records) >> 8]


def grow_round(draw: Draw, members: Swarm) -> list[bytes]:
    """One round: what L1 prepares, its entry, what happens then; 1 to 7 records."""
    sizes = draw()
    prepare = members.prepare
    steps = [pick(prepare, draw) for _ in range(_PREPARE_COUNT[sizes & 7])]
    steps.append(ENTER_RECORDS[draw() * len(ENTER_RECORDS) >> 8])
    during = members.during
    steps += [pick(during, draw) for _ in range(_DURING_COUNT[sizes >> 3 & 7])]
    return steps


# Features that do something only together.
_FEATURE_SETS: Final = (
    ("tpr-shadow", "virtual-interrupt-delivery"),
    (
        "tpr-shadow",
        "virtual-interrupt-delivery",
        "acknowledge-interrupt-on-exit",
        "posted-interrupts",
    ),
    ("preemption-timer", "save-preemption-timer"),
    ("nmi-exiting", "virtual-nmis"),
    ("l0-ept", "in-kernel-apic"),
)
_FAVOURITE_FLAGS: Final = (
    "l0-ept",
    "l1-ept",
    "acknowledge-interrupt-on-exit",
    "in-kernel-apic",
    "preemption-timer",
)
_CHOSEN_EXCEPTION_BITS: Final = tuple(1 << bit for bit in (*range(40, 56), *range(40, 44)))
_PF_FILTER_BITS: Final = (1 << 56, 1 << 57)

_FLAG_COUNT: Final = len(FLAG_BIT)
_FEATURE_BITS: Final = tuple(sum(FLAG_BIT[name] for name in names) for names in _FEATURE_SETS)

_HEADER_FLIPS: Final[tuple[int, ...]] = (
    *(bit << 8 for bit in FLAG_BIT.values()),
    *(FLAG_BIT[name] << 8 for name in _FAVOURITE_FLAGS * 2),
    *(sum(FLAG_BIT[name] for name in names) << 8 for names in _FEATURE_SETS * 2),
    *_CHOSEN_EXCEPTION_BITS,
    *_PF_FILTER_BITS,
)
"""What one change of configuration may flip: bits of the header, read as a little-endian integer."""


def vary_header(header: bytes, draw: Draw) -> bytes:
    """The header with one or two choices of the configuration changed."""
    bits = int.from_bytes(header, "little")
    bits ^= _HEADER_FLIPS[draw() * len(_HEADER_FLIPS) >> 8]
    if draw() & 1:
        bits ^= _HEADER_FLIPS[draw() * len(_HEADER_FLIPS) >> 8]
    return bits.to_bytes(HEADER_SIZE, "little")


def shake_header(header: bytes, draw: Draw) -> bytes:
    """The header with many choices of the configuration changed at once.

    One flag in eight, one intercepted exception in four, and often features that do something only together:
    some situations need three choices, and none of them shows anything alone.
    """
    flags = 0
    for place in range(0, _FLAG_COUNT, 8):
        flags |= (draw() & draw() & draw()) << place
    exceptions = draw() & draw() | (draw() & draw()) << 8
    bits = int.from_bytes(header, "little") ^ (flags & FLAGS_MASK) << 8 ^ exceptions << 40
    choice = draw()
    if choice & 1:
        bits ^= _FEATURE_BITS[choice * len(_FEATURE_BITS) >> 8] << 8
    return bits.to_bytes(HEADER_SIZE, "little")


def generate(draw: Draw, members: Swarm, rounds: int, size_max: int) -> bytes:
    """The bytes of a scenario of some rounds, cut to *size_max* (a whole header at least)."""
    header = DEFAULT_HEADER
    for _ in range(draw() & 3):
        header = vary_header(header, draw)
    steps: list[bytes] = []
    for _ in range(rounds):
        steps += grow_round(draw, members)
    limit = min(size_max, SIZE_MAX) - HEADER_SIZE >> 3
    return header + b"".join(steps[: max(limit, 0)])


def random_bytes(seed: int, rounds: int = 4) -> bytes:
    """Canonical bytes of a random scenario; four rounds are 16 steps on average."""
    draw = noise(seed, _NOISE_LENGTH_MAX)
    return generate(draw, swarm_of(draw), rounds, SIZE_MAX)


def random_scenario(seed: int, rounds: int = 4) -> Scenario:
    """A random scenario, the same for the same seed; four rounds are 16 steps on average."""
    return decode(random_bytes(seed, rounds))


assert RECORD_SIZE == 1 << 3
assert len(pick(swarm(0).during, noise(0))) == RECORD_SIZE
