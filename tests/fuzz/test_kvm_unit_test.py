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
from nvmx_fuzz.kvm_unit_test_text import is_ours
from nvmx_fuzz.scenario_files import load, load_content

ROOT = Path(__file__).resolve().parents[2]
SEEDS = sorted((ROOT / "corpus" / "nested_events").glob("*.scn"))
ORIGINAL = ROOT / "corpus" / "nested_events" / "interrupt-while-l0-repairs-stack-page.scn"
TREE = os.environ.get("NVMX_KVM_UNIT_TESTS")
TAKEN_MIN = 85


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
    assert host[entry + 1 : entry + 5] == [
        "expect_exit(1 /* EXTERNAL_INTERRUPT */, 0x0, 0x0);",
        "expect_state(0, 0x0);",
        "expect_events(0);",
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
    assert host[host.index("behind_instruction();") + 1] == "enter_l2();"
    assert host.count("behind_instruction();") == 1
    assert [line for line in host if line.startswith("expect_exit")] == [
        "expect_exit(10 /* CPUID */, 0x0, 0x0);",
        "expect_exit(18 /* VMCALL */, 0x0, 0x0);",
    ]


def host_for(scenario: str) -> list[str]:
    return host_of(kvm_unit_test(load_content("a.scn", f"version 1\n{scenario}".encode())))


def test_a_failing_entry_leaves_the_guest_state_as_it_was() -> None:
    host = host_for(
        "L1 vmwrite GUEST_RFLAGS 0x2\nL1 vmwrite GUEST_ACTIVITY 0x1\n"
        "L1 inject external-interrupt 0x40\nL1 enter\n"
    )
    assert "vmcs_write(GUEST_ACTV_STATE, 0x1);" in host
    entry = host.index("enter_l2();")
    assert host[entry + 1 : entry + 3] == [
        "expect_failed_entry(0x80000021 /* INVALID_STATE */, 0x0);",
        "expect_state(1, 0x0);",
    ]


def test_controls_that_fail_are_a_vmfail() -> None:
    host = host_for(
        "config tpr-shadow=on\nL1 vmwrite TPR_THRESHOLD 0x1\nL1 vmwrite GUEST_ACTIVITY 0x2\nL1 enter\n"
    )
    assert host[host.index("enter_l2();") + 1] == "expect_vmfail(7);"
    assert 'require(ctrl_cpu_rev[0].clr & CPU_TPR_SHADOW, "CPU_TPR_SHADOW");' in host
    assert not any("act_shutdown" in line for line in host)  # the controls fail before it matters


def test_a_processor_that_is_different_where_it_matters_skips_the_test() -> None:
    host = host_for("config wait-for-sipi-activity=off\nL1 vmwrite GUEST_ACTIVITY 0x3\nL1 enter\n")
    assert host[0] == "union vmx_misc misc = { .val = rdmsr(MSR_IA32_VMX_MISC) };"
    assert 'require(misc.act_wfsipi == 0, "act_wfsipi = 0");' in host


def test_a_lost_event_is_noticed() -> None:
    host = host_for("L1 inject external-interrupt 0x40\nL1 enter\nL2 cpuid\nL1 enter\nL2 int3\n")
    assert [line for line in host if line.startswith("expect_events")] == [
        "expect_events(1);",
        "expect_events(2);",
    ]


def test_what_well_behaved_l1_writes_comes_before_the_next_entry() -> None:
    host = host_for(
        "L1 control interrupt-window-exiting on\nL1 enter\nL1 intercept 6 on\nL1 enter\nL2 ud2\n"
        "L1 enter\nL2 nop\n"
    )
    entries = [number for number, line in enumerate(host) if line == "enter_l2();"]
    assert (
        host[entries[1] - 1]
        == "vmcs_write(CPU_EXEC_CTRL0, vmcs_read(CPU_EXEC_CTRL0) & ~CPU_INTR_WINDOW);"
    )
    assert host[entries[2] - 1] == "vmcs_write(ENT_INTR_INFO, 0x80000306);"
    assert "handle_exception(6, l2_exception);" in host


def test_interrupts_are_taken_before_the_entry_that_follows() -> None:
    host = host_for("outside interrupt 0x51\nL1 enter\nL1 enter\nL2 cpuid\n")
    exit_place = host.index("expect_exit(1 /* EXTERNAL_INTERRUPT */, 0x0, 0x0);")
    taken = host.index("take_interrupts();")
    assert exit_place < taken < host.index("enter_l2();", exit_place)


def test_a_dropped_page_of_the_delivery_is_a_stack_that_nobody_has_touched() -> None:
    scenario = b"version 1\nL0 drop-page stack\nL1 inject external-interrupt 0x40\nL1 enter\n"
    text = kvm_unit_test(load_content("a.scn", scenario))
    assert "fresh_stack();" in host_of(text)
    assert "static u8 untouched[1][1 << 21];" in text


def test_the_shadow_of_sti_covers_the_instruction_behind_it() -> None:
    scenario = b"version 1\nconfig interrupts-on=off\nL1 enter\nL2 sti\nL2 cpuid\n"
    text = kvm_unit_test(load_content("a.scn", scenario))
    assert 'asm volatile("sti; cpuid" : : "a" (0)' in text
    assert "expect_state(0, 0x1);" in text


def test_iret_goes_back_with_the_flags_of_the_frame() -> None:
    scenario = b"version 1\nL1 inject nmi\nL1 enter\nL2 iret\nL2 vmcall\n"
    text = kvm_unit_test(load_content("a.scn", scenario))
    assert "pushq $0x202;" in text
    assert "handle_exception(2, l2_exception);" in text


def test_a_vector_without_a_handler_of_the_tree_gets_one() -> None:
    assert "handle_irq(0x1f, interrupt);" in host_for(
        "L1 inject hardware-exception 0x1f\nL1 enter\n"
    )


def test_a_file_of_ours_is_told_from_others() -> None:
    text = kvm_unit_test(load(str(ORIGINAL)))
    assert is_ours(text)
    assert not is_ours("/* x */\n" + "int x;\n" * 200 + text)
    assert not is_ours('#include "vmx.c"\n')


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
        ("outside smi\n", "SMM or a dead machine has no counterpart"),
        ("L1 enter\nL2 hlt\n", "a scenario that ends with L2 asleep has no counterpart"),
        ("L1 vmwrite GUEST_RFLAGS 0x102\nL1 enter\n", "step 1, 'L1 vmwrite GUEST_RFLAGS 0x102',"),
        ("L1 enter\nL2 iret\n", "step 2, 'L2 iret', has no counterpart"),
        ("L1 vmwrite GUEST_INTERRUPTIBILITY 0x1\nL1 enter\nL2 cpuid\n", "a shadow of the entry that"),
        ("L1 vmwrite GUEST_INTERRUPTIBILITY 0x1\nL1 inject nmi\nL1 enter\n",
         "what depends on whether STI blocks NMIs"),
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
