"""Both journals of a replay side by side, decoded."""

from collections.abc import Iterator
from itertools import zip_longest
from textwrap import wrap
from typing import Any, Final

from nvmx_core.journal import RECORD_FIELDS, RECORD_NAMES, Record
from nvmx_core.scenario.step_text import format_step
from nvmx_fuzz.explain_records import record_text, seen_by
from nvmx_fuzz.replaying import Replay

WIDTH_MIN: Final = 80

_SAME: Final = "  "
_DIFFERENT: Final = "! "


def journal_lines(replay: Replay, width: int) -> Iterator[str]:
    """The steps, and under each what L1 and L2 saw on ``bare`` (left) and on ``nested``.

    Records that differ are marked with ``!``, and the fields in which they differ are written out.
    """
    if not replay.runs:
        return
    bare, nested = replay.runs
    column = (max(width, WIDTH_MIN) - len(_SAME) - 3) // 2
    yield f"{_SAME}{'bare':{column}} | nested, L0 {replay.l0}"
    for step in range(len(replay.scenario.steps) + 1):
        yield _step_line(replay, step)
        for left, right in zip_longest(bare.records_of(step), nested.records_of(step)):
            yield from _pair(left, right, column)


def _step_line(replay: Replay, step: int) -> str:
    steps = replay.scenario.steps
    if step == len(steps):
        return "end"
    return f"{step + 1:3}  {format_step(steps[step], compact=True)}"


def _pair(left: Record | None, right: Record | None, column: int) -> Iterator[str]:
    differing = _differing(left, right)
    mark = _SAME if left == right else _DIFFERENT
    cells = [_cell(record, differing, column) for record in (left, right)]
    for left_line, right_line in zip_longest(*cells, fillvalue=""):
        yield f"{mark}{left_line:{column}} | {right_line}".rstrip()


def _cell(record: Record | None, differing: tuple[str, ...], column: int) -> list[str]:
    if record is None:
        return ["-"]
    return wrap(f"{seen_by(record)}: {record_text(record, differing)}", column) or [""]


def _differing(left: Record | None, right: Record | None) -> tuple[str, ...]:
    """The names of the fields that differ between two records of one kind."""
    if left is None or right is None or left[0] != right[0]:
        return ()
    return tuple(
        name
        for name, ours, theirs in zip(RECORD_FIELDS[left[0]], left[1:], right[1:], strict=True)
        if ours != theirs
    )


def journals_json(replay: Replay) -> dict[str, Any]:
    """Both journals as lists of records, each with its step, its name and its fields."""
    return {
        run.name: [
            {
                "step": step + 1,
                "record": RECORD_NAMES[record[0]],
                "text": record_text(record),
                "fields": dict(zip(RECORD_FIELDS[record[0]], record[1:], strict=True)),
            }
            for step in range(len(replay.scenario.steps) + 1)
            for record in run.records_of(step)
        ]
        for run in replay.runs
    }
