"""``expect`` lines: what the journal records of one step must show.

The expectations of a step are matched in order: each against the next record of its kind. So
``expect deliver 0x40`` says that the first delivery of the step is that of vector 40h; what stands
between two records that are named is not judged. ``expect no-exit`` and ``expect nothing`` speak of
the whole step.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from nvmx_core.arch.events import VALID
from nvmx_core.arch.fields import POISON
from nvmx_core.arch.state import ACTIVITY_NAMES
from nvmx_core.journal import (
    DELIVER,
    END,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    L1_NMI,
    L1_SPURIOUS_EVENT,
    L1_UNEXPECTED_VECTORING,
    RECORD_FIELDS,
    RETIRE,
    SMM_ENTRY,
    SMM_RETURN,
    VM_DEAD,
    VMFAIL,
    Record,
)
from nvmx_core.scenario.words import (
    INVALID,
    UNDEFINED,
    WordError,
    is_number,
    quoted,
    read_address,
    read_info,
    read_interruptibility,
    read_name,
    read_plain,
    read_reason,
    read_vector,
    read_vector_set,
    show_address,
    show_info,
    show_interruptibility,
    show_plain,
    show_reason,
    show_vector_set,
    unknown,
)

NOTHING: Final = -1
"""The kind of ``expect nothing``: no record but L1's own VM entry."""

KINDS: Final[dict[str, int]] = {
    "exit": EXIT,
    "vmfail": VMFAIL,
    "entry": L1_ENTRY,
    "l1-interrupt": L1_INTERRUPT,
    "l1-nmi": L1_NMI,
    "l1-warning": L1_UNEXPECTED_VECTORING,
    "l1-spurious": L1_SPURIOUS_EVENT,
    "smm": SMM_ENTRY,
    "rsm": SMM_RETURN,
    "dead": VM_DEAD,
    "deliver": DELIVER,
    "retire": RETIRE,
    "end": END,
}
KIND_NAMES: Final[dict[int, str]] = {kind: name for name, kind in KINDS.items()}
MODES: Final = ("l1", "l2", "smm", "dead")

assert KIND_NAMES.keys() == RECORD_FIELDS.keys()


class Expectation(NamedTuple):
    """One ``expect`` line.

    ``line`` is where it stands in the file. ``kind`` is a kind of journal record or NOTHING;
    ``absent`` means that the step has no such record. ``fields`` are pairs (position in
    RECORD_FIELDS, value).
    """

    line: int
    kind: int
    absent: bool = False
    fields: tuple[tuple[int, int], ...] = ()


class _Reader(NamedTuple):
    read: Callable[[str], int]
    show: Callable[[int], str]


def _read_vmfail(word: str) -> int:
    return 0 if word == INVALID else read_plain(word)


def _show_vmfail(value: int) -> str:
    return f"{value}" if value else INVALID


def _read_activity(word: str) -> int:
    return read_plain(word) if is_number(word) else read_name(word, ACTIVITY_NAMES, "activity")


def _show_activity(value: int) -> str:
    return ACTIVITY_NAMES[value] if value < len(ACTIVITY_NAMES) else show_plain(value)


def _read_mode(word: str) -> int:
    return read_plain(word) if is_number(word) else read_name(word, MODES, "mode")


def _show_mode(value: int) -> str:
    return MODES[value] if value < len(MODES) else show_plain(value)


_PLAIN: Final = _Reader(read_plain, show_plain)
_ADDRESS: Final = _Reader(read_address, show_address)
_INFO: Final = _Reader(read_info, show_info)
_VECTORS: Final = _Reader(read_vector_set, show_vector_set)

_READERS: Final[dict[str, _Reader]] = {
    "reason": _Reader(read_reason, show_reason),
    "interruption": _INFO,
    "idt-vectoring": _INFO,
    "entry-interruption": _INFO,
    "event": _INFO,
    "guest-linear-address": _ADDRESS,
    "guest-physical-address": _ADDRESS,
    "rip": _ADDRESS,
    "return-rip": _ADDRESS,
    "cr2": _ADDRESS,
    "vector": _Reader(read_vector, show_plain),
    "interruptibility": _Reader(read_interruptibility, show_interruptibility),
    "activity": _Reader(_read_activity, _show_activity),
    "vm-instruction-error": _Reader(_read_vmfail, _show_vmfail),
    "mode": _Reader(_read_mode, _show_mode),
    "irr": _VECTORS,
    "isr": _VECTORS,
}


def _slug(name: str) -> str:
    """A field's name as one word; information words drop the word "info"."""
    return name.lower().replace(" ", "-").replace("_", "-").removesuffix("-info")


FIELD_SLUGS: Final[dict[int, tuple[str, ...]]] = {
    kind: tuple(_slug(name) for name in names) for kind, names in RECORD_FIELDS.items()
}


# -- reading and writing ---------------------------------------------------------------------------


