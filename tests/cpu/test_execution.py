"""L2's instructions: exit, operation, retirement (I1, I2, P15 and the table of instructions)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    AC,
    BP,
    BR,
    DB,
    DE,
    DF,
    GP,
    HARDWARE_EXCEPTION,
    NM,
    NP,
    OF,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SS,
    TS,
    UD,
)
from nvmx_core.arch.exits import (
    APIC_ACCESS,
    APIC_ACCESS_WRITE,
    CPUID_EXIT,
    CR_ACCESS,
    EPT_FINAL_TRANSLATION,
    EPT_LINEAR_VALID,
    EPT_READ,
    EPT_VIOLATION,
    EPT_WRITE,
    HLT_EXIT,
    INVD_EXIT,
    INVLPG_EXIT,
    IO_INSTRUCTION,
    MONITOR_EXIT,
    MOV_DR_EXIT,
    MWAIT_EXIT,
    PAUSE_EXIT,
    PML_FULL,
    RDMSR_EXIT,
    RDPMC_EXIT,
    RDTSC_EXIT,
    RDTSCP_EXIT,
    TASK_SWITCH,
    TPR_BELOW_THRESHOLD,
    VMCALL_EXIT,
    VMLAUNCH_EXIT,
    WBINVD_EXIT,
    WRMSR_EXIT,
    XSETBV_EXIT,
)
from nvmx_core.arch.fields import (
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_RFLAGS,
    PF_ERROR_MASK,
    PF_ERROR_MATCH,
    POISON,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    PENDING_DBG_BS,
    RFLAGS_FIXED,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_OF,
    RFLAGS_RF,
    RFLAGS_TF,
)
from nvmx_core.guests.manners import NO_ADVANCE
from nvmx_core.guests.memory import (
    CODE,
    CODE_BASE,
    DATA,
    GATE_NOT_PRESENT,
    GATE_PRIVILEGED,
    page_address,
)
from tests.support import (
    RFLAGS_START,
    absent,
    apic_page,
    control,
    enter,
    ept,
    event,
    gate,
    intercept,
    play,
    pml_log_full,
    run,
    vmwrite,
    vtpr,
)

POPF_IF: Final = 1
POPF_TF: Final = 2
POPF_OF: Final = 4

ALWAYS_EXITING: Final = (
    ("cpuid", CPUID_EXIT, 2),
    ("vmcall", VMCALL_EXIT, 3),
    ("vmlaunch", VMLAUNCH_EXIT, 3),
    ("invd", INVD_EXIT, 2),
    ("xsetbv", XSETBV_EXIT, 3),
    ("rdmsr", RDMSR_EXIT, 2),
    ("wrmsr", WRMSR_EXIT, 2),
)

CONTROLLED: Final = (
    ("hlt", "hlt-exiting", HLT_EXIT, 1),
    ("pause", "pause-exiting", PAUSE_EXIT, 2),
    ("rdtsc", "rdtsc-exiting", RDTSC_EXIT, 2),
    ("rdtscp", "rdtsc-exiting", RDTSCP_EXIT, 3),
    ("rdpmc", "rdpmc-exiting", RDPMC_EXIT, 2),
    ("out", "unconditional-io-exiting", IO_INSTRUCTION, 2),
    ("in", "unconditional-io-exiting", IO_INSTRUCTION, 2),
    ("wbinvd", "wbinvd-exiting", WBINVD_EXIT, 2),
    ("invlpg", "invlpg-exiting", INVLPG_EXIT, 3),
    ("mwait", "mwait-exiting", MWAIT_EXIT, 3),
    ("monitor", "monitor-exiting", MONITOR_EXIT, 3),
    ("mov-dr", "mov-dr-exiting", MOV_DR_EXIT, 3),
    ("mov-cr8", "cr8-load-exiting", CR_ACCESS, 4),
    ("mov-cr3", "cr3-load-exiting", CR_ACCESS, 3),
)

FAULTING: Final = (
    ("ud2", UD, False),
    ("rsm", UD, False),
    ("vmfunc", UD, False),
    ("div0", DE, False),
    ("bound", BR, False),
    ("nm", NM, False),
    ("gp", GP, True),
    ("ss", SS, True),
    ("np", NP, True),
    ("ts", TS, True),
    ("ac", AC, True),
)

# -- I1, I2 ----


@pytest.mark.parametrize(("instruction", "reason", "length"), ALWAYS_EXITING)
def test_i1_unconditional_exits_are_fault_like(instruction: str, reason: int, length: int) -> None:
    seen = play(enter(), run("nop"), run(instruction))
    assert seen.exit.reason == reason
    assert seen.exit.length == length
    assert seen.exit.rip == CODE_BASE + 1
    assert seen.retired == 1


@pytest.mark.parametrize(("instruction", "name", "reason", "length"), CONTROLLED)
def test_i1_conditional_exits_are_fault_like(
    instruction: str, name: str, reason: int, length: int
) -> None:
    seen = play(control(name), enter(), run(instruction))
    assert seen.exit.reason == reason
    assert seen.exit.length == length
    assert seen.exit.rip == CODE_BASE
    assert seen.exit.rflags == RFLAGS_START
    assert seen.retired == 0


@pytest.mark.parametrize(("instruction", "name", "reason", "length"), CONTROLLED)
def test_i1_without_the_control_the_instruction_completes(
    instruction: str, name: str, reason: int, length: int
) -> None:
    seen = play(control(name, on=False), enter(), run(instruction))
    assert reason not in seen.reasons
    assert seen.end.rip == CODE_BASE + length


@pytest.mark.parametrize(
    ("instruction", "name", "qualification"),
    [
        # SDM, Exit Qualification for I/O Instructions: IN in bit 3, immediate in bit 6, port from 16.
        ("out", "unconditional-io-exiting", 0x80_0040),
        ("in", "unconditional-io-exiting", 0x80_0048),
        # SDM, Exit Qualification for Control-Register Accesses: the register in bits 3:0.
        ("mov-cr3", "cr3-load-exiting", 3),
        ("mov-cr8", "cr8-load-exiting", 8),
        ("mov-dr", "mov-dr-exiting", 0),
        ("hlt", "hlt-exiting", 0),
        ("rdpmc", "rdpmc-exiting", 0),
    ],
)
def test_i1_the_qualification_names_the_access(
    instruction: str, name: str, qualification: int
) -> None:
    seen = play(control(name), enter(), run(instruction))
    assert seen.exit.qualification == qualification


def test_n1_iret_ends_the_blocking_of_nmis_before_it_becomes_a_task_switch() -> None:
    seen = play(
        vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_NT),
        vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_NMI),
        enter(),
        run("iret"),
    )
    assert seen.exit.reason == TASK_SWITCH
    assert seen.exit.interruptibility & BLOCKING_BY_NMI == 0


def test_i1_nothing_of_an_intercepted_instruction_has_happened() -> None:
    moves = (vtpr(2), vmwrite(TPR_THRESHOLD, 2), control("cr8-load-exiting"), enter())
    seen = play(*moves, run("mov-cr8", 1), on="tpr-shadow")
    assert seen.exit.reason == CR_ACCESS
    assert seen.machine.memory.vtpr == 0x20


@pytest.mark.parametrize(
    ("instruction", "blocking"), [("sti", BLOCKING_BY_STI), ("mov-ss", BLOCKING_BY_MOV_SS)]
)
def test_i1_the_shadow_over_it_is_saved(instruction: str, blocking: int) -> None:
    seen = play(enter(), run(instruction), run("cpuid"), off="interrupts-on")
    assert seen.exit.interruptibility == blocking


def test_i1_who_emulates_adds_the_length_and_ends_the_shadow() -> None:
    seen = play(enter(), run("sti"), run("cpuid"), enter(), off="interrupts-on")
    assert seen.end.rip == CODE_BASE + 3
    assert seen.end.interruptibility == 0


def test_i1_who_does_not_emulate_runs_it_again() -> None:
    seen = play(enter(), run("cpuid"), enter(NO_ADVANCE), run("cpuid"))
    assert [shown.rip for shown in seen.exits] == [CODE_BASE, CODE_BASE]


def test_i2_who_emulates_raises_the_single_step() -> None:
    seen = play(enter(), run("cpuid"), enter(), on="single-step")
    assert seen.vectors == [DB]
    assert seen.delivered[0].return_rip == CODE_BASE + 2
    assert seen.delivered[0].dr6 == PENDING_DBG_BS


def test_i2_the_trap_joins_what_a_shadow_held() -> None:
    """MOV SS under TF holds BS and a breakpoint; CPUID is emulated; one #DB reports both."""
    moves = (
        vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_MOV_SS),
        vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS | 1 << 12 | 1),
        enter(),
        run("cpuid"),
        enter(),
    )
    seen = play(*moves, on="single-step")
    assert seen.exit.pending_dbg == PENDING_DBG_BS | 1 << 12 | 1
    assert seen.vectors == [DB]
    assert seen.delivered[0].dr6 == PENDING_DBG_BS | 1


