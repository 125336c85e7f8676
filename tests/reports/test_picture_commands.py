"""`nvmx-fuzz explain --format`, through the command line."""

import sys
from pathlib import Path

import pytest

from nvmx_fuzz import cli
from tests.reports import pages

BUG1 = str(Path(__file__).resolve().parent / "bug1.scn")
EXPLAIN = ["explain", "--l0", "bug1", BUG1]


@pytest.mark.parametrize("form", ["svg", "html"])
def test_picture_goes_to_a_file_or_to_the_output(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*EXPLAIN, "--format", form]) == 1
    printed = capsys.readouterr().out
    pages.check(printed)
    file = tmp_path / "a picture"
    assert cli.main([*EXPLAIN, "--format", form, "-o", str(file)]) == 1
    assert file.read_text() == printed
    assert capsys.readouterr().out == ""


def test_a_hostile_file_name_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tmp_path / "<b onclick=x>&'\".scn"
    name.write_bytes(Path(BUG1).read_bytes())
    assert cli.main(["explain", "--l0", "bug1", str(name), "--format", "html"]) == 1
    tree = pages.check(capsys.readouterr().out)
    assert "<b onclick=x>&" in pages.text_of(tree)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([*EXPLAIN, "--format", "svg", "--json"], "--json and --format exclude each other"),
        ([*EXPLAIN, "--format", "png"], "invalid value for '--format'"),
        ([*EXPLAIN, "--format", "svg", "-o", "."], "is a directory, not a file"),
        ([*EXPLAIN, "--format", "svg", "-o", "no/such/folder"], "no such file or directory"),
        (["explain", "--format", "svg", "no.scn"], "no.scn: no such file or directory"),
        (["explain", "--format", "html", "nul\0name"], "an argument is empty, or no text"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert line in printed.err
    assert len(printed.err.splitlines()) == 1


def test_without_the_library_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nvmx_fuzz import pages as module

    module._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert cli.main([*EXPLAIN, "--format", "svg"]) == 2
    assert capsys.readouterr().err == (
        "nvmx-fuzz: jinja2 is not installed; try: pip install -e '.[report]'\n"
    )
