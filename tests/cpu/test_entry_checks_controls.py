"""VM-entry checks on the consistency of the controls (C1 to C6): VMfailValid 7."""

import pytest

from nvmx_core.arch.controls import (
    CPU_TPR_SHADOW,
    EXIT_SAVE_PREEMPTION_TIMER,
    PIN_POSTED_INTR,
    PIN_PREEMPTION_TIMER,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    EXIT_CONTROLS,
    PIN_BASED,
    POSTED_INTR_DESC_ADDR,
    POSTED_INTR_NV,
    TPR_THRESHOLD,
)
from nvmx_core.cpu.entry_checks import PASS, VMFAIL_CONTROLS
from tests.support import control, enter, judge_controls, play, vmwrite

POSTED = "tpr-shadow virtual-interrupt-delivery acknowledge-interrupt-on-exit posted-interrupts"


def test_c1_virtual_nmis_need_nmi_exiting() -> None:
    assert play(enter()).vmfails == []
    assert play(control("nmi-exiting", on=False), enter()).vmfails == [VMFAIL_CONTROLS]
    assert play(enter(), off="nmi-exiting virtual-nmis").vmfails == []


def test_c2_nmi_window_exiting_needs_virtual_nmis() -> None:
    window = control("nmi-window-exiting")
    assert play(window, enter()).vmfails == []
    assert play(window, enter(), off="virtual-nmis").vmfails == [VMFAIL_CONTROLS]


@pytest.mark.parametrize("needed", ["external-interrupt-exiting", "tpr-shadow"])
def test_c3_virtual_interrupts_need_interrupt_exiting_and_tpr_shadow(needed: str) -> None:
    flags = "tpr-shadow virtual-interrupt-delivery"
    assert play(enter(), on=flags).vmfails == []
    assert play(control(needed, on=False), enter(), on=flags).vmfails == [VMFAIL_CONTROLS]


@pytest.mark.parametrize("needed", ["virtual-interrupt-delivery", "acknowledge-interrupt-on-exit"])
def test_c4_posted_interrupts_need_two_controls(needed: str) -> None:
    assert play(enter(), on=POSTED).vmfails == []
    assert play(control(needed, on=False), enter(), on=POSTED).vmfails == [VMFAIL_CONTROLS]


def test_c4_notification_vector_has_8_bits() -> None:
    assert judge_controls({POSTED_INTR_NV: 255}, on=POSTED) == PASS
    assert judge_controls({POSTED_INTR_NV: 256}, on=POSTED) == (VMFAIL_CONTROLS, "C4")


def test_c4_descriptor_is_aligned_to_64_bytes() -> None:
    assert judge_controls({POSTED_INTR_DESC_ADDR: 0x1040}, on=POSTED) == PASS
    assert judge_controls({POSTED_INTR_DESC_ADDR: 0x1020}, on=POSTED) == (VMFAIL_CONTROLS, "C4")


def test_c4_vector_and_descriptor_do_not_count_without_posted_interrupts() -> None:
    assert judge_controls({POSTED_INTR_NV: 256, POSTED_INTR_DESC_ADDR: 1}) == PASS


def test_c4_names_posted_interrupts_alone() -> None:
    assert judge_controls({PIN_BASED: PIN_POSTED_INTR}) == (VMFAIL_CONTROLS, "C4")


def test_c5_saving_the_timer_needs_the_timer() -> None:
    saves = {EXIT_CONTROLS: EXIT_SAVE_PREEMPTION_TIMER}
    assert judge_controls(saves) == (VMFAIL_CONTROLS, "C5")
    assert judge_controls({**saves, PIN_BASED: PIN_PREEMPTION_TIMER}) == PASS


def test_c6_bits_31_to_4_of_the_threshold_are_0() -> None:
    on = "tpr-shadow"
    assert judge_controls({TPR_THRESHOLD: 0xF}, on=on, virtual_tpr=0xF0) == PASS
    failure = (VMFAIL_CONTROLS, "C6")
    assert judge_controls({TPR_THRESHOLD: 0x10}, on=on, virtual_tpr=0xF0) == failure
    assert judge_controls({TPR_THRESHOLD: 1 << 31}, on=on, virtual_tpr=0xF0) == failure


def test_c6_threshold_is_at_most_the_class_of_vtpr() -> None:
    on = "tpr-shadow"
    assert judge_controls({TPR_THRESHOLD: 3}, on=on, virtual_tpr=0x30) == PASS
    assert judge_controls({TPR_THRESHOLD: 3}, on=on, virtual_tpr=0x2F) == (VMFAIL_CONTROLS, "C6")


def test_c6_apic_access_virtualization_lifts_the_comparison_with_vtpr() -> None:
    moves = (control("virtualize-apic-accesses"), vmwrite(TPR_THRESHOLD, 3), enter())
    assert play(*moves, on="tpr-shadow").vmfails == []


def test_c6_nothing_is_checked_with_virtual_interrupt_delivery() -> None:
    on = "tpr-shadow virtual-interrupt-delivery"
    assert judge_controls({TPR_THRESHOLD: 0xFF}, on=on) == PASS


def test_c6_nothing_is_checked_without_the_tpr_shadow() -> None:
    assert judge_controls({TPR_THRESHOLD: 0xFF}) == PASS


def test_c6_a_remembered_verdict_does_not_hide_a_changed_vtpr() -> None:
    """Verdicts are remembered by fields, but VTPR is memory."""
    values = {CPU_BASED: 1 << 31 | CPU_TPR_SHADOW, TPR_THRESHOLD: 2}
    assert judge_controls(values, virtual_tpr=0x20) == PASS
    assert judge_controls(values, virtual_tpr=0x10) == (VMFAIL_CONTROLS, "C6")
    assert judge_controls(values, virtual_tpr=0x20) == PASS
