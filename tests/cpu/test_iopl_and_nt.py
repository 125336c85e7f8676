"""IOPL and NT: what outside CPL 0 depends on the I/O privilege level, and IRET out of a nested task."""

from typing import Final

import pytest

from nvmx_core.arch.controls import CPU_UNCOND_IO_EXITING
from nvmx_core.arch.events import GP, PF
from nvmx_core.arch.exits import IO_INSTRUCTION, TASK_SWITCH, TASK_SWITCH_BY_IRET
from nvmx_core.arch.fields import CPU_BASED, GUEST_RFLAGS, GUEST_SS_DPL
from nvmx_core.arch.instructions import INSTRUCTION_INDEX, INSTRUCTIONS
from nvmx_core.arch.state import (
    BLOCKING_BY_STI,
    RFLAGS_FIXED,
    RFLAGS_IF,
    RFLAGS_IOPL,
    RFLAGS_IOPL_SHIFT,
    RFLAGS_NT,
    RFLAGS_OF,
    RFLAGS_TF,
    RFLAGS_VIF,
    RFLAGS_VIP,
)
from nvmx_core.guests.memory import CODE_BASE, GDT, OLD_TASK_SELECTOR, TSS, page_address
from nvmx_core.journal import RETIRE
from nvmx_core.scenario.steps import IN_EMULATION, Step
from tests.nested_support import transparent
from tests.support import Play, absent, enter, intercept, interrupt, play, run, vmwrite

BY_IOPL: Final = ("sti", "cli", "in", "out")


def with_flags(flags: int, iopl: int = 0) -> Step:
    """L2 starts with these flags."""
    return vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | flags | iopl << RFLAGS_IOPL_SHIFT)


def in_user_mode(instruction: str, flags: int, iopl: int, operand: int = 0, on: str = "") -> Play:
    """One instruction at CPL 3."""
    moves = (with_flags(flags, iopl), enter(), run(instruction, operand))
    return play(*moves, on=f"user-mode {on}")


# -- IOPL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", BY_IOPL)
@pytest.mark.parametrize("iopl", [0, 1, 2])
def test_p15_below_the_iopl_an_instruction_is_a_privilege_fault(
    instruction: str, iopl: int
) -> None:
    """#GP(0) at the instruction, before the exit that IN and OUT would cause."""
    seen = in_user_mode(instruction, RFLAGS_IF, iopl, on="unconditional-io-exiting")
    assert seen.exits == []
    assert seen.vectors == [GP]
    assert (seen.delivered[0].error_code, seen.delivered[0].return_rip) == (0, CODE_BASE)


@pytest.mark.parametrize("instruction", BY_IOPL)
def test_p15_with_an_iopl_of_3_it_executes_at_cpl_3(instruction: str) -> None:
    seen = in_user_mode(instruction, RFLAGS_IF, 3)
    length = INSTRUCTIONS[INSTRUCTION_INDEX[instruction]].length
    assert (RETIRE, CODE_BASE + length) in seen.journal
    assert seen.vectors == []


@pytest.mark.parametrize("instruction", ["in", "out"])
def test_p15_with_an_iopl_of_3_in_and_out_exit_as_the_control_says(instruction: str) -> None:
    seen = in_user_mode(instruction, RFLAGS_IF, 3, on="unconditional-io-exiting")
    assert seen.vmcs[CPU_BASED] & CPU_UNCOND_IO_EXITING
    assert (seen.exit.reason, seen.exit.rip) == (IO_INSTRUCTION, CODE_BASE)
    assert seen.retired == 0


@pytest.mark.parametrize("instruction", ["hlt", "wbinvd", "mov-cr8", "xsetbv"])
def test_p15_no_iopl_makes_cpl_0_instructions_legal(instruction: str) -> None:
    assert in_user_mode(instruction, RFLAGS_IF, 3).vectors == [GP]


@pytest.mark.parametrize("instruction", BY_IOPL)
def test_p15_at_cpl_0_the_iopl_does_not_matter(instruction: str) -> None:
    seen = play(with_flags(RFLAGS_IF, 0), enter(), run(instruction))
    assert (seen.vectors, seen.retired) == ([], 1)


def test_b1_sti_at_cpl_3_has_its_shadow() -> None:
    seen = in_user_mode("sti", 0, 3)
    assert seen.end.rflags & RFLAGS_IF
    assert seen.end.interruptibility == BLOCKING_BY_STI


@pytest.mark.parametrize("before", [0, RFLAGS_IF])
@pytest.mark.parametrize("iopl", [0, 2, 3])
@pytest.mark.parametrize("operand", [0, 1])
def test_b1_popf_changes_if_only_up_to_the_iopl(before: int, iopl: int, operand: int) -> None:
    """No fault either way, no shadow, and the other flags always change (operand bits: IF, TF, OF)."""
    seen = in_user_mode("popf", before | RFLAGS_TF, iopl, operand | 4)
    popped = RFLAGS_IF if operand else 0
    assert seen.journal[seen.kinds.index(RETIRE)] == (RETIRE, CODE_BASE + 1)
    pushed = seen.delivered[0].rflags  # of the single step that TF leaves behind
    assert pushed & RFLAGS_IF == (popped if iopl == 3 else before)
    assert pushed & (RFLAGS_OF | RFLAGS_TF) == RFLAGS_OF
    assert pushed & RFLAGS_IOPL == iopl << RFLAGS_IOPL_SHIFT
    assert seen.exits == []


