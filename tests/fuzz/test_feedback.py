"""Feedback reaches libFuzzer: shown on a tiny target in processes of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris")

from nvmx_fuzz import FEEDBACK_VARIABLE, feedback

# A model with one nested decision; what it returns is the state that it reached.
MODEL = """
def step(value):
    if value & 1:
        if value & 2:
            return 3
        return 1
    return 0

def run(data):
    return [step(value) for value in data[:8]]
"""

TARGET = """#!/usr/bin/env python3
import os, sys
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
import atheris
from nvmx_fuzz.feedback import ExtraCounters, instrument, setup

with instrument(["tinymodel"]) as probes:
    from tinymodel.model import run

states = ExtraCounters(256)
use_states = "USE_STATES" in os.environ
mutations = 0

def test_one_input(data):
    result = run(data)
    if use_states and data:
        states.buffer[data[0]] = 1
    if "CRASH" in os.environ and len(data) > 2 and 3 in result:
        raise RuntimeError("planted")

def mutate(data, size_max, seed):
    global mutations
    mutations += 1
    if mutations == 1:
        print("MUTATOR IN USE", file=sys.stderr)
    return atheris.Mutate(data, size_max)

print(f"MODE {probes.mode} PROBES {probes.count}", file=sys.stderr)
mutator = mutate if "MUTATE" in os.environ else None
setup(sys.argv, test_one_input, probes=probes, counters=[states], custom_mutator=mutator)
atheris.Fuzz()
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Write the target into a directory with a space in its name."""
    folder = tmp_path / "with space"
    package = folder / "tinymodel"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text(MODEL)
    script = folder / "fuzz_tiny.py"
    script.write_text(TARGET)
    script.chmod(0o755)
    return script


def run_target(target: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run the target in its own directory; return its exit status and what it printed."""
    finished = subprocess.run(
        [sys.executable, target.name, *arguments],
        cwd=target.parent,
        env={**os.environ, "NVMX_FEEDBACK": "states", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return finished.returncode, finished.stdout


def corpus_size(folder: Path) -> int:
    """Return the number of inputs in a corpus folder."""
    return sum(1 for _ in folder.iterdir())


def probes_of(output: str) -> int:
    """Return the number of probes that the target reported."""
    match = re.search(r"PROBES (\d+)", output)
    assert match, output
    return int(match[1])


def test_extra_counters_make_the_corpus_grow(target: Path) -> None:
    corpora = {}
    for name, environment in {"without": {}, "with": {"USE_STATES": "1"}}.items():
        corpora[name] = target.parent / name
        corpora[name].mkdir()
        status, output = run_target(target, "-runs=4000", "-seed=1", name, **environment)
        assert status == 0, output
    assert corpus_size(corpora["without"]) <= 1
    assert corpus_size(corpora["with"]) > 50


@pytest.mark.parametrize("mode", ["fast", "branches", "stock"])
def test_branches_make_the_corpus_grow(target: Path, mode: str) -> None:
    if mode == "fast" and not feedback.has_native_probe():
        pytest.skip("the native helper was not built")
    (target.parent / "corpus").mkdir()
    status, output = run_target(target, "-runs=4000", "-seed=1", "corpus", NVMX_FEEDBACK=mode)
    assert status == 0, output
    assert f"MODE {mode} " in output
    assert corpus_size(target.parent / "corpus") >= 3


def test_second_start_uses_cached_instrumentation_and_sees_the_same_branches(target: Path) -> None:
    outputs = [
        run_target(target, "-runs=2000", "-seed=1", NVMX_FEEDBACK="branches")[1] for _ in range(2)
    ]
    cached = list((target.parent / "tinymodel" / "__pycache__").glob("model.*nvmxprobes.pyc"))
    assert len(cached) == 1
    assert probes_of(outputs[0]) == probes_of(outputs[1]) >= 5
    coverage = [re.search(r"DONE +cov: (\d+ ft: \d+)", output) for output in outputs]
    assert coverage[0]
    assert coverage[1]
    assert coverage[0][1] == coverage[1][1]


def test_changed_source_is_instrumented_anew(target: Path) -> None:
    before = probes_of(run_target(target, "-runs=1", NVMX_FEEDBACK="branches")[1])
    model = target.parent / "tinymodel" / "model.py"
    model.write_text(MODEL + "\ndef more(value):\n    return 1 if value else 2\n")
    assert probes_of(run_target(target, "-runs=1", NVMX_FEEDBACK="branches")[1]) > before


def test_edit_of_one_module_leaves_the_cache_of_others(target: Path) -> None:
    package = target.parent / "tinymodel"
    (package / "later.py").write_text("def f(x):\n    return 1 if x else 2\n")
    target.write_text(
        target.read_text().replace("import run", "import run\n    import tinymodel.later")
    )
    run_target(target, "-runs=1", NVMX_FEEDBACK="branches")
    (cached,) = (package / "__pycache__").glob("later.*nvmxprobes.pyc")
    before = cached.stat().st_mtime_ns
    (package / "model.py").write_text(MODEL + "\ndef more(value):\n    return 1 if value else 2\n")
    run_target(target, "-runs=1", NVMX_FEEDBACK="branches")
    assert cached.stat().st_mtime_ns == before


def test_damaged_cache_is_made_anew(target: Path) -> None:
    before = probes_of(run_target(target, "-runs=1", NVMX_FEEDBACK="branches")[1])
    for cached in (target.parent / "tinymodel" / "__pycache__").glob("*nvmxprobes.pyc"):
        cached.write_bytes(cached.read_bytes()[:20])
    assert probes_of(run_target(target, "-runs=1", NVMX_FEEDBACK="branches")[1]) == before


def test_custom_mutator_is_bound_although_libfuzzer_is_loaded_early(target: Path) -> None:
    status, output = run_target(target, "-runs=200", MUTATE="1")
    assert status == 0, output
    assert "MUTATOR IN USE" in output


@pytest.mark.parametrize("started", ["by path", "by python"])
def test_merge_starts_the_target_again(target: Path, started: str) -> None:
    for name, size in {"merged": 0, "from": 3}.items():
        (target.parent / name).mkdir()
        for i in range(size):
            (target.parent / name / str(i)).write_bytes(bytes([i]))
    command = [str(target)] if started == "by path" else [sys.executable, target.name]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NVMX_FEEDBACK": "states",
        "USE_STATES": "1",
    }
    subprocess.run(
        [*command, "-merge=1", "merged", "from"],
        cwd=target.parent,
        env=environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert corpus_size(target.parent / "merged") == 3


def test_fork_mode_runs_and_reports_coverage_of_extra_counters(target: Path) -> None:
    (target.parent / "corpus").mkdir()
    status, output = run_target(
        target, "-fork=1", "-max_total_time=2", "corpus", NVMX_FEEDBACK="states", USE_STATES="1"
    )
    assert status == 0, output
    assert corpus_size(target.parent / "corpus") > 50


def test_minimize_crash_shortens_the_input(target: Path) -> None:
    # The model looks at 8 bytes; the first one decides here, so the others can go.
    (target.parent / "long").write_bytes(bytes([3] + [0] * 60))
    run_target(target, "-minimize_crash=1", "-max_total_time=1", "long", CRASH="1")
    minimized = list(target.parent.glob("minimized-from-*"))
    assert minimized
    assert min(path.stat().st_size for path in minimized) < 61


def test_fallback_without_native_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvmx_fuzz._branch", None)
    assert not feedback.has_native_probe()
    assert feedback.choose_mode("auto") == "branches"
    assert feedback.choose_mode("fast") == "branches"


def test_environment_variable_chooses_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FEEDBACK_VARIABLE, "stock")
    assert feedback.choose_mode() == "stock"
    monkeypatch.setenv(FEEDBACK_VARIABLE, "")
    assert feedback.choose_mode() in ("fast", "branches")


def test_unknown_mode_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'slow', but must be one of auto, fast, branches"):
        feedback.choose_mode("slow")


def test_package_imported_too_early_is_refused() -> None:
    early = pytest.raises(RuntimeError, match="imported before")
    with early, feedback.instrument(["nvmx_fuzz"], "branches"):
        pass


def test_there_is_at_least_one_counter() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        feedback.ExtraCounters(0)


def test_native_probe_saturates_and_ignores_numbers_outside() -> None:
    if not feedback.has_native_probe():
        pytest.skip("the native helper was not built")
    from nvmx_fuzz import _branch

    counters = bytearray(2)
    _branch.bind(counters)
    for _ in range(300):
        _branch._trace_branch(1)
    for outside in (-1, 2, 1 << 40):
        _branch._trace_branch(outside)
    assert counters == bytes([0, 255])
    with pytest.raises(BufferError):
        counters.append(0)
    with pytest.raises(OverflowError):
        _branch._trace_branch(1 << 80)
    _branch.bind(bytearray(1))
