"""Campaigns of several jobs: what they share, what is added up, and what happens when one of them dies."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

pytest.importorskip("atheris")

from nvmx_fuzz.history import read_history
from nvmx_fuzz.launcher import Plan
from nvmx_fuzz.progress import MEMORY_SIZE, Progress, Totals
from tests.campaigns import assert_kept, children_of, is_running, run_json, start, wait_for

JOBS = 3


def plan(**values: int) -> Plan:
    """A plan in which only these values matter."""
    wanted = {"runs": 0, "seed": 1, "jobs": 1} | values
    return Plan(
        "fixed", "python", 0, wanted["runs"], None, Path("out"), wanted["seed"], "auto", "",
        wanted["jobs"],
    )  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with a space in its name, not made yet."""
    return tmp_path / "the campaign"


@pytest.fixture
def bug3(out: Path) -> Iterator[Popen[str]]:
    """A running campaign of several jobs that has found bug3 and put inputs into its corpus."""
    process = start(
        out, "--l0", "bug3", "--no-seeds", "--seed", "1", "--jobs", str(JOBS), "--plain"
    )
    wait_for(out / "findings", "*.txt", process)
    wait_for(out / "corpus", "*", process)
    yield process
    process.kill()
    process.communicate()


# -- the plan --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("runs", "jobs"), [(10, 1), (10, 3), (3, 3), (1_000_001, 7)])
def test_runs_of_the_jobs_add_up(runs: int, jobs: int) -> None:
    shares = [plan(runs=runs, jobs=jobs).runs_of(number) for number in range(jobs)]
    assert sum(shares) == runs
    assert max(shares) - min(shares) <= 1
    assert 0 not in shares  # which would be without end


def test_runs_without_end_are_so_for_each_job() -> None:
    assert [plan(jobs=2).runs_of(number) for number in range(2)] == [0, 0]


