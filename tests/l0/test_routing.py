"""Who handles a hardware exit from L2: L0 for itself, L1 if it asked, nobody twice (S7, S8)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    AC,
    BP,
    DB,
    EXTERNAL_INTERRUPT,
    GP,
    NMI,
    NMI_UNBLOCKING_BY_IRET,
    NMI_VECTOR,
    PF,
    SOFTWARE_EXCEPTION,
    UD,
)
from nvmx_core.arch.exits import (
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    HLT_EXIT,
    IO_INSTRUCTION,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PML_FULL,
    RDPMC_EXIT,
    TASK_SWITCH,
    WBINVD_EXIT,
)
from nvmx_core.guests.memory import (
    CODE,
    CODE_BASE,
    DATA,
    GATE_TASK,
    PAGE_COUNT,
    STACK,
    page_address,
)
from nvmx_core.l0.log import HIDDEN_EXIT, NESTED_EXIT
from nvmx_core.scenario.steps import IN_EMULATION, PAGE_MISCONFIGURED
from tests.nested_support import drop_page, host_interrupt, host_nmi, transparent
from tests.support import (
    absent,
    control,
    enter,
    ept,
    event,
    gate,
    inject,
    intercept,
    interrupt,
    nmi,
    pml_log_full,
    run,
)

EMULATED: Final = {
    "hlt": ("hlt-exiting", HLT_EXIT),
    "out": ("unconditional-io-exiting", IO_INSTRUCTION),
    "in": ("unconditional-io-exiting", IO_INSTRUCTION),
    "rdpmc": ("rdpmc-exiting", RDPMC_EXIT),
    "wbinvd": ("wbinvd-exiting", WBINVD_EXIT),
}

# -- instructions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", EMULATED)
def test_s8_an_instruction_that_only_l0_wants_is_emulated(instruction: str) -> None:
    pair = transparent(enter(), run(instruction))
    assert pair.reached("emulated-instruction") == 1
    assert pair.seen.reasons == []
    assert pair.seen.retired == 1


@pytest.mark.parametrize("instruction", EMULATED)
def test_s8_an_instruction_that_l1_wants_is_reflected(instruction: str) -> None:
    """I1: nothing of it has happened."""
    name, reason = EMULATED[instruction]
    pair = transparent(control(name), enter(), run(instruction))
    assert pair.reached("emulated-instruction") == 0
    assert pair.seen.exit.reason == reason
    assert pair.seen.exit.rip == CODE_BASE


def test_i2_emulation_ends_the_interrupt_shadow() -> None:
    """STI, then the emulated instruction in its shadow: afterwards interrupts are open."""
    pair = transparent(enter(), run("sti"), run("out"), off="interrupts-on")
    assert pair.seen.end.interruptibility == 0


def test_m1_emulation_owes_the_mtf_exit() -> None:
    """bug50."""
    seen = transparent(control("monitor-trap-flag"), enter(), run("wbinvd")).seen.exit
    assert seen.reason == MONITOR_TRAP_FLAG


def test_i2_emulation_owes_the_single_step() -> None:
    assert transparent(enter(), run("out"), on="single-step").seen.vectors == [DB]


@pytest.mark.parametrize("off", ["", "in-kernel-apic"])
def test_s8_an_interrupt_that_comes_during_an_emulation_exits_after_it(off: str) -> None:
    pair = transparent(enter(), interrupt(0x51, IN_EMULATION), run("out"), off=off)
    assert pair.seen.retired == 1
    assert pair.seen.exit.reason == EXTERNAL_INTERRUPT_EXIT


# -- L0's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "reason"), [(host_interrupt(), EXTERNAL_INTERRUPT_EXIT), (host_nmi(), EXCEPTION_NMI)]
)
@pytest.mark.parametrize("acknowledge", ["", "acknowledge-interrupt-on-exit"])
def test_s8_the_events_of_the_host_stay_with_l0(
    step: tuple[int, int, int, int], reason: int, acknowledge: str
) -> None:
    """Whether or not L1 wants interrupts and NMIs: these are not its own."""
    pair = transparent(enter(), step, run("nop"), on=acknowledge)
    assert [hidden for hidden, _vectoring in pair.log(HIDDEN_EXIT)] == [reason]
    assert pair.seen.reasons == []


def test_k2_a_host_interrupt_is_no_interrupt_for_l1() -> None:
    pair = transparent(enter(), host_interrupt())
    assert pair.log(NESTED_EXIT) == []


@pytest.mark.parametrize("page", range(PAGE_COUNT))
@pytest.mark.parametrize("off", ["", "l1-ept", "l0-ept"])
def test_s8_a_page_that_l0_dropped_comes_back(page: int, off: str) -> None:
    moves = (enter(), drop_page(page), run("load"), run("int", 0x80), run("nop"))
    pair = transparent(*moves, off=off)
    assert pair.seen.reasons == []
    assert pair.seen.retired == 2


def test_x8_a_repair_outside_a_delivery_restarts_the_instruction() -> None:
    pair = transparent(enter(), drop_page(DATA), run("store"))
    assert pair.seen.retired == 1


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [CODE, DATA, STACK])
def test_s8_a_page_that_l1_lacks_is_reflected(page: int) -> None:
    """Also when L0 lacks it too: first L1's exit, then L0's repair."""
    moves = (ept(page), drop_page(page), enter(), run("load"), run("int", 0x80))
    pair = transparent(*moves)
    assert pair.seen.exits[0].reason == EPT_VIOLATION
    assert pair.seen.exits[0].physical_address == page_address(page)


def test_s8_a_misconfigured_page_of_l1_is_reflected() -> None:
    seen = transparent(ept(DATA, PAGE_MISCONFIGURED), enter(), run("load")).seen.exit
    assert seen.reason == EPT_MISCONFIG


def test_s8_a_full_log_of_l1_is_reflected() -> None:
    """L0 keeps L2's pages read-only while the log is full."""
    pair = transparent(control("pml"), pml_log_full(), enter(), run("store"))
    assert pair.seen.exit.reason == PML_FULL


