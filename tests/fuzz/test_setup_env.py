"""An environment that cannot be set up: one line about why, and never the status of a finding."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "scripts" / "setup-env"


def refusal(*command: str | Path, **environment: str | Path) -> list[str]:
    """Run a command that has to end with status 2, and print on standard error only; its lines."""
    finished = subprocess.run(
        command,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        check=False,
        text=True,
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    return finished.stderr.splitlines()


@pytest.mark.parametrize("script", ["fuzz", "reproduce"])
def test_without_a_python_there_is_one_line(script: str, tmp_path: Path) -> None:
    lines = refusal(
        ROOT / "scripts" / script, "--help", NVMX_VENV=tmp_path / "venv", PYTHON="/bin/false"
    )
    assert lines == [
        "nvmx-fuzz: PYTHON=/bin/false is not Python 3.11, 3.12 or 3.13 with the venv module"
    ]


def test_where_nothing_may_be_written_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "venv.lock").mkdir()
    (line,) = refusal(ROOT / "scripts" / "reproduce", "--help", NVMX_VENV=tmp_path / "venv")
    assert "venv.lock cannot be written" in line
    assert line.endswith("take a checkout of your own")


def test_what_another_program_says_is_not_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    *_, last = refusal(
        ROOT / "scripts" / "reproduce", "--help", NVMX_VENV=tmp_path / "file" / "venv"
    )
    assert last.endswith("file/venv failed; the reason stands above")


def test_the_shell_that_sources_it_lives_on(tmp_path: Path) -> None:
    script = f"source '{SETUP}'; echo status $? >&2; exit 2"
    lines = refusal("bash", "-c", script, NVMX_VENV=tmp_path / "venv", PYTHON="/bin/false")
    assert lines[-1] == "status 2"
