"""Who goes first on an instruction boundary (P1 to P16).

Each rank has a contender: steps that make its event pending at the entry, all at the same boundary.
Two contenders meet in one scenario, and the first record after the entry says who won.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import pytest

from nvmx_core.arch.events import (
    DB,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    MC,
    NMI_VECTOR,
    OTHER_EVENT,
    PF,
    UD,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import (
    CPUID_EXIT,
    EOI_INDUCED,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    HLT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MCE_DURING_ENTRY,
    MONITOR_TRAP_FLAG,
    MOV_DR_EXIT,
    NMI_WINDOW,
    PAUSE_EXIT,
    PREEMPTION_TIMER,
    TASK_SWITCH,
    TASK_SWITCH_BY_IDT_GATE,
    TASK_SWITCH_BY_IRET,
    TPR_BELOW_THRESHOLD,
    VMCALL_EXIT,
    VMLAUNCH_EXIT,
)
from nvmx_core.arch.fields import (
    EOI_EXIT_BITMAP,
    GUEST_ACTIVITY,
    GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    POISON,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import (
    ACTIVE,
    HLT,
    PENDING_DBG_BS,
    RFLAGS_FIXED,
    RFLAGS_IF,
    RFLAGS_NT,
    SHUTDOWN,
)
from nvmx_core.guests.memory import (
    CODE,
    CODE_BASE,
    DATA,
    GATE_TASK,
    OLD_TASK_SELECTOR,
    TASK_GATE_SELECTOR,
    handler_rip,
)
from nvmx_core.journal import DELIVER, END, EXIT, L1_ENTRY, SMM_ENTRY, VM_DEAD
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, IN_EMULATION, NOW, Step
from tests.support import (
    Play,
    absent,
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
    post_interrupt,
    run,
    sipi,
    smi,
    timer,
    virtual_interrupt,
    vmwrite,
    vtpr,
)

Seen = tuple[int, ...]
"""What a record says about the winner: its kind, and reason or vector."""


class Contender(NamedTuple):
    """Steps before the entry, flags, steps after it, and how the event shows."""

    before: tuple[Step, ...]
    on: str
    after: tuple[Step, ...]
    shows: Seen


NMI_EXIT: Final = (EXIT, EXCEPTION_NMI, NMI_VECTOR)
DEBUG_EXIT: Final = (EXIT, EXCEPTION_NMI, DB)

CONTENDERS: Final[dict[int, Contender]] = {
    2: Contender(
        (control("virtualize-apic-accesses"), vmwrite(TPR_THRESHOLD, 1)),
        "tpr-shadow",
        (),
        (EXIT, TPR_BELOW_THRESHOLD),
    ),
    4: Contender((smi(AT_ENTRY),), "", (), (SMM_ENTRY,)),
    5: Contender((init(AT_ENTRY),), "", (), (EXIT, INIT_SIGNAL)),
    6: Contender((inject(OTHER_EVENT, 0),), "", (), (EXIT, MONITOR_TRAP_FLAG)),
    7: Contender((vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS), intercept(DB)), "", (), DEBUG_EXIT),
    8: Contender(
        (vmwrite(GUEST_PREEMPTION_TIMER, 0),), "preemption-timer", (), (EXIT, PREEMPTION_TIMER)
    ),
    9: Contender((control("nmi-window-exiting"),), "", (), (EXIT, NMI_WINDOW)),
    10: Contender((nmi(AT_ENTRY),), "", (), NMI_EXIT),
    11: Contender((control("interrupt-window-exiting"),), "", (), (EXIT, INTERRUPT_WINDOW)),
    12: Contender((interrupt(0x40, AT_ENTRY),), "", (), (EXIT, EXTERNAL_INTERRUPT_EXIT)),
    14: Contender((), "", (run("cpuid"),), (EXIT, CPUID_EXIT)),
}


def first_shown(seen: Play) -> Seen:
    """The first record after L1's entry, reduced to what tells events apart."""
    record = seen.journal[seen.kinds.index(L1_ENTRY) + 1]
    if record[0] == EXIT:
        shown = seen.exits[0]
        if shown.reason == EXCEPTION_NMI:
            return EXIT, EXCEPTION_NMI, shown.vector
        return EXIT, shown.reason
    return record[:2] if record[0] == DELIVER else record[:1]


