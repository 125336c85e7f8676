"""`pytest --nvmx-corpus DIR`, through pytest itself, in a process and a folder of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nvmx_fuzz.codec import encode
from nvmx_fuzz.scenario_files import load

ROOT = Path(__file__).resolve().parents[2]
BUG1 = ROOT / "tests" / "reports" / "bug1.scn"
SEEDS = ROOT / "corpus" / "nested_events"
RULE_X3 = "X3: exit EXTERNAL_INTERRUPT carries valid IDT-vectoring information"


def run(folder: Path, *arguments: str | Path, l0: str = "") -> tuple[int, str]:
    """Run pytest in *folder*; returns its status and what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "NVMX_L0"}
    if l0:
        environment["NVMX_L0"] = l0
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return finished.returncode, finished.stdout + finished.stderr


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of three scenarios of every form, as a campaign leaves them, and what is none."""
    folder = tmp_path / "a corpus"
    findings = folder / "findings"
    findings.mkdir(parents=True)
    shutil.copy(BUG1, findings / "x3.scn")
    (findings / "x3.bin").write_bytes(encode(load(str(BUG1)).scenario))
    (findings / "x3.txt").write_text("an explanation")
    (folder / "0123abcd").write_bytes(encode(load(str(BUG1)).scenario))
    (folder / "arrives.scn").write_bytes((SEEDS / "interrupt-arrives-at-entry.scn").read_bytes())
    (folder / ".lock").write_text("")
    (folder / "progress.jsonl").write_text("{}\n")
    return folder


def test_every_scenario_is_a_test_and_fixed_passes_all(corpus: Path, tmp_path: Path) -> None:
    status, text = run(tmp_path, "--nvmx-corpus", corpus, "-v")
    assert status == 0, text
    assert "3 passed" in text
    passed = re.findall(r"(\S+)::fixed PASSED", text)
    assert sorted(Path(name).name for name in passed) == ["0123abcd", "arrives.scn", "x3.scn"]


def test_a_broken_rule_is_the_text_of_the_failure(corpus: Path, tmp_path: Path) -> None:
    status, text = run(tmp_path, "--nvmx-corpus", corpus, "--nvmx-l0", "bug1")
    assert status == 1, text
    assert "2 failed, 1 passed" in text
    assert text.count(RULE_X3) >= 2
    assert "Boundary exits never carry IDT-vectoring information" in text
    assert "(SDM: Information for VM Exits During Event Delivery; KVM vmx_handle_exit)" in text
    assert f"next: nvmx-fuzz explain --l0 bug1 '{corpus / 'findings' / 'x3.scn'}'" in text
    assert "Traceback" not in text


def test_the_tests_come_on_top_of_others_unless_a_file_is_named(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_own.py").write_text("def test_own(): pass\n")
    assert "4 passed" in run(tmp_path, "--nvmx-corpus", corpus)[1]
    assert "3 passed" in run(tmp_path, "--nvmx-corpus", corpus, corpus)[1]
    assert "1 passed" in run(tmp_path, "--nvmx-corpus", corpus, corpus / "arrives.scn")[1]
    assert "1 passed" in run(tmp_path, "test_own.py")[1]


def test_the_environment_chooses_the_l0_and_workers_share_the_tests(
    corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("xdist")
    status, text = run(tmp_path, "--nvmx-corpus", corpus.name, "-n", "2", l0="bug1")
    assert (status, "2 failed, 1 passed" in text) == (1, True), text


def test_bad_files_and_broken_expectations_fail_with_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "bad.scn").write_bytes(b"version 1\nL1 fly\n")
    (folder / "garbage").write_bytes(bytes(100_000))
    (folder / "wrong.scn").write_text("version 1\nL1 enter\n  expect deliver 0x40\n")
    status, text = run(tmp_path, "--nvmx-corpus", folder)
    assert status == 1
    assert "3 failed" in text
    assert f"{folder / 'bad.scn'}:2: " in text
    assert f"{folder / 'garbage'}: " in text
    assert "next: nvmx-fuzz replay --journal --l0 fixed" in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nvmx-corpus", "nowhere"], "nowhere does not exist"),
        (["--nvmx-corpus", "a corpus/0123abcd"], "0123abcd is not a directory"),
        (["--nvmx-corpus", "a corpus", "--nvmx-l0", "bug999"], "there is no L0 called 'bug999'"),
    ],
)
def test_bad_options_get_one_line(
    arguments: list[str], line: str, corpus: Path, tmp_path: Path
) -> None:
    assert corpus.is_dir()
    status, text = run(tmp_path, *arguments)
    assert status == pytest.ExitCode.USAGE_ERROR
    (told,) = [told for told in text.splitlines() if told]
    assert told.startswith("ERROR: --nvmx-")
    assert line in told


def test_a_testcase_is_asked_what_its_target_asks(tmp_path: Path) -> None:
    folder = tmp_path / "testcases"
    folder.mkdir()
    (folder / "clusterfuzz-testcase-fuzz_trace_reader-1").write_text("no event\n" * 400)
    (folder / "clusterfuzz-testcase-fuzz_scenario_text-1").write_text("version 1\nL1 enter\n")
    status, text = run(tmp_path, "--nvmx-corpus", folder)
    assert status == 0, text
    assert "2 passed" in text
    (tmp_path / "conftest.py").write_text(
        "from nvmx_fuzz import scenario_text\n"
        "scenario_text.format_file = lambda file: 'version 1\\n'\n"
    )
    status, text = run(tmp_path, "--nvmx-corpus", folder)
    assert status == 1, text
    assert "1 failed, 1 passed" in text
    assert "fuzz_scenario_text: Is every text read" in text
    assert "its canonical text means something else" in text
    assert "next: nvmx-fuzz replay --target fuzz_scenario_text " in text
