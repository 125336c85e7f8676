"""The predicates on a vCPU that the whole of L0 asks, and the audit that shares no code with its check."""

from typing import Final

import pytest

from nvmx_core.arch.controls import (
    CPU_INTR_WINDOW_EXITING,
    CPU_NMI_WINDOW_EXITING,
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_VIRTUAL_NMIS,
    WINDOW_CONTROLS,
)
from nvmx_core.arch.events import GP, PF
from nvmx_core.arch.fields import (
    CPU_BASED,
    EXCEPTION_BITMAP,
    GUEST_INTERRUPTIBILITY,
    GUEST_RFLAGS,
    PF_ERROR_MASK,
    PF_ERROR_MATCH,
    PIN_BASED,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    RFLAGS_IF,
    SHUTDOWN,
    WAIT_FOR_SIPI,
)
from nvmx_core.l0.audit import NO_RANK, highest_rank, overdue_events, waiting_events
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.log import (
    WAIT_NAMES,
    WAITS_FAULT,
    WAITS_FOR_L2,
    WAITS_INIT,
    WAITS_INTERRUPT,
    WAITS_INTERRUPT_WINDOW,
    WAITS_MTF,
    WAITS_NMI,
    WAITS_NMI_WINDOW,
    WAITS_SMI,
    WAITS_TIMER,
    WAITS_TRAP,
    WAITS_TRIPLE_FAULT,
)
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.immediate_exit import waiting_text
from tests.support import config

NMI_VIRTUAL: Final = PIN_NMI_EXITING | PIN_VIRTUAL_NMIS


def vcpu_with(pin: int = 0, blocking: int = 0, rflags: int = 0, on: str = "") -> Kvm:
    """A vCPU with L2 current, whose vmcs12 and vmcs02 say what the predicates read."""
    vcpu = Nested(config(on)).vcpu
    vcpu.guest_mode = True
    vcpu.vmcs12[PIN_BASED] = pin
    vcpu.vmcs02[GUEST_INTERRUPTIBILITY] = blocking
    vcpu.vmcs02[GUEST_RFLAGS] = rflags
    return vcpu


# -- the NMI modes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pin", "blocking", "blocked"),
    [
        (0, 0, False),
        (0, BLOCKING_BY_NMI, True),
        (0, BLOCKING_BY_MOV_SS, True),
        (0, BLOCKING_BY_STI, False),
        (NMI_VIRTUAL, BLOCKING_BY_NMI, False),
        (NMI_VIRTUAL, BLOCKING_BY_MOV_SS, False),
        (PIN_NMI_EXITING, BLOCKING_BY_NMI, False),
    ],
)
def test_b4_what_blocks_an_nmi(pin: int, blocking: int, blocked: bool) -> None:
    """With NMI exiting bit 3 of vmcs02 is virtual-NMI blocking, or not used by L0 at all."""
    assert vcpu_with(pin, blocking).nmi_blocked() == blocked


def test_b4_sti_blocks_an_nmi_where_the_processor_says_so() -> None:
    assert vcpu_with(0, BLOCKING_BY_STI, on="sti-blocks-nmi").nmi_blocked()


@pytest.mark.parametrize(("pin", "blocked"), [(PIN_NMI_EXITING, True), (NMI_VIRTUAL, False)])
def test_b4_physical_blocking_holds_the_nmi_exit_without_virtual_nmis(
    pin: int, blocked: bool
) -> None:
    vcpu = vcpu_with(pin)
    vcpu.physical_nmi_blocked = True
    assert vcpu.nmi_blocked() == blocked


@pytest.mark.parametrize("kept", [False, True])
def test_y4_l1_reads_the_physical_blocking_that_l0_keeps(kept: bool) -> None:
    vcpu = vcpu_with(PIN_NMI_EXITING)
    vcpu.physical_nmi_blocked = kept
    assert vcpu.l2_blocking(BLOCKING_BY_STI) == BLOCKING_BY_STI | (BLOCKING_BY_NMI if kept else 0)