def winner(first: Contender, second: Contender, off: str = "") -> Seen:
    """What shows first when both are pending at the entry; the second one arrived first."""
    moves = (*second.before, *first.before, enter(), *second.after, *first.after)
    return first_shown(play(*moves, on=f"{first.on} {second.on}", off=off))


def below(rank: int) -> list[int]:
    """The ranks with a contender below *rank*."""
    return [other for other in CONTENDERS if other > rank]


def assert_precedes(rank: int, lower: int) -> None:
    """The contender of *rank* shows first."""
    assert winner(CONTENDERS[rank], CONTENDERS[lower]) == CONTENDERS[rank].shows


@pytest.mark.parametrize("rank", CONTENDERS)
def test_p16_every_contender_shows_when_it_is_alone(rank: int) -> None:
    contender = CONTENDERS[rank]
    moves = (*contender.before, enter(), *contender.after)
    assert first_shown(play(*moves, on=contender.on)) == contender.shows


@pytest.mark.parametrize("moment", [NOW, AT_ENTRY, IN_DELIVERY, IN_EMULATION])
@pytest.mark.parametrize("arrives", [interrupt, nmi, smi, init, sipi, timer, post_interrupt])
def test_p1_nothing_from_outside_is_a_reset_or_a_machine_check(
    arrives: Callable[..., Step], moment: int
) -> None:
    """L2 never sees a #MC that nobody injected, L1 no exit for one, and the virtual machine lives on."""
    operand = () if arrives in (nmi, smi, init) else (0x40,)
    arrival = arrives(*operand, when=moment)
    moves = (arrival, intercept(MC), inject(EXTERNAL_INTERRUPT, 0x40), enter(), arrival, run("out"))
    seen = play(*moves, on="preemption-timer")
    assert MC not in seen.vectors
    assert all(found.interruption & VECTOR_MASK != MC for found in seen.exits)
    assert MCE_DURING_ENTRY not in seen.reasons
    assert VM_DEAD not in seen.kinds


@pytest.mark.parametrize("rank", [rank for rank in CONTENDERS if rank not in (6, 7, 14)])
def test_p1_an_injected_machine_check_is_delivered_before_every_rank(rank: int) -> None:
    """It is no event of the boundary: #MC is delivered uninterrupted, then its handler's boundary comes.

    Left out are MTF, which is injected itself, pending debug exceptions, which an injection drops (O6), and
    the instruction, which the handler has of its own.
    """
    contender = CONTENDERS[rank]
    moves = (*contender.before, intercept(MC), inject(HARDWARE_EXCEPTION, MC), enter())
    seen = play(*moves, on=contender.on)
    delivery = (DELIVER, MC, POISON, CODE_BASE)
    assert seen.journal[seen.kinds.index(L1_ENTRY) + 1][:4] == delivery
    if rank == 11:  # the handler has IF = 0
        assert seen.exits == []
        return
    assert seen.kinds[seen.kinds.index(DELIVER) + 1] == contender.shows[0]
    for found in seen.exits:
        assert (found.reason, found.vectoring) == (contender.shows[1], 0)
        assert found.rip == handler_rip(MC)


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN])
def test_p1_an_injected_machine_check_wakes_l2(activity: int) -> None:
    """G4: of all hardware exceptions only #MC may be injected into shutdown, and L2 is active then."""
    seen = play(vmwrite(GUEST_ACTIVITY, activity), inject(HARDWARE_EXCEPTION, MC), enter())
    assert seen.vectors == [MC]
    assert seen.end.activity == ACTIVE


@pytest.mark.parametrize("lower", below(2))
def test_p2_before_p4_and_below(lower: int) -> None:
    assert_precedes(2, lower)


