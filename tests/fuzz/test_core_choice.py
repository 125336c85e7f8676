"""Which build of the model runs, and that both builds show the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvmx_fuzz import core_choice

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT / "corpus" / "nested_events"
RANDOM = 20_000

compiled = pytest.mark.skipif(
    core_choice.why_not_compiled() != "", reason=f"{core_choice.why_not_compiled()}"
)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a module of ours in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture
def no_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a compiled core in which there is none."""
    monkeypatch.setattr(core_choice, "compiled_folder", lambda: tmp_path)
    monkeypatch.delenv(core_choice.VARIABLE, raising=False)
    return tmp_path


def test_a_packaged_program_looks_for_no_compiled_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert core_choice.why_not_compiled() == "a packaged program holds the Python build alone"
    assert core_choice.agree("auto", "auto") == ("python", "auto")


def test_without_a_build_it_is_python(no_build: Path) -> None:
    assert "there is no compiled core" in core_choice.why_not_compiled()
    assert core_choice.decide() == "python"
    with pytest.raises(core_choice.NoCompiledCoreError, match="try: scripts/build-fast"):
        core_choice.decide("compiled")
    assert list(no_build.iterdir()) == []


def test_a_build_of_these_sources_is_used_and_an_older_one_is_not(no_build: Path) -> None:
    digest = no_build / core_choice.DIGEST_NAME
    digest.write_text(core_choice.sources_digest() + "\n")
    assert core_choice.decide() == "compiled"
    assert core_choice.decide("python") == "python"
    digest.write_text("0" * 64)
    assert core_choice.why_not_compiled() == "the compiled core is older than its sources"
    assert core_choice.decide() == "python"


def test_branches_are_counted_where_the_build_has_counters(no_build: Path) -> None:
    (no_build / core_choice.DIGEST_NAME).write_text(core_choice.sources_digest())
    assert core_choice.agree(None, "auto") == ("compiled", "states")
    assert core_choice.agree(None, "fast") == ("python", "fast")
    assert core_choice.agree("python", "auto") == ("python", "auto")
    with pytest.raises(ValueError, match="has no counters for feedback 'fast'; install clang"):
        core_choice.agree("compiled", "fast")
    (no_build / core_choice.COUNTERS_NAME).touch()
    assert core_choice.agree(None, "fast") == ("compiled", "fast")
    assert core_choice.agree(None, "branches") == ("python", "branches")
    with pytest.raises(ValueError, match="has no counters for feedback 'stock'"):
        core_choice.agree("compiled", "stock")


def test_environment_chooses(no_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (no_build / core_choice.DIGEST_NAME).write_text(core_choice.sources_digest())
    monkeypatch.setenv(core_choice.VARIABLE, "python")
    assert core_choice.decide() == "python"
    monkeypatch.setenv(core_choice.VARIABLE, "fast")
    with pytest.raises(ValueError, match="NVMX_CORE is 'fast', but must be one of auto, python"):
        core_choice.decide()


def test_this_process_has_python() -> None:
    assert core_choice.in_use() == "python"


def test_doctor_says_what_is_used() -> None:
    finished = python("nvmx_fuzz.cli", "doctor", NVMX_CORE="python")
    assert finished.returncode == 0, finished.stderr
    lines = dict(line.split("  ", 1) for line in finished.stdout.splitlines())
    assert lines["core"].strip() == "python is used"
    assert lines["Python"].strip() == ".".join(map(str, sys.version_info[:3]))


def test_unusable_choice_is_one_line() -> None:
    finished = python("nvmx_fuzz.cli", "doctor", NVMX_CORE="slow")
    assert finished.returncode == 2
    assert finished.stderr == (
        "nvmx-fuzz: NVMX_CORE is 'slow', but must be one of auto, python, compiled\n"
    )


@compiled
def test_both_builds_show_the_same() -> None:
    words = ("0", str(RANDOM), str(SEEDS))
    digests = [python("nvmx_fuzz.core_digest", core, *words) for core in ("python", "compiled")]
    assert [digest.returncode for digest in digests] == [0, 0], digests
    assert digests[0].stdout.splitlines()[-1].startswith(f"{RANDOM} ")
    assert digests[0].stdout == digests[1].stdout


@compiled
def test_campaign_runs_on_the_compiled_core(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    finished = python(
        *("nvmx_fuzz.cli", "run", "--core", "compiled", "--l0", "bug1", "--no-seeds"),
        *("--runs", "4000", "--seed", "1", "--out", str(tmp_path / "out")),
    )
    assert finished.returncode == 1, finished.stderr
    assert "compiled core, feedback states" in finished.stdout


@compiled
@pytest.mark.skipif(not core_choice.has_branch_counters(), reason="it was not built by clang")
def test_branches_of_the_compiled_core_are_coverage(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    coverage = {}
    for feedback in ("states", "fast"):
        finished = python(
            *("nvmx_fuzz.cli", "run", "--core", "compiled", "--no-seeds", "--feedback", feedback),
            *("--runs", "500", "--seed", "1", "--out", str(tmp_path / feedback), "--json"),
        )
        assert finished.returncode == 0, finished.stderr
        coverage[feedback] = json.loads(finished.stdout)["coverage"]
    assert coverage["fast"] > 2 * coverage["states"]


def test_several_bugs_together_run_in_python(no_build: Path) -> None:
    (no_build / core_choice.DIGEST_NAME).write_text(core_choice.sources_digest())
    assert [
        core_choice.needs_python(name) for name in ("fixed", "bug1", "bug1,res2", "kvm-5.4")
    ] == [
        False,
        False,
        True,
        True,
    ]
    assert core_choice.agree(None, "auto", "kvm-5.4") == ("python", "auto")
    assert core_choice.agree(None, "auto", "bug1") == ("compiled", "states")
    with pytest.raises(ValueError, match="several bugs together: that needs --core python"):
        core_choice.agree("compiled", "auto", "kvm-5.4")


def test_what_gives_code_another_name_is_not_compiled() -> None:
    """A compiled function has no ``__code__``: the target would end with that instead of its finding."""
    assert not [path for path in core_choice.sources() if ".__code__ = " in path.read_text()]
