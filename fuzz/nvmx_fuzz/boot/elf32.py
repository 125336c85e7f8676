"""The symbols of a 32-bit ELF file, and where in the file they are."""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_MAGIC: Final = b"\x7fELF\x01\x01"
_HEAD: Final = struct.Struct("<16sHHIIIIIHHHHHH")
_SECTION: Final = struct.Struct("<10I")
_SYMBOL: Final = struct.Struct("<IIIBBH")
_SYMBOL_TABLE: Final = 2
_NO_BITS: Final = 8


class Elf32Error(ValueError):
    """It is no such file, or one that was cut."""


class Symbol(NamedTuple):
    """A function or an object: its name, where it is in the file, how many bytes it has."""

    name: str
    offset: int
    size: int


class _Section(NamedTuple):
    kind: int
    address: int
    offset: int
    size: int
    link: int


def symbols(content: bytes) -> dict[str, Symbol]:
    """Those that have a size and are in the file, by name.

    Raises: Elf32Error.
    """
    if not content.startswith(_MAGIC):
        raise Elf32Error("it is no 32-bit ELF file")
    try:
        return {symbol.name: symbol for symbol in _symbols(content)}
    except (struct.error, ValueError, IndexError):
        raise Elf32Error("its symbols cannot be read") from None


def _symbols(content: bytes) -> Iterator[Symbol]:
    sections = _sections(content)
    for table in sections:
        if table.kind != _SYMBOL_TABLE:
            continue
        names = sections[table.link].offset
        for place in range(table.offset, table.offset + table.size, _SYMBOL.size):
            name, value, size, _, _, index = _SYMBOL.unpack_from(content, place)
            if not size or not 0 < index < len(sections) or sections[index].kind == _NO_BITS:
                continue
            end = content.index(b"\0", names + name)
            section = sections[index]
            offset = section.offset + value - section.address
            yield Symbol(content[names + name : end].decode("latin-1"), offset, size)


def _sections(content: bytes) -> list[_Section]:
    head = _HEAD.unpack_from(content)
    start, size, count = head[6], head[11], head[12]
    found = []
    for number in range(count):
        fields = _SECTION.unpack_from(content, start + number * size)
        found.append(_Section(fields[1], fields[3], fields[4], fields[5], fields[6]))
    return found
