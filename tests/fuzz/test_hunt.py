"""Hunting bugs: records, results, and one short hunt with each method."""

import json
from pathlib import Path

import pytest

from nvmx_fuzz import hunt as hunting
from nvmx_fuzz.cli import main
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.hunt import METHODS, Result, Run, hunt, read, results


def run(method: str, seed: int, found: bool, executions: int, seconds: float) -> Run:
    return Run(method, "bug1", seed, 5.0, found, executions, seconds, "")


def test_results_are_medians_and_worst_by_bug_and_method() -> None:
    runs = [
        run("random", 1, True, 10, 0.5),
        run("random", 2, False, 100, 5.0),
        run("random", 3, True, 20, 1.0),
        run("atheris", 1, True, 7, 0.1),
    ]
    first, second = results(runs)
    assert first == Result("random", "bug1", 3, 2, 20, 100, 1.0, 5.0)
    assert (second.method, second.found, second.runs) == ("atheris", 1, 1)


def test_what_is_recorded_is_not_searched_again(tmp_path: Path) -> None:
    record = tmp_path / "record"
    known = run("random", 1, True, 12_345, 1.5)
    record.write_text(json.dumps(known._asdict()) + "\n")
    found = list(hunt(["bug1"], ["random"], 2, 5.0, record))
    assert found[0] == known
    assert found[1].seed == 2
    assert found[1].found
    assert read(record) == found


def test_runs_with_another_limit_are_searched_again(tmp_path: Path) -> None:
    record = tmp_path / "record"
    record.write_text(json.dumps(run("random", 1, False, 9, 0.1)._asdict()) + "\n")
    (found,) = hunt(["bug1"], ["random"], 1, 20.0, record)
    assert found.found


@pytest.mark.parametrize("content", ["{", "[1]\n", '{"method": "random"}\n'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    record = tmp_path / "record"
    record.write_text(content)
    with pytest.raises(BadFile, match="is no record of a hunt"):
        read(record)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method: str) -> None:
    needed = {"nvmx-fuzz": "atheris", "random": "nvmx_fuzz"}.get(method, method)
    pytest.importorskip(needed)
    (found,) = hunt(["bug3"], [method], 1, 5.0, None)
    assert found.executions > 0
    assert found.found or method in ("hypothesis", "hypofuzz", "atheris")
    assert bool(found.data) == found.found


def test_command_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bugs", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"id", "subject", "commit", "fixed in", "rule", "scenario"} <= set(shown["bugs"][0])
    assert all(entry["reason"] for entry in shown["not expressed"])
    assert main(["bugs", "kvm-6.12", "--json"]) == 0
    assert all(row["id"] != "bug1" for row in json.loads(capsys.readouterr().out)["bugs"])


def test_command_says_what_a_method_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hunting, "find_spec", lambda _name: None)
    assert main(["bugs", "bug1", "--hunt", "--method", "hypofuzz"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nvmx-fuzz: hypofuzz is missing: pip install -e .[report]; try:")
    assert error.count("\n") == 1


def test_command_refuses_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bugs", "bug99"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nvmx-fuzz: there is no L0 called 'bug99'; did you mean")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bugs", "deep1"], "deep1 is planted"),
        (["bugs", "bug6"], "bug6 is known, but not expressed: "),
        (["bugs", "kvm-3.20"], "there was no kvm-3.20"),
        (["bugs", "fixed", "--hunt"], "fixed has no bug to hunt"),
        (["replay", "--l0", "deep1,bug1", "x"], "deep1 is planted"),
        (["replay", "--l0", "bug1,bug6", "x"], "bug6 is known, but not expressed: "),
    ],
)
def test_command_says_why_a_name_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nvmx-fuzz: {said}")
    assert error.count("\n") == 1
