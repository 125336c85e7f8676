"""An explanation as text. One layout serves plain text and rich: lines of styled spans.

Three columns of part 2 have the width that they need; the effect takes the rest of the line and is wrapped
under itself. Fields are aligned the same way.
"""

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Final

from rich.text import Text

from nvmx_fuzz.explain_report import FieldStory, Line, Report, Write

Span = tuple[str, str]
"""Text and the name of a rich style, "" for none."""

ACTION_WIDTH_MAX: Final = 42
_HIDDEN: Final = "*"
_CLAUSE: Final = re.compile(r".+?(?:[,;] |$)")
_WHO_WIDTH: Final = len("outside")
_WRITER_WIDTH: Final = len("processor")
_HEAD_WIDTH: Final = 11
_TEXT_WIDTH_MIN: Final = 30
_BAD: Final = "bold red"
_DIM: Final = "dim"
_HEAD: Final = "bold"


def render_text(report: Report, width: int = 110) -> str:
    """The report as plain text, its lines at most *width* wide where words allow it."""
    lines = ("".join(text for text, _style in spans).rstrip() for spans in _layout(report, width))
    return "\n".join(lines) + "\n"


def render_rich(report: Report, width: int = 110) -> Text:
    """The same with colours, for a terminal."""
    text = Text(no_wrap=True)
    for spans in _layout(report, width):
        for part, style in spans:
            text.append(part, style=style)
        text.append("\n")
    return text


def _layout(report: Report, width: int) -> Iterator[list[Span]]:
    yield from _verdict(report, width)
    yield []
    yield from _setup(report, width)
    yield []
    yield from _timeline(report.lines, width)
    if report.fields:
        yield []
        yield from _fields(report.fields, width)
    yield []
    yield from _rules(report, width)
    if report.replay:
        yield []
        revision = f"   (revision {report.revision})" if report.revision else ""
        yield [("replay: ", _HEAD), (report.replay, ""), (revision, _DIM)]


# -- parts 1 and 2 ---------------------------------------------------------------------------------


def _verdict(report: Report, width: int) -> Iterator[list[Span]]:
    finding = report.finding
    if finding is None:
        yield [("nothing wrong: both machines show the same", _HEAD)]
        return
    head = f"VIOLATION {finding.oracle} {finding.rule}  "
    first, *more = _wrapped(finding.sentence, width - len(head))
    yield [(head, _BAD), (first, _HEAD)]
    for line in more:
        yield [(" " * len(head) + line, _HEAD)]


def _setup(report: Report, width: int) -> Iterator[list[Span]]:
    yield from _paragraph("L0", f"{report.l0}: {report.l0_about}", width)
    for text in report.setup:
        who, _, what = text.partition("  ")
        yield from _paragraph("" if who == "L0" else who, what, width)


def _timeline(lines: Sequence[Line], width: int) -> Iterator[list[Span]]:
    number_width = max(2, *(len(str(line.step)) for line in lines))
    action_width = max(len("action"), *(len(_shown(line)) for line in lines))
    action_width = min(action_width, ACTION_WIDTH_MAX)
    left = number_width + 2 + _WHO_WIDTH + 2 + action_width + 2
    head = f"{'#':>{number_width}}  {'who':<{_WHO_WIDTH}}  {'action':<{action_width}}  effect"
    legend = f"{_HIDDEN}: hidden from L1 and L2"
    if any(line.expected for line in lines):
        legend += "; expected: as on bare metal"
    if any(line.needed and line.needed != line.action for line in lines):
        legend += "; any: another value does the same"
    if len(head) + 5 + len(legend) > width:
        yield from ([(part, _DIM)] for part in _wrapped(f"({legend})", width))
        yield [(head, _HEAD)]
    else:
        yield [(head, _HEAD), (f"   ({legend})", _DIM)]
    for line in lines:
        yield from _line(line, number_width, action_width, left, width)


def _shown(line: Line) -> str:
    """The action with what matters of it."""
    return line.needed or line.action


