"""Campaigns through real processes: what they find, what they keep, and how they end."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("atheris")

from nvmx_fuzz.codec import encode
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.findings import Findings
from nvmx_fuzz.generate import random_bytes
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.status import read_coverage
from nvmx_fuzz.summary import exit_status
from tests.campaigns import assert_kept, children_of, is_running, run, run_json, start, wait_for

RUNS_TO_FIND = 4000
"""From an empty corpus; a tenth of it has been enough for both bugs with every seed tried."""

SMOKE_SECONDS = 20


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with a space in its name, not made yet."""
    return tmp_path / "the campaign"


@pytest.fixture
def bug3(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A running campaign that has found bug3 and put inputs into its corpus."""
    process = start(out, "--l0", "bug3", "--no-seeds", "--seed", "1")
    wait_for(out / "findings", "*.txt", process)
    wait_for(out / "corpus", "*", process)
    yield process
    process.kill()
    process.communicate()


# -- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bug", "oracle", "words"),
    [
        ("bug1", "EXIT-INFO", "carries valid IDT-vectoring information"),
        ("bug3", "IMMEDIATE-EXIT", "without an immediate exit although this waits"),
    ],
)
def test_bug_is_found_from_an_empty_corpus(out: Path, bug: str, oracle: str, words: str) -> None:
    status, summary = run_json(
        out, "--l0", bug, "--no-seeds", "--runs", str(RUNS_TO_FIND), "--seed", "1"
    )
    assert status == 1
    assert summary["ended"] == "all runs done"
    assert summary["executions"] == RUNS_TO_FIND
    assert not summary["model_errors"]
    of_oracle = [finding for finding in summary["findings"] if finding["oracle"] == oracle]
    found = min(of_oracle, key=lambda finding: finding["steps"])  # others need more steps to show
    assert words in found["sentence"]
    assert found["steps"] <= 6
    scn = Path(found["file"])
    explanation = scn.with_suffix(".txt").read_text()
    assert explanation.startswith(f"VIOLATION {oracle}")
    assert f"replay: nvmx-fuzz replay --l0 {bug} {scn.name} " in explanation
    assert f"# nvmx-fuzz explain --l0 {bug} {scn.name}\n" in scn.read_text()


def test_findings_are_deduplicated_by_key(out: Path) -> None:
    _, summary = run_json(out, "--l0", "bug3", "--no-seeds", "--runs", "2000", "--seed", "2")
    keys = [finding["key"] for finding in summary["findings"]]
    assert summary["executions_violating"] > 10 * len(keys)
    assert len(set(keys)) == len(keys) == len(list((out / "findings").glob("*.scn")))


def test_second_campaign_goes_on_where_the_first_stopped(out: Path) -> None:
    arguments = ("--l0", "bug3", "--no-seeds", "--runs", "300", "--seed", "3")
    _, first = run_json(out, *arguments)
    _, second = run_json(out, *arguments)
    assert second["corpus"] >= first["corpus"]
    known = {finding["key"] for finding in first["findings"]}
    assert known <= {finding["key"] for finding in second["findings"]}
    assert any(finding["earlier"] for finding in second["findings"])


@pytest.mark.slow
def test_smoke_campaign_finds_nothing_in_the_fixed_l0(out: Path) -> None:
    status, summary = run_json(out, "--time", str(SMOKE_SECONDS), "--seed", "5")
    told = [finding["sentence"] for finding in summary["findings"]]
    assert not told, summary["findings"]
    assert not summary["model_errors"]
    assert status == 0
    assert summary["ended"] == "time is up"
    assert summary["seconds"] < SMOKE_SECONDS + 10
    assert sum(1 for count in summary["reach"].values() if count) > 55


# -- what is shown ---------------------------------------------------------------------------------


def test_plain_output_begins_with_the_command_and_ends_with_the_next_one(out: Path) -> None:
    status, stdout, stderr = run(
        out, "--l0", "bug3", "--no-seeds", "--runs", "400", "--seed", "6", "--plain"
    )
    lines = stdout.splitlines()
    assert status == 1
    assert stderr == ""
    assert lines[0].startswith("seed 6: nvmx-fuzz run --l0 bug3 --seed 6 --runs 400")
    assert any(line.startswith("finding: ") for line in lines)
    assert any("executions" in line and "reach" in line for line in lines)
    assert any(line.startswith("reach ") and line.endswith(" situations") for line in lines)
    assert any(line.startswith("! immediate-exit ") for line in lines)
    assert lines[-1].startswith("    next: nvmx-fuzz explain --l0 bug3 ")


def test_panel_on_a_terminal_is_taken_away_at_the_end(out: Path) -> None:
    import pty

    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nvmx_fuzz.cli", "run", "--out", out, "--no-seeds", "--time", "2"],
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=child,
        env={**{k: v for k, v in os.environ.items() if k != "CI"}, "TERM": "xterm-256color",
             "COLUMNS": "100"},
    )  # fmt: skip
    os.close(child)
    shown = b""
    with suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(parent, 1 << 16):
            shown += chunk
    os.close(parent)
    assert process.wait(timeout=60) == 0, shown
    assert b"Ctrl-C stops" in shown
    assert b"not yet:" in shown
    assert shown.rfind("╭".encode()) < shown.find(b"L0 fixed, seed")
    assert shown.rstrip().splitlines()[-1].startswith(b"next: nvmx-fuzz run")


def test_newest_coverage_is_read_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read_coverage(log) == (0, 0, 0)
    log.write_text(
        "INFO: seed\n#2\tINITED ft: 5 corp: 1/1b exec/s: 0\n"
        "#90\tNEW    cov: 12 ft: 34 corp: 5/6Kb lim: 520 exec/s: 45\n#91\tNEW    cov: 1"
    )
    assert read_coverage(log) == (12, 34, 5)


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_with_a_summary(
    bug3: subprocess.Popen[str], out: Path, number: signal.Signals
) -> None:
    os.killpg(bug3.pid, number)  # as the terminal does: to both processes
    stdout, stderr = bug3.communicate(timeout=60)
    assert bug3.returncode == 1, stderr
    assert "interrupted after" in stdout
    assert "next: nvmx-fuzz explain" in stdout
    assert_kept(out)
    assert json.loads((out / "summary.json").read_text())["ended"] == "interrupted"


def test_second_interrupt_is_safe(bug3: subprocess.Popen[str], out: Path) -> None:
    (worker,) = children_of(bug3.pid)
    os.kill(worker, signal.SIGSTOP)  # it cannot stop by itself any more
    os.kill(bug3.pid, signal.SIGINT)
    time.sleep(0.5)
    os.kill(bug3.pid, signal.SIGINT)
    stdout, stderr = bug3.communicate(timeout=60)
    assert bug3.returncode == 1, stderr
    assert "interrupted after" in stdout
    assert_kept(out)


def test_kill_loses_nothing_and_leaves_no_process(bug3: subprocess.Popen[str], out: Path) -> None:
    workers = children_of(bug3.pid)
    assert len(workers) == 1
    bug3.kill()
    bug3.wait(timeout=10)
    for _ in range(100):
        if not is_running(workers[0]):
            break
        time.sleep(0.1)
    assert not is_running(workers[0])
    assert_kept(out)
    assert run_json(out, "--l0", "bug3", "--runs", "10")[1]["findings"]


def test_crash_of_the_fuzzing_process_is_our_own_bug(
    bug3: subprocess.Popen[str], out: Path
) -> None:
    os.kill(children_of(bug3.pid)[0], signal.SIGSEGV)
    stdout, _ = bug3.communicate(timeout=60)
    assert bug3.returncode == 3
    assert "OUR OWN BUG" in stdout
    assert "ended by itself (" in stdout
    assert_kept(out)


def test_killed_fuzzing_process_is_nobodys_bug(bug3: subprocess.Popen[str], out: Path) -> None:
    os.kill(children_of(bug3.pid)[0], signal.SIGKILL)
    stdout, _ = bug3.communicate(timeout=60)
    assert bug3.returncode == 1  # for its findings
    assert "OUR OWN BUG" not in stdout
    assert "the fuzzing process was killed (SIGKILL)" in stdout
    assert json.loads((out / "summary.json").read_text())["killed"] is True
    assert_kept(out)


def test_exit_status_of_a_campaign_cut_short_is_2() -> None:
    results: dict[str, Any] = {"model_errors": [], "findings": [], "killed": True}
    assert exit_status(results) == 2
    assert exit_status(results | {"killed": False}) == 0


def test_what_arrived_and_was_not_read_is_found_by_the_next_campaign(out: Path) -> None:
    assert run_json(out, "--l0", "bug3", "--runs", "1", "--no-seeds")[0] == 0
    scenario = out / "x.scn"
    scenario.write_text("version 1\noutside interrupt 0x51\nL1 enter\n")
    data = encode(load(str(scenario)).scenario)
    (out / "arrivals" / hashlib.sha1(data).hexdigest()).write_bytes(data)
    status, summary = run_json(out, "--l0", "bug3", "--runs", "1", "--no-seeds")
    assert status == 1
    assert len(summary["findings"]) == 1
    assert list((out / "arrivals").iterdir()) == []


def test_one_campaign_per_folder(bug3: subprocess.Popen[str], out: Path) -> None:
    assert bug3.poll() is None
    status, _, stderr = run(out, "--l0", "bug3", "--runs", "1")
    assert status == 2
    assert stderr.splitlines() == [
        f"nvmx-fuzz: {out}: another campaign runs here; choose another folder with --out"
    ]


# -- bad input -------------------------------------------------------------------------------------


def refusal(out: Path, *arguments: str) -> str:
    """The one line with which a campaign is refused."""
    status, _, stderr = run(out, "--runs", "10", *arguments)
    assert status == 2, stderr
    (line,) = stderr.splitlines()
    return line


def test_unknown_l0_is_refused(out: Path) -> None:
    line = refusal(out, "--l0", "bug333")
    assert line.startswith("nvmx-fuzz: there is no L0 called 'bug333'; did you mean bug3")


def test_contradicting_arguments_are_refused(out: Path) -> None:
    assert "exclude each other" in refusal(out, "--corpus", str(out), "--no-seeds")
    assert "--seed" in refusal(out, "--seed", "0")
    assert "--feedback" in refusal(out, "--feedback", "slow")


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file").endswith("file: is not a directory")
    assert refusal(tmp_path / "file" / "below").endswith("not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert refusal(tmp_path / "out").endswith("permission denied")


def test_seeds_are_refused_with_file_and_line(out: Path, tmp_path: Path) -> None:
    assert refusal(out, "--corpus", str(tmp_path / "absent")).endswith("absent: does not exist")
    seed = tmp_path / "seeds" / "bad.scn"
    seed.parent.mkdir()
    seed.write_text("version 1\nL1 jump\n")
    assert refusal(out, "--corpus", str(seed.parent)).startswith(f"nvmx-fuzz: {seed}:2: ")


def test_seeds_of_both_forms_are_used(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seeds"
    folder.mkdir()
    (folder / "text.scn").write_text("version 1\noutside interrupt 0x51\nL1 enter\n")
    (folder / "bytes").write_bytes(random_bytes(1))
    status, summary = run_json(out, "--l0", "bug3", "--corpus", str(folder), "--runs", "3")
    assert status == 1
    assert summary["executions"] == 3
    assert len(list((out / "seeds").iterdir())) == 2
    assert (out / "seeds" / "text").read_bytes() == encode(load(str(folder / "text.scn")).scenario)


def test_finding_that_cannot_be_written_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _content: bytes) -> None:
        raise BadFile(path, "no space left on device")

    monkeypatch.setattr("nvmx_fuzz.findings.write_whole", full)
    findings = Findings(tmp_path, "bug3", tmp_path)
    scenario = tmp_path / "x.scn"
    scenario.write_text("version 1\noutside interrupt 0x51\nL1 enter\n")
    with pytest.raises(BadFile, match="no space left"):
        findings.offer(encode(load(str(scenario)).scenario))
    (unwritten,) = findings.unwritten
    assert "outside  interrupt 0x51\n" in unwritten.text