# -- the table of instructions ----


@pytest.mark.parametrize(("instruction", "vector", "has_error_code"), FAULTING)
def test_i1_a_faulting_instruction_exits_at_itself(
    instruction: str, vector: int, has_error_code: bool
) -> None:
    seen = play(intercept(vector), enter(), run(instruction))
    assert seen.exit.interruption == event(HARDWARE_EXCEPTION, vector, has_error_code)
    assert seen.exit.error_code == (0 if has_error_code else POISON)
    assert seen.exit.rip == CODE_BASE


@pytest.mark.parametrize(("instruction", "vector", "has_error_code"), FAULTING)
def test_d3_a_fault_that_is_not_intercepted_is_delivered(
    instruction: str, vector: int, has_error_code: bool
) -> None:
    seen = play(enter(), run(instruction))
    assert seen.vectors == [vector]
    assert seen.delivered[0].error_code == (0 if has_error_code else POISON)
    assert seen.delivered[0].return_rip == CODE_BASE
    assert seen.delivered[0].rflags == RFLAGS_START | RFLAGS_RF


def test_d3_int_n_has_no_intercept() -> None:
    seen = play(intercept(GP), intercept(BP), enter(), run("int", GP))
    assert seen.exits == []
    assert seen.vectors == [GP]
    assert seen.delivered[0].error_code == POISON
    assert seen.delivered[0].return_rip == CODE_BASE + 2


