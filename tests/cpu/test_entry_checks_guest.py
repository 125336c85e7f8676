"""VM-entry checks on the guest state that involve events (G1 to G12): VM exit 33."""

from typing import Final

import pytest

from nvmx_core.arch.controls import ENTRY_TO_SMM
from nvmx_core.arch.events import (
    BP,
    DB,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    MC,
    NMI,
    OTHER_EVENT,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    UD,
)
from nvmx_core.arch.exits import INVALID_STATE
from nvmx_core.arch.fields import (
    ENTRY_CONTROLS,
    ENTRY_INTR_INFO,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_RFLAGS,
    GUEST_SS_DPL,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_SMI,
    BLOCKING_BY_STI,
    HLT,
    PENDING_DBG_BS,
    PENDING_DBG_ENABLED_BP,
    RFLAGS_FIXED,
    RFLAGS_IF,
    RFLAGS_TF,
    SHUTDOWN,
    WAIT_FOR_SIPI,
)
from nvmx_core.cpu.entry_checks import PASS, VMFAIL_CONTROLS
from tests.support import RFLAGS_START, enter, event, judge_controls, judge_guest, play, vmwrite

INTERRUPT: Final = event(EXTERNAL_INTERRUPT, 0x40)
NMI_EVENT: Final = event(NMI, 2)
DEBUG: Final = event(HARDWARE_EXCEPTION, DB)
MACHINE_CHECK: Final = event(HARDWARE_EXCEPTION, MC)
UNDEFINED: Final = event(HARDWARE_EXCEPTION, UD)
INT_N: Final = event(SOFTWARE_INTERRUPT, 0x80)
INT_1: Final = event(PRIVILEGED_SOFTWARE_EXCEPTION, DB)
INT_3: Final = event(SOFTWARE_EXCEPTION, BP)
MTF: Final = event(OTHER_EVENT, 0)
ALL_EVENTS: Final = (
    INTERRUPT,
    NMI_EVENT,
    DEBUG,
    MACHINE_CHECK,
    UNDEFINED,
    INT_N,
    INT_1,
    INT_3,
    MTF,
)


def fails(rule: str, qualification: int = 0) -> tuple[int, str]:
    """Exit 33 because of one rule."""
    return qualification, rule


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN, WAIT_FOR_SIPI])
def test_g1_activity_state_is_one_that_the_processor_offers(activity: int) -> None:
    name = {HLT: "hlt", SHUTDOWN: "shutdown", WAIT_FOR_SIPI: "wait-for-sipi"}[activity]
    assert judge_guest({GUEST_ACTIVITY: activity}) == PASS
    assert judge_guest({GUEST_ACTIVITY: activity}, off=f"{name}-activity") == fails("G1")


@pytest.mark.parametrize("activity", [4, 1 << 31])
def test_g1_activity_state_is_at_most_3(activity: int) -> None:
    assert judge_guest({GUEST_ACTIVITY: activity}) == fails("G1")


def test_g1_is_exit_33_on_the_machine() -> None:
    seen = play(vmwrite(GUEST_ACTIVITY, SHUTDOWN), enter(), off="shutdown-activity")
    assert seen.exit.reason == INVALID_STATE
    assert seen.exit.failed_entry
    assert seen.exit.qualification == 0


def test_g2_hlt_needs_ss_dpl_0() -> None:
    assert judge_guest({GUEST_ACTIVITY: HLT, GUEST_SS_DPL: 0}) == PASS
    assert judge_guest({GUEST_ACTIVITY: HLT, GUEST_SS_DPL: 3}) == fails("G2")
    assert judge_guest({GUEST_SS_DPL: 3}) == PASS


@pytest.mark.parametrize("shadow", [BLOCKING_BY_STI, BLOCKING_BY_MOV_SS])
@pytest.mark.parametrize("activity", [HLT, SHUTDOWN, WAIT_FOR_SIPI])
def test_g3_interrupt_shadow_needs_an_active_guest(shadow: int, activity: int) -> None:
    values = {GUEST_INTERRUPTIBILITY: shadow}
    assert judge_guest(values) == PASS
    assert judge_guest({**values, GUEST_ACTIVITY: activity}) == fails("G3")


