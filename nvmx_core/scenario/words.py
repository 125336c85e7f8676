"""Words of the text form that stand for numbers: vectors, events, addresses, exit reasons.

Each kind of value has two functions that undo each other: ``read_*`` turns a word into a number and
raises :class:`WordError`, ``show_*`` gives the canonical word. A plain number is always accepted.
"""

import re
from collections.abc import Iterable
from typing import Final

from nvmx_core.arch.events import (
    ERROR_CODE_VALID,
    HARDWARE_EXCEPTION,
    INFO_RESERVED,
    NMI_UNBLOCKING_BY_IRET,
    OTHER_EVENT,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    TYPE_MASK,
    TYPE_NAMES,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    VECTOR_NAMES,
    VECTORS_WITH_ERROR_CODE,
)
from nvmx_core.arch.events import NMI as NMI_TYPE
from nvmx_core.arch.exits import (
    BASIC_REASON_MASK,
    EXIT_NAMES,
    FAILED_ENTRY,
    INVALID_STATE,
    MCE_DURING_ENTRY,
    MSR_LOAD_FAIL,
)
from nvmx_core.guests.memory import (
    HANDLER_BASE,
    HANDLER_SHIFT,
    PAGE_BASE,
    PAGE_COUNT,
    PAGE_NAMES,
    PAGE_SHIFT,
    handler_rip,
    page_address,
)


