"""The realiser: what it makes of a scenario, and what it refuses by name."""

import pytest

from nvmx_core.arch.instructions import INSTRUCTIONS
from nvmx_core.scenario.text import parse_scenario

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz.realise import layout, schedule
from nvmx_fuzz.realise.code import CODE
from nvmx_fuzz.realise.image import base_image, gate_words
from nvmx_fuzz.realise.l1_program import END, ENTER, VMWRITE, l1_program
from nvmx_fuzz.realise.realiser import Realised, realise
from nvmx_fuzz.realise.vmcs import NotRealisableError


def realised(text: str) -> Realised:
    return realise(parse_scenario(f"version 1\n{text}").scenario)


def operations(result: Realised, operation: int) -> list[tuple[int, int, int, int]]:
    return [entry for entry in result.script if entry[0] == operation]


def test_an_injection_is_written_before_the_entry() -> None:
    result = realised("L1 inject nmi\nL1 enter\n")
    writes = {field: value for _, field, value, _ in operations(result, VMWRITE)}
    assert writes[0x4016] == 0x80000202
    assert result.script[-1][0] == END


def test_the_second_entry_resumes() -> None:
    result = realised("L1 enter\nL2 cpuid\nL1 enter\n")
    assert [entry[1] for entry in operations(result, ENTER)] == [0, 1]


def test_an_arrival_comes_between_the_instructions_of_l2() -> None:
    result = realised("config nmi-exiting=off\nL1 enter\nL2 nop\noutside nmi\nL2 nop\n")
    kinds = [item[0] for item in result.schedule]
    assert kinds == [
        schedule.ENTERED, schedule.RUN, schedule.ARRIVE_NMI, schedule.RUN, schedule.STOP,
    ]  # fmt: skip


def test_an_smi_is_answered_by_an_rsm() -> None:
    result = realised("L1 enter\noutside smi\noutside nmi\noutside rsm\n")
    assert [item[0] for item in result.schedule] == [
        schedule.ENTERED, schedule.ARRIVE_SMI, schedule.ARRIVE_NMI, schedule.RESUME, schedule.EXIT,
        schedule.STOP,
    ]  # fmt: skip


def test_code_that_changes_while_l2_runs_is_poked() -> None:
    result = realised("L1 enter\nL2 iret\nL2 nop\n")
    assert schedule.POKE_BYTE in [item[0] for item in result.schedule]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("L1 control pml on\nL1 pml-log full\nL1 enter\noutside smi\n", "rsm-with-full-log"),
        ("L1 enter\nL2 mov-cr8 0x1\n", "mov-cr8-in-32-bit-code"),
        ("config real-mode=on\nL1 enter\n", "real-mode"),
        ("L1 vmwrite GUEST_RIP 0x10\nL1 enter\nL2 nop\n", "rip-outside-of-code"),
    ],
)
def test_what_cannot_be_done_has_a_name(text: str, reason: str) -> None:
    with pytest.raises(NotRealisableError) as caught:
        realised(text)
    assert caught.value.reason == reason


def test_every_instruction_has_code_of_its_length_or_a_reason() -> None:
    for code, instruction in zip(CODE, INSTRUCTIONS, strict=True):
        for cpl in (0, 3):
            if code.reason:
                assert not code.kernel
            else:
                assert len(code.encode(cpl, 0x80)) == instruction.length, instruction.name


def test_a_gate_names_the_handler_of_its_vector() -> None:
    low, high = gate_words(0x40, 0)
    assert (high & 0xFFFF0000 | low & 0xFFFF, low >> 16) == (0x17400, layout.L2_CODE_SELECTOR)


def test_l1_fits_in_front_of_its_handlers() -> None:
    assert layout.L1_CODE + len(l1_program().code) <= layout.L1_HANDLERS
    assert len(base_image()) == layout.MEMORY_SIZE