@pytest.mark.parametrize("activity", [HLT, SHUTDOWN])
def test_g3_nmi_blocking_needs_no_active_guest(activity: int) -> None:
    values = {GUEST_INTERRUPTIBILITY: BLOCKING_BY_NMI, GUEST_ACTIVITY: activity}
    assert judge_guest(values) == PASS


@pytest.mark.parametrize("info", ALL_EVENTS)
def test_g4_hlt_accepts_interrupt_nmi_debug_machine_check_and_mtf(info: int) -> None:
    accepted = info in {INTERRUPT, NMI_EVENT, DEBUG, MACHINE_CHECK, MTF}
    verdict = judge_guest({ENTRY_INTR_INFO: info, GUEST_ACTIVITY: HLT})
    assert verdict == (PASS if accepted else fails("G4"))


@pytest.mark.parametrize("info", ALL_EVENTS)
def test_g4_shutdown_accepts_nmi_and_machine_check(info: int) -> None:
    accepted = info in {NMI_EVENT, MACHINE_CHECK}
    verdict = judge_guest({ENTRY_INTR_INFO: info, GUEST_ACTIVITY: SHUTDOWN})
    assert verdict == (PASS if accepted else fails("G4"))


@pytest.mark.parametrize("info", ALL_EVENTS)
def test_g4_wait_for_sipi_accepts_nothing(info: int) -> None:
    verdict = judge_guest({ENTRY_INTR_INFO: info, GUEST_ACTIVITY: WAIT_FOR_SIPI})
    assert verdict == fails("G4")


def test_g4_vector_18_counts_for_exceptions_only() -> None:
    info = event(SOFTWARE_INTERRUPT, MC)
    assert judge_guest({ENTRY_INTR_INFO: info, GUEST_ACTIVITY: SHUTDOWN}) == fails("G4")


def test_g5_sti_and_mov_ss_exclude_each_other() -> None:
    both = BLOCKING_BY_STI | BLOCKING_BY_MOV_SS
    assert judge_guest({GUEST_INTERRUPTIBILITY: both}) == fails("G5")


def test_g5_blocking_by_sti_needs_interrupts_on() -> None:
    values = {GUEST_INTERRUPTIBILITY: BLOCKING_BY_STI}
    assert judge_guest(values) == PASS
    assert judge_guest({**values, GUEST_RFLAGS: RFLAGS_FIXED}) == fails("G5")


def test_g5_blocking_by_mov_ss_needs_no_interrupts_on() -> None:
    values = {GUEST_INTERRUPTIBILITY: BLOCKING_BY_MOV_SS, GUEST_RFLAGS: RFLAGS_FIXED}
    assert judge_guest(values) == PASS


@pytest.mark.parametrize("bit", [*range(4, 32)])
def test_g5_reserved_bits_are_0(bit: int) -> None:
    assert judge_guest({GUEST_INTERRUPTIBILITY: 1 << bit}) == fails("G5")


def test_g5_blocking_by_smi_exists_only_in_smm() -> None:
    assert judge_guest({GUEST_INTERRUPTIBILITY: BLOCKING_BY_SMI}) == fails("G5")


def test_g6_injecting_an_interrupt_needs_interrupts_on() -> None:
    assert judge_guest({ENTRY_INTR_INFO: INTERRUPT}) == PASS
    verdict = judge_guest({ENTRY_INTR_INFO: INTERRUPT, GUEST_RFLAGS: RFLAGS_FIXED})
    assert verdict == fails("G6")


@pytest.mark.parametrize("shadow", [BLOCKING_BY_STI, BLOCKING_BY_MOV_SS])
def test_g6_injecting_an_interrupt_needs_no_shadow(shadow: int) -> None:
    verdict = judge_guest({ENTRY_INTR_INFO: INTERRUPT, GUEST_INTERRUPTIBILITY: shadow})
    assert verdict == fails("G6")


@pytest.mark.parametrize("info", [DEBUG, UNDEFINED, INT_N, INT_1, INT_3, MTF])
@pytest.mark.parametrize("blocking", [BLOCKING_BY_STI, BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI])
def test_g6_other_events_do_not_mind_blocking(info: int, blocking: int) -> None:
    assert judge_guest({ENTRY_INTR_INFO: info, GUEST_INTERRUPTIBILITY: blocking}) == PASS