def parse_expectation(line: int, words: Sequence[str]) -> Expectation:
    """The words after ``expect``; raises WordError."""
    if not words:
        raise WordError(f"expect what? A kind of record: {', '.join(KINDS)}, no-exit or nothing")
    name = words[0]
    if name == "nothing":
        _refuse_more(words[1:], name)
        return Expectation(line, NOTHING)
    absent = name.startswith("no-")
    kind_name = name.removeprefix("no-")
    if kind_name not in KINDS:
        raise unknown("kind of record", name, (*KINDS, "no-exit", "no-deliver", "nothing"))
    kind = KINDS[kind_name]
    if absent:
        _refuse_more(words[1:], name)
        return Expectation(line, kind, absent=True)
    fields: dict[int, int] = {}
    for position, word in enumerate(words[1:]):
        index, value = _parse_field(kind, kind_name, word, first=position == 0)
        if index in fields:
            raise WordError(f"{FIELD_SLUGS[kind][index]} is given twice")
        fields[index] = value
    return Expectation(line, kind, fields=tuple(sorted(fields.items())))


def _refuse_more(words: Sequence[str], name: str) -> None:
    if words:
        raise WordError(f"nothing may follow {name}, found {quoted(words[0])}")


def _parse_field(kind: int, kind_name: str, word: str, *, first: bool) -> tuple[int, int]:
    """``field=value``; the first word may be the bare value of the record's first field."""
    slugs = FIELD_SLUGS[kind]
    if not slugs:
        raise WordError(f"{kind_name} has no fields, found {quoted(word)}")
    slug, equals, value = word.partition("=")
    if not equals:
        if not first:
            raise WordError(f"{quoted(word)} is not of the form field=value")
        return 0, read_field(kind, 0, word)
    slug = _slug(slug)
    if slug not in slugs:
        raise unknown(f"field of {kind_name}", slug, slugs)
    index = slugs.index(slug)
    return index, read_field(kind, index, value)


def _reader(kind: int, index: int) -> _Reader:
    return _READERS.get(FIELD_SLUGS[kind][index], _PLAIN)


def read_field(kind: int, index: int, word: str) -> int:
    """The value of a journal field, *index* as in RECORD_FIELDS; raises WordError."""
    return POISON if word == UNDEFINED else _reader(kind, index).read(word)


def show_field(kind: int, index: int, value: int) -> str:
    """The value of a journal field as the text form writes it."""
    return UNDEFINED if value == POISON else _reader(kind, index).show(value)


def format_expectation(expectation: Expectation) -> str:
    """The canonical words after ``expect``."""
    if expectation.kind == NOTHING:
        return "nothing"
    name = KIND_NAMES[expectation.kind]
    if expectation.absent:
        return f"no-{name}"
    return " ".join((name, *_show_fields(expectation.kind, expectation.fields)))


def _show_fields(kind: int, fields: Sequence[tuple[int, int]]) -> list[str]:
    return [
        show_field(kind, index, value)
        if index == 0
        else f"{FIELD_SLUGS[kind][index]}={show_field(kind, index, value)}"
        for index, value in fields
    ]


def show_record(record: Record, indices: Sequence[int] | None = None) -> str:
    """A journal record in the words of ``expect``: its first field and the fields of *indices*."""
    kind = record[0]
    chosen = range(min(1, len(record) - 1)) if indices is None else indices
    return " ".join(
        (KIND_NAMES[kind], *_show_fields(kind, [(index, record[index + 1]) for index in chosen]))
    )


# -- judging ---------------------------------------------------------------------------------------


def mismatches(expectations: Sequence[Expectation], records: Sequence[Record]) -> list[str]:
    """What of one step's expectations its records do not show, one sentence each."""
    found: list[str] = []
    position = 0
    for expectation in expectations:
        if expectation.kind == NOTHING:
            unwanted = [record for record in records if record[0] != L1_ENTRY]
        elif expectation.absent:
            unwanted = [record for record in records if record[0] == expectation.kind]
        else:
            sentence, position = _match(expectation, records, position)
            if sentence:
                found.append(sentence)
            continue
        if unwanted:
            found.append(_sentence(expectation, show_record(unwanted[0])))
    return found


def _match(expectation: Expectation, records: Sequence[Record], position: int) -> tuple[str, int]:
    """Compare with the next record of the kind; return a sentence or "", and where to go on."""
    for index in range(position, len(records)):
        if records[index][0] == expectation.kind:
            return _compare(expectation, records[index]), index + 1
    seen = ", ".join(show_record(record) for record in records[position:])
    return _sentence(expectation, seen or "nothing"), position


def _compare(expectation: Expectation, record: Record) -> str:
    wrong = [
        index
        for index, value in expectation.fields
        if _comparable(expectation.kind, index, record[index + 1]) != value
    ]
    if not wrong:
        return ""
    shown = wrong if wrong[0] == 0 else [0, *wrong]
    return _sentence(expectation, show_record(record, shown))


def _comparable(kind: int, index: int, value: int) -> int:
    """An information word without its valid bit says nothing, whatever its other bits are."""
    if _reader(kind, index) is _INFO and value >= 0 and not value & VALID:
        return 0
    return value


def _sentence(expectation: Expectation, seen: str) -> str:
    return f"line {expectation.line}: expected {format_expectation(expectation)}; saw {seen}"