def test_p2_before_p7_for_a_write_to_the_tpr() -> None:
    """MOV CR8 under TF: exit 43, and the single step is left in the pending-debug field."""
    moves = (
        vmwrite(TPR_THRESHOLD, 2),
        intercept(DB),
        vtpr(2),
        enter(),
        run("mov-cr8", 1),
    )
    seen = play(*moves, on="tpr-shadow single-step")
    assert seen.exit.reason == TPR_BELOW_THRESHOLD
    assert seen.exit.pending_dbg == PENDING_DBG_BS


def test_p2_before_p7_for_a_virtualized_eoi() -> None:
    on = "tpr-shadow virtual-interrupt-delivery"
    moves = (
        vmwrite(EOI_EXIT_BITMAP, 1 << 0x20),
        virtual_interrupt(0x20),
        enter(),
        run("popf", 2),
        run("apic-eoi"),
    )
    seen = play(*moves, on=on)
    assert seen.vectors == [0x20]
    assert seen.exit.reason == EOI_INDUCED
    assert seen.exit.qualification == 0x20
    assert seen.exit.pending_dbg == PENDING_DBG_BS


TASK_SWITCHES: Final[dict[str, tuple[tuple[Step, ...], int]]] = {
    "by a task gate": (
        (gate(0x40, GATE_TASK), inject(EXTERNAL_INTERRUPT, 0x40), enter()),
        TASK_SWITCH_BY_IDT_GATE | TASK_GATE_SELECTOR,
    ),
    "by IRET": (
        (vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF | RFLAGS_NT), enter(), run("iret")),
        TASK_SWITCH_BY_IRET | OLD_TASK_SELECTOR,
    ),
}


@pytest.mark.parametrize("name", TASK_SWITCHES)
def test_p3_no_task_switch_gets_as_far_as_a_t_flag_trap(name: str) -> None:
    """Each is exit 9 before a TSS is loaded: no #DB, delivered or intercepted, and DR6 is as it was."""
    moves, qualification = TASK_SWITCHES[name]
    seen = play(intercept(DB), *moves)
    assert seen.exit.reason == TASK_SWITCH
    assert seen.exit.qualification == qualification
    assert (seen.exit.pending_dbg, seen.exit.dr6) == (0, 0)
    assert (seen.delivered, seen.retired) == ([], 0)


def test_p3_what_t_flag_traps_would_outrank_waits_for_l1_instead() -> None:
    """An SMI that is pending meanwhile comes behind the exit, with L1 current, and there is no trap first."""
    moves, _source = TASK_SWITCHES["by a task gate"]
    seen = play(smi(AT_ENTRY), intercept(DB), *moves)
    assert seen.kinds == [L1_ENTRY, EXIT, SMM_ENTRY, END]
    assert seen.exit.reason == TASK_SWITCH
    assert seen.exit.vectoring == event(EXTERNAL_INTERRUPT, 0x40)
    assert seen.journal[2] == (SMM_ENTRY, 0, 0)


@pytest.mark.parametrize("lower", below(4))
def test_p4_before_p5_and_below(lower: int) -> None:
    assert_precedes(4, lower)


@pytest.mark.parametrize("lower", below(5))
def test_p5_before_p6_and_below(lower: int) -> None:
    assert_precedes(5, lower)


@pytest.mark.parametrize("lower", below(6))
def test_p6_before_p7_and_below(lower: int) -> None:
    assert_precedes(6, lower)


@pytest.mark.parametrize("lower", below(7))
def test_p7_before_p8_and_below(lower: int) -> None:
    assert_precedes(7, lower)


@pytest.mark.parametrize("lower", below(8))
def test_p8_before_p9_and_below(lower: int) -> None:
    assert_precedes(8, lower)


@pytest.mark.parametrize("lower", below(9))
def test_p9_before_p10_and_below(lower: int) -> None:
    assert_precedes(9, lower)


@pytest.mark.parametrize("lower", below(10))
def test_p10_before_p11_and_below(lower: int) -> None:
    assert_precedes(10, lower)


@pytest.mark.parametrize("lower", below(11))
def test_p11_before_p12_and_below(lower: int) -> None:
    assert_precedes(11, lower)