def _line(
    line: Line, number_width: int, action_width: int, left: int, width: int
) -> Iterator[list[Span]]:
    number = str(line.step) if line.step else ""
    who = line.who + (_HIDDEN if line.hidden else "")
    columns = f"{number:>{number_width}}  {who:<{_WHO_WIDTH}}  {_shown(line):<{action_width}}  "
    style = _BAD if line.wrong else _DIM if line.hidden else ""
    room = max(width - left, _TEXT_WIDTH_MIN)
    if len(columns) > left:
        yield [(columns.rstrip(), style)]
        columns = " " * left
    effects = _clauses(line.effect, room)
    if len(effects) > 1:
        effects = _clauses(line.effect, room - 2)
    mark = f"<- expected {line.expected}" if line.expected else "<- here" if line.wrong else ""
    if mark and len(effects) == 1 and len(effects[0]) + 2 + len(mark) <= room:
        yield [(columns + effects[0], style), (f"  {mark}", _BAD)]
        return
    yield [(columns + effects[0], style)]
    for effect in effects[1:]:
        yield [(" " * left + "  " + effect, style)]
    for index, text in enumerate(_clauses(mark, room - 3) if mark else ()):
        yield [(" " * left + ("   " if index else "") + text, _BAD)]


# -- part 3 ----------------------------------------------------------------------------------------


def _fields(stories: Sequence[FieldStory], width: int) -> Iterator[list[Span]]:
    yield [("fields of the rule: step, who wrote what, old -> new, by what", _DIM)]
    for index, story in enumerate(stories):
        if index:
            yield []
        expected = f"; expected {story.expected}" if story.expected else ""
        yield [(story.field, _HEAD), (f": {story.seen}", ""), (expected, _BAD)]
        if not story.writes:
            never = "undefined here" if story.seen == "-" else "unchanged from the start"
            yield [(f"    {never}", _DIM)]
        rows = [(_values(write, story), write) for write in story.writes]
        variables = [write.variable for write in story.writes if write.variable != story.field]
        variable_width = max((len(variable) for variable in variables), default=-2)
        values_width = max((len(values) for values, _write in rows), default=0)
        for values, write in rows:
            text = (
                f"{write.step:>2}  {write.who:<{_WRITER_WIDTH}}  "
                f"{_column(write.variable, variable_width)}{values:<{values_width}}  "
            )
            if len(text) + len(write.by) > width and write.by:
                yield [(text, "")]
                text = " " * (4 + _WRITER_WIDTH + 2)
            yield [(text, ""), (write.by, _DIM)]


def _column(text: str, width: int) -> str:
    """A cell and the gap after it; nothing for a column that does not exist."""
    return f"{text:<{width}}  " if width >= 0 else ""


def _values(write: Write, story: FieldStory) -> str:
    """Old and new value, decoded where neither the head of the story nor the reason says it."""
    values = f"{write.old} -> {write.new}"
    told = f"{write.new} ({write.meaning})" in (story.seen, story.expected)
    return (
        values
        if told or not write.meaning or write.meaning in write.by
        else f"{values} ({write.meaning})"
    )


# -- part 4 ----------------------------------------------------------------------------------------


def _rules(report: Report, width: int) -> Iterator[list[Span]]:
    for rule in report.rules:
        source = rule.source.removeprefix("KVM nested events; ")
        lines = _wrapped(f"{rule.text} ({source})", width - _HEAD_WIDTH)
        head = "rule" if rule.violated else "" if report.finding else "holds"
        style = _BAD if rule.violated else _HEAD
        yield [(f"{head:<6}", _HEAD), (f"{rule.id:<5}", style), (lines[0], "")]
        for line in lines[1:]:
            yield [(" " * _HEAD_WIDTH + line, "")]
    for index, text in enumerate(report.others):
        yield from _paragraph("" if index else "also", text, width)


def _paragraph(head: str, text: str, width: int) -> Iterator[list[Span]]:
    for index, line in enumerate(_wrapped(text, width - _HEAD_WIDTH)):
        yield [(f"{'' if index else head:<{_HEAD_WIDTH}}", _HEAD), (line, "")]


def _clauses(text: str, width: int) -> list[str]:
    """A text in lines, broken behind commas and semicolons where that is possible."""
    lines = [""]
    for clause in _CLAUSE.findall(text):
        if lines[-1] and len(lines[-1]) + len(clause.rstrip()) > width:
            lines.append("")
        lines[-1] += clause
    return [part for line in lines for part in _wrapped(line.strip(), width)]


def _wrapped(text: str, width: int) -> list[str]:
    """The words of a text in lines; at least one line, even without words."""
    width = max(width, _TEXT_WIDTH_MIN)
    return wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