# -- interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pin", "blocking", "rflags", "blocked"),
    [
        (0, 0, RFLAGS_IF, False),
        (0, 0, 0, True),
        (0, BLOCKING_BY_STI, RFLAGS_IF, True),
        (0, BLOCKING_BY_MOV_SS, RFLAGS_IF, True),
        (PIN_EXT_INTR_EXITING, BLOCKING_BY_STI, 0, False),
    ],
)
def test_b3_what_blocks_an_interrupt(pin: int, blocking: int, rflags: int, blocked: bool) -> None:
    assert vcpu_with(pin, blocking, rflags).interrupt_blocked() == blocked


# -- section 2: the bitmap ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bitmap", "mask", "match", "error_code", "intercepted"),
    [
        (1 << PF, 0, 0, 2, True),
        (1 << PF, 2, 2, 2, True),
        (1 << PF, 2, 2, 0, False),
        (0, 2, 2, 0, True),
        (0, 2, 2, 2, False),
        (0, 0, 0, 0, False),
    ],
)
def test_section_2_mask_and_match_reverse_the_bit_of_page_faults(
    bitmap: int, mask: int, match: int, error_code: int, intercepted: bool
) -> None:
    vcpu = vcpu_with()
    vcpu.vmcs12[EXCEPTION_BITMAP] = bitmap
    vcpu.vmcs12[PF_ERROR_MASK] = mask
    vcpu.vmcs12[PF_ERROR_MATCH] = match
    assert vcpu.l1_intercepts(PF, error_code) == intercepted


def test_section_2_mask_and_match_concern_page_faults_only() -> None:
    """bug28."""
    vcpu = vcpu_with()
    vcpu.vmcs12[EXCEPTION_BITMAP] = 1 << GP
    vcpu.vmcs12[PF_ERROR_MASK] = 2
    vcpu.vmcs12[PF_ERROR_MATCH] = 2
    assert vcpu.l1_intercepts(GP, 0)


# -- the audit ------------------------------------------------------------------------------------


def everything_waits(pin: int = PIN_EXT_INTR_EXITING | NMI_VIRTUAL) -> Kvm:
    """A vCPU with every event pending."""
    vcpu = vcpu_with(pin, 0, RFLAGS_IF)
    vcpu.smi_pending = vcpu.init_pending = vcpu.mtf_pending = vcpu.nmi_pending = True
    vcpu.timer_expired = vcpu.request_triple_fault = vcpu.vmexit_pending = True
    vcpu.apic.request(0x40)
    return vcpu


EXITS_ALL: Final = (
    WAITS_SMI | WAITS_INIT | WAITS_MTF | WAITS_TIMER | WAITS_NMI | WAITS_INTERRUPT | WAITS_FAULT
    | WAITS_TRIPLE_FAULT
)  # fmt: skip


def test_v10_everything_that_waits_is_seen() -> None:
    assert waiting_events(everything_waits()) == EXITS_ALL


def test_v10_a_trap_is_told_from_a_fault() -> None:
    vcpu = vcpu_with()
    vcpu.vmexit_pending = vcpu.vmexit_trap = True
    assert waiting_events(vcpu) == WAITS_TRAP


def test_v10_events_for_l2_wait_as_such() -> None:
    vcpu = vcpu_with(0, 0, RFLAGS_IF)
    vcpu.nmi_pending = True
    vcpu.apic.request(0x40)
    assert waiting_events(vcpu) == WAITS_FOR_L2


def test_v10_blocked_events_for_l2_do_not_wait() -> None:
    vcpu = vcpu_with(0, BLOCKING_BY_NMI, 0)
    vcpu.nmi_pending = True
    vcpu.apic.request(0x40)
    assert waiting_events(vcpu) == 0


@pytest.mark.parametrize(
    ("activity", "waits"),
    [
        (HLT, EXITS_ALL),
        (SHUTDOWN, EXITS_ALL & ~(WAITS_MTF | WAITS_INTERRUPT)),
        (WAIT_FOR_SIPI, 0),
    ],
)
def test_section_11_the_activity_decides_what_can_wait(activity: int, waits: int) -> None:
    vcpu = everything_waits()
    vcpu.mp_state = activity
    assert waiting_events(vcpu) == waits


def test_o11_events_for_l2_are_never_overdue() -> None:
    vcpu = vcpu_with(0, 0, RFLAGS_IF)
    vcpu.apic.request(0x40)
    assert overdue_events(vcpu) == 0


