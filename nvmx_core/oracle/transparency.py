"""TRANSPARENCY: L1 and L2 see on ``nested`` exactly what they see on ``bare``."""

from collections.abc import Iterator

from nvmx_core.journal import RECORD_FIELDS, RECORD_NAMES, Record
from nvmx_core.machines.bare import Bare
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.timeline import step_of
from nvmx_core.oracle.violation import Violation


def transparency(bare: Bare, nested: Nested) -> Iterator[Violation]:
    """The first difference of the two journals, if there is one."""
    if bare.journal == nested.journal:
        return
    position = first_difference(bare.journal, nested.journal)
    yield _violation(bare, nested, position)


def first_difference(expected: list[Record], seen: list[Record]) -> int:
    """The index of the first record that differs."""
    for index, (left, right) in enumerate(zip(expected, seen, strict=False)):
        if left != right:
            return index
    return min(len(expected), len(seen))


def _violation(bare: Bare, nested: Nested, position: int) -> Violation:
    expected = bare.journal[position]
    seen = nested.journal[position]
    fields: tuple[str, ...] = ()
    name = RECORD_NAMES[expected[0]]
    if expected[0] == seen[0]:
        fields = tuple(
            field
            for field, left, right in zip(
                RECORD_FIELDS[expected[0]], expected[1:], seen[1:], strict=True
            )
            if left != right
        )
        situation = f"{name}: {', '.join(fields)}"
        sentence = f"{name} differs from bare metal in {', '.join(fields)}"
    else:
        situation = f"{RECORD_NAMES[seen[0]]} instead of {name}"
        sentence = f"{RECORD_NAMES[seen[0]]}, where bare metal shows: {name}"
    step = step_of(nested.step_starts, position)
    return Violation("TRANSPARENCY", "V11", situation, step, position, fields, sentence)