def test_s8_shadow_paging_gives_l2_its_own_page_fault() -> None:
    pair = transparent(absent(DATA), enter(), run("load"), off="l0-ept")
    assert pair.reached("shadow-paging-guest-fault") == 1
    assert pair.seen.vectors == [PF]


def test_s8_shadow_paging_repairs_what_l0_dropped() -> None:
    pair = transparent(drop_page(DATA), enter(), run("load"), off="l0-ept")
    assert pair.reached("shadow-paging-repair") == 1
    assert pair.seen.vectors == []


# -- exceptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", [UD, GP])
def test_s8_an_exception_that_only_l0_wants_goes_back_to_l2(vector: int) -> None:
    """The choices 2 and 16 are #GP and #UD."""
    name = "ud2" if vector == UD else "gp"
    pair = transparent(enter(), run(name), l0_exceptions=0x12)
    assert pair.seen.vectors == [vector]
    assert pair.reached("exception-for-l2-queued") == 1


def test_s8_l0_always_intercepts_alignment_checks() -> None:
    pair = transparent(enter(), run("ac"))
    assert pair.seen.vectors == [AC]
    assert len(pair.log(HIDDEN_EXIT)) == 1


def test_s8_an_exception_that_both_want_is_reflected() -> None:
    pair = transparent(intercept(UD), enter(), run("ud2"), l0_exceptions=0x10)
    assert pair.seen.exit.vector == UD


def test_x9_a_breakpoint_that_l0_intercepts_keeps_type_and_length() -> None:
    """The choice 64 is #BP: it comes back as a software exception, with the return address behind it."""
    pair = transparent(enter(), run("int3"), l0_exceptions=0x40)
    assert [seen.return_rip for seen in pair.seen.delivered] == [CODE_BASE + 1]


def test_x9_a_breakpoint_for_l1_has_type_and_length() -> None:
    seen = transparent(intercept(BP), enter(), run("int3"), l0_exceptions=0x40).seen.exit
    assert seen.type == SOFTWARE_EXCEPTION
    assert seen.length == 1


def test_x9_a_task_switch_reports_the_event() -> None:
    seen = transparent(gate(0x40, GATE_TASK), inject(EXTERNAL_INTERRUPT, 0x40), enter()).seen.exit
    assert seen.reason == TASK_SWITCH
    assert seen.vectoring == event(EXTERNAL_INTERRUPT, 0x40)


# -- NMI blocking ---------------------------------------------------------------------------------


@pytest.mark.parametrize("off", ["", "l0-ept", "nmi-exiting virtual-nmis"])
def test_x12_an_iret_that_runs_again_finds_nmis_blocked(off: str) -> None:
    """bug25: L0 sets bit 3 again before it lets the IRET restart."""
    moves = (inject(NMI, NMI_VECTOR), enter(), drop_page(STACK), run("iret"))
    pair = transparent(*moves, off=off)
    assert pair.reached("nmi-unblocking-restored") == 1
    assert pair.seen.end.interruptibility == 0


def test_x12_an_iret_that_lacks_a_page_of_l1_reports_the_unblocking() -> None:
    """res6: bit 12 of the qualification is set, and bit 3 is clear."""
    moves = (inject(NMI, NMI_VECTOR), enter(), run("cpuid"), ept(STACK), enter(), run("iret"))
    seen = transparent(*moves).seen.exits[-1]
    assert seen.reason == EPT_VIOLATION
    assert seen.qualification & NMI_UNBLOCKING_BY_IRET
    assert seen.interruptibility == 0


@pytest.mark.parametrize("off", ["", "l0-ept"])
def test_x12_an_iret_that_page_faults_for_l1_reports_the_unblocking(off: str) -> None:
    moves = (intercept(PF), inject(NMI, NMI_VECTOR), enter(), absent(STACK), run("iret"))
    seen = transparent(*moves, off=off).seen.exit
    assert seen.nmi_unblocking
    assert seen.interruptibility == 0


def test_n1_without_virtual_nmis_iret_does_not_open_the_nmi_exit() -> None:
    moves = (inject(NMI, NMI_VECTOR), enter(), run("iret"), nmi())
    pair = transparent(*moves, off="virtual-nmis")
    assert pair.seen.reasons == []


def test_b6_the_window_of_l1_opens_with_the_iret() -> None:
    moves = (control("nmi-window-exiting"), inject(NMI, NMI_VECTOR), enter(), run("iret"))
    pair = transparent(*moves)
    assert pair.seen.exit.reason == NMI_WINDOW
    assert pair.seen.retired == 1
