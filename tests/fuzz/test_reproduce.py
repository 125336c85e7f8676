"""One step of a replay, and stopping in the core where a rule is violated."""

import subprocess
from pathlib import Path
from types import FrameType

import pytest

import nvmx_core.l0.kvm
from nvmx_core.bugs.catalogue import BUG_BY_NAME
from nvmx_core.oracle.judge import violations_of
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.at_step import step_lines
from nvmx_fuzz.cli import main
from nvmx_fuzz.codec import encode
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.seeds import BUGS_FOLDER
from nvmx_fuzz.stop_at import stop_at

ROOT = Path(__file__).resolve().parents[2]
IS_PYTHON = nvmx_core.l0.kvm.__file__.endswith(".py")
BUG1 = str(BUGS_FOLDER / "bug1.scn")

Output = pytest.CaptureFixture[str]


def test_a_step_shows_its_records_and_the_state_behind_it(capsys: Output) -> None:
    assert main(["replay", "--l0", "bug1", BUG1, "--at-step", "4"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "step 4 of 4: L1 enter  (on nested)" in lines
    assert "  L0*: repairs page idt-low (EPT violation, hidden from L1)" in lines
    assert "then L1 runs; L2's instruction pointer is code+0x0" in lines
    assert "  vmcs12.IDT_VECTORING_INFO = 0x80000000 (external-interrupt 0x0)" in lines
    assert "  vmcs12.SECONDARY = 0x82 (ept unrestricted-guest)" in lines


def test_a_step_on_bare_metal_has_no_l0(capsys: Output) -> None:
    assert main(["replay", "--l0", "bug1", BUG1, "--at-step", "4", "--machine", "bare"]) == 1
    out = capsys.readouterr().out
    assert "(on bare)" in out
    assert "L1: exit EXTERNAL_INTERRUPT at handler:0x0" in out
    assert "L0*" not in out


def test_the_end_is_behind_the_last_step(capsys: Output) -> None:
    assert main(["replay", "--l0", "bug1", BUG1, "--at-step", "5"]) == 1
    assert "step 5 of 4: the end" in capsys.readouterr().out
    assert main(["replay", "--l0", "bug1", BUG1, "--at-step", "6"]) == 2
    assert capsys.readouterr().err == f"nvmx-fuzz: {BUG1}: has 4 steps; 5 is the end\n"


@pytest.mark.parametrize("name", BUG_BY_NAME)
def test_every_step_of_every_bug_can_be_shown(name: str) -> None:
    scenario = load(str(BUGS_FOLDER / f"{name}.scn")).scenario
    for machine in ("bare", "nested"):
        for number in range(1, len(scenario.steps) + 2):
            assert len(list(step_lines(scenario, name, number, machine))) >= 2


@pytest.mark.skipif(not IS_PYTHON, reason="the debugger needs the Python build")
@pytest.mark.parametrize("name", BUG_BY_NAME)
def test_the_debugger_stops_in_the_core(name: str) -> None:
    scenario = load(str(BUGS_FOLDER / f"{name}.scn")).scenario
    l0 = BUG_BY_NAME[name].l0
    for violation in violations_of(scenario, l0):
        seen: list[str] = []

        def debug(frame: FrameType, seen: list[str] = seen) -> None:
            seen.append(frame.f_code.co_filename)

        assert stop_at(scenario, name, violation, debug) == bool(seen)
        assert all("nvmx_core" in filename for filename in seen)


@pytest.mark.skipif(not IS_PYTHON, reason="the debugger needs the Python build")
def test_the_debugger_stops_where_l0_lets_the_exit_out() -> None:
    scenario = load(BUG1).scenario
    (first, *_) = violations_of(scenario, BUG_BY_NAME["bug1"].l0)
    callers: list[str] = []

    def debug(frame: FrameType | None) -> None:
        while frame is not None:
            callers.append(frame.f_code.co_name)
            frame = frame.f_back

    assert stop_at(scenario, "bug1", first, debug)
    assert callers[:3] == ["observe_exit", "nested_vmexit", "exit_for_interrupt"]


def test_nothing_to_stop_at_without_a_record() -> None:
    scenario = load(BUG1).scenario
    (first, *_) = violations_of(scenario, BUG_BY_NAME["bug1"].l0)
    nowhere = first._replace(position=1000)
    assert not stop_at(parse_scenario("version 1\n").scenario, "bug1", nowhere)


def test_the_script_takes_bytes_and_says_what_happens(tmp_path: Path) -> None:
    crash = tmp_path / "crash-0 1"
    crash.write_bytes(encode(load(BUG1).scenario))
    finished = subprocess.run(
        [ROOT / "scripts" / "reproduce", "--l0", "bug1", crash],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
    )
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[0] == f"{crash}: violation on bug1 (4 steps)"
    assert len(finished.stdout.splitlines()) < 25
