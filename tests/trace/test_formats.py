"""Single events in each spelling that was met: in the kernel's sources, of trace-cmd, and in mails."""

import pytest

from nvmx_fuzz.trace.formats import SPELLINGS, Texts
from nvmx_fuzz.trace.records import (
    Arrival,
    Entry,
    Event,
    ExceptionInjected,
    Exit,
    InterruptInjected,
    NestedEntry,
    NestedExit,
    Reflected,
)
from nvmx_fuzz.trace.words import UNKNOWN

READ: list[tuple[str, Event]] = [
    ("kvm_entry: vcpu 3", Entry(3, UNKNOWN, UNKNOWN, False)),
    ("kvm_entry:            vcpu 0, rip 0xa00200", Entry(0, 0xA00200, UNKNOWN, False)),
    ("kvm_entry: vcpu 0, rip 0xa00200[immediate exit]", Entry(0, 0xA00200, UNKNOWN, True)),
    (
        "kvm_entry: vcpu 0, rip 0x10 intr_info 0x80000040 error_code 0x00000000[immediate exit]",
        Entry(0, 0x10, 0x80000040, True),
    ),
    (
        "kvm_entry: vcpu 0, rip 0x10 inj 0x80000040 inj_error_code 0x00000000 [imm exit] [guest]",
        Entry(0, 0x10, 0x80000040, True),
    ),
    (
        "kvm_exit: vcpu 1 reason VMCALL rip 0x1000 info 0 51",
        Exit(1, 18, False, 0x1000, 0, UNKNOWN, 0x51, ()),
    ),
    (
        "kvm_exit:             reason EPT_VIOLATION rip 0xfffff802987d6169 info 181 0",
        Exit(UNKNOWN, 48, False, 0xFFFFF802987D6169, 0x181, UNKNOWN, UNKNOWN, ()),
    ),
    (
        "kvm_exit: reason UNKNOWN (2147483681) rip 0x10 info 0 0",
        Exit(UNKNOWN, 33, True, 0x10, 0, UNKNOWN, UNKNOWN, ()),
    ),
    (
        (
            "kvm_exit: vcpu 0 reason INVALID_STATE FAILED_VMENTRY rip 0x10 info1 0x0000000000000000 info2 "
            "0x0000000000000000 intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000004"
        ),
        Exit(0, 33, True, 0x10, 0, 0, 0, ()),
    ),
    (
        "kvm_nested_vmexit: rip fffff8022f3d8350 reason PREEMPTION_TIMER info1 0 info2 0 int_info 0 int_info_err 0",
        NestedExit(UNKNOWN, 52, False, 0xFFFFF8022F3D8350, 0, 0, 0, ()),
    ),
    (
        (
            "kvm_nested_vmexit: rip: 0x0000000000000010 reason: PENDING_INTERRUPT ext_inf1: 0x0000000000000000 ext_inf2: "
            "0x0000000000000000 ext_int: 0x00000000 ext_int_err: 0x00000000"
        ),
        NestedExit(UNKNOWN, 7, False, 16, 0, 0, 0, ()),
    ),
    (
        "kvm_nested_vmexit_inject: reason EXTERNAL_INTERRUPT info1 0 info2 0 int_info 80000060 int_info_err 0",
        Reflected(1, False, 0, 0, 0x80000060, ()),
    ),
    (
        (
            "kvm_nested_vmexit_inject: reason: 0x80000021 ext_inf1: 0x0000000000000000 ext_inf2: 0x0000000080000040 "
            "ext_int: 0x00000000 ext_int_err: 0x00000000"
        ),
        Reflected(33, True, 0, 0x80000040, 0, ()),
    ),
    (
        (
            "kvm_nested_vmenter: rip: 0x0000000000008002 vmcs: 0x0000000000007000 nested_rip: 0x0000000000000000 "
            "int_ctl: 0x00000000 event_inj: 0x00000000 nested_ept=n guest cr3: 0x0000000000002000"
        ),
        NestedEntry(True, 0x7000, 0, 0, False),
    ),
    (
        (
            "kvm_nested_vmrun: rip: 0x000000007ffbb280 vmcb: 0x0000000008224000 nrip: 0xffffffffffbbe119 "
            "int_ctl: 0x01020000 event_inj: 0x00000000 npt: on"
        ),
        NestedEntry(False, 0x8224000, 0xFFFFFFFFFFBBE119, 0, True),
    ),
    ("kvm_inj_virq: irq 64", InterruptInjected(64, UNKNOWN, UNKNOWN)),
    ("kvm_inj_virq: IRQ 0x40", InterruptInjected(64, 0, 0)),
    ("kvm_inj_virq: Soft/INTn 0x40 [reinjected]", InterruptInjected(64, 4, 1)),
    ("kvm_inj_exception: #PF (0x2)", ExceptionInjected(14, False)),
    ("kvm_inj_exception: #BP [reinjected]", ExceptionInjected(3, True)),
    ("kvm_inj_exception: 0x14 (0x0)", ExceptionInjected(20, False)),
    ("kvm_apic_accept_irq: apicid 1f vec 81 (Fixed|edge)", Arrival(31, 81, True, False)),
    ("kvm_apic_accept_irq: apicid 0 vec 2 (NMI|edge) (coalesced)", Arrival(0, 2, False, False)),
    ("kvm_apicv_accept_irq: apicid 0 vec 81 (LowPrio|level)", Arrival(0, 81, True, True)),
]

NOT_READ = [
    "kvm_entry: vcpu",
    "kvm_exit: vcpu 0 reason NOTHING rip 0x10 info 0 0",
    "kvm_exit: vcpu 0 reason HLT rip 0x10 info 0 8000000000",
    "kvm_inj_virq: irq 256",
    "kvm_inj_virq: IRQ 0x100",
    "kvm_inj_exception: #QQ",
    "kvm_apic_accept_irq: apicid 0 vec 256 (Fixed|edge)",
    f"kvm_exit: vcpu 0 reason HLT rip 0x10 info 0 0{'x' * 600}",
]


def read(text: str) -> Event | None:
    name, _, detail = text.encode().partition(b":")
    assert name in SPELLINGS
    return Texts().read(text.encode(), name, detail)


@pytest.mark.parametrize(("text", "event"), READ, ids=[text[:60] for text, _ in READ])
def test_a_spelling_is_read(text: str, event: Event) -> None:
    assert read(text) == event
    assert read(f"{text} \r") == event


@pytest.mark.parametrize("text", NOT_READ, ids=[text[:60] for text in NOT_READ])
def test_what_no_kernel_prints_is_not_read(text: str) -> None:
    assert read(text) is None


def test_a_bounded_number_of_texts_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmx_fuzz.trace.formats._TEXTS_MAX", 3)
    texts = Texts()
    for number in range(10):
        text = b"kvm_entry: vcpu %d" % number
        texts.read(text, b"kvm_entry", text[10:])
        assert len(texts.known) <= 3
