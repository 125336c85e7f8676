"""`export --format kvm-unit-test`: which scenarios it takes, what the file asserts, and that it compiles.

With the environment variable NVMX_KVM_UNIT_TESTS, the path of a configured tree of kvm-unit-tests, every file
is compiled and linked there.
"""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from nvmx_fuzz.files import BadFile
from nvmx_fuzz.kvm_unit_test import kvm_unit_test
from nvmx_fuzz.scenario_files import load, load_content

ROOT = Path(__file__).resolve().parents[2]
SEEDS = sorted((ROOT / "corpus" / "nested_events").glob("*.scn"))
ORIGINAL = ROOT / "corpus" / "nested_events" / "interrupt-while-l0-repairs-stack-page.scn"
TREE = os.environ.get("NVMX_KVM_UNIT_TESTS")
TAKEN_MIN = 40


def exported() -> dict[str, str]:
    """The files of all seeds that can be exported."""
    files: dict[str, str] = {}
    for path in SEEDS:
        with suppress(BadFile):
            files[path.stem] = kvm_unit_test(load(str(path)))
    return files


def host_of(text: str) -> list[str]:
    body = re.search(r"static void scenario\(void\)\n{\n(.*?)\n}\n", text, re.DOTALL)
    assert body is not None
    return [line.strip() for line in body[1].split("\n")]


def test_the_original_situation_asserts_the_exit_behind_the_delivery() -> None:
    host = host_of(kvm_unit_test(load(str(ORIGINAL))))
    start = host.index("vmcs_write(ENT_INTR_INFO, 0x80000040);")
    assert "self_interrupt(0x51);" in host[start:]
    entry = host.index("enter_l2();")
    assert host[entry + 1 : entry + 3] == [
        "expect_exit(1 /* EXTERNAL_INTERRUPT */, 0x0, 0x0);",
        "expect_at_handler(0x40);",
    ]


def test_every_seed_is_exported_or_refused_in_one_line() -> None:
    files = exported()
    assert len(files) >= TAKEN_MIN
    for path in SEEDS:
        if path.stem not in files:
            with pytest.raises(BadFile, match="has no counterpart in a kvm-unit-test") as refused:
                kvm_unit_test(load(str(path)))
            assert refused.value.message.isprintable()
    for name, text in files.items():
        assert text.count("{") == text.count("}"), name
        assert text.startswith("/*\n"), name
        assert f'.name = "nvmx_{name.replace("-", "_")}"' in text
        assert "enter_l2();" in host_of(text), name
        assert text == kvm_unit_test(load(str(ROOT / "corpus" / "nested_events" / f"{name}.scn")))


def test_every_helper_that_a_file_defines_is_called() -> None:
    for name, text in exported().items():
        for helper in re.findall(r"^static void (\w+)\(", text, re.MULTILINE):
            calls = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
            is_called = len(re.findall(rf"\b{helper}\b", calls)) > 1
            assert is_called, (name, helper)


def test_l2_goes_on_behind_what_exited() -> None:
    scenario = b"version 1\nL1 enter\nL2 cpuid\nL1 enter\nL2 nop\nL2 vmcall\n"
    text = kvm_unit_test(load_content("a.scn", scenario))
    assert 'asm volatile("cpuid"' in text
    host = host_of(text)
    assert host.count("behind_instruction();") == 2
    assert [line for line in host if line.startswith("expect_exit")] == [
        "expect_exit(10 /* CPUID */, 0x0, 0x0);",
        "expect_exit(18 /* VMCALL */, 0x0, 0x0);",
    ]


def test_comments_cannot_end_the_comment() -> None:
    scenario = b"# a */ int x; /* b\nversion 1\nL1 enter\n"
    text = kvm_unit_test(load_content("a */.scn", scenario))
    assert text.index("*/") > text.index("int x;")


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("config single-step=on\nL1 enter\n", "config single-step=on has no counterpart"),
        ("L1 enter\noutside interrupt 0x51\n", "step 2, 'outside interrupt 0x51', has no counterpart"),
        ("L1 ept stack absent\nL1 enter\n", "step 1, 'L1 ept stack absent', has no counterpart"),
        ("L1 inject reserved 0x1\nL1 enter\n", "a failing entry or SMM has no counterpart"),
    ],
)  # fmt: skip
def test_what_a_test_cannot_bring_about_is_refused(scenario: str, message: str) -> None:
    with pytest.raises(BadFile, match=re.escape(message)):
        kvm_unit_test(load_content("a.scn", f"version 1\n{scenario}".encode()))


def test_the_command_writes_the_file(tmp_path: Path) -> None:
    target = tmp_path / "nvmx_case.c"
    finished = subprocess.run(
        [sys.executable, "-m", "nvmx_fuzz.cli", "export", "--format", "kvm-unit-test",
         "-o", target, ORIGINAL],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert target.read_text() == kvm_unit_test(load(str(ORIGINAL)))


@pytest.mark.skipif(not TREE, reason="NVMX_KVM_UNIT_TESTS names no tree of kvm-unit-tests")
def test_every_file_compiles_in_the_tree_without_a_warning() -> None:
    assert TREE is not None
    for name, text in exported().items():
        stem = f"nvmx_{name.replace('-', '_')}"
        (Path(TREE) / "x86" / f"{stem}.c").write_text(text)
        built = subprocess.run(
            ["make", f"x86/{stem}.flat"], cwd=TREE, capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, built.stderr
        assert "warning" not in built.stderr, built.stderr
