"""`nvmx-fuzz check-trace` through real processes: what it prints, its exit status, and bad input."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trace.cases import FIRING, interrupted
from tests.trace.writer import FORMS, Trace

SAMPLE = (Path(__file__).parent / "kvm-6.1.txt").read_bytes()
BUG = SAMPLE.replace(
    b"EXTERNAL_INTERRUPT ext_inf1: 0x0000000000000000 ext_inf2: 0x0000000000000000",
    b"EXTERNAL_INTERRUPT ext_inf1: 0x0000000000000000 ext_inf2: 0x0000000080000040",
)


def nvmx(*arguments: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [sys.executable, "-m", "nvmx_fuzz.cli", *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(
        finished.args, finished.returncode, finished.stdout.decode(), finished.stderr.decode()
    )


def write(folder: Path, content: bytes, name: str = "trace.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_a_healthy_trace_gets_status_0_and_a_line_for_each_vcpu(tmp_path: Path) -> None:
    path = write(tmp_path, SAMPLE)
    finished = nvmx("check-trace", path)
    assert finished.returncode == 0
    first, second, last = finished.stdout.splitlines()
    assert first.startswith("vcpu 0 (thread 111) nvmx: ")
    assert second.endswith("3 shown to L1: ok")
    assert last == f"{path}: {len(SAMPLE.splitlines())} lines, 151 events: ok"


def test_the_original_bug_is_told_with_lines_rule_and_next_command(tmp_path: Path) -> None:
    path = write(tmp_path, BUG)
    finished = nvmx("check-trace", path)
    assert finished.returncode == 1
    lines = finished.stdout.splitlines()
    where = BUG.splitlines().index(
        next(line for line in BUG.splitlines() if b"ext_inf2: 0x0000000080000040" in line)
    )
    assert lines[0] == f"VIOLATION X3  {path}:{where + 1}  vcpu 0 (thread 119)"
    assert "a pair that no processor returns" in " ".join(line.strip() for line in lines[1:3])
    (marked,) = [line for line in lines if line.startswith("  > ")]
    assert f"{where + 1}  kvm_nested_vmexit_inject: reason: EXTERNAL_INTERRUPT" in marked
    assert any(line.startswith("  rule X3  Exits 1, 3, 4") for line in lines)
    assert lines[-1] == f"next: nvmx-fuzz corpus from-trace --at {where + 1} {path}"


def test_json_has_the_same(tmp_path: Path) -> None:
    good, bad = write(tmp_path, SAMPLE, "good"), write(tmp_path, BUG, "bad")
    finished = nvmx("check-trace", "--json", good, bad)
    assert finished.returncode == 1
    first, second = json.loads(finished.stdout)
    assert (first["verdict"], second["verdict"]) == ("ok", "violation")
    (violation,) = second["violations"]
    assert violation["rule"] == "X3"
    assert violation["line"] in [line["line"] for line in violation["lines"]]
    assert [vcpu["verdict"] for vcpu in second["vcpus"]] == ["ok", "violation"]


def test_gzip_in_two_members_and_standard_input_are_read(tmp_path: Path) -> None:
    half = len(BUG) // 2
    path = write(tmp_path, gzip.compress(BUG[:half]) + gzip.compress(BUG[half:]), "trace.gz")
    assert nvmx("check-trace", path).returncode == 1
    piped = nvmx("check-trace", "-", stdin=path.read_bytes())
    assert piped.returncode == 1
    assert piped.stdout.startswith("VIOLATION X3  -:")
    assert nvmx("check-trace", "-", stdin=SAMPLE).returncode == 0


def test_a_highly_compressed_trace_is_read_whole(tmp_path: Path) -> None:
    """One piece of compressed data makes many pieces of text."""
    content = SAMPLE * 400
    path = write(tmp_path, gzip.compress(content), "trace.gz")
    finished = nvmx("check-trace", "--json", path)
    assert json.loads(finished.stdout)[0]["lines"] == len(content.splitlines())


AMD = Trace().other(
    "kvm_exit: vcpu 0 reason npf rip 0x1000 info1 0x4 info2 0x0 intr_info 0x0 error_code 0x0"
)
AMD_PLUGIN = Trace().other("kvm_exit: reason EXIT_NPF rip 0x1000 info 200000006 1ab000")
UNREADABLE = Trace().other("kvm_exit: something else entirely")


DAMAGED = {
    "a zero byte": BUG + b"\0\n",
    "a line without end": BUG + b"a" * 70_000,
    "cut gzip data": gzip.compress(BUG * 9, mtime=0)[:-300],
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_what_was_found_in_front_of_a_damage_is_told(tmp_path: Path, content: bytes) -> None:
    """A machine that died while it was traced is the one that one wants to hear of."""
    path = write(tmp_path, content)
    finished = nvmx("check-trace", path)
    assert finished.returncode == 2
    assert finished.stdout.startswith("VIOLATION X3  ")
    assert finished.stderr.startswith(f"nvmx-fuzz: {path}")
    (result,) = json.loads(nvmx("check-trace", "--json", path).stdout)
    assert result["verdict"] == "bad file"
    assert result["message"]
    assert result["violations"][0]["rule"] == "X3"


NO_TRACES = [
    (b"", "is empty"),
    (b"\n", "holds no entry or exit of KVM; record with: trace-cmd record -e kvm"),
    (
        b"version 1\nL1 enter\n",
        "holds no entry or exit of KVM; record with: trace-cmd record -e kvm",
    ),
    (SAMPLE[:500] + b"\0" + SAMPLE[500:], "is no text of a trace"),
    (b"a" * 70_000, "is no text of a trace"),
    (bytes(range(256)) * 9, "is no text of a trace"),
    (b"\x17\x08Dtracing6\0" + bytes(99), "is a binary trace.dat; try: trace-cmd report -N"),
    (gzip.compress(SAMPLE, mtime=0)[:1000], "ends in the middle of its gzip data"),
    (gzip.compress(b"", mtime=0)[:8], "ends in the middle of its gzip data"),
    (b"\x1f\x8b" + b"x" * 99, "is damaged: its gzip data cannot be read"),
    (gzip.compress(SAMPLE, mtime=0) + b"more", "has something behind the end of its gzip data"),
    (AMD.render(FORMS["6.1"]), "is a trace of AMD's SVM; only VMX is judged"),
    (AMD_PLUGIN.render(FORMS["6.1"]), "is a trace of AMD's SVM; only VMX is judged"),
    (UNREADABLE.render(FORMS["6.1"]), "holds no entry or exit of KVM in a known spelling"),
]


@pytest.mark.parametrize(
    ("content", "message"), NO_TRACES, ids=[str(number) for number in range(len(NO_TRACES))]
)
def test_what_is_no_trace_is_refused_in_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    finished = nvmx("check-trace", path)
    assert finished.returncode == 2
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"nvmx-fuzz: {path}")
    assert message in line


def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        (tmp_path, "is a directory, not a file"),
        (tmp_path / "pipe", "is a named pipe, not a file; - reads standard input"),
        (Path("/dev/null"), "is a device, not a file; - reads standard input"),
        (tmp_path / "missing", "no such file or directory"),
    ):
        finished = nvmx("check-trace", name)
        assert finished.returncode == 2
        assert finished.stderr == f"nvmx-fuzz: {name}: {message}\n"


def test_a_bad_file_does_not_keep_the_others_from_being_checked(tmp_path: Path) -> None:
    empty, bad = write(tmp_path, b"", "empty"), write(tmp_path, BUG, "bad")
    finished = nvmx("check-trace", empty, bad)
    assert finished.returncode == 2
    assert finished.stdout.startswith("VIOLATION X3")
    assert finished.stderr == f"nvmx-fuzz: {empty}: is empty\n"


def test_an_event_that_cannot_be_read_is_counted_and_nothing_is_concluded_across_it(
    tmp_path: Path,
) -> None:
    case = next(case for case in FIRING if case.name == "gone")
    trace = case.trace()
    at = len(interrupted().events)
    trace.events[at:at] = Trace().other("kvm_inj_virq: garbled").events
    finished = nvmx("check-trace", write(tmp_path, trace.render(FORMS["6.1"])))
    assert finished.returncode == 0
    assert "1 event could not be read, the first in line" in finished.stdout


def test_many_findings_are_counted_and_a_few_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, BUG * 150)
    finished = nvmx("check-trace", "--json", path)
    (result,) = json.loads(finished.stdout)
    assert result["violations_count"] == 150
    assert len(result["violations"]) == 100
    assert "and 50 more" in nvmx("check-trace", path).stdout
