"""The nested entry: what L1 sees when it fails, and how vmcs02 is built when it does not (E0, S6, B8)."""

from typing import Final

import pytest

from nvmx_core.arch.controls import (
    CPU_INTR_WINDOW_EXITING,
    CPU_NMI_WINDOW_EXITING,
    PIN_POSTED_INTR,
    SECONDARY_EPT,
)
from nvmx_core.arch.events import (
    EXTERNAL_INTERRUPT,
    GP,
    NMI,
    NMI_VECTOR,
    OTHER_EVENT,
    PF,
    VALID,
)
from nvmx_core.arch.exits import (
    EXTERNAL_INTERRUPT_EXIT,
    INVALID_STATE,
    MONITOR_TRAP_FLAG,
    MSR_LOAD_FAIL,
    TPR_BELOW_THRESHOLD,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_INTR_INFO,
    ENTRY_MSR_LOAD_BAD,
    EXCEPTION_BITMAP,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_RFLAGS,
    LAUNCH_STATE,
    PF_ERROR_MASK,
    PIN_BASED,
    SECONDARY,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import BLOCKING_BY_NMI, HLT
from nvmx_core.guests.memory import IDT_LOW
from nvmx_core.l0.log import NESTED_EXIT
from nvmx_core.scenario.steps import AT_ENTRY, FORCE_LAUNCH, FORCE_RESUME, Step
from tests.nested_support import drop_page, save_restore, transparent
from tests.support import (
    control,
    enter,
    event,
    inject,
    intercept,
    interrupt,
    l1_mov_ss,
    nmi,
    rsm,
    run,
    smi,
    vmclear,
    vmwrite,
)

BAD_STATE: Final = vmwrite(GUEST_RFLAGS, 0)
BAD_CONTROL: Final = vmwrite(ENTRY_INTR_INFO, event(1, 0))

# -- E0 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moves", "error"),
    [
        ((vmclear(0), enter()), 0),
        ((enter(), run("cpuid"), enter(FORCE_LAUNCH)), 4),
        ((enter(FORCE_RESUME),), 5),
        ((BAD_CONTROL, enter()), 7),
        ((l1_mov_ss(), enter()), 26),
    ],
)
def test_e0_an_early_failure_is_a_vmfail(moves: tuple[Step, ...], error: int) -> None:
    """bug32, bug36: L0 makes the checks of hardware itself."""
    pair = transparent(*moves)
    assert pair.seen.vmfails == [error]


@pytest.mark.parametrize(
    ("step", "reason"),
    [(BAD_STATE, INVALID_STATE), (vmwrite(ENTRY_MSR_LOAD_BAD, 1), MSR_LOAD_FAIL)],
)
def test_e0_a_late_failure_is_an_exit(step: Step, reason: int) -> None:
    seen = transparent(step, inject(EXTERNAL_INTERRUPT, 0x40), enter()).seen.exit
    assert seen.failed_entry
    assert seen.reason == reason


