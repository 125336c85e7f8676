"""The monitor trap flag (M1 to M5)."""

import pytest

from nvmx_core.arch.events import (
    BP,
    DB,
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    NMI,
    NMI_VECTOR,
    NP,
    OTHER_EVENT,
    UD,
)
from nvmx_core.arch.exits import (
    CPUID_EXIT,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    INIT_SIGNAL,
    MONITOR_TRAP_FLAG,
)
from nvmx_core.arch.fields import GUEST_ACTIVITY, GUEST_RIP
from nvmx_core.arch.state import HLT, PENDING_DBG_BS
from nvmx_core.guests.memory import CODE_BASE, DATA, GATE_NOT_PRESENT, STACK, handler_rip
from nvmx_core.scenario.steps import AT_ENTRY
from tests.support import (
    control,
    enter,
    ept,
    event,
    gate,
    init,
    inject,
    intercept,
    interrupt,
    nmi,
    play,
    run,
    virtual_interrupt,
    vmwrite,
)

MTF = control("monitor-trap-flag")
NO_MTF = control("monitor-trap-flag", on=False)


def test_m1_mtf_exits_after_one_instruction() -> None:
    seen = play(MTF, enter(), run("nop"))
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.rip == CODE_BASE + 1
    assert seen.retired == 1


def test_m1_mtf_does_not_exit_before_an_instruction() -> None:
    assert play(MTF, enter()).exits == []


def test_m1_mtf_exits_after_the_injected_event() -> None:
    seen = play(MTF, inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.rip == handler_rip(0x40)


def test_m1_mtf_exits_after_the_fault_of_the_instruction() -> None:
    seen = play(MTF, enter(), run("gp"))
    assert seen.vectors == [GP]
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.rip == handler_rip(GP)


@pytest.mark.parametrize(("instruction", "vector"), [("ud2", NP), ("gp", DF)])
def test_m1_nested_faults_belong_to_the_step(instruction: str, vector: int) -> None:
    gates = (gate(UD, GATE_NOT_PRESENT), gate(GP, GATE_NOT_PRESENT))
    seen = play(*gates, MTF, enter(), run(instruction))
    assert seen.vectors == [vector]
    assert seen.exit.rip == handler_rip(vector)


def test_m1_mtf_exits_after_an_nmi_that_pre_empts_the_instruction() -> None:
    seen = play(MTF, nmi(AT_ENTRY), enter(), off="nmi-exiting virtual-nmis")
    assert seen.vectors == [NMI_VECTOR]
    assert seen.exit.reason == MONITOR_TRAP_FLAG


def test_m1_mtf_exits_after_an_interrupt_that_pre_empts_the_instruction() -> None:
    seen = play(MTF, interrupt(0x40, AT_ENTRY), enter(), off="external-interrupt-exiting")
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.rip == handler_rip(0x40)


def test_m1_mtf_exits_after_a_virtual_interrupt() -> None:
    on = "tpr-shadow virtual-interrupt-delivery"
    seen = play(MTF, virtual_interrupt(0x40), enter(), on=on)
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.rip == handler_rip(0x40)


@pytest.mark.parametrize(
    ("instruction", "operand", "vector"), [("int", 0x80, 0x80), ("int3", 0, BP), ("int1", 0, DB)]
)
def test_m2_soft_events_end_with_their_delivery(
    instruction: str, operand: int, vector: int
) -> None:
    seen = play(MTF, enter(), run(instruction, operand))
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.rip == handler_rip(vector)


def test_m2_into_ends_with_its_delivery() -> None:
    moves = (enter(), run("popf", 1 | 1 << 2), run("cpuid"), MTF, enter(), run("into"))
    seen = play(*moves)
    assert seen.exits[-1].reason == MONITOR_TRAP_FLAG
    assert seen.exits[-1].rip == handler_rip(4)


def test_m2_hlt_exits_out_of_hlt() -> None:
    seen = play(MTF, enter(), run("hlt"))
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.activity == HLT
    assert seen.exit.rip == CODE_BASE + 1


@pytest.mark.parametrize("instruction", ["iret", "popf", "sti", "mov-ss", "load", "out"])
def test_m2_other_instructions_are_one_step_each(instruction: str) -> None:
    seen = play(MTF, enter(), run(instruction))
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.retired == 1


def test_m3_an_exit_of_the_instruction_cancels_mtf() -> None:
    seen = play(MTF, enter(), run("cpuid"), NO_MTF, enter(), run("nop"))
    assert seen.reasons == [CPUID_EXIT]


def test_m3_an_exit_of_the_delivery_cancels_mtf() -> None:
    seen = play(MTF, ept(STACK), inject(NMI, 2), enter(), NO_MTF, enter(), run("nop"))
    assert seen.reasons == [EPT_VIOLATION]
    assert seen.vectors == [NMI_VECTOR]


def test_m3_an_intercepted_fault_cancels_mtf() -> None:
    seen = play(MTF, intercept(UD), enter(), run("ud2"))
    assert seen.reasons == [EXCEPTION_NMI]


def test_m3_a_memory_exit_of_the_instruction_cancels_mtf() -> None:
    assert play(MTF, ept(DATA), enter(), run("load")).reasons == [EPT_VIOLATION]


def test_m3_a_higher_event_on_the_boundary_cancels_mtf() -> None:
    seen = play(inject(OTHER_EVENT, 0), init(AT_ENTRY), enter(), enter(), run("nop"))
    assert seen.reasons == [INIT_SIGNAL]
    assert seen.retired == 1


def test_m4_mtf_and_single_step_leave_bs_pending() -> None:
    seen = play(MTF, enter(), run("nop"), on="single-step")
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.pending_dbg == PENDING_DBG_BS
    assert seen.delivered == []


def test_m4_the_single_step_follows_with_the_next_entry() -> None:
    seen = play(MTF, enter(), run("nop"), NO_MTF, enter(), on="single-step")
    assert seen.vectors == [DB]
    assert seen.delivered[0].return_rip == CODE_BASE + 1


def test_m5_an_injected_mtf_exit_runs_nothing() -> None:
    seen = play(vmwrite(GUEST_RIP, CODE_BASE + 8), inject(OTHER_EVENT, 0), enter())
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.rip == CODE_BASE + 8
    assert seen.retired == 0
    assert seen.delivered == []


def test_m5_an_injected_mtf_exit_leaves_hlt_asleep() -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, HLT), inject(OTHER_EVENT, 0), enter())
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.activity == HLT


def test_m5_the_valid_bit_of_type_7_is_cleared_as_for_any_injection() -> None:
    seen = play(inject(OTHER_EVENT, 0), enter())
    assert seen.exit.entry_info == event(OTHER_EVENT, 0) & ~(1 << 31)


def test_m4_mtf_comes_first_also_if_the_trap_would_exit() -> None:
    seen = play(MTF, intercept(DB), enter(), run("nop"), on="single-step")
    assert seen.exit.reason == MONITOR_TRAP_FLAG
    assert seen.exit.interruption == 0
