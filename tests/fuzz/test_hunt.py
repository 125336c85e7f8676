"""Hunting bugs: records, results, and one short hunt with each method."""

import json
from pathlib import Path

import pytest

from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz import hunt as hunting
from nvmx_fuzz.cli import main
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.hunt import (
    METHODS,
    NOT_RECORDED,
    Result,
    Run,
    hunt,
    latest,
    read,
    results,
    setting_of,
)
from nvmx_fuzz.seeds import BUGS_FOLDER


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
    assert first == Result("random", "bug1", 3, 2, 20, 100, 1.0, 5.0, NOT_RECORDED, NOT_RECORDED)
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


def test_a_record_without_settings_is_read(tmp_path: Path) -> None:
    record = tmp_path / "record"
    old = {
        "method": "random", "bug": "bug1", "seed": 1, "limit": 5, "found": False,
        "executions": 9, "seconds": 5, "data": "",
    }  # fmt: skip
    record.write_text(json.dumps(old) + "\n")
    (run_,) = read(record)
    assert (run_.setting, run_.revision) == (NOT_RECORDED, NOT_RECORDED)


def test_runs_of_another_setting_are_searched_again(tmp_path: Path) -> None:
    record = tmp_path / "record"
    other = run("random", 1, False, 9, 0.1)._replace(setting="another", revision="1.0")
    record.write_text(json.dumps(other._asdict()) + "\n")
    (found,) = hunt(["bug1"], ["random"], 1, 5.0, record)
    assert found.found
    assert found.setting == setting_of("random")
    assert found.revision not in ("", NOT_RECORDED)
    assert latest(read(record)) == [found]
    assert list(hunt(["bug1"], ["random"], 1, 5.0, record)) == [found]


def test_settings_are_part_of_the_results() -> None:
    mixed = [
        run("random", 1, True, 9, 0.1)._replace(setting="python"),
        run("random", 2, True, 9, 0.1)._replace(setting="compiled"),
    ]
    assert results(mixed)[0].setting == "compiled, python"


@pytest.mark.parametrize("kept", [0, 1, 5, 11, 40, -2, -1])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path, kept: int) -> None:
    record = tmp_path / "record"
    known = [run("random", seed, True, 10, 1.5) for seed in (1, 2)]
    first, second = (json.dumps(one._asdict()) + "\n" for one in known)
    record.write_text(first + second[:kept])
    is_whole = kept == -1
    assert read(record) == known[: 1 + is_whole]
    found = list(hunt(["bug1"], ["random"], 2, 5.0, record))
    assert found[0] == known[0]
    assert (found[1] == known[1]) is is_whole
    assert read(record) == found


@pytest.mark.parametrize(
    "content",
    ["{", "hello world", '{"method": "random"}\n', "[1]\n", '{"method": "random", "bug": 1}\n'],
)
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
    for row in shown["bugs"]:
        known = parse_scenario((BUGS_FOLDER / f"{row['id']}.scn").read_text()).scenario
        assert parse_scenario("\n".join(["version 1", *row["scenario"]])).scenario == known
    assert main(["bugs", "kvm-6.12", "--json"]) == 0
    assert all(row["id"] != "bug1" for row in json.loads(capsys.readouterr().out)["bugs"])


def test_command_says_what_a_method_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hunting, "find_spec", lambda _name: None)
    assert main(["bugs", "bug1", "--hunt", "--method", "hypofuzz"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nvmx-fuzz: hypofuzz is missing: pip install -e '.[report]'; try:")
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