@pytest.mark.parametrize("info", [NMI_EVENT, DEBUG, UNDEFINED, INT_N, INT_1, INT_3, MTF])
def test_g6_other_events_do_not_need_interrupts_on(info: int) -> None:
    assert judge_guest({ENTRY_INTR_INFO: info, GUEST_RFLAGS: RFLAGS_FIXED}) == PASS


def test_g7_no_nmi_under_blocking_by_mov_ss() -> None:
    values = {ENTRY_INTR_INFO: NMI_EVENT}
    assert judge_guest(values) == PASS
    verdict = judge_guest({**values, GUEST_INTERRUPTIBILITY: BLOCKING_BY_MOV_SS})
    assert verdict == fails("G7")


def test_g7_an_nmi_under_blocking_by_sti_is_the_processors_choice() -> None:
    values = {ENTRY_INTR_INFO: NMI_EVENT, GUEST_INTERRUPTIBILITY: BLOCKING_BY_STI}
    assert judge_guest(values) == PASS
    assert judge_guest(values, on="sti-blocks-nmi") == fails("G7", qualification=3)


def test_g8_no_nmi_under_virtual_nmi_blocking() -> None:
    values = {ENTRY_INTR_INFO: NMI_EVENT, GUEST_INTERRUPTIBILITY: BLOCKING_BY_NMI}
    assert judge_guest(values) == fails("G8")


@pytest.mark.parametrize("off", ["virtual-nmis", "nmi-exiting"])
def test_g8_bit_3_is_not_checked_without_virtual_nmis(off: str) -> None:
    values = {ENTRY_INTR_INFO: NMI_EVENT, GUEST_INTERRUPTIBILITY: BLOCKING_BY_NMI}
    assert judge_guest(values, off=off) == PASS


@pytest.mark.parametrize(
    "state",
    [
        {GUEST_INTERRUPTIBILITY: BLOCKING_BY_STI},
        {GUEST_INTERRUPTIBILITY: BLOCKING_BY_MOV_SS},
        {GUEST_ACTIVITY: HLT},
    ],
    ids=["sti", "mov-ss", "hlt"],
)
def test_g9_single_step_is_pending_exactly_with_tf(state: dict[int, int]) -> None:
    with_tf = {**state, GUEST_RFLAGS: RFLAGS_START | RFLAGS_TF}
    assert judge_guest(state) == PASS
    assert judge_guest({**state, GUEST_PENDING_DBG: PENDING_DBG_BS}) == fails("G9")
    assert judge_guest(with_tf) == fails("G9")
    assert judge_guest({**with_tf, GUEST_PENDING_DBG: PENDING_DBG_BS}) == PASS


def test_g9_is_not_checked_in_an_active_guest_without_a_shadow() -> None:
    assert judge_guest({GUEST_PENDING_DBG: PENDING_DBG_BS}) == PASS
    assert judge_guest({GUEST_RFLAGS: RFLAGS_START | RFLAGS_TF}) == PASS


def test_g10_pending_debug_exceptions_have_six_bits() -> None:
    allowed = 0xF | PENDING_DBG_ENABLED_BP | PENDING_DBG_BS
    assert judge_guest({GUEST_PENDING_DBG: allowed}) == PASS


@pytest.mark.parametrize("bit", [*range(4, 12), 13, 15, *range(17, 48)])
def test_g10_the_other_bits_are_reserved(bit: int) -> None:
    assert judge_guest({GUEST_PENDING_DBG: 1 << bit}) == fails("G10")


def test_g11_bit_1_of_rflags_is_1() -> None:
    assert judge_guest({GUEST_RFLAGS: RFLAGS_FIXED}) == PASS
    assert judge_guest({GUEST_RFLAGS: RFLAGS_IF}) == fails("G11")


@pytest.mark.parametrize("bit", [3, 5, 15, *range(22, 48)])
def test_g11_reserved_bits_of_rflags_are_0(bit: int) -> None:
    assert judge_guest({GUEST_RFLAGS: RFLAGS_FIXED | 1 << bit}) == fails("G11")


def test_g12_entry_to_smm_only_from_smm() -> None:
    """Outside SMM the control itself is wrong: a control check, hence error 7."""
    assert judge_controls({ENTRY_CONTROLS: 0}) == PASS
    assert judge_controls({ENTRY_CONTROLS: ENTRY_TO_SMM}) == (VMFAIL_CONTROLS, "G12")
