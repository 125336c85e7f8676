"""Campaigns through real processes, for the tests of them."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nvmx_fuzz.codec import decode
from nvmx_fuzz.scenario_files import load


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a campaign into *out*."""
    return subprocess.Popen(
        [sys.executable, "-m", "nvmx_fuzz.cli", "run", "--out", str(out), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(out: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a campaign to its end; returns its status and both outputs."""
    process = start(out, *arguments)
    stdout, stderr = process.communicate(timeout=180)
    return process.returncode, stdout, stderr


def run_json(out: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run a campaign to its end; returns its status and its summary."""
    status, stdout, stderr = run(out, "--json", *arguments)
    assert stdout, stderr
    summary: dict[str, Any] = json.loads(stdout)
    return status, summary


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until the campaign has written a file like this."""
    for _ in range(600):
        if any(folder.glob(pattern)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail(f"no {pattern} appeared in {folder}")


def children_of(parent: int) -> list[int]:
    """The processes that *parent* started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def is_running(process: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_kept(out: Path) -> None:
    """Every file of a finding is whole, and every input of the corpus is there."""
    findings = sorted((out / "findings").glob("*.scn"))
    assert findings
    for scn in findings:
        loaded = load(str(scn))
        assert loaded.text is not None
        assert decode(scn.with_suffix(".bin").read_bytes()) == loaded.scenario
    assert any((out / "corpus").iterdir())
