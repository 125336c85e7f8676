"""The text, the JSON and the pictures of explanations, compared with the files beside this one.

After an intended change write the files anew, read their diff, and commit it with the change:

    python tests/reports/test_explain_golden.py
"""

import json
from pathlib import Path

import pytest

from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.explain import Report, explain, render_rich, render_text, to_json
from nvmx_fuzz.pages import explanation_html, explanation_svg

HERE = Path(__file__).resolve().parent

# File -> L0. The scenario is <file>.scn, the report <file>.txt and <file>.json.
# The first one's picture is the one of the README.
CASES = {"bug1": "bug1", "bug1-shadow": "bug1", "bug3": "bug3", "fixed": "fixed"}


def report_of(name: str) -> Report:
    scenario = parse_scenario((HERE / f"{name}.scn").read_text()).scenario
    return explain(scenario, CASES[name], file=f"tests/reports/{name}.scn", revision="1a2b3c4")


def picture_of(name: str) -> Path:
    return HERE.parents[1] / "docs" / "bug1.svg" if name == "bug1" else HERE / f"{name}.svg"


def json_text(report: Report) -> str:
    return json.dumps(to_json(report), indent=2) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_text_is_the_one_in_the_file(name: str) -> None:
    assert render_text(report_of(name)) == (HERE / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", CASES)
def test_json_is_the_one_in_the_file(name: str) -> None:
    assert json_text(report_of(name)) == (HERE / f"{name}.json").read_text()


@pytest.mark.parametrize("name", CASES)
def test_picture_is_the_one_in_the_file(name: str) -> None:
    assert explanation_svg(report_of(name)) == picture_of(name).read_text()


def test_page_is_the_one_in_the_file() -> None:
    assert explanation_html(report_of("bug1")) == (HERE / "bug1.html").read_text()


def test_the_legend_fits_a_narrow_terminal() -> None:
    lines = render_text(report_of("bug1"), 60).splitlines()
    place = lines.index("(*: hidden from L1 and L2; expected: as on bare metal; any:")
    assert lines[place + 1] == "another value does the same)"


@pytest.mark.parametrize("name", CASES)
def test_coloured_form_says_the_same(name: str) -> None:
    lines = [line.rstrip() for line in render_rich(report_of(name)).plain.splitlines()]
    assert lines == render_text(report_of(name)).splitlines()


def write_files() -> None:
    for name in CASES:
        report = report_of(name)
        (HERE / f"{name}.txt").write_text(render_text(report))
        (HERE / f"{name}.json").write_text(json_text(report))
        picture_of(name).write_text(explanation_svg(report))
    (HERE / "bug1.html").write_text(explanation_html(report_of("bug1")))


def test_the_readme_shows_the_first_one() -> None:
    readme = (HERE.parents[1] / "README.md").read_text()
    assert f"```\n{(HERE / 'bug1.txt').read_text().rstrip()}\n```" in readme


if __name__ == "__main__":
    write_files()