@pytest.mark.parametrize(("iopl", "after"), [(0, 0), (1, 0), (2, 0), (3, RFLAGS_IF)])
def test_b1_iret_changes_if_only_up_to_the_iopl(iopl: int, after: int) -> None:
    """The frame at the bottom of L2's stack has IF = 1 and IOPL = 0; IOPL changes at CPL 0 only."""
    seen = in_user_mode("iret", 0, iopl)
    assert seen.retired == 1
    assert seen.end.rflags & RFLAGS_IF == after
    assert seen.end.rflags & RFLAGS_IOPL == iopl << RFLAGS_IOPL_SHIFT


@pytest.mark.parametrize(("iopl", "after"), [(0, 0), (2, 0), (3, RFLAGS_IF)])
def test_b1_iret_from_a_frame_of_user_mode_changes_if_only_up_to_the_iopl(
    iopl: int, after: int
) -> None:
    """L1 leaves the handler at CPL 3, with another IOPL than the frame, which has IF = 1."""
    seen = play(
        enter(),
        run("int", 0x80),
        run("vmcall"),
        vmwrite(GUEST_SS_DPL, 3),
        with_flags(0, iopl),
        enter(),
        run("iret"),
        on="user-mode",
    )
    assert seen.end.rip == CODE_BASE + 2
    assert seen.end.rflags & RFLAGS_IF == after
    assert seen.end.rflags & RFLAGS_IOPL == iopl << RFLAGS_IOPL_SHIFT


def test_b1_iret_at_cpl_0_restores_if_and_iopl() -> None:
    seen = play(with_flags(0), enter(), run("iret"))
    assert seen.end.rflags == RFLAGS_FIXED | RFLAGS_IF
    seen = play(with_flags(0, 3), enter(), run("iret"))
    assert seen.end.rflags == RFLAGS_FIXED | RFLAGS_IF


@pytest.mark.parametrize("iopl", range(4))
@pytest.mark.parametrize("instruction", [*BY_IOPL, "popf", "iret"])
def test_v11_an_l0_that_emulates_in_and_out_honours_the_iopl(instruction: str, iopl: int) -> None:
    """What arrives during the emulation arrives only if the instruction is emulated at all."""
    arrival = interrupt(0x51, IN_EMULATION)
    moves = (with_flags(0, iopl), enter(), arrival, run(instruction), run("nop"))
    pair = transparent(*moves, on="user-mode")
    emulated = pair.reached("emulated-instruction")
    assert emulated == (1 if instruction in ("in", "out") and iopl == 3 else 0)


# -- NT ------------------------------------------------------------------------------------------


def test_i1_iret_with_nt_is_a_task_switch_exit() -> None:
    """Exit 9 by IRET: the selector of the back link, source 1, the instruction's length; nothing is done."""
    seen = play(with_flags(RFLAGS_IF | RFLAGS_NT), enter(), run("iret"))
    assert seen.exit.reason == TASK_SWITCH
    assert seen.exit.qualification == OLD_TASK_SELECTOR | TASK_SWITCH_BY_IRET
    assert seen.exit.qualification >> 30 == 1
    assert (seen.exit.vectoring, seen.exit.interruption) == (0, 0)
    assert (seen.exit.rip, seen.exit.length) == (CODE_BASE, 2)
    assert seen.exit.rflags & RFLAGS_NT
    assert seen.retired == 0


@pytest.mark.parametrize("place", [TSS, GDT])
def test_p15_iret_with_nt_reads_the_old_task_before_the_exit(place: int) -> None:
    seen = play(
        intercept(PF), absent(place), with_flags(RFLAGS_IF | RFLAGS_NT), enter(), run("iret")
    )
    assert seen.exit.vector == PF
    assert seen.exit.qualification == page_address(place)


def test_i1_without_nt_iret_returns() -> None:
    seen = play(with_flags(RFLAGS_IF), enter(), run("iret"))
    assert (seen.exits, seen.retired) == ([], 1)


def test_d5_in_real_mode_nt_means_nothing() -> None:
    seen = play(with_flags(RFLAGS_IF | RFLAGS_NT), enter(), run("iret"), on="real-mode")
    assert (seen.exits, seen.retired) == ([], 1)


def test_i1_l1_ends_the_nesting_and_the_iret_runs_again() -> None:
    moves = (with_flags(RFLAGS_IF | RFLAGS_NT), enter(), run("iret"), enter(), run("iret"))
    seen = play(*moves)
    assert (seen.reasons, seen.retired) == ([TASK_SWITCH], 1)
    assert not seen.end.rflags & RFLAGS_NT


@pytest.mark.parametrize("off", ["", "l0-ept", "l1-ept"])
def test_v11_the_task_switch_of_iret_is_reflected_as_it_is(off: str) -> None:
    moves = (with_flags(RFLAGS_IF | RFLAGS_NT), enter(), run("iret"), enter(), run("iret"))
    pair = transparent(*moves, off=off)
    assert pair.seen.exits[0].qualification == OLD_TASK_SELECTOR | TASK_SWITCH_BY_IRET
    assert pair.seen.exits[0].length == 2


@pytest.mark.parametrize("flag", [RFLAGS_VIF, RFLAGS_VIP])
def test_p15_iret_outside_cpl_0_leaves_vif_and_vip_alone(flag: int) -> None:
    assert in_user_mode("iret", flag, 3).end.rflags & flag


@pytest.mark.parametrize("flag", [RFLAGS_VIF, RFLAGS_VIP])
def test_p15_iret_at_cpl_0_restores_vif_and_vip(flag: int) -> None:
    seen = play(with_flags(flag | RFLAGS_IF), enter(), run("iret"))
    assert not seen.end.rflags & flag
