"""A sequence diagram of an explanation: lanes for outside, L0, L1 and L2, and the bare-metal run beside it.

Here rows get their places; ``templates/diagram.svg`` draws them. A row is one line of the explanation:
an arrow or a mark in the lanes on the left, its words right of them, and, on the same height, what bare
metal shows at that point. Where L0 is correct both sides show the same; from the first difference on
the records of bare metal follow each other in their own order, step by step.

There are two layouts, since an SVG cannot flow: for a desk with both runs side by side, and for a phone,
where what bare metal shows stands under the row where it differs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nvmx_fuzz.diagram_text import LINE_HEIGHT, Span, TextLine, width_of, wrapped
from nvmx_fuzz.explain_arrows import (
    ARRIVAL,
    ENTRY,
    EXIT_TO_L1,
    FAULT,
    HIDDEN_EXIT,
    IMMEDIATE_EXIT,
    INJECTION,
    L0,
    L1,
    L2,
    OUTSIDE,
    WARNING,
)
from nvmx_fuzz.explain_report import BareLine, Line, Report

_ROW_GAP: Final = 8
_STEP_GAP: Final = 6
_HEAD_HEIGHT: Final = 52
_MARGIN: Final = 12
_ARROW_DROP: Final = 8
"""From the top of a row to its arrow: the middle of small letters of its first line."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Widths in pixels; ``bare_gap`` 0: no lanes for bare metal."""

    width: int
    number_width: int
    lane_gap: int
    bare_gap: int
    bare_text_width: int

    @property
    def is_wide(self) -> bool:
        """Whether bare metal stands beside the run."""
        return self.bare_gap > 0


WIDE: Final = Layout(1000, 24, 52, 42, 240)
NARROW: Final = Layout(360, 20, 34, 0, 0)

_LANES: Final = (OUTSIDE, L0, L1, L2)
_BARE_LANES: Final = (L1, L2)


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane at ``x``; ``name`` is its head."""

    name: str
    x: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A dot (one place in ``xs``) or an arrow through the places of ``xs``, at height ``y``."""

    xs: tuple[float, ...]
    y: float
    style: str