def test_o11_exits_are_overdue_only_while_l2_is_awake_and_current() -> None:
    vcpu = everything_waits()
    assert overdue_events(vcpu) == EXITS_ALL
    vcpu.mp_state = HLT
    assert overdue_events(vcpu) == 0
    vcpu.mp_state = ACTIVE
    vcpu.guest_mode = False
    assert overdue_events(vcpu) == 0


@pytest.mark.parametrize(
    ("blocking", "rflags", "overdue"),
    [
        (0, RFLAGS_IF, WAITS_NMI_WINDOW | WAITS_INTERRUPT_WINDOW),
        (0, 0, WAITS_NMI_WINDOW),
        (BLOCKING_BY_NMI, RFLAGS_IF, WAITS_INTERRUPT_WINDOW),
        (BLOCKING_BY_STI, RFLAGS_IF, WAITS_NMI_WINDOW),
        (BLOCKING_BY_MOV_SS, RFLAGS_IF, 0),
    ],
)
def test_o10_a_window_is_overdue_when_it_is_open_in_the_processor(
    blocking: int, rflags: int, overdue: int
) -> None:
    """B5, B6: what vmcs02 held at the last exit does not count while L2 runs; unasked for, none is due."""
    vcpu = vcpu_with(NMI_VIRTUAL, BLOCKING_BY_NMI, 0)
    vcpu.cpu.blocking = blocking
    vcpu.cpu.rflags = rflags
    assert overdue_events(vcpu) == 0
    vcpu.vmcs12[CPU_BASED] |= WINDOW_CONTROLS
    assert overdue_events(vcpu) == overdue
    assert waiting_events(vcpu) == 0


def test_v4_the_highest_rank_that_is_open_is_told() -> None:
    """Each event is taken away in the order of the ranks, and the next one shows; traps of both kinds."""
    vcpu = everything_waits()
    vcpu.vmexit_trap = vcpu.exception_pending = vcpu.exception_trap = True
    vcpu.vmcs12[CPU_BASED] |= WINDOW_CONTROLS
    ranks = [highest_rank(vcpu)]
    for taken in ("smi", "init", "mtf", "vmexit", "exception"):
        setattr(vcpu, f"{taken}_pending", False)
        ranks.append(highest_rank(vcpu))
    vcpu.timer_expired = False
    ranks.append(highest_rank(vcpu))
    vcpu.vmcs12[CPU_BASED] &= ~CPU_NMI_WINDOW_EXITING
    ranks.append(highest_rank(vcpu))
    vcpu.nmi_pending = False
    ranks.append(highest_rank(vcpu))
    vcpu.vmcs12[CPU_BASED] &= ~CPU_INTR_WINDOW_EXITING
    ranks.append(highest_rank(vcpu))
    vcpu.apic.irr = 0
    ranks.append(highest_rank(vcpu))
    assert ranks == [4, 5, 6, 7, 7, 8, 9, 10, 11, 12, NO_RANK]


@pytest.mark.parametrize(
    ("activity", "rank"), [(ACTIVE, 6), (HLT, 6), (SHUTDOWN, 8), (WAIT_FOR_SIPI, NO_RANK)]
)
def test_v4_the_activity_decides_what_is_open(activity: int, rank: int) -> None:
    vcpu = everything_waits()
    vcpu.smi_pending = vcpu.init_pending = vcpu.vmexit_pending = False
    vcpu.mp_state = activity
    assert highest_rank(vcpu) == rank


@pytest.mark.parametrize(
    ("blocking", "rank"),
    [(BLOCKING_BY_NMI, 11), (BLOCKING_BY_MOV_SS, NO_RANK), (BLOCKING_BY_STI, 9), (0, 9)],
)
def test_v4_a_window_is_open_only_without_what_blocks_it(blocking: int, rank: int) -> None:
    """B5, B6: both windows are wanted; in the shadow of STI an NMI window is open, by our choice."""
    vcpu = vcpu_with(NMI_VIRTUAL, blocking, RFLAGS_IF)
    vcpu.vmcs12[CPU_BASED] |= WINDOW_CONTROLS
    assert highest_rank(vcpu) == rank


def test_every_waiting_bit_has_a_name() -> None:
    every = EXITS_ALL | WAITS_TRAP | WAITS_FOR_L2 | WAITS_NMI_WINDOW | WAITS_INTERRUPT_WINDOW
    assert waiting_text(every) == ", ".join(WAIT_NAMES)