VIRTUAL_INTERRUPTS: Final = "tpr-shadow virtual-interrupt-delivery"
VIRTUAL: Final = Contender((virtual_interrupt(0x50),), VIRTUAL_INTERRUPTS, (), (DELIVER, 0x50))


def test_p11_interrupt_window_before_the_virtual_interrupt() -> None:
    assert winner(CONTENDERS[11], VIRTUAL) == CONTENDERS[11].shows


@pytest.mark.parametrize("lower", below(11))
def test_p11_virtual_interrupt_before_p12_and_below(lower: int) -> None:
    assert winner(VIRTUAL, CONTENDERS[lower]) == VIRTUAL.shows


@pytest.mark.parametrize("higher", [4, 5, 6, 7, 8, 9, 10])
def test_p11_virtual_interrupt_after_p10_and_above(higher: int) -> None:
    assert winner(CONTENDERS[higher], VIRTUAL) == CONTENDERS[higher].shows


@pytest.mark.parametrize("instruction", ["cpuid", "ud2", "gp", "hlt", "vmcall"])
def test_p12_before_p14(instruction: str) -> None:
    seen = play(
        intercept(UD), interrupt(0x40, AT_ENTRY), enter(), run(instruction), on="hlt-exiting"
    )
    assert seen.reasons == [EXTERNAL_INTERRUPT_EXIT]
    assert seen.retired == 0


def test_p12_before_p13() -> None:
    moves = (absent(CODE), intercept(PF), interrupt(0x40, AT_ENTRY), enter(), run("nop"))
    assert play(*moves).reasons == [EXTERNAL_INTERRUPT_EXIT]


@pytest.mark.parametrize("instruction", ["ud2", "cpuid", "hlt", "gp", "load"])
def test_p13_before_p14(instruction: str) -> None:
    """A fault of the fetch precedes whatever the instruction would be. No code breakpoints here."""
    moves = (absent(CODE), absent(DATA), intercept(PF), intercept(UD), enter(), run(instruction))
    seen = play(*moves, on="hlt-exiting")
    assert seen.exit.vector == PF
    assert seen.exit.error_code == 1 << 4


def test_p13_fetch_exits_of_the_second_level_come_at_the_same_place() -> None:
    assert play(ept(CODE), enter(), run("cpuid")).exit.reason == EPT_VIOLATION


def test_p14_an_intercepted_instruction_comes_last() -> None:
    seen = play(nmi(AT_ENTRY), enter(), run("cpuid"))
    assert seen.reasons == [EXCEPTION_NMI]


PRIVILEGED_INSTRUCTIONS: Final = (
    "hlt",
    "sti",
    "cli",
    "rdpmc",
    "out",
    "in",
    "wbinvd",
    "invlpg",
    "mov-cr8",
    "mov-cr3",
    "xsetbv",
    "invd",
    "rdmsr",
    "wrmsr",
)


@pytest.mark.parametrize("instruction", PRIVILEGED_INSTRUCTIONS)
def test_p15_the_privilege_fault_precedes_the_exit(instruction: str) -> None:
    exiting = (
        control("rdpmc-exiting"),
        control("unconditional-io-exiting"),
        control("wbinvd-exiting"),
        control("invlpg-exiting"),
        control("mov-dr-exiting"),
        control("cr8-load-exiting"),
        control("cr3-load-exiting"),
    )
    seen = play(*exiting, enter(), run(instruction), on="user-mode hlt-exiting")
    assert seen.exits == []
    assert seen.vectors == [GP]
    assert seen.delivered[0].error_code == 0


def test_p15_mov_dr_exits_before_its_privilege_fault() -> None:
    assert play(enter(), run("mov-dr"), on="user-mode").vectors == [GP]
    seen = play(control("mov-dr-exiting"), enter(), run("mov-dr"), on="user-mode")
    assert (seen.exit.reason, seen.vectors) == (MOV_DR_EXIT, [])