@dataclass(frozen=True, slots=True)
class Words:
    """Lines of text; the base line of the first is at ``y``."""

    x: float
    y: float
    lines: tuple[TextLine, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """What a colour means: a dot at ``x`` and its word, on the base line ``y``."""

    x: float
    y: float
    style: str
    word: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its band from ``y`` of ``height``; ``step`` is the number of a step, or 0."""

    y: float
    height: float
    step: int
    is_wrong: bool
    marks: tuple[Mark, ...]
    words: tuple[Words, ...]


@dataclass(frozen=True, slots=True)
class Diagram:
    """A picture, in pixels; ``x_bare`` is where the part of bare metal begins, or 0.

    Lanes end at ``foot``, below which stands what the colours mean.
    """

    layout: Layout
    height: float
    title: str
    bare_title: str
    x_bare: float
    lanes: tuple[Lane, ...]
    bare_lanes: tuple[Lane, ...]
    rows: tuple[Row, ...]
    keys: tuple[Key, ...]
    foot: float
    head_height: float = _HEAD_HEIGHT


def diagram(report: Report, layout: Layout = WIDE) -> Diagram:
    """Place everything that an explanation tells of its run."""
    placer = _Placer(report, layout)
    rows: list[Row] = []
    y: float = _HEAD_HEIGHT
    for line, bare in pairs(report):
        if line is not None and line.step and rows:
            y += _STEP_GAP
        row = placer.row(line, bare, y)
        rows.append(row)
        y += row.height
    keys = tuple(_keys(rows, layout, y + _MARGIN))
    return Diagram(
        layout=layout,
        height=(keys[-1].y if keys else y) + _MARGIN,
        title=f"nested, L0 {report.l0}",
        bare_title="bare metal" if layout.is_wide else "",
        x_bare=placer.x_bare,
        lanes=tuple(placer.lanes.values()),
        bare_lanes=tuple(placer.bare_lanes.values()),
        rows=tuple(rows),
        keys=keys,
        foot=y,
    )


_KEY_WORDS: Final[dict[str, str]] = {
    ENTRY: "entry",
    INJECTION: "injection, delivery",
    HIDDEN_EXIT: "hidden exit",
    IMMEDIATE_EXIT: "immediate exit",
    EXIT_TO_L1: "exit to L1",
    ARRIVAL: "arrival",
    FAULT: "fault, warning",
}
_KEY_GAP: Final = 18
_DOT: Final = 10


def _keys(rows: Sequence[Row], layout: Layout, y: float) -> Iterator[Key]:
    """The kinds that are in the picture, in as many lines as they need."""
    styles = {mark.style.partition(" ")[0] for row in rows for mark in row.marks}
    styles |= {FAULT} if WARNING in styles else set()
    x: float = _MARGIN
    y += LINE_HEIGHT
    for style, word in _KEY_WORDS.items():
        if style not in styles:
            continue
        width = _DOT + width_of(word)
        if x + width > layout.width - _MARGIN:
            x = _MARGIN
            y += LINE_HEIGHT
        yield Key(x, y, style, word)
        x += width + _KEY_GAP


# -- which record of bare metal stands beside which line ----------------------------------------------


def pairs(report: Report) -> Iterator[tuple[Line | None, BareLine | None]]:
    """Lines of the run and of bare metal that stand side by side, either may be missing."""
    step = 0
    group: list[Line] = []
    for line in report.lines:
        if line.step or line.action == "end":
            yield from _beside(group, [bare for bare in report.bare if bare.step == step])
            step += 1
            group = []
        group.append(line)
    yield from _beside(group, [bare for bare in report.bare if bare.step >= step])


def _beside(
    lines: Sequence[Line], bare: Sequence[BareLine]
) -> Iterator[tuple[Line | None, BareLine | None]]:
    """The lines of one step: a record stands beside its equal, else in the next free row."""
    places: dict[int, BareLine] = {}
    free = 0
    for record in bare:
        equal = next((row for row, line in enumerate(lines) if line.record == record.record), free)
        place = max(equal, free)
        places[place] = record
        free = place + 1
    for row in range(max(len(lines), free)):
        yield (lines[row] if row < len(lines) else None), places.get(row)


# -- places ------------------------------------------------------------------------------------------


class _Placer:
    """Knows where lanes and columns of text are."""

    def __init__(self, report: Report, layout: Layout) -> None:
        self._layout: Final = layout
        fields = report.finding.fields if report.finding else ()
        seen = {story.field: story.seen for story in report.fields}
        self._fields: Final = {name: seen.get(name, "") for name in fields}
        left = _MARGIN + layout.number_width + layout.lane_gap / 2
        self.lanes: Final = {
            name: Lane(name, left + index * layout.lane_gap) for index, name in enumerate(_LANES)
        }
        self._text_x: Final = left + (len(_LANES) - 0.5) * layout.lane_gap + 6
        right: float = layout.width - _MARGIN
        self.x_bare = 0.0
        self.bare_lanes: dict[str, Lane] = {}
        self._bare_text_x = 0.0
        if layout.is_wide:
            self._bare_text_x = right - layout.bare_text_width
            self.x_bare = self._bare_text_x - 6 - len(_BARE_LANES) * layout.bare_gap
            self.bare_lanes = {
                name: Lane(name, self.x_bare + (index + 0.5) * layout.bare_gap)
                for index, name in enumerate(_BARE_LANES)
            }
            right = self.x_bare - _MARGIN
        self._text_width: Final = right - self._text_x

    def row(self, line: Line | None, bare: BareLine | None, y: float) -> Row:
        """The row at height *y*."""
        top = y + _ROW_GAP / 2
        marks: list[Mark] = []
        words: list[Words] = []
        if line is not None:
            spans = _spans(line, self._fields)
            lines = [text for part in spans for text in wrapped(part, self._text_width)]
            marks += _marks(line, self.lanes, top)
            words.append(Words(self._text_x, top + LINE_HEIGHT - 4, tuple(lines)))
        if bare is not None and self._layout.is_wide:
            text = wrapped(_bare_spans(bare), self._layout.bare_text_width)
            marks += _marks(bare, self.bare_lanes, top)
            words.append(Words(self._bare_text_x, top + LINE_HEIGHT - 4, tuple(text)))
        elif bare is not None and bare.differs:
            before = len(words[0].lines) if words else 0
            spans_below = (Span("bare metal: ", "good"), *_bare_spans(bare))
            text = wrapped(spans_below, self._text_width)
            base = top + LINE_HEIGHT - 4 + before * LINE_HEIGHT
            words.append(Words(self._text_x, base, tuple(text)))
        bottom = max((part.y + len(part.lines) * LINE_HEIGHT for part in words), default=top)
        return Row(
            y=y,
            height=max(bottom - LINE_HEIGHT + 4 - y + _ROW_GAP / 2, 0),
            step=line.step if line else 0,
            is_wrong=bool(line and line.wrong),
            marks=tuple(marks),
            words=tuple(words),
        )


def _marks(line: Line | BareLine, lanes: dict[str, Lane], top: float) -> list[Mark]:
    path = line.arrow or ((line.who,) if line.who else ())
    xs = tuple(lanes[name].x for name in path if name in lanes)
    if not xs:
        return []
    styles = [line.kind or "plain"]
    if isinstance(line, BareLine):
        styles += ["expected"] * line.differs
    else:
        styles += ["hidden"] * line.hidden + ["wrong"] * line.wrong
    return [Mark(xs, top + _ARROW_DROP, " ".join(styles))]


# -- words -------------------------------------------------------------------------------------------


def _spans(line: Line, fields: Mapping[str, str]) -> list[list[Span]]:
    """The action and the effect, each beginning a line; what is wrong has its own style."""
    parts = []
    action = line.needed or line.action
    if action:
        parts.append([Span(action, "action")])
    style = "hidden" if line.hidden else ""
    if line.wrong:
        parts.append(_marked(line.effect, fields, style))
    elif line.effect:
        parts.append([Span(line.effect, style)])
    return parts


def _marked(effect: str, fields: Mapping[str, str], style: str) -> list[Span]:
    """An effect with the violated fields marked, of which *fields* tells what was seen.

    The clauses that name them are marked; a field that none names is added. All is marked where there
    is no field to name.
    """
    clauses = [
        (clause, _is_about(clause, index, fields))
        for index, clause in enumerate(effect.split(", "))
    ]
    clauses += [
        (f"{_short(name)} {seen}", True)
        for name, seen in fields.items()
        if seen not in ("", _UNDEFINED) and name != _REASON and not _names(effect, name)
    ]
    if not any(is_bad for _clause, is_bad in clauses):
        return [Span(effect, "bad")]
    last = len(clauses) - 1
    return [
        Span(clause + (", " if index < last else ""), "bad" if is_bad else style)
        for index, (clause, is_bad) in enumerate(clauses)
    ]


_REASON: Final = "reason"
_UNDEFINED: Final = "-"


def _short(field: str) -> str:
    """A field as the lines of an explanation call it."""
    return field.removesuffix(" info")


def _names(effect: str, field: str) -> bool:
    return any(clause.startswith(_short(field)) for clause in effect.split(", "))


def _is_about(clause: str, index: int, fields: Mapping[str, str]) -> bool:
    if index == 0 and _REASON in fields and clause.startswith("exit "):
        return True
    return any(clause.startswith(_short(name)) for name in fields if name != _REASON)


def _bare_spans(bare: BareLine) -> list[Span]:
    return [Span(bare.effect, "good" if bare.differs else "")]