@pytest.mark.parametrize("seed", [1, 2, (1 << 31) - 1])
def test_seeds_of_the_jobs_differ_and_the_first_is_that_of_the_campaign(seed: int) -> None:
    seeds = [plan(seed=seed, jobs=256).seed_of(number) for number in range(256)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 256
    assert all(1 <= one < 1 << 31 for one in seeds)


def test_numbers_of_the_jobs_are_added_up() -> None:
    parts = []
    for factor in (1, 10):
        memory = os.memfd_create("test")
        os.ftruncate(memory, MEMORY_SIZE)
        progress = Progress(memory)
        progress.publish(factor, 2 * factor, 3 * factor, 4 * factor, [5 * factor, 6], [7 * factor])
        parts.append(progress)
    totals = Totals(parts)
    assert (totals.executions, totals.steps, totals.skipped, totals.violating) == (11, 22, 33, 44)
    assert totals.reach(2) == [55, 12]
    assert totals.fired(1) == [77]


# -- campaigns -------------------------------------------------------------------------------------


def test_jobs_fuzz_together_into_one_folder(out: Path) -> None:
    arguments = ("--l0", "bug3", "--no-seeds", "--seed", "1", "--jobs", "2")
    status, summary = run_json(out, *arguments, "--runs", "1501")
    assert status == 1
    assert summary["ended"] == "all runs done"
    assert (summary["executions"], summary["jobs"], summary["jobs_lost"]) == (1501, 2, [])
    keys = [finding["key"] for finding in summary["findings"]]
    assert len(set(keys)) == len(keys) == len(list((out / "findings").glob("*.scn")))
    assert_kept(out)
    logs = [(out / name).read_text() for name in ("libfuzzer.log", "libfuzzer-2.log")]
    assert "Seed: 1\n" in logs[0]
    assert "Seed: 1\n" not in logs[1]
    assert f"--jobs 2 --out '{out}' --no-seeds" in summary["command"]
    assert read_history(out / "progress.jsonl")[0].start["jobs"] == 2


def test_a_job_runs_what_another_one_found(out: Path) -> None:
    process = start(
        out, "--no-seeds", "--seed", "1", "--jobs", "2", "--time", "60", "--plain"
    )  # fmt: skip
    try:
        for _ in range(600):
            logs = [path.read_text() for path in out.glob("libfuzzer*.log")]
            if len(logs) == 2 and all("RELOAD" in log for log in logs):
                break
            assert process.poll() is None, process.communicate()
            signal.sigtimedwait([], 0.1)
        else:
            pytest.fail("no job took an input of the other one")
    finally:
        process.kill()
        process.communicate()


def test_fewer_runs_than_jobs_start_fewer_jobs(out: Path) -> None:
    status, summary = run_json(out, "--no-seeds", "--jobs", "9", "--runs", "2")
    assert status == 0
    assert (summary["executions"], summary["jobs"]) == (2, 2)


def test_a_killed_job_is_told_and_the_others_go_on(bug3: Popen[str], out: Path) -> None:
    workers = children_of(bug3.pid)
    assert len(workers) == JOBS
    os.kill(max(workers), signal.SIGKILL)
    assert bug3.stdout is not None
    told = ""
    while "was killed" not in told:
        told = bug3.stdout.readline()
        assert told, "the campaign ended"
    assert told == f"job {JOBS} was killed (SIGKILL); the others go on\n"
    assert len(children_of(bug3.pid)) == JOBS - 1
    bug3.send_signal(signal.SIGINT)
    stdout, _ = bug3.communicate(timeout=60)
    assert bug3.returncode == 1  # for its findings
    assert f"job {JOBS} was killed (SIGKILL) after " in stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ended"] == "interrupted"
    assert summary["killed"] is True
    assert len(summary["jobs_lost"]) == 1
    assert_kept(out)


def test_the_campaign_ends_with_its_last_job(bug3: Popen[str], out: Path) -> None:
    workers = children_of(bug3.pid)
    os.kill(workers[0], signal.SIGSEGV)
    for worker in workers[1:]:
        os.kill(worker, signal.SIGKILL)
    stdout, _ = bug3.communicate(timeout=60)
    assert bug3.returncode == 3
    assert "OUR OWN BUG" in stdout
    assert "ended by itself (" in stdout
    assert len(json.loads((out / "summary.json").read_text())["jobs_lost"]) == JOBS
    assert_kept(out)


def test_signal_stops_all_jobs(bug3: Popen[str], out: Path) -> None:
    os.killpg(bug3.pid, signal.SIGINT)
    stdout, stderr = bug3.communicate(timeout=60)
    assert bug3.returncode == 1, stderr
    assert "interrupted after" in stdout
    assert_kept(out)


def test_kill_of_the_campaign_leaves_no_job(bug3: Popen[str], out: Path) -> None:
    workers = children_of(bug3.pid)
    bug3.kill()
    bug3.wait(timeout=10)
    for _ in range(100):
        if not any(map(is_running, workers)):
            break
        signal.sigtimedwait([], 0.1)
    assert not any(map(is_running, workers))
    assert_kept(out)


@pytest.mark.parametrize("jobs", ["0", "-1", "257", "two"])
def test_a_number_of_jobs_that_cannot_be_is_refused(out: Path, jobs: str) -> None:
    process = start(out, "--jobs", jobs, "--runs", "1")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--jobs" in stderr
    assert not out.exists()


# -- two machines ----------------------------------------------------------------------------------


def test_output_folders_of_two_machines_become_one_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nvmx_fuzz import cli
    from nvmx_fuzz.codec import encode
    from nvmx_fuzz.corpus_features import FeatureMeter, union
    from nvmx_fuzz.corpus_files import files_in
    from nvmx_fuzz.scenario_files import load

    one, two, merged = tmp_path / "one", tmp_path / "two", tmp_path / "merged"
    assert run_json(one, "--l0", "bug3", "--no-seeds", "--seed", "1", "--runs", "1000")[0] == 1
    assert run_json(two, "--l0", "bug3", "--seed", "2", "--runs", "1500", "--jobs", "2")[0] == 1
    before = {path: path.read_bytes() for path in [*files_in(one), *files_in(two)]}
    assert cli.main(["corpus", "merge", str(one), str(two), "--to", str(merged)]) == 0
    capsys.readouterr()
    assert {path: path.read_bytes() for path in before} == before
    meter = FeatureMeter()

    def features(*folders: Path) -> set[tuple[str, int, int]]:
        paths = [path for folder in folders for path in files_in(folder)]
        return union([meter.measure(str(path), load(str(path)).scenario) for path in paths])

    sources = [folder / part for folder in (one, two) for part in ("seeds", "corpus")]
    assert features(merged) >= features(*sources)
    kept = {encode(load(str(path)).scenario) for path in files_in(merged)}
    findings = {
        p.read_bytes() for folder in (one, two) for p in (folder / "findings").glob("*.bin")
    }
    assert findings
    assert findings <= kept
    assert len(kept) < sum(len(files_in(folder)) for folder in sources)
    # Again, as campaigns go on: nothing is new, nothing changes.
    assert cli.main(["corpus", "merge", str(one), str(two), "--to", str(merged)]) == 0
    assert {encode(load(str(path)).scenario) for path in files_in(merged)} == kept
    capsys.readouterr()