@pytest.mark.parametrize(
    ("instruction", "info"),
    [
        ("int3", event(SOFTWARE_EXCEPTION, BP)),
        ("int1", event(PRIVILEGED_SOFTWARE_EXCEPTION, DB)),
    ],
)
def test_y2_int3_and_int1_exit_by_their_bit(instruction: str, info: int) -> None:
    seen = play(intercept(BP), intercept(DB), enter(), run(instruction))
    assert seen.exit.interruption == info
    assert seen.exit.length == 1
    assert seen.exit.rip == CODE_BASE


@pytest.mark.parametrize(("instruction", "vector"), [("int3", BP), ("int1", DB)])
def test_d3_int3_and_int1_are_traps(instruction: str, vector: int) -> None:
    seen = play(enter(), run(instruction))
    assert seen.vectors == [vector]
    assert seen.delivered[0].return_rip == CODE_BASE + 1
    assert seen.delivered[0].rflags & RFLAGS_RF == 0


def test_d3_int1_leaves_the_conditions_of_dr6() -> None:
    assert play(enter(), run("int1")).delivered[0].dr6 == 0


def test_d3_into_is_nothing_without_overflow() -> None:
    seen = play(intercept(OF), enter(), run("into"))
    assert seen.exits == []
    assert seen.retired == 1


def test_d3_into_with_overflow_is_a_trap() -> None:
    seen = play(enter(), run("popf", POPF_OF | POPF_IF), run("into"))
    assert seen.vectors == [OF]
    assert seen.delivered[0].return_rip == CODE_BASE + 2
    assert seen.delivered[0].rflags & RFLAGS_OF


def test_d3_int_n_checks_the_gate_in_user_mode_only() -> None:
    assert play(gate(0x80, GATE_PRIVILEGED), enter(), run("int", 0x80)).vectors == [0x80]
    seen = play(gate(0x80, GATE_PRIVILEGED), enter(), run("int", 0x80), on="user-mode")
    assert seen.vectors == [GP]


def test_d3_int1_does_not_check_the_gate() -> None:
    seen = play(gate(DB, GATE_PRIVILEGED), enter(), run("int1"), on="user-mode")
    assert seen.vectors == [DB]


def test_b1_sti_and_cli_change_if() -> None:
    assert play(enter(), run("cli")).end.rflags & RFLAGS_IF == 0
    seen = play(enter(), run("sti"), off="interrupts-on")
    assert seen.end.rflags & RFLAGS_IF
    assert seen.end.interruptibility == BLOCKING_BY_STI


def test_b1_popf_does_not_change_if_in_user_mode() -> None:
    seen = play(enter(), run("popf", 0), on="user-mode")
    assert seen.end.rflags & RFLAGS_IF


def test_p7_popf_that_sets_tf_traps_after_the_next_instruction() -> None:
    moves = (enter(), run("popf", POPF_TF | POPF_IF))
    assert play(*moves).delivered == []
    seen = play(*moves, run("nop"))
    assert seen.vectors == [DB]
    assert seen.delivered[0].return_rip == CODE_BASE + 2


def test_p7_popf_that_clears_tf_still_traps_after_itself() -> None:
    seen = play(enter(), run("popf", POPF_IF), on="single-step")
    assert seen.vectors == [DB]
    assert seen.delivered[0].rflags & RFLAGS_TF == 0


def test_p7_int_n_under_tf_does_not_trap_in_the_handler() -> None:
    seen = play(enter(), run("int", 0x80), on="single-step")
    assert seen.vectors == [0x80]


