"""Pictures of explanations: complete, well formed and inside their frame, whatever the scenario."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from nvmx_core.bugs.catalogue import CATALOGUE
from nvmx_core.bugs.versions import FIXED
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz import diagram_text
from nvmx_fuzz.diagram import NARROW, WIDE, Diagram, Layout, diagram, pairs
from nvmx_fuzz.diagram_text import BOLD_STYLES, FONT_SIZE, Span, wrapped
from nvmx_fuzz.explain import Report, explain
from nvmx_fuzz.explain_arrows import KINDS, LANES
from nvmx_fuzz.generate import random_scenario
from nvmx_fuzz.pages import explanation_html, explanation_svg
from tests.reports import pages

HERE = Path(__file__).resolve().parent
L0_NAMES = (FIXED, *(bug.name for bug in CATALOGUE))


def bug1() -> Report:
    return explain(parse_scenario((HERE / "bug1.scn").read_text()).scenario, "bug1")


@cache
def reports() -> tuple[Report, ...]:
    """One random scenario for each L0, and the one of the README."""
    return (bug1(), *(explain(random_scenario(n), name) for n, name in enumerate(L0_NAMES)))


def words(picture: Diagram) -> list[str]:
    return [
        "".join(span.text for line in words.lines for span in (*line, Span(" ")))
        for row in picture.rows
        for words in row.words
    ]


@cache
def font(bold: bool) -> Any:
    """DejaVu Sans at the size of the pictures, in pixels."""
    weight = "bold" if bold else "normal"
    found = font_manager.findfont(f"DejaVu Sans:{weight}")
    face = FT2Font(found)
    face.set_size(FONT_SIZE, 72)
    return face


def real_width(span: Span) -> float:
    face = font(span.style in BOLD_STYLES)
    face.set_text(span.text)
    return float(face.get_width_height()[0]) / 64


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_text_stays_inside_its_column(layout: Layout) -> None:
    for report in reports():
        picture = diagram(report, layout)
        for row in picture.rows:
            for text in row.words:
                beside = layout.is_wide and text.x < picture.x_bare
                end = picture.x_bare if beside else layout.width
                for line in text.lines:
                    assert text.x + sum(map(real_width, line)) <= end, line


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_rows_do_not_overlap(layout: Layout) -> None:
    for report in reports():
        picture = diagram(report, layout)
        bottom = picture.head_height
        for row in picture.rows:
            assert row.y >= bottom
            bottom = row.y + row.height
            for text in row.words:
                last = text.y + (len(text.lines) - 1) * diagram_text.LINE_HEIGHT
                assert row.y < text.y <= last < bottom
            for mark in row.marks:
                assert row.y < mark.y < bottom
        assert bottom <= picture.foot <= picture.height


@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_every_colour_is_explained_inside_the_frame(layout: Layout) -> None:
    for report in reports():
        picture = diagram(report, layout)
        used = {mark.style.split()[0] for row in picture.rows for mark in row.marks}
        explained = {key.style for key in picture.keys}
        assert used - {"plain", "warning"} <= explained
        assert "warning" not in used or "fault" in explained
        for key in picture.keys:
            assert key.x + 8 + real_width(Span(key.word)) <= layout.width
            assert picture.foot < key.y < picture.height


def test_every_line_of_both_runs_is_drawn_once_and_in_order() -> None:
    for report in reports():
        both = list(pairs(report))
        assert [line for line, _bare in both if line is not None] == list(report.lines)
        assert [bare for _line, bare in both if bare is not None] == list(report.bare)
        shown = " ".join(" ".join(words(diagram(report, WIDE))).split())
        for line in report.lines:
            assert line.kind in KINDS
            assert set(line.arrow) <= set(LANES)
            for text in (line.needed or line.action, line.effect):
                assert " ".join(text.split()) in shown


def test_equal_records_stand_side_by_side_up_to_the_first_difference() -> None:
    for report in reports():
        for line, bare in pairs(report):
            if bare is not None and bare.differs:
                break
            if bare is not None:
                assert line is not None
                assert line.record == bare.record


def test_the_phone_shows_what_bare_metal_does_where_it_differs() -> None:
    (text,) = (text for text in words(diagram(bug1(), NARROW)) if "bare metal" in text)
    assert text.split() == ["bare", "metal:", "takes", "0x40,", "return", "rip", "code+0x0"]


def red(report: Report) -> str:
    """What is marked as wrong."""
    return " ".join(
        span.text.strip()
        for row in diagram(report).rows
        for text in row.words
        for line in text.lines
        for span in line
        if span.style == "bad"
    )


def test_only_the_violated_fields_are_red() -> None:
    report = bug1()
    assert report.finding is not None
    report = replace(report, finding=replace(report.finding, fields=("IDT-vectoring info",)))
    assert red(report) == "IDT-vectoring external-interrupt 0x40"


def test_a_violated_field_that_the_line_does_not_name_is_added() -> None:
    report = bug1()
    assert report.finding is not None
    story = replace(report.fields[0], field="interrupt status", seen="0x10")
    report = replace(
        report,
        finding=replace(report.finding, fields=("interrupt status",)),
        fields=(story,),
    )
    assert red(report) == "interrupt status 0x10"
    unknown = replace(report, fields=(replace(story, seen="-"),))
    assert red(unknown).startswith("exit EXTERNAL_INTERRUPT at code+0x0, IDT-vectoring")


def test_the_immediate_exit_and_the_hidden_exit_are_arrows_of_their_own_kind() -> None:
    report = explain(parse_scenario((HERE / "bug1.scn").read_text()).scenario, FIXED)
    drawn = [(line.kind, line.arrow) for line in report.lines if line.arrow]
    assert drawn == [
        ("injection", ("L1", "L0")),
        ("injection", ("L0", "L2")),
        ("arrival", ("outside", "L0")),
        ("hidden-exit", ("L2", "L0")),
        ("immediate-exit", ("L0", "L2")),
        ("immediate-exit", ("L2", "L0")),
        ("exit", ("L0", "L1")),
    ]


def test_pages_are_well_formed_and_ask_nobody() -> None:
    for report in reports():
        pages.check(explanation_svg(report))
        pages.check(explanation_html(report))


def test_what_comes_from_outside_is_escaped() -> None:
    report = bug1()
    assert report.finding is not None
    hostile = replace(
        report,
        replay=f"nvmx-fuzz replay {pages.HOSTILE}",
        revision=pages.HOSTILE,
        scenario=f"# {pages.HOSTILE}\n{report.scenario}",
        l0=pages.HOSTILE,
        finding=replace(report.finding, sentence=pages.HOSTILE),
        lines=tuple(replace(line, effect=pages.HOSTILE) for line in report.lines),
    )
    pages.check(explanation_svg(hostile))
    tree = pages.check(explanation_html(hostile))
    assert f"replay {pages.HOSTILE}" in pages.text_of(tree)


def test_a_word_that_is_too_long_is_broken() -> None:
    lines = wrapped([Span("short " + "m" * 100)], 120)
    assert len(lines) > 5
    assert "".join(span.text for line in lines for span in line) == "short" + "m" * 100
