"""Every fuzz target starts by its path, runs and finds. More about `fuzz_nested_events`: test_target.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris")

from nvmx_core.bugs.versions import l0_class
from nvmx_core.oracle.judge import run_and_compare, run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_fuzz import oss_fuzz
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.targets import TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]
BUGS = sorted((ROOT / "corpus" / "bugs").glob("*.scn"))
RUNS_TO_BUG3 = 30_000

each_target = pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])


def run_target(target: str, folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Start a target in *folder*; return its exit status and all that it printed."""
    finished = subprocess.run(
        [ROOT / "fuzz" / f"{target}.py", *arguments],
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


@each_target
def test_the_whole_seed_corpus_runs_and_grows(target: Target, tmp_path: Path) -> None:
    oss_fuzz.write_extras(target, tmp_path)
    for folder in ("seeds", "corpus"):
        (tmp_path / folder).mkdir()
    seeds = oss_fuzz.seeds_of(target)
    for name, content in seeds.items():
        (tmp_path / "seeds" / name).write_bytes(content)
    status, output = run_target(
        target.name, tmp_path, "-runs=1500", "-seed=1", f"-dict={target.name}.dict", "corpus", "seeds"
    )  # fmt: skip
    assert status == 0, output
    assert f"{len(seeds)} files found in seeds" in output
    assert "Uncaught" not in output
    kept = {path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    assert kept - set(seeds.values())


@each_target
def test_an_unknown_feedback_is_refused_in_one_line(target: Target, tmp_path: Path) -> None:
    status, output = run_target(target.name, tmp_path, "-runs=1", NVMX_FEEDBACK="much")
    assert status == 2
    assert output.splitlines()[-1].startswith(f"{target.name}: NVMX_FEEDBACK is 'much'")


def test_transparency_finds_a_bug_from_nothing_and_cites_itself_alone(tmp_path: Path) -> None:
    status, output = run_target(
        "fuzz_transparency", tmp_path, f"-runs={RUNS_TO_BUG3}", "-seed=1", NVMX_L0="bug3"
    )
    assert status != 0, output
    keys = [line for line in output.splitlines() if line.strip().startswith("key: ")]
    assert keys
    assert all("TRANSPARENCY V11" in key for key in keys)
    assert "replay: nvmx-fuzz replay --l0 bug3 crash-" in output


@pytest.mark.parametrize("path", BUGS, ids=lambda path: path.stem)
def test_comparing_finds_what_the_oracle_of_that_name_finds(path: Path) -> None:
    scenario = load(str(path)).scenario
    arguments = scenario, config_for(scenario.config), l0_class(path.stem)
    judged = [v for v in run_and_judge(*arguments).violations if v.oracle == "TRANSPARENCY"]
    assert list(run_and_compare(*arguments).violations) == judged