def test_n1_iret_restores_what_the_delivery_pushed() -> None:
    moves = (enter(), run("nop"), run("int", 0x80), run("iret"))
    seen = play(*moves, on="user-mode")
    assert seen.end.rip == CODE_BASE + 3
    assert seen.end.rflags == RFLAGS_START
    assert seen.machine.cpu.cpl == 3
    assert seen.machine.cpu.rsp == 0


def test_p15_iret_never_returns_to_a_higher_privilege() -> None:
    """L2 in user mode with nothing on its stack cannot become privileged by IRET."""
    seen = play(enter(), run("iret"), on="user-mode")
    assert seen.vectors == [GP] or seen.machine.cpu.cpl == 3


def test_a1_hlt_sleeps_after_itself() -> None:
    seen = play(enter(), run("hlt"))
    assert seen.end.activity == HLT
    assert seen.end.rip == CODE_BASE + 1


def test_p2_mov_cr8_below_the_threshold_exits_behind_itself() -> None:
    moves = (vtpr(5), vmwrite(TPR_THRESHOLD, 3), enter(), run("mov-cr8", 2))
    seen = play(*moves, on="tpr-shadow")
    assert seen.exit.reason == TPR_BELOW_THRESHOLD
    assert seen.exit.rip == CODE_BASE + 4
    assert seen.machine.memory.vtpr == 0x20


def test_p2_mov_cr8_at_the_threshold_does_not_exit() -> None:
    moves = (vtpr(5), vmwrite(TPR_THRESHOLD, 3), enter(), run("mov-cr8", 3))
    assert play(*moves, on="tpr-shadow").exits == []


# -- memory ----


@pytest.mark.parametrize(("instruction", "access"), [("load", EPT_READ), ("store", EPT_WRITE)])
def test_x8_an_ept_violation_of_an_instruction(instruction: str, access: int) -> None:
    seen = play(ept(DATA), enter(), run(instruction))
    assert seen.exit.reason == EPT_VIOLATION
    assert seen.exit.qualification == access | EPT_LINEAR_VALID | EPT_FINAL_TRANSLATION
    assert seen.exit.physical_address == page_address(DATA)
    assert seen.exit.length == POISON
    assert seen.exit.rip == CODE_BASE


@pytest.mark.parametrize(("instruction", "access"), [("load", 0), ("store", APIC_ACCESS_WRITE)])
def test_x1_an_apic_access_of_an_instruction(instruction: str, access: int) -> None:
    moves = (control("virtualize-apic-accesses"), apic_page(DATA), enter(), run(instruction))
    seen = play(*moves)
    assert seen.exit.reason == APIC_ACCESS
    assert seen.exit.qualification == access
    assert seen.exit.vectoring == 0


def test_x1_a_full_log_stops_a_write_but_no_read() -> None:
    moves = (control("pml"), pml_log_full(), enter())
    assert play(*moves, run("load")).exits == []
    seen = play(*moves, run("store"))
    assert seen.exit.reason == PML_FULL
    assert seen.exit.vectoring == 0


@pytest.mark.parametrize(
    ("instruction", "page", "error_code"),
    [("load", DATA, 0), ("store", DATA, 2), ("nop", CODE, 16)],
)
@pytest.mark.parametrize(("on", "user"), [("", 0), ("user-mode", 4)])
def test_y1_error_code_of_a_page_fault(
    instruction: str, page: int, error_code: int, on: str, user: int
) -> None:
    seen = play(intercept(PF), absent(page), enter(), run(instruction), on=on)
    assert seen.exit.error_code == error_code | user
    assert seen.exit.qualification == page_address(page)


def test_p13_l2s_tables_come_before_l1s() -> None:
    seen = play(intercept(PF), absent(DATA), ept(DATA), enter(), run("load"))
    assert seen.exit.vector == PF


@pytest.mark.parametrize(
    ("mask", "match", "bit", "exits"),
    [
        (0, 0, True, True),
        (0, 0, False, False),
        (2, 2, True, True),
        (2, 0, True, False),
        (2, 2, False, False),
        (2, 0, False, True),
        (1, 1, True, False),
        (1, 1, False, True),
    ],
)
def test_x1_page_fault_filter(mask: int, match: int, bit: bool, exits: bool) -> None:
    """#PF exits iff its bit equals ((error code & mask) == match); a store has error code 2."""
    moves = (vmwrite(PF_ERROR_MASK, mask), vmwrite(PF_ERROR_MATCH, match), intercept(PF, bit))
    seen = play(*moves, absent(DATA), enter(), run("store"))
    assert bool(seen.exits) == exits
    assert seen.vectors == ([] if exits else [PF])


def test_f5_a_faulting_instruction_can_end_in_a_double_fault() -> None:
    seen = play(gate(NP, GATE_NOT_PRESENT), enter(), run("np"))
    assert seen.vectors == [DF]
