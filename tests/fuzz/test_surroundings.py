"""A campaign in surroundings that are not kind: little memory, odd names, plain terminals, and others."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("atheris")

from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.history import read_history

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
RUN = (sys.executable, "-m", "nvmx_fuzz.cli", "run", "--seed", "1")


def finished(
    *words: str,
    folder: Path,
    prefix: tuple[str, ...] = (),
    limit: Callable[[], None] | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run a campaign to its end."""
    return subprocess.run(
        [*prefix, *RUN, *words], cwd=folder, env=os.environ | environment, stdin=subprocess.DEVNULL,
        capture_output=True, check=False, timeout=120, preexec_fn=limit,
    )  # fmt: skip


def address_space(size: int) -> Callable[[], None]:
    """What `ulimit -v` does, in bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))


def test_enough_memory(tmp_path: Path) -> None:
    done = finished("--runs", "50", folder=tmp_path, limit=address_space(1 << 30))
    assert done.returncode == 0, done


@pytest.mark.parametrize("mebibytes", [30, 45, 60])
def test_too_little_memory_is_nobodys_bug(tmp_path: Path, mebibytes: int) -> None:
    done = finished("--runs", "50", folder=tmp_path, limit=address_space(mebibytes << 20))
    text = done.stdout + done.stderr
    if done.returncode == 1 and b"Traceback" in text and b"runs done" not in text:
        pytest.skip("Python itself does not start with that")
    assert done.returncode == 2, done
    assert b"memory" in text
    assert b"OUR OWN BUG" not in text
    assert b"Traceback" not in text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_odd_names(tmp_path: Path, encoding: str) -> None:
    place = tmp_path / "ein Ördner ü 'x\" $y"
    place.mkdir()
    done = finished(
        "--l0", "bug3", "--runs", "200", "--no-seeds", "--out", "ö ü", folder=place,
        LC_ALL="C", PYTHONIOENCODING=encoding,
    )  # fmt: skip
    assert done.returncode == 1, done
    (*_, last) = json.loads((place / "ö ü" / "summary.json").read_text())["findings"]
    again = subprocess.run(
        [sys.executable, "-m", "nvmx_fuzz.cli", "replay", "--l0", "bug3", last["file"]],
        cwd=place, capture_output=True, check=False,
    )  # fmt: skip
    assert again.returncode == 1, again


def test_a_plain_terminal_gets_plain_lines(tmp_path: Path) -> None:
    if shutil.which("script") is None:
        pytest.skip("there is no script")
    words = " ".join([*RUN, "--runs", "50"])
    done = subprocess.run(
        ["script", "-qec", words, "/dev/null"], cwd=tmp_path, capture_output=True, check=False,
        env=os.environ | {"TERM": "dumb"}, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert b"\x1b" not in done.stdout
    assert b"no findings" in done.stdout


def test_no_terminal_at_all(tmp_path: Path) -> None:
    done = finished("--runs", "50", folder=tmp_path, prefix=("setsid", "--wait"), TERM="xterm")
    assert done.returncode == 0, done
    assert b"\x1b" not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_read_only_checkout(tmp_path: Path) -> None:
    mount = f"mount --bind '{ROOT}' '{ROOT}' && mount -o remount,ro,bind '{ROOT}'"
    tried = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"{mount} && ! touch '{ROOT}/x'"],
        capture_output=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        pytest.skip("nothing can be mounted here")
    prefix = ("unshare", "-m", "bash", "-c", f'{mount} && cd "$0" && exec "$@"')
    done = finished("--runs", "50", folder=tmp_path, prefix=(*prefix, str(tmp_path)))
    assert done.returncode == 0, done
    assert (tmp_path / "out" / "fixed" / "summary.json").is_file()
    done = finished("--runs", "50", folder=tmp_path, prefix=(*prefix, str(ROOT)))
    assert done.returncode == 2, done
    assert b"read-only file system" in done.stderr


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
def test_a_clock_that_is_set_back(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    process = subprocess.Popen(
        [*RUN, "--time", "6", "--jobs", "2", "--no-seeds", "--out", str(tmp_path / "out"), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {
            "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )  # fmt: skip
    for shift in ("-3600", "+7200", "-10"):
        time.sleep(2)
        clock.write_text(f"{shift}\n")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert summary["ended"] == "time is up"
    assert 6 <= summary["seconds"] < 60
    (session,) = read_history(tmp_path / "out" / "progress.jsonl")
    moments = [sample.seconds for sample in session.samples]
    assert moments == sorted(moments)


def test_no_code_of_ours_asks_the_clock_of_the_machine() -> None:
    for folder in ("nvmx_core", "fuzz"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            for name in ("time.time(", "time_ns(", "datetime", "localtime", "strftime"):
                assert name not in text.replace("perf_counter_ns(", ""), f"{path}: {name}"
