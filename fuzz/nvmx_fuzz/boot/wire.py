"""The text that the image prints: one line for each scenario, told from half a line by its checksum.

A line is ``#NUMBER`` with its records, or ``@m`` with the capability MSRs when the image starts, ``!N``
when it refuses to, ``$`` at the end; then ``*`` and the FNV-1a checksum of all before the space in front
of it. A record is a letter and the values that are not zero, as ``INDEX:VALUE``; all numbers are
hexadecimal.

    x  exit: the fields of ``l1_program.EXIT_FIELDS``, CR2, DR6    s  words of L2's stack that changed in it
    v  VMfail: its number                                          z  end: IRR and ISR, eight words each
    i n u  interrupt, NMI, exception that L1 took: vector, interrupted RIP, how many records stood then

A monitor that runs the image adds ``%NUMBER REASON`` for a scenario that brought nothing or was not made as
asked, ``%! REASON`` when none can run, and ``~NUMBER L:RIP ...`` where SMIs came. Anything else on the
line is no part of it: boot loaders and kernels write there too.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

REFUSALS: Final = {
    1: "the processor has no VMX; turn on nested virtualization",
    2: "the processor has no x2APIC",
    3: "the firmware has turned VMX off",
    4: "VMXON fails",
}

_LINE: Final = re.compile(r"([#@!$][^*#@!$\r\n]*) \*([0-9a-f]{1,8})(?=[\r\n])")
_PAIR: Final = re.compile(r"([0-9a-f]+):([0-9a-f]+)")
_COUNTS: Final = {"x": 23, "s": 256, "v": 1, "z": 16, "i": 3, "n": 3, "u": 3, "m": 13}


_REMARK: Final = re.compile(r"^%([0-9a-f]+|!) ([^\r\n]+)\r?$", re.MULTILINE)


_SMM: Final = re.compile(r"^~([0-9a-f]+)((?: [01]:[0-9a-f]+)+)\r?$", re.MULTILINE)


class RawRecord(NamedTuple):
    """A letter and its values, those that are zero too; of ``s`` only what changed, by index."""

    letter: str
    values: tuple[int, ...]
    changes: tuple[tuple[int, int], ...] = ()


class Line(NamedTuple):
    """A whole line: its kind (the first character), its number, its records."""

    kind: str
    number: int
    records: tuple[RawRecord, ...]


def checksum(content: bytes) -> int:
    """FNV-1a, 32 bits."""
    value = 0x811C9DC5
    for byte in content:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def whole_lines(text: str) -> Iterator[Line]:
    """The lines of a serial port's text that arrived whole, in order; what was cut is left out."""
    for match in _LINE.finditer(text):
        body, given = match.groups()
        if checksum(body.encode("latin-1", "replace")) != int(given, 16):
            continue
        line = _line(body)
        if line:
            yield line


def remarks(text: str) -> dict[int, str]:
    """What a monitor says of scenarios that brought nothing, by number; -1 for "none can run"."""
    return {
        -1 if match[1] == "!" else int(match[1], 16): match[2] for match in _REMARK.finditer(text)
    }


def system_management(text: str) -> dict[int, tuple[tuple[int, int], ...]]:
    """Where SMIs came, by scenario: 1 and the RIP in L2, or 0 and 0 in L1."""
    return {
        int(match[1], 16): tuple(
            (int(place), int(rip, 16))
            for place, rip in (pair.split(":") for pair in match[2].split())
        )
        for match in _SMM.finditer(text)
    }


def _line(body: str) -> Line | None:
    head, *tokens = body[1:].split(" ")
    if body[0] == "!":
        head, tokens = tokens[0] if tokens else "", []
    elif body[0] == "@":
        tokens, head = [head, *tokens], "0"
    try:
        return Line(body[0], int(head or "0", 16), tuple(_records(tokens)))
    except (ValueError, KeyError, IndexError):
        return None  # a line of somebody else whose checksum happens to fit


def _records(tokens: list[str]) -> Iterator[RawRecord]:
    letter, pairs = "", list[tuple[int, int]]()
    for token in [*tokens, "."]:
        match = _PAIR.fullmatch(token)
        if match:
            pairs.append((int(match[1], 16), int(match[2], 16)))
            continue
        if letter:
            yield _record(letter, pairs)
        letter, pairs = token, []


def _record(letter: str, pairs: list[tuple[int, int]]) -> RawRecord:
    count = _COUNTS[letter]
    if letter == "s":
        return RawRecord(letter, (), tuple(pairs))
    values = [0] * count
    for index, value in pairs:
        values[index] = value
    return RawRecord(letter, tuple(values))