@pytest.mark.parametrize("instruction", ["monitor", "mwait"])
def test_p15_monitor_and_mwait_raise_ud_outside_cpl_0(instruction: str) -> None:
    """SDM, volume 2: #UD, not #GP, if the current privilege level is not 0."""
    moves = (control("monitor-exiting"), control("mwait-exiting"), enter(), run(instruction))
    seen = play(*moves, on="user-mode")
    assert seen.exits == []
    assert seen.vectors == [UD]


@pytest.mark.parametrize(
    ("instruction", "reason"), [("vmcall", VMCALL_EXIT), ("vmlaunch", VMLAUNCH_EXIT)]
)
def test_p15_vmx_instructions_exit_before_their_privilege_check(
    instruction: str, reason: int
) -> None:
    assert play(enter(), run(instruction), on="user-mode").exit.reason == reason


@pytest.mark.parametrize("instruction", ["cpuid", "pause", "rdtsc", "rdtscp"])
def test_p15_unprivileged_instructions_exit_in_user_mode(instruction: str) -> None:
    moves = (control("pause-exiting"), control("rdtsc-exiting"), enter(), run(instruction))
    seen = play(*moves, on="user-mode")
    assert len(seen.exits) == 1
    assert seen.delivered == []


def test_p15_an_invalid_opcode_precedes_everything() -> None:
    assert play(enter(), run("ud2"), on="user-mode").vectors == [UD]


def test_p15_in_cpl_0_the_same_instructions_exit() -> None:
    assert play(enter(), run("hlt"), on="hlt-exiting").exit.reason == HLT_EXIT
    assert play(control("pause-exiting"), enter(), run("pause")).exit.reason == PAUSE_EXIT


# -- P16: rank first, destination second ----

DEBUG_DELIVERED: Final = Contender(
    (vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS),), "", (), (DELIVER, DB)
)
NMI_DELIVERED: Final = Contender((nmi(AT_ENTRY),), "", (), (DELIVER, NMI_VECTOR))
INTERRUPT_DELIVERED: Final = Contender((interrupt(0x40, AT_ENTRY),), "", (), (DELIVER, 0x40))


@pytest.mark.parametrize("lower", below(7))
def test_p16_a_debug_trap_that_is_delivered_keeps_its_rank(lower: int) -> None:
    assert winner(DEBUG_DELIVERED, CONTENDERS[lower]) == DEBUG_DELIVERED.shows


@pytest.mark.parametrize("lower", [11, 12, 14])
def test_p16_an_nmi_that_is_delivered_keeps_its_rank(lower: int) -> None:
    off = "nmi-exiting virtual-nmis"
    assert winner(NMI_DELIVERED, CONTENDERS[lower], off) == NMI_DELIVERED.shows


@pytest.mark.parametrize("higher", [4, 5, 6, 7, 8])
def test_p16_an_nmi_that_is_delivered_is_not_promoted(higher: int) -> None:
    off = "nmi-exiting virtual-nmis"
    assert winner(CONTENDERS[higher], NMI_DELIVERED, off) == CONTENDERS[higher].shows


@pytest.mark.parametrize("higher", [2, 4, 5, 6, 7, 8, 9, 10, 11])
def test_p16_an_interrupt_that_is_delivered_is_not_promoted(higher: int) -> None:
    off = "external-interrupt-exiting"
    assert winner(CONTENDERS[higher], INTERRUPT_DELIVERED, off) == CONTENDERS[higher].shows


def test_p16_a_delivered_nmi_precedes_an_interrupt_that_exits() -> None:
    seen = play(nmi(AT_ENTRY), interrupt(0x40, AT_ENTRY), enter(), off="nmi-exiting virtual-nmis")
    assert seen.vectors == [NMI_VECTOR]
    assert seen.exit.reason == EXTERNAL_INTERRUPT_EXIT


def test_p16_an_nmi_that_exits_precedes_an_interrupt_that_is_delivered() -> None:
    off = "external-interrupt-exiting"
    seen = play(nmi(AT_ENTRY), interrupt(0x40, AT_ENTRY), enter(), off=off)
    assert seen.delivered == []
    assert seen.exit.interruption == event(2, NMI_VECTOR)
