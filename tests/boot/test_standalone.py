"""Scenarios without a helper: what L1 and L2 do by themselves, and what is refused by name."""

import struct
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.arch.fields import CPU_BASED, FIELD_COUNT, PIN_BASED
from nvmx_fuzz.boot import places
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.export import EVERYTHING, image_of
from nvmx_fuzz.boot.image import boot_image
from nvmx_fuzz.boot.program import SELF_INTERRUPT, SELF_NMI
from nvmx_fuzz.boot.standalone import STOP_CODE
from nvmx_fuzz.realise.l1_program import ENTER, STORE32, STORE_BYTES, VMWRITE
from nvmx_fuzz.realise.vmcs import NotRealisableError
from tests.boot.support import KVM_ON_BOCHS, standing

ROOT = Path(__file__).resolve().parents[2]


def operations(text: str) -> list[int]:
    return [operation[0] for operation in standing(text).realised.script]


def test_l1_sends_itself_an_interrupt_before_it_enters() -> None:
    kinds = operations("outside interrupt 0x51\nL1 enter\n")
    assert kinds.index(SELF_INTERRUPT) < kinds.index(ENTER)


def test_an_arrival_at_the_entry_is_sent_right_before_it() -> None:
    kinds = operations("outside interrupt 0x51 at-entry\nL1 enter\n")
    assert kinds[kinds.index(ENTER) - 1] == SELF_INTERRUPT


def test_l1_sends_itself_an_nmi() -> None:
    assert SELF_NMI in operations("outside nmi\n")


@pytest.mark.parametrize("when", ["", "in-delivery"])
def test_an_interrupt_in_l2_is_moved_to_the_entry_where_nobody_can_tell(when: str) -> None:
    before = f"outside interrupt 0x51 {when}\n" if when else ""
    after = "" if when else "outside interrupt 0x51\n"
    kinds = operations(f"{before}L1 inject external-interrupt 0x40\nL1 enter\n{after}")
    assert kinds.count(SELF_INTERRUPT) == 1
    assert kinds.index(SELF_INTERRUPT) < kinds.index(ENTER)


def test_an_interrupt_behind_an_instruction_of_l2_is_not_moved() -> None:
    with pytest.raises(NotRealisableError, match="interrupt-while-l2-runs"):
        standing("L1 enter\nL2 nop\noutside interrupt 0x51\n")


def test_a_scenario_that_ends_in_l2_gets_an_instruction_that_exits() -> None:
    expected = standing("L1 enter\nL2 nop\n")
    stop = [operation for operation in expected.realised.script if operation[0] == STORE_BYTES]
    assert [(operation[1], operation[2]) for operation in stop[-3:]] == [
        (0x16001 + offset, value) for offset, value in enumerate(STOP_CODE)
    ]
    assert expected.ends_in_l2


def test_what_l2_pops_is_there_before_it_enters() -> None:
    expected = standing("L1 enter\nL2 popf 0x1\n")
    assert any(
        operation[0] == STORE32 and 0x14800 <= operation[1] < 0x15000
        for operation in expected.realised.script
    )


def test_a_frame_that_a_delivery_has_pushed_needs_no_store() -> None:
    expected = standing("L1 inject external-interrupt 0x40\nL1 enter\nL2 iret\n")
    assert not any(
        operation[0] == STORE32 and 0x14000 <= operation[1] < 0x15000
        for operation in expected.realised.script
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("L1 enter\noutside nmi\n", "nmi-while-l2-runs"),
        ("outside nmi at-entry\nL1 enter\n", "nmi-at-entry"),
        ("L1 enter\noutside init\n", "init-while-l2-runs"),
        ("outside init\n", "init-while-l1-runs"),
        ("outside smi\n", "smi-while-l1-runs"),
        ("L1 vmwrite GUEST_ACTIVITY 0x3\nL1 enter\noutside sipi 0x0\n", "sipi-while-l2-runs"),
        ("outside nmi in-delivery\nL1 inject external-interrupt 0x40\nL1 enter\n", "nmi-in-delivery"),
        ("L1 enter\nL2 load\nL2 page data absent\nL2 load\n", "l2-tables-change-while-l2-runs"),
        ("config preemption-timer=on\nL1 vmwrite GUEST_PREEMPTION_TIMER 0x10\nL1 enter\noutside timer 3\n",
         "timer-while-l2-runs"),
        ("L1 enter\nL2 hlt\n", "l2-sleeps-at-the-end"),
        ("L1 control posted-interrupts on\nL1 enter\n", "not-offered: PIN_BASED 0x80"),
        ("config virtual-nmis=off\nL1 enter\nL2 iret\nL2 nop\n", "code-changes-while-l2-runs"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(NotRealisableError) as refused:
        standing(text)
    assert refused.value.reason == reason


def test_a_frame_that_stood_there_before_is_refused() -> None:
    """L2 pops what L1 has put there, and an interrupt pushes the same again: no word changes."""
    with pytest.raises(NotRealisableError, match="frame-stood-there-before"):
        standing(
            "config external-interrupt-exiting=off interrupts-on=off\n"
            "L1 vmwrite GUEST_INTERRUPTIBILITY 0x2\n"
            "outside interrupt 0x51\nL1 enter\nL2 iret\n"
        )


def test_a_control_that_the_model_refuses_too_is_not_missing() -> None:
    vmcs = [0] * FIELD_COUNT
    vmcs[CPU_BASED] = 1
    assert KVM_ON_BOCHS.missing(vmcs) == (0, 0)
    vmcs[PIN_BASED] = 0x80
    assert KVM_ON_BOCHS.missing(vmcs) == (PIN_BASED, 0x80)


def test_a_processor_without_ept_does_not_suffice() -> None:
    assert KVM_ON_BOCHS.suffices() == ""
    assert EVERYTHING.suffices() == ""
    assert "EPT" in Capabilities((0,) * 13).suffices()


def test_an_image_names_what_it_leaves_out() -> None:
    names = [str(ROOT / "corpus" / "bugs" / name) for name in ("bug1.scn", "bug44.scn")]
    _image, taken, refused = image_of(names, is_disc=False)
    assert taken == names[:1]
    assert refused == [(names[1], "sipi-while-l2-runs")]


def test_what_waits_for_a_delivery_that_never_comes_needs_nobody() -> None:
    standing("outside nmi in-delivery\nL1 enter\nL2 cpuid\n")


def test_tables_are_changed_before_or_behind_the_stay_where_nobody_can_tell() -> None:
    standing("L1 enter\nL2 nop\nL2 page data absent\nL2 load\n")
    standing("L1 enter\nL2 load\nL2 page data absent\nL2 cpuid\nL1 enter\nL2 load\n")


def test_time_passes_for_nobody_while_no_timer_runs() -> None:
    standing("L1 enter\noutside timer 3\nL2 nop\n")


def test_a_timer_counts_so_long_that_it_does_not_end() -> None:
    text = "config preemption-timer=on save-preemption-timer=on\nL1 vmwrite GUEST_PREEMPTION_TIMER 0x10\n"
    expected = standing(f"{text}L1 enter\nL2 cpuid\n")
    timers = {value for _kind, value in timers_of(boot_image([expected.realised.script]))}
    assert timers == {places.LONG_TIMER}


def timers_of(image: bytes) -> list[tuple[int, int]]:
    """The VMX-preemption timers that the scripts of an image write."""
    body = image[places.SCRIPTS - places.IMAGE :]
    words = [struct.unpack_from("<4Q", body, place) for place in range(0, len(body) - 31, 32)]
    return [(op, value) for op, field, value, _ in words if (op, field) == (VMWRITE, 0x482E)]
