"""Testcases of the targets that ask their own questions: `replay` asks those, and says what came of it."""

import json
import pdb  # noqa: T100 - replaced
from pathlib import Path

import pytest

from nvmx_core.cpu import entry_checks as model
from nvmx_core.scenario.config import Config
from nvmx_fuzz import entry_checks, scenario_text
from nvmx_fuzz.cli import main
from nvmx_fuzz.codec import encode
from nvmx_fuzz.oss_fuzz import seeds_of
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.targets import TARGETS, Target, target_in_name
from nvmx_fuzz.trace import target as trace_target

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
Output = pytest.CaptureFixture[str]

ENTRY = "clusterfuzz-testcase-minimized-fuzz_entry_checks-123"
TEXT = "fuzz_scenario_text-address-crash-0123"
TRACE = "clusterfuzz-testcase-fuzz_trace_reader-123.bin"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a testcase of each target that asks its own question."""
    monkeypatch.chdir(tmp_path)
    (path,) = (CORPUS / "entry_checks").glob("e2-*.scn")
    Path(ENTRY).write_bytes(encode(load(str(path)).scenario))
    Path(TEXT).write_bytes(b"version 1\nL1 enter\n")
    Path(TRACE).write_bytes(next(iter((CORPUS / "trace_reader").glob("*.trace"))).read_bytes())
    return tmp_path


def break_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model blind for what the testcase does wrong."""
    monkeypatch.setattr(entry_checks, "config_for", lambda packed: Config(*packed))
    monkeypatch.setattr(model, "nmi_has_vector_2", lambda *_arguments: True)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("clusterfuzz-testcase-minimized-fuzz_entry_checks-5432109876543210", "fuzz_entry_checks"),
        ("there/clusterfuzz-testcase-fuzz_trace_reader-543", "fuzz_trace_reader"),
        ("clusterfuzz-testcase-minimized-nvmx-fuzz_fuzz_scenario_text-5", "fuzz_scenario_text"),
        ("fuzz_transparency-address-crash-0123", "fuzz_transparency"),
        ("clusterfuzz-testcase-minimized-fuzz_nested_events-5 (1).bin", "fuzz_nested_events"),
    ],
)
def test_the_name_of_a_testcase_tells_its_target(name: str, target: str) -> None:
    found = target_in_name(name)
    assert found
    assert found.name == target


@pytest.mark.parametrize(
    "name",
    [
        "-",
        "crash-0123",
        "fuzz_entry_checks.scn",
        "fuzz_entry_checks/crash-1",
        "fuzz_entry_checks2-1",
    ],
)
def test_other_names_tell_none(name: str) -> None:
    assert target_in_name(name) is None


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_seed_of_every_target_replays_as_its_testcase(
    target: Target, tmp_path: Path, capsys: Output
) -> None:
    content = next(iter(seeds_of(target).values()))
    path = tmp_path / f"clusterfuzz-testcase-{target.name}-1"
    path.write_bytes(content)
    assert main(["replay", str(path)]) == 0
    by_name = capsys.readouterr().out
    asked = (
        "on fixed" if target.name in {"fuzz_nested_events", "fuzz_transparency"} else target.name
    )
    assert f": ok {'' if asked == 'on fixed' else 'for '}{asked}" in by_name
    plain = path.rename(tmp_path / "crash-1")
    assert main(["replay", "--target", target.name, str(plain)]) == 0
    assert capsys.readouterr().out == by_name.replace(str(path), str(plain))


@pytest.mark.usefixtures("folder")
def test_what_the_target_would_say_is_said(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    break_the_checks(monkeypatch)
    assert main(["replay", ENTRY]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{ENTRY}: our own bug for fuzz_entry_checks"
    assert "the checks pass, the table does not; E2 forbids valid=1 type=2 vector!=2" in lines
    assert "L1       enter" in lines
    assert lines[-1] == f"  next: nvmx-fuzz replay --target fuzz_entry_checks {ENTRY} --pdb"
    assert not any("Traceback" in line for line in lines)


@pytest.mark.usefixtures("folder")
def test_what_must_not_be_raised_has_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def stumble(_content: object) -> None:
        raise IndexError("a \x1b[31mhole")

    monkeypatch.setattr(scenario_text, "parse_scenario", stumble)
    assert main(["replay", TEXT]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert "IndexError: a \\x1b[31mhole" in lines


@pytest.mark.usefixtures("folder")
def test_the_answer_of_the_reader_of_traces(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(trace_target, "trace_cmd_spelling", lambda _data: b"another trace")
    assert main(["replay", "--json", TRACE]) == 3
    (found,) = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "our own bug"
    assert found["model_error"].startswith("another verdict in the spelling of trace-cmd")


@pytest.mark.usefixtures("folder")
def test_the_debugger_gets_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[object] = []
    monkeypatch.setattr(pdb, "post_mortem", stopped.append)
    break_the_checks(monkeypatch)
    assert main(["replay", "--pdb", ENTRY, TEXT]) == 3
    assert len(stopped) == 1


@pytest.mark.usefixtures("folder")
def test_steps_are_shown_of_scenarios_only(capsys: Output) -> None:
    assert main(["replay", "--journal", ENTRY]) == 2
    assert capsys.readouterr().err.endswith(
        "fuzz_entry_checks shows no steps; as a scenario: --target fuzz_nested_events\n"
    )
    assert main(["replay", "--journal", "--target", "fuzz_nested_events", ENTRY]) == 0
    assert main(["replay", "--at-step", "1", TRACE]) == 2
    assert capsys.readouterr().err == f"nvmx-fuzz: {TRACE}: fuzz_trace_reader shows no steps\n"


@pytest.mark.usefixtures("folder")
def test_an_entry_may_be_given_as_text(capsys: Output) -> None:
    (path,) = (CORPUS / "entry_checks").glob("e2-*.scn")
    assert main(["replay", "--target", "fuzz_entry_checks", str(path)]) == 0
    assert capsys.readouterr().out.endswith("ok for fuzz_entry_checks: all readings say VMfail 7\n")
    Path("bad.scn").write_bytes(b"version 1\nL9 enter\n")
    assert main(["replay", "--target", "fuzz_entry_checks", "bad.scn"]) == 2
    assert capsys.readouterr().err.startswith("nvmx-fuzz: bad.scn:2: no actor 'L9'")


@pytest.mark.usefixtures("folder")
def test_what_wants_a_scenario_refuses_other_testcases(capsys: Output) -> None:
    for command in ("explain", "minimize", "corpus list ."):
        assert main([*command.split(), *([] if "." in command else [TRACE])]) == 2
        assert (
            f"{TRACE}: is a testcase of fuzz_trace_reader, no scenario; try: nvmx-fuzz replay"
            in capsys.readouterr().err
        )
    assert main(["explain", ENTRY]) == 0
    assert main(["replay", "--target", "fuzz_nested_events", TEXT]) == 0


@pytest.mark.usefixtures("folder")
def test_a_file_that_cannot_be_read_is_in_the_json(capsys: Output) -> None:
    assert main(["replay", "--json", TEXT, "nowhere"]) == 2
    rows = json.loads(capsys.readouterr().out)
    assert [(row["file"], row["verdict"]) for row in rows] == [
        (TEXT, "ok"),
        ("nowhere", "bad file"),
    ]
