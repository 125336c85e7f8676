"""`nvmx-fuzz corpus from-trace`: what a stretch of a trace becomes, and that the documents tell the truth."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nvmx_core.scenario.text import format_file, parse_scenario
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.trace.from_trace import make
from tests.trace.cases import EVENT, FIRING, SILENT, interrupted, stay
from tests.trace.writer import FORMS, OTHER_PID, Trace

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(__file__).parent / "kvm-6.1.txt"
ORIGINAL_BUG = Path(__file__).parent / "original-bug.txt"


def write(folder: Path, trace: Trace, form: str = "6.1") -> str:
    path = folder / "trace.txt"
    path.write_bytes(trace.render(FORMS[form]))
    return str(path)


def last_entry(path: str) -> int:
    """The line of the last entry of L1 in a trace."""
    lines = Path(path).read_text().splitlines()
    return max(number for number, line in enumerate(lines, 1) if "kvm_nested_vmenter:" in line)


def steps_of(text: str) -> list[str]:
    """The lines of a scenario without comments and expectations."""
    return [
        " ".join(line.split())
        for line in text.splitlines()
        if line and not line.startswith(("#", "version", "  expect"))
    ]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "nvmx_fuzz.cli", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_original_bug_becomes_a_scenario_that_finds_it_in_the_model() -> None:
    made = make(str(ORIGINAL_BUG), 0, None)
    assert made.run.verdict == "ok"
    assert made.is_reproduced
    assert {"bug1", "bug2"} <= set(made.bugs)
    assert "# Rules: X3" in made.text
    assert "outside interrupt 0x51" in steps_of(made.text)


def test_every_stay_of_the_real_trace_becomes_a_scenario_that_holds() -> None:
    lines = SAMPLE.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if "kvm_nested_vmenter:" in line:
            made = make(str(SAMPLE), number, None)
            assert made.run.verdict == "ok"
            assert made.is_reproduced, made.text
            assert made.text == format_file(parse_scenario(made.text))


@pytest.mark.parametrize("case", FIRING, ids=lambda case: f"{case.rule}: {case.name}")
def test_a_situation_with_a_violation_becomes_a_scenario_that_fixed_passes(
    case: object, tmp_path: Path
) -> None:
    path = write(tmp_path, case.trace(), "6.13")  # type: ignore[attr-defined]
    made = make(path, 0, None)
    assert made.run.verdict == "ok", made.text
    assert f"# Rules: {case.rule}" in made.text  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", SILENT, ids=lambda case: case.name)
def test_every_stay_of_a_healthy_situation_becomes_a_scenario_that_fixed_passes(
    case: object, tmp_path: Path
) -> None:
    trace = case.trace()  # type: ignore[attr-defined]
    path = write(tmp_path, trace)
    lines = Path(path).read_text().splitlines()
    for number in (n for n, line in enumerate(lines, 1) if "kvm_nested_vmenter:" in line):
        assert make(path, number, None).run.verdict == "ok"


CARRIED = [
    ("an arrival in delivery", lambda: interrupted().arrival(0x51).interrupt(0x40, again=True).entry()
     .l2_exit("EXTERNAL_INTERRUPT").reflected("EXTERNAL_INTERRUPT", 0, 0x80000051),
     ["config acknowledge-interrupt-on-exit=on", "L1 inject external-interrupt 0x40",
      "L0 drop-page stack", "outside interrupt 0x51 in-delivery", "L1 enter"]),
    ("an arrival at the entry", lambda: Trace().entry().nested_entry(EVENT).arrival(0x51).entry()
     .l2_exit("EXTERNAL_INTERRUPT").reflected("EXTERNAL_INTERRUPT"),
     ["L1 inject external-interrupt 0x40", "outside interrupt 0x51 at-entry", "L1 enter"]),
    ("instructions", lambda: stay().l2_exit("IO_INSTRUCTION").entry().l2_exit("RDTSC").reflected("RDTSC"),
     ["L1 control rdtsc-exiting on", "L1 enter", "L2 out", "L2 rdtsc"]),
    ("HLT that L1 wants", lambda: stay().l2_exit("HLT").reflected("HLT"),
     ["L1 control hlt-exiting on", "L1 enter", "L2 hlt"]),
    ("an exception that L1 wants", lambda: stay().l2_exit("EXCEPTION_NMI", interruption=0x80000B0D)
     .reflected("EXCEPTION_NMI", 0, 0x80000B0D), ["config exceptions=#GP", "L1 enter", "L2 gp"]),
    ("a nested fault", lambda: stay(EVENT).l2_exit("EXCEPTION_NMI", EVENT, 0x80000B0E)
     .reflected("EXCEPTION_NMI", EVENT, 0x80000B0E),
     ["config exceptions=#PF", "L1 inject external-interrupt 0x40", "L2 page stack absent", "L1 enter"]),
    ("an EPT violation for L1", lambda: interrupted().reflected("EPT_VIOLATION", EVENT),
     ["L1 inject external-interrupt 0x40", "L1 ept stack absent", "L1 enter"]),
    ("a host interrupt", lambda: stay().l2_exit("EXTERNAL_INTERRUPT").entry().l2_exit("CPUID")
     .reflected("CPUID"),
     ["L1 enter", "L0 host-interrupt", "L2 cpuid"]),
    ("an interrupt of L2", lambda: stay().l2_exit("EPT_VIOLATION", qualification=0x181).interrupt(0x60)
     .entry(event=0x80000060).l2_exit("CPUID").reflected("CPUID"),
     ["config external-interrupt-exiting=off", "L1 enter", "L0 drop-page data", "L2 load",
      "outside interrupt 0x60", "L2 cpuid"]),
]  # fmt: skip


@pytest.mark.parametrize("carried", CARRIED, ids=lambda carried: carried[0])
def test_what_is_carried_over(carried: tuple[str, object, list[str]], tmp_path: Path) -> None:
    _name, trace, expected = carried
    path = write(tmp_path, trace())  # type: ignore[operator]
    made = make(path, last_entry(path), None)
    assert steps_of(made.text) == expected
    assert made.run.verdict == "ok"


def test_what_is_not_carried_over_is_said(tmp_path: Path) -> None:
    trace = stay(0x80000B0E).l2_exit("MSR_WRITE").entry().l2_exit("INVEPT").reflected("INVEPT")
    path = write(tmp_path, trace)
    left_out = " ".join(make(path, last_entry(path), None).seed.left_out)
    for said in ("error code of L1's injection", "wrmsr in line", "exit INVEPT of L2 in line"):
        assert said in left_out


def test_a_clipped_stay_says_what_is_not_known(tmp_path: Path) -> None:
    clipped = Trace()
    clipped.events = FIRING[0].trace().events[-6:]
    made = make(write(tmp_path, clipped), 0, None)
    assert "L1's entry is not in the trace" in made.seed.left_out[0]
    assert made.run.verdict == "ok"


def test_a_violation_while_l1_runs_makes_no_scenario(tmp_path: Path) -> None:
    trace = Trace().entry().exit("CPUID", interruption=0x80000B0E).entry()
    with pytest.raises(BadFile, match="the first violation, in line 4, is in no stay in L2"):
        make(write(tmp_path, trace), 0, None)


def test_a_vcpu_can_be_chosen(tmp_path: Path) -> None:
    two = FIRING[0].trace()
    other = SILENT[0].trace()
    for kind, _pid, _task, _cpu, fields in other.events:
        two.events.append((kind, OTHER_PID, "CPU 1/KVM", 1, {**fields, "vcpu": 1, "apic": 1}))
    path = write(tmp_path, two)
    assert make(path, 0, 0).seed.stretch.vcpu == 0
    with pytest.raises(BadFile, match="holds no violation of vCPU 1; choose a stay in L2"):
        make(path, 0, 1)
    assert make(path, last_entry(path), 1).seed.stretch.vcpu == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((str(SAMPLE),), "holds no violation; choose a stay in L2, as in --at 6"),
        (("--at", "2", str(SAMPLE)), ":2: no stay in L2 is there; the next begins in line 6"),
        (("--at", "9999", str(SAMPLE)), ":9999: no stay in L2 is there, nor behind it"),
        (("README.md",), "holds no entry or exit of KVM"),
        (("--at", "0", str(SAMPLE)), "invalid value for '--at'"),
    ],
)
def test_a_stretch_that_is_not_there_is_refused_in_one_line(
    arguments: tuple[str, ...], message: str
) -> None:
    finished = run("corpus", "from-trace", *arguments)
    assert finished.returncode == 2
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert message in line


def test_output_goes_where_it_is_wanted(tmp_path: Path) -> None:
    target = tmp_path / "seed.scn"
    finished = run("corpus", "from-trace", "-o", str(target), str(ORIGINAL_BUG))
    assert finished.returncode == 0
    assert finished.stdout == ""
    assert "breaks a rule on: bug1" in finished.stderr
    assert f"next: nvmx-fuzz explain --l0 bug1 {target}" in finished.stderr
    assert run("corpus", "check", str(target)).returncode == 0
    found = run("replay", "--l0", "bug1", str(target))
    assert found.returncode == 1
    assert "EXIT-INFO X3" in found.stdout
    result = json.loads(run("corpus", "from-trace", "--json", str(ORIGINAL_BUG)).stdout)
    assert result["scenario"] == target.read_text()
    assert result["exit_reproduced"] is True


def test_the_worked_example_of_the_document_is_what_the_commands_print() -> None:
    section = (ROOT / "docs" / "SEEDS.md").read_text().split("### The same by command")[1]
    (block,) = re.findall(r"```\n(\$ .*?)```", section, re.DOTALL)
    shown = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    assert len(shown) == 2
    for part in shown:
        command, _, expected = part.partition("\n")
        words = command.split(" | ")[0].split()
        assert words[0] == "nvmx-fuzz"
        printed = run(*words[1:]).stdout
        assert printed.startswith(expected)