class ScenarioError(Exception):
    """A text that is no scenario: ``line`` counts from 1, ``message`` is a sentence for people."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line: int = line
        self.message: str = message


class WordError(Exception):
    """A word that means nothing where it stands; the caller knows the line."""


UNDEFINED: Final = "undefined"
"""What an exit field shows that the manual leaves undefined: the value POISON."""
INVALID: Final = "invalid"
NONE: Final = "none"

_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]{1,64}|[0-9]{1,20}", re.ASCII)
_QUOTED_LENGTH: Final = 40

EXCEPTION_VECTORS: Final[dict[str, int]] = {
    name: vector for vector, name in VECTOR_NAMES.items() if name.startswith("#")
}
EXCEPTION_TYPES: Final = (HARDWARE_EXCEPTION, PRIVILEGED_SOFTWARE_EXCEPTION, SOFTWARE_EXCEPTION)
USUAL_VECTOR: Final[dict[int, int]] = {NMI_TYPE: 2, OTHER_EVENT: 0}
"""Event types whose vector the manual fixes; the text form leaves it out."""

REASON_BY_NAME: Final[dict[str, int]] = {
    name: reason | FAILED_ENTRY
    if reason in (INVALID_STATE, MSR_LOAD_FAIL, MCE_DURING_ENTRY)
    else reason
    for reason, name in EXIT_NAMES.items()
}
_NAME_BY_REASON: Final[dict[int, str]] = {value: name for name, value in REASON_BY_NAME.items()}

_INTERRUPTIBILITY: Final = ("sti", "mov-ss", "smi", "nmi")


# -- messages --------------------------------------------------------------------------------------


def quoted(word: str) -> str:
    """A word for a message: quoted, unusual characters escaped, cut when that becomes very long."""
    kept = width = 0
    for sign in word[: _QUOTED_LENGTH + 1]:
        width += len(ascii(sign)) - len("''")
        if width > _QUOTED_LENGTH:
            break
        kept += 1
    return ascii(word) if kept == len(word) else ascii(word[:kept] + "...")


def unknown(what: str, word: str, names: Iterable[str]) -> WordError:
    """The error for a name that is not in *names*, with the nearest ones, or all of few."""
    known = list(names)
    near = nearest(word, known)
    if near:
        hint = f"did you mean {' or '.join((', '.join(near[:-1]), near[-1])).removeprefix(' or ')}?"
    elif len(known) <= 8:
        hint = f"expected {', '.join(known)}"
    else:
        hint = f"expected one of {', '.join(known[:4])}, ... ({len(known)} in all)"
    return WordError(f"no {what} {quoted(word)}; {hint}")


def nearest(word: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that a misspelled word may have meant: few edits away, or longer, or shuffled."""
    if len(word) > _QUOTED_LENGTH:
        return []
    lower = word.lower()
    scored: list[tuple[int, str]] = []
    for name in names:
        distance = _edit_distance(lower, name.lower())
        if len(lower) > 2 and (lower in name.lower() or sorted(lower) == sorted(name.lower())):
            distance = min(distance, 1)
        if distance <= max(1, len(name) // 3):
            scored.append((distance, name))
    return [name for _distance, name in sorted(scored)[:count]]


def _edit_distance(left: str, right: str) -> int:
    """Levenshtein's distance: insertions, deletions and replacements of one character."""
    previous = list(range(len(right) + 1))
    for row, a in enumerate(left, start=1):
        current = [row]
        for column, b in enumerate(right, start=1):
            substitution = previous[column - 1] + (a != b)
            current.append(min(previous[column] + 1, current[column - 1] + 1, substitution))
        previous = current
    return previous[-1]


# -- numbers and names -----------------------------------------------------------------------------


def is_number(word: str) -> bool:
    """Whether a word is written as a number, decimal or with 0x."""
    return _NUMBER.fullmatch(word) is not None


def read_number(word: str, limit: int, what: str = "value") -> int:
    """A number below *limit*."""
    if not is_number(word):
        raise WordError(f"{what} {quoted(word)} is no number; write 64 or 0x40")
    value = int(word, 16) if word[:2] in ("0x", "0X") else int(word)
    if value >= limit:
        raise WordError(f"{what} {quoted(word)} is too large; the largest is {limit - 1:#x}")
    return value


def read_name(word: str, names: tuple[str, ...], what: str) -> int:
    """The index of a name."""
    if word not in names:
        raise unknown(what, word, names)
    return names.index(word)


def read_vector(word: str, limit: int = 256, what: str = "vector") -> int:
    """A vector: a number, or the mnemonic of an exception such as ``#PF``."""
    if word.startswith("#"):
        if word not in EXCEPTION_VECTORS:
            raise unknown("exception", word, EXCEPTION_VECTORS)
        return EXCEPTION_VECTORS[word]
    return read_number(word, limit, what)


def show_exception(vector: int) -> str:
    """The vector of an exception: its mnemonic if it has one, else a hexadecimal number."""
    name = VECTOR_NAMES.get(vector, "")
    return name if name in EXCEPTION_VECTORS else f"{vector:#x}"


def read_names(word: str, names: tuple[str, ...], what: str) -> int:
    """A comma-separated list of names as a bit mask; ``none`` for no bit."""
    if word == NONE:
        return 0
    bits = 0
    for part in word.split(","):
        bits |= 1 << read_name(part, names, what)
    return bits


def show_names(bits: int, names: tuple[str, ...]) -> str:
    """A bit mask as a comma-separated list of names."""
    words = [name for index, name in enumerate(names) if bits >> index & 1]
    return ",".join(words) if words else NONE


# -- values of journal fields ----------------------------------------------------------------------


def read_plain(word: str) -> int:
    """A number of up to 256 bits."""
    return read_number(word, 1 << 256)


def show_plain(value: int) -> str:
    """A number in hexadecimal."""
    return f"{value:#x}"


def read_reason(word: str) -> int:
    """An exit reason by KVM's name, bit 31 set for the reasons of failed entries, or a number."""
    if is_number(word):
        return read_number(word, 1 << 32, "exit reason")
    if word not in REASON_BY_NAME:
        raise unknown("exit reason", word, REASON_BY_NAME)
    return REASON_BY_NAME[word]


def show_reason(value: int) -> str:
    """The name of an exit reason; a number where name and bit 31 do not go together."""
    if value in _NAME_BY_REASON:
        return _NAME_BY_REASON[value]
    return f"{value:#x}" if value > BASIC_REASON_MASK else f"{value}"


def read_info(word: str) -> int:
    """An interruption-information word: ``invalid``, a number, or ``type[:vector]`` with suffixes.

    ``hardware-exception:#PF`` has bit 11 exactly when its vector has an error code in protected
    mode; ``+error-code`` and ``+no-error-code`` say otherwise. ``+nmi-unblocking`` is bit 12.
    """
    if word == INVALID:
        return 0
    if is_number(word):
        value = read_number(word, 1 << 32)
        return value if value & VALID else 0
    body = word.removesuffix("+nmi-unblocking")
    unblocking = NMI_UNBLOCKING_BY_IRET if body != word else 0
    event = body.removesuffix("+error-code").removesuffix("+no-error-code")
    name, colon, vector_word = event.partition(":")
    event_type = read_name(name, TYPE_NAMES, "event type")
    if colon:
        vector = read_vector(vector_word)
    elif event_type in USUAL_VECTOR:
        vector = USUAL_VECTOR[event_type]
    else:
        raise WordError(f"the event {quoted(name)} needs a vector, as in {name}:0x40")
    info = VALID | event_type << TYPE_SHIFT | vector
    usual = _usual_error_code(info)
    if event != body:
        usual = ERROR_CODE_VALID if body.endswith("+error-code") else 0
    return info | usual | unblocking


def show_info(value: int) -> str:
    """An interruption-information word, exactly; a number if it is none that a processor makes."""
    if not value & VALID:
        return INVALID
    if value & INFO_RESERVED & ~NMI_UNBLOCKING_BY_IRET or value >> 32:
        return f"{value:#x}"
    event_type = (value & TYPE_MASK) >> TYPE_SHIFT
    vector = value & VECTOR_MASK
    word = TYPE_NAMES[event_type]
    if vector != USUAL_VECTOR.get(event_type, -1):
        word += ":" + (show_exception(vector) if event_type in EXCEPTION_TYPES else f"{vector:#x}")
    if value & ERROR_CODE_VALID != _usual_error_code(value):
        word += "+error-code" if value & ERROR_CODE_VALID else "+no-error-code"
    return word + ("+nmi-unblocking" if value & NMI_UNBLOCKING_BY_IRET else "")


def _usual_error_code(info: int) -> int:
    """Bit 11 as protected mode sets it for the event in *info*."""
    is_hardware = info & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
    has_one = is_hardware and VECTORS_WITH_ERROR_CODE >> (info & VECTOR_MASK) & 1
    return ERROR_CODE_VALID if has_one else 0


def read_address(word: str) -> int:
    """An address of L2: ``page``, ``handler:vector``, either with ``+offset``, or a number."""
    if is_number(word):
        return read_plain(word)
    place, plus, offset_word = word.partition("+")
    offset = read_number(offset_word, 1 << PAGE_SHIFT, "offset") if plus else 0
    if place.startswith("handler:"):
        return handler_rip(read_vector(place.removeprefix("handler:"))) + offset
    if place not in PAGE_NAMES:
        raise unknown("page", place, PAGE_NAMES)
    return page_address(PAGE_NAMES.index(place)) + offset


def show_address(value: int) -> str:
    """An address by page; in the handler page by vector."""
    page = (value - PAGE_BASE) >> PAGE_SHIFT
    if not 0 <= page < PAGE_COUNT:
        return show_plain(value)
    offset = value - page_address(page)
    place = PAGE_NAMES[page]
    if value >= HANDLER_BASE:
        place = f"handler:{offset >> HANDLER_SHIFT:#x}"
        offset &= (1 << HANDLER_SHIFT) - 1
    return f"{place}+{offset:#x}" if offset else place


def read_vector_set(word: str) -> int:
    """A comma-separated list of vectors as a 256-bit mask; ``none`` for the empty set."""
    if word == NONE:
        return 0
    bits = 0
    for part in word.split(","):
        bits |= 1 << read_vector(part)
    return bits


def show_vector_set(bits: int) -> str:
    """A 256-bit mask as a list of vectors."""
    words = [f"{vector:#x}" for vector in range(256) if bits >> vector & 1]
    return ",".join(words) if words else NONE


def read_interruptibility(word: str) -> int:
    """Interruptibility bits by name (``sti,nmi``), ``none``, or a number."""
    if is_number(word):
        return read_plain(word)
    return read_names(word, _INTERRUPTIBILITY, "kind of blocking")


def show_interruptibility(value: int) -> str:
    """Interruptibility bits by name; a number if a reserved bit is set."""
    if value >> len(_INTERRUPTIBILITY):
        return show_plain(value)
    return show_names(value, _INTERRUPTIBILITY)