def test_e0_a_failed_entry_changes_nothing_else() -> None:
    """bug33: the valid bit of the entry field and the launch state are as L1 left them."""
    pair = transparent(BAD_STATE, inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert pair.seen.exit.entry_info & VALID
    assert pair.nested.l1.vmcs[LAUNCH_STATE] == 0


def test_v5_a_failed_entry_is_not_pending() -> None:
    """bug58's follow-up."""
    vcpu = transparent(BAD_STATE, enter()).nested.vcpu
    assert not vcpu.nested_run_pending
    assert not vcpu.guest_mode


def test_e0_an_interrupt_that_came_with_a_failed_entry_is_still_there() -> None:
    pair = transparent(interrupt(0x51, AT_ENTRY), BAD_STATE, enter())
    assert pair.seen.reasons == [INVALID_STATE]
    assert pair.seen.end.irr == 1 << 0x51


def test_e0_the_next_entry_after_a_failure_succeeds() -> None:
    pair = transparent(BAD_STATE, enter(), enter(), run("nop"))
    assert pair.seen.retired == 1


# -- vmcs02 ---------------------------------------------------------------------------------------


def vmcs02_after(*moves: Step, on: str = "", off: str = "", l0_exceptions: int = 0) -> list[int]:
    """The VMCS that L0 has built for L2."""
    return transparent(*moves, on=on, off=off, l0_exceptions=l0_exceptions).nested.vcpu.vmcs02


def test_s6_the_exception_bitmaps_are_united() -> None:
    vmcs02 = vmcs02_after(intercept(GP), enter(), l0_exceptions=0x10)
    assert vmcs02[EXCEPTION_BITMAP] >> GP & 1
    assert vmcs02[EXCEPTION_BITMAP] >> 6 & 1


@pytest.mark.parametrize(("off", "wanted"), [("", 0), ("l0-ept", 1)])
def test_s6_shadow_paging_needs_every_page_fault(off: str, wanted: int) -> None:
    vmcs02 = vmcs02_after(enter(), off=off)
    assert vmcs02[EXCEPTION_BITMAP] >> PF & 1 == wanted
    assert vmcs02[PF_ERROR_MASK] == 0


def test_s6_l0_uses_its_own_ept_whether_or_not_l1_has_one() -> None:
    assert vmcs02_after(enter(), off="l1-ept")[SECONDARY] & SECONDARY_EPT


def test_s6_the_windows_of_l0_are_not_those_of_l1() -> None:
    """L0 opens a window of its own for L2's interrupt; L1's control is not set by it."""
    pair = transparent(enter(), interrupt(0x51), off="external-interrupt-exiting interrupts-on")
    assert pair.nested.vcpu.vmcs02[CPU_BASED] & CPU_INTR_WINDOW_EXITING
    assert not pair.nested.vcpu.vmcs12[CPU_BASED] & CPU_INTR_WINDOW_EXITING


def test_s6_no_window_is_open_without_need() -> None:
    windows = CPU_INTR_WINDOW_EXITING | CPU_NMI_WINDOW_EXITING
    assert not vmcs02_after(enter())[CPU_BASED] & windows


def test_k3_hardware_does_not_process_posted_interrupts_of_l1() -> None:
    on = "tpr-shadow virtual-interrupt-delivery acknowledge-interrupt-on-exit posted-interrupts"
    assert not vmcs02_after(enter(), on=on)[PIN_BASED] & PIN_POSTED_INTR


# -- NMI modes ------------------------------------------------------------------------------------

NMI_MODES: Final = ("", "virtual-nmis", "nmi-exiting virtual-nmis")


@pytest.mark.parametrize("off", NMI_MODES)
@pytest.mark.parametrize("page", [None, IDT_LOW])
def test_n3_an_injected_nmi_blocks_in_every_mode(off: str, page: int | None) -> None:
    """Also when L0 has to inject it twice: the blocking is L2's until its IRET, or L1's."""
    repair = () if page is None else (drop_page(page),)
    pair = transparent(*repair, inject(NMI, NMI_VECTOR), enter(), off=off)
    assert pair.seen.vectors == [NMI_VECTOR]
    assert pair.seen.end.interruptibility == BLOCKING_BY_NMI


@pytest.mark.parametrize("off", NMI_MODES)
def test_g8_only_virtual_nmi_blocking_refuses_an_injected_nmi(off: str) -> None:
    """An injected NMI is legal under physical blocking, which vmcs02 cannot express."""
    blocked = vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_NMI)
    pair = transparent(blocked, inject(NMI, NMI_VECTOR), enter(), off=off)
    assert pair.seen.reasons == ([INVALID_STATE] if not off else [])


@pytest.mark.parametrize("off", NMI_MODES)
def test_b4_nmi_blocking_of_the_entry_holds_as_its_mode_says(off: str) -> None:
    """With virtual NMIs the exit comes at once; else it waits, for the IRET or for ever."""
    blocked = vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_NMI)
    pair = transparent(blocked, enter(), nmi(), run("iret"), off=off)
    assert len(pair.seen.reasons) == (0 if off else 1)
    assert pair.seen.vectors == ([NMI_VECTOR] if off == NMI_MODES[2] else [])


# -- L2 that starts asleep ------------------------------------------------------------------------


def test_m5_an_injected_mtf_exit_comes_out_of_a_sleep() -> None:
    """Type 7 wakes nobody: exit 37 with activity HLT."""
    seen = transparent(vmwrite(GUEST_ACTIVITY, HLT), inject(OTHER_EVENT, 0), enter()).seen.exit
    assert seen.reason == MONITOR_TRAP_FLAG
    assert seen.activity == HLT


def test_o8_the_tpr_threshold_is_looked_at_although_l2_sleeps() -> None:
    moves = (
        control("virtualize-apic-accesses"),
        vmwrite(TPR_THRESHOLD, 1),
        vmwrite(GUEST_ACTIVITY, HLT),
        enter(),
    )
    assert transparent(*moves, on="tpr-shadow").seen.exit.reason == TPR_BELOW_THRESHOLD


def test_o11_an_interrupt_that_was_pending_ends_a_sleep_at_the_entry() -> None:
    seen = transparent(interrupt(0x51), vmwrite(GUEST_ACTIVITY, HLT), enter()).seen.exit
    assert seen.reason == EXTERNAL_INTERRUPT_EXIT
    assert seen.activity == HLT


# -- what enters without an event of vmcs12 -------------------------------------------------------


def test_b8_rsm_does_not_inject_again() -> None:
    moves = (inject(EXTERNAL_INTERRUPT, 0x40), enter(), smi(), rsm(), run("nop"))
    pair = transparent(*moves)
    assert pair.seen.vectors == [0x40]


def test_d6_a_restored_vcpu_does_not_inject_again() -> None:
    """bug58."""
    moves = (inject(EXTERNAL_INTERRUPT, 0x40), enter(), save_restore(), run("nop"))
    pair = transparent(*moves)
    assert pair.seen.vectors == [0x40]
    assert pair.log(NESTED_EXIT) == []
