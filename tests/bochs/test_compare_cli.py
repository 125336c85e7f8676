"""`nvmx-fuzz compare` through real processes: what it prints, and what it says of bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvmx_fuzz.bochs.helper import BochsUnavailableError, library_version

COMMAND = [sys.executable, "-m", "nvmx_fuzz.cli", "compare"]


def is_there() -> bool:
    """Whether the machine can be used here."""
    try:
        library_version()
    except BochsUnavailableError:
        return False
    return True


LONG = """\
version 1
config hlt-exiting=on
L1       control pause-exiting on
L1       intercept 13 on
L1       vmwrite GUEST_ACTIVITY 0x1
L1       inject hardware-exception #GP
L1       enter
L2       nop
"""

needs_bochs = pytest.mark.skipif(not is_there(), reason="the extra bochs is not installed")


def compare(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(*arguments: str | Path, **environment: str) -> str:
    """The one line that the command says on wrong usage."""
    finished = compare(*arguments, **environment)
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    return line


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").endswith("none: no such file or directory")


def test_a_file_that_is_no_scenario_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.scn"
    path.write_text("hello\n")
    assert f"{path}:1: the first line must be 'version 1'" in refused(path)


def test_a_file_that_is_too_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(1 << 20))
    assert "large: is larger than" in refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.scn"
    path.write_text("version 1\n")
    path.chmod(0)
    assert "secret.scn" in refused(path)


def test_a_folder_without_scenarios_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path).endswith(f"{tmp_path}: holds no scenario")


@pytest.mark.parametrize(
    "option", [("--time", "0"), ("--count", "0"), ("--count", str(1 << 63)), ("--machine", "kvm")]
)
def test_a_wrong_option_is_named(option: tuple[str, str]) -> None:
    assert option[0] in refused(*option)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--known"], "--known goes with --minimize"),
        (
            ["--serial", "com1.txt", "--minimize", "out"],
            "--serial cannot run what --minimize would",
        ),
        (["--serial", "com1.txt", "--count", "3"], "--serial has no new scenarios to compare"),
        (["--serial", "com1.txt", "--machine", "bochs"], "--machine bochs boots no image"),
    ],
)
def test_options_that_do_not_go_together_are_named(options: list[str], says: str) -> None:
    assert says in refused(*options)


@needs_bochs
def test_the_smallest_scenario_of_each_kind_goes_to_a_folder(tmp_path: Path) -> None:
    scenario = tmp_path / "long.scn"
    scenario.write_text(LONG)
    folder = tmp_path / "small"
    finished = compare("--minimize", folder, "--known", "--json", scenario)
    assert finished.returncode == 0, finished.stderr
    (kind,) = json.loads(finished.stdout)["minimised"]["kinds"]
    assert (kind["steps_before"], kind["steps"]) == (6, 3)
    (path,) = folder.iterdir()
    assert kind["file"] == str(path)
    assert path.read_text().startswith(
        f"# {kind['known']}: {kind['key']}\n# shown by bochs, minimised\n"
    )
    unlisted = compare("--minimize", tmp_path / "other", scenario)
    assert unlisted.stdout.splitlines()[-1] == "nothing to minimise"
    path.write_text("mine\n")
    refusal = refused("--minimize", folder, "--known", scenario)
    assert "holds something else, and is left alone" in refusal
    assert path.read_text() == "mine\n"


def without_the_extra(folder: Path) -> dict[str, str]:
    """An environment in which the assembler cannot be imported."""
    (folder / "keystone.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'keystone'\")\n"
    )
    return before_all(folder)


def before_all(folder: Path) -> dict[str, str]:
    """An environment that imports from a folder first."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path}


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    environment = without_the_extra(tmp_path)
    assert "try: pip install" in refused(**environment)


def test_where_possible_succeeds_without_the_machine(tmp_path: Path) -> None:
    finished = compare("--where-possible", **without_the_extra(tmp_path))
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("nothing compared: ")


@needs_bochs
@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("raise SystemExit(7)", "the emulator ends with status 7 when it starts"),
        ("raise ImportError('the library is broken')", "the library is broken"),
    ],
)
def test_where_possible_does_not_excuse_what_is_broken(
    tmp_path: Path, statement: str, says: str
) -> None:
    (tmp_path / "keystone.py").write_text(f"{statement}\n")
    assert refused("--where-possible", **before_all(tmp_path)).endswith(says)


@needs_bochs
def test_a_comparison_of_nothing_is_no_success(tmp_path: Path) -> None:
    path = tmp_path / "real-mode.scn"
    path.write_text("version 1\nconfig real-mode=on\nL1 enter\n")
    finished = compare(path)
    assert finished.returncode == 2
    assert "0 scenarios compared" in finished.stdout
    assert finished.stderr.splitlines() == [
        "nvmx-fuzz: nothing was compared: no scenario can be realised"
    ]


@needs_bochs
def test_two_processes_compare_alike() -> None:
    reports = []
    for seed in ("1", "2"):
        finished = compare("--count", "400", "--seed", "7", "--json", PYTHONHASHSEED=seed)
        assert finished.returncode == 0, finished.stdout
        reports.append(json.loads(finished.stdout))
    for report in reports:
        assert report["compared"] > 400
        for key in ("seconds", "rate", "worker_memory"):
            del report[key]
    assert reports[0] == reports[1]


def interruptible() -> None:
    """Ctrl-C ends it, also where the tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@needs_bochs
def test_workers_that_die_in_a_live_comparison_are_incidents() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--time", "100000", "--seed", "1", "--json"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        preexec_fn=interruptible,  # noqa: PLW1509 - no threads here
    )  # fmt: skip
    try:
        dead: list[int] = []
        for _ in range(2):
            worker = worker_of(process.pid, dead)
            wait_until_it_compares(worker)
            os.kill(worker, signal.SIGSEGV)
            dead.append(worker)
        wait_until_it_compares(worker_of(process.pid, dead))
        process.send_signal(signal.SIGINT)  # as a person ends it
        report = json.loads(process.communicate(timeout=120)[0])
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert report["restarts"] == 2
    assert report["verdicts"]["incident"] in (1, 2)  # one may have died between two batches
    (finding,) = report["findings"]
    assert finding["reason"] == "the emulator ended with status -11"
    assert finding["scenario"].startswith("version 1\n")
    assert report["verdicts"]["same"] > 1000


def worker_of(parent: int, dead: list[int]) -> int:
    """The worker among the children; multiprocessing has a process of its own beside it."""
    while True:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in command and int(child) not in dead:
                return int(child)
        time.sleep(0.01)


def wait_until_it_compares(process: int) -> None:
    """Wait until it has used more processor time than the start takes."""
    while True:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        if int(fields[11]) + int(fields[12]) > 2 * os.sysconf("SC_CLK_TCK"):
            return
        time.sleep(0.01)
