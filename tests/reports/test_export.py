"""`nvmx-fuzz export`: what is written stands alone, runs, and keeps what comes from outside harmless.

After an intended change write the files beside this one anew, and read their diff:

    python -m tests.reports.test_export
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz import cli
from nvmx_fuzz.explain import explain
from nvmx_fuzz.export import FORMS, export, fenced, scenario_text
from nvmx_fuzz.scenario_files import Loaded, load, load_content

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUGS = sorted((ROOT / "corpus" / "bugs").glob("*.scn"))
HOSTILE_COMMENT = '"""\\ \x1b[31m ```` END-OF-SCENARIO \\N{BULLET} \' <b>'


def exported(loaded: Loaded, l0_name: str, form: str) -> str:
    report = explain(loaded.scenario, l0_name, file=loaded.name, revision="1a2b3c4")
    return export(loaded, report, form)


def bug1(form: str) -> str:
    loaded = load(str(HERE / "bug1.scn"))._replace(name="tests/reports/bug1.scn")
    return exported(loaded, "bug1", form)


def golden(form: str) -> Path:
    return HERE / f"bug1.{form}.txt"


def hostile() -> Loaded:
    content = (HERE / "bug1.scn").read_bytes()
    return load_content('x\n"""; $(rm -r x) `y`.scn', f"# {HOSTILE_COMMENT}\n".encode() + content)


def run(code: str) -> dict[str, Any]:
    """Run a module and its tests; returns its names."""
    names: dict[str, Any] = {}
    exec(compile(code, "exported", "exec"), names)
    for name in list(names):
        if name.startswith("test_"):
            names[name]()
    return names


@pytest.mark.parametrize("form", FORMS)
def test_export_is_the_one_in_the_file(form: str) -> None:
    assert bug1(form) == golden(form).read_text()


@pytest.mark.parametrize("path", BUGS, ids=lambda path: path.stem)
def test_tests_of_each_bug_pass(path: Path) -> None:
    names = run(exported(load(str(path)), path.stem, "pytest"))
    (fixed, broken) = [name for name in names if name.startswith("test_")]
    assert fixed.endswith("_keeps_every_rule_on_fixed")
    assert broken.endswith(f"_is_broken_by_{path.stem}")


def test_expectations_are_tested_too() -> None:
    path = ROOT / "corpus" / "nested_events" / "interrupt-arrives-at-entry.scn"
    names = run(exported(load(str(path)), "fixed", "pytest"))
    assert names["SCENARIO"] == path.read_text()
    assert "test_scenario_shows_what_is_expected" in names


def test_an_exported_test_fails_when_the_rule_is_broken() -> None:
    code = bug1("pytest").replace('keys_on("fixed")', 'keys_on("bug1")')
    with pytest.raises(AssertionError):
        run(code)


def test_the_example_of_the_property_is_tried_first() -> None:
    code = bug1("hypothesis").replace('l0_class("fixed")', 'l0_class("bug1")')
    with pytest.raises(AssertionError, match=r"steps=\(\(1, 0, 64, 0\)"):
        run(code)


@pytest.mark.parametrize("form", ["pytest", "hypothesis"])
def test_hostile_names_and_comments_stay_text(form: str) -> None:
    code = exported(hostile(), "bug1", form)
    names: dict[str, Any] = {}
    exec(compile(code, "exported", "exec"), names)
    assert names["SCENARIO"] == scenario_text(hostile())
    assert parse_scenario(names["SCENARIO"]).scenario == hostile().scenario
    assert all(letter.isprintable() for letter in code.replace("\n", ""))


def test_hostile_comments_stay_inside_their_fence_and_their_here_document() -> None:
    text = exported(hostile(), "bug1", "markdown")
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
    block = re.search(r"^`{5}sh\n(.*?)\n`{5}$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    command = block[1].replace("nvmx-fuzz", shlex.join([sys.executable, "-m", "nvmx_fuzz.cli"]), 1)
    finished = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished
    assert "EXIT-INFO X3" in finished.stdout


def test_a_fence_is_longer_than_what_it_holds() -> None:
    assert fenced("a ``` b ````", "sh").startswith("`````sh\n")


def test_command_writes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--format", "markdown", "--l0", "bug1", str(HERE / "bug1.scn")]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert cli.main([*arguments, "--out", str(tmp_path / "mail.md")]) == 0
    assert (tmp_path / "mail.md").read_text() == printed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--format", "pytest", "no.scn"], "no.scn: no such file or directory"),
        (["--format", "pytest", "."], "is a directory, not a file"),
        (["--format", "rst", str(HERE / "bug1.scn")], "invalid value for '--format'"),
        ([str(HERE / "bug1.scn")], "missing option '--format'. Choose from: pytest, hypothesis"),
        (["--format", "pytest", "--violation", "9", str(HERE / "bug1.scn")], "fewer than 9"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert line in printed.err
    assert len(printed.err.splitlines()) == 1


def write_files() -> None:
    for form in FORMS:
        golden(form).write_text(bug1(form))


if __name__ == "__main__":
    write_files()
