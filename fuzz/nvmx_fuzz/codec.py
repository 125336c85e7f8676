"""The byte form of a scenario: an 8-byte header, then one 8-byte record a step.

============  =================================================================================
header byte   meaning
============  =================================================================================
0             version: 2 to 15 do not exist yet; any other byte is version 1, which writes 1
1 to 4        configuration flags, little endian, XOR the default flags
5, 6          exceptions that L1 and L0 intercept (``config.CHOSEN_EXCEPTIONS``)
7             L1's page-fault filter
============  =================================================================================

A record is ``<BBHI``: operation, a, b, c (``steps.py``).

Every byte string is a scenario. A short header is filled up with zeros, so that the empty string is
the default configuration without steps; a partial last record does not count; a number that is too
large is brought into its range. Records have one width and do not refer to one another, so that
removing one leaves the meaning of the others alone. ``encode`` gives the canonical bytes of a
scenario, and a fuzzer that mutates bytes at random still hits mostly version 1, because only 14 of
256 first bytes say otherwise.

Decoding happens once per execution, so it is one ``struct`` call and one dictionary look-up a
record. The look-up table fills itself, is emptied when it is full, and never changes what a record
means.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final

from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAGS_MASK
from nvmx_core.scenario.steps import Scenario, Step, canonical
from nvmx_core.scenario.text import STEPS_MAX

VERSION: Final = 1
HEADER_SIZE: Final = 8
RECORD_SIZE: Final = 8
SIZE_MAX: Final = HEADER_SIZE + STEPS_MAX * RECORD_SIZE
"""Bytes beyond these are not read."""

PackedConfig = tuple[int, int, int, int]

_FUTURE_VERSIONS: Final = range(2, 16)
_HEADER: Final = Struct("<BIBBB")
_RECORD: Final = Struct("<BBHI")
_CACHED_STEPS_MAX: Final = 1 << 14
_CACHED_CONFIGS_MAX: Final = 1 << 12

_EMPTY: Final = Scenario((DEFAULT_FLAGS, 0, 0, 0), ())


class CodecError(Exception):
    """Bytes that this program must not interpret, with a sentence for people."""


class _Steps(dict[int, Step]):
    """The steps of records already seen; a record is the little-endian integer of its bytes."""

    def __missing__(self, record: int) -> Step:
        step = canonical(record & 0xFF, record >> 8 & 0xFF, record >> 16 & 0xFFFF, record >> 32)
        if len(self) >= _CACHED_STEPS_MAX:
            self.clear()
        self[record] = step
        return step


class _Configs(dict[bytes, PackedConfig]):
    """The configurations of headers already seen."""

    def __missing__(self, header: bytes) -> PackedConfig:
        _version, flags, exceptions, l0_exceptions, pf_filter = _HEADER.unpack(
            header.ljust(HEADER_SIZE, b"\0")
        )
        config = (
            (flags ^ DEFAULT_FLAGS) & FLAGS_MASK,
            exceptions,
            l0_exceptions,
            pf_filter & 3,
        )
        if len(self) >= _CACHED_CONFIGS_MAX:
            self.clear()
        self[header] = config
        return config


_configs: Final = _Configs()
_step_of: Final[Callable[[int], Step]] = _Steps().__getitem__
_RECORDS: Final = tuple(Struct(f"<{count}Q").unpack_from for count in range(STEPS_MAX + 1))


def decode(data: bytes) -> Scenario:
    """The scenario that *data* stands for; of a future version, the empty one. Never fails."""
    if data and data[0] in _FUTURE_VERSIONS:
        return _EMPTY
    size = len(data)
    if size < HEADER_SIZE + RECORD_SIZE:
        return Scenario(_configs[data[:HEADER_SIZE]], ())
    count = min(size, SIZE_MAX) - HEADER_SIZE >> 3
    records = _RECORDS[count](data, HEADER_SIZE)
    return Scenario(_configs[data[:HEADER_SIZE]], tuple(map(_step_of, records)))


def encode(scenario: Scenario) -> bytes:
    """The canonical bytes of a canonical scenario of at most STEPS_MAX steps."""
    flags, exceptions, l0_exceptions, pf_filter = scenario.config
    header = _HEADER.pack(VERSION, flags ^ DEFAULT_FLAGS, exceptions, l0_exceptions, pf_filter)
    return header + b"".join([_RECORD.pack(*step) for step in scenario.steps])


def encode_step(step: Step) -> bytes:
    """The record of one step."""
    return _RECORD.pack(*step)


def canonical_bytes(data: bytes) -> bytes:
    """The canonical bytes of what *data* stands for."""
    return encode(decode(data))


def require_version(data: bytes) -> None:
    """Raise CodecError if a newer program wrote *data*; for the files of people."""
    if data and data[0] in _FUTURE_VERSIONS:
        raise CodecError(
            f"version {data[0]} was made by a newer nvmx-fuzz; this one reads {VERSION}"
        )
