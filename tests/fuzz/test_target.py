"""The fuzz target, started by its path as OSS-Fuzz and libFuzzer itself start it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris")

from nvmx_core.errors import ModelError
from nvmx_fuzz import nested_events
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.nested_events import Finding, NestedEvents
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "fuzz" / "fuzz_nested_events.py"
RUNS_TO_BUG3 = 3000

# The target with nothing but libFuzzer's own mutations, as under a preloaded libFuzzer.
UNBOUND = """
import sys
import atheris
from nvmx_fuzz.feedback import ExtraCounters, instrument, setup
with instrument(["nvmx_core.l0"]) as probes:
    from nvmx_fuzz import nested_events, state_feedback
states = ExtraCounters(state_feedback.COUNTERS)
target = nested_events.NestedEvents("fixed", state_feedback.StateFeedback(states.buffer))
setup(nested_events.with_defaults(sys.argv),
      lambda data: nested_events.raise_on_violation(target, data),
      probes=probes, counters=[states])
atheris.Fuzz()
"""


def run_target(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Start the target in *folder*; return its exit status and all that it printed."""
    finished = subprocess.run(
        [TARGET, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return finished.returncode, finished.stdout


def names(folder: Path) -> list[str]:
    """The names of the inputs in a corpus folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """An empty corpus folder."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def bug3_crash(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An input that shows bug3, found from an empty corpus, and what the target printed."""
    folder = tmp_path_factory.mktemp("bug3")
    status, output = run_target(folder, f"-runs={RUNS_TO_BUG3}", "-seed=1", NVMX_L0="bug3")
    crashes = list(folder.glob("crash-*"))
    assert status != 0, output
    assert len(crashes) == 1, output
    return crashes[0], output


def test_runs_from_nothing_and_grows_a_corpus(corpus: Path) -> None:
    status, output = run_target(corpus.parent, "-runs=300", "-seed=1", corpus.name)
    assert status == 0, output
    assert len(names(corpus)) > 50
    assert "Uncaught" not in output


def test_same_seed_makes_the_same_corpus(tmp_path: Path) -> None:
    for name, seed in (("one", "1"), ("two", "1"), ("three", "2")):
        (tmp_path / name).mkdir()
        run_target(tmp_path, "-runs=400", f"-seed={seed}", name, PYTHONHASHSEED=str(len(name)))
    assert names(tmp_path / "one") == names(tmp_path / "two")
    assert names(tmp_path / "one") != names(tmp_path / "three")


def test_stops_by_time(tmp_path: Path) -> None:
    status, output = run_target(tmp_path, "-max_total_time=2", "-seed=1")
    assert status == 0, output
    assert re.search(r"Done \d+ runs in", output)


def test_atheris_runs_ends_as_a_coverage_build_wants(tmp_path: Path) -> None:
    stub = "import atexit, pathlib\natexit.register(pathlib.Path('ended').touch)\n"
    (tmp_path / "target.py").write_text(stub + TARGET.read_text())
    finished = subprocess.run(
        [sys.executable, "target.py", "-atheris_runs=40"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Done 40 in" in finished.stderr
    assert (tmp_path / "ended").exists()


def test_length_limit_is_ours_unless_given(tmp_path: Path) -> None:
    assert "lim: 520" in run_target(tmp_path, "-runs=50")[1]
    assert "lim: 80" in run_target(tmp_path, "-runs=50", "-max_len=80")[1]


def test_finding_names_rule_key_and_replay_command(bug3_crash: tuple[Path, str]) -> None:
    crash, output = bug3_crash
    assert "Finding: " in output
    assert "L0 enters L2 without an immediate exit although this waits" in output
    assert "key: IMMEDIATE-EXIT O" in output
    assert f"replay: nvmx-fuzz replay --l0 bug3 {crash.name}" in output


def test_replay_command_names_the_artifact_where_it_is_written(
    bug3_crash: tuple[Path, str], tmp_path: Path
) -> None:
    crash, _ = bug3_crash
    status, output = run_target(
        tmp_path, f"-artifact_prefix={tmp_path}/", str(crash), NVMX_L0="bug3"
    )
    assert status != 0
    assert f"replay: nvmx-fuzz replay --l0 bug3 {tmp_path}/{crash.name}" in output


def test_finding_of_one_l0_is_none_of_another(bug3_crash: tuple[Path, str], tmp_path: Path) -> None:
    status, output = run_target(tmp_path, str(bug3_crash[0]), NVMX_L0="fixed")
    assert status == 0, output


def test_merge_keeps_what_adds_coverage(corpus: Path) -> None:
    source = corpus.parent / "source"
    source.mkdir()
    for index in range(6):
        (source / str(index)).write_bytes(bytes(8) + bytes([0, 0, 0, 0, 0, 0, 0, 0]) * (index % 2))
    status, output = run_target(corpus.parent, "-merge=1", corpus.name, source.name)
    assert status == 0, output
    assert 1 <= len(names(corpus)) <= 2


def test_fork_mode_grows_the_corpus(corpus: Path) -> None:
    status, output = run_target(
        corpus.parent, "-fork=1", "-max_total_time=4", "-seed=1", corpus.name
    )
    assert status == 0, output
    assert len(names(corpus)) > 20


def test_minimize_crash_shortens_the_finding(bug3_crash: tuple[Path, str], tmp_path: Path) -> None:
    crash, _ = bug3_crash
    size = crash.stat().st_size
    (tmp_path / "long").write_bytes(crash.read_bytes())
    run_target(tmp_path, "-minimize_crash=1", "-runs=4000", "-max_total_time=6", "long",
               NVMX_L0="bug3")  # fmt: skip
    smaller = [path.stat().st_size for path in tmp_path.glob("minimized-from-*")]
    assert smaller
    assert min(smaller) < size


def test_unknown_l0_is_refused_with_near_names(tmp_path: Path) -> None:
    status, output = run_target(tmp_path, "-runs=1", NVMX_L0="bug99")
    assert status == 2
    assert output.splitlines()[-1] == (
        "fuzz_nested_events: NVMX_L0: there is no L0 called 'bug99'; did you mean bug9 or bug59 or bug29?"
    )


def test_works_without_its_mutator(corpus: Path) -> None:
    script = corpus.parent / "unbound.py"
    script.write_text(UNBOUND)
    finished = subprocess.run(
        [sys.executable, script, "-runs=3000", "-seed=1", corpus],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    assert len(names(corpus)) > 20


def test_model_error_is_raised_as_itself_under_its_own_heading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def contradict(*_arguments: object) -> None:
        raise ModelError("a hole in a table")

    monkeypatch.setattr(nested_events, "run_and_judge", contradict)
    target = NestedEvents("fixed", StateFeedback(bytearray(COUNTERS)))
    with pytest.raises(ModelError, match="a hole in a table") as caught:
        nested_events.raise_on_violation(target, b"")
    (note,) = caught.value.__notes__
    assert note.startswith("our own bug, not a finding")
    assert "replay: nvmx-fuzz replay --l0 fixed crash-" in note


def test_harmless_bytes_raise_nothing() -> None:
    target = NestedEvents("bug3", StateFeedback(bytearray(COUNTERS)))
    nested_events.raise_on_violation(target, b"")


def test_finding_counts_rules(bug3_crash: tuple[Path, str]) -> None:
    data = bug3_crash[0].read_bytes()
    target = NestedEvents("bug3", StateFeedback(bytearray(COUNTERS)))
    violations = target.run(decode(data)).violations
    with pytest.raises(Finding) as caught:
        nested_events.raise_on_violation(target, data, "there/")
    assert str(caught.value).count("key: ") == len(violations)
    assert "replay: nvmx-fuzz replay --l0 bug3 there/crash-" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("bug1", "EXIT_INFO_X3_EXTERNAL_INTERRUPT_with_valid_IDT_vectoring"),
        ("bug3", "IMMEDIATE_EXIT_O11_no_immediate_exit_requested"),
    ],
)
def test_a_job_tells_findings_apart_by_the_functions_of_the_traceback(
    name: str, function: str
) -> None:
    data = encode(load(str(ROOT / "tests" / "reports" / f"{name}.scn")).scenario)
    target = NestedEvents(name, StateFeedback(bytearray(COUNTERS)))
    with pytest.raises(Finding) as caught:
        nested_events.raise_on_violation(target, data)
    assert caught.traceback[-1].frame.code.name == function
