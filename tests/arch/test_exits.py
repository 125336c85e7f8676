"""What each exit may carry, and which of its fields are defined (X1 to X3, X9, X12)."""

from typing import Final

import pytest

from nvmx_core.arch.controls import PIN_NMI_EXITING, PIN_VIRTUAL_NMIS
from nvmx_core.arch.events import (
    BP,
    DB,
    DF,
    DOUBLE_FAULT_INFO,
    GP,
    HARDWARE_EXCEPTION,
    NMI_INFO,
    NMI_UNBLOCKING_BY_IRET,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    interruption_info,
)
from nvmx_core.arch.exits import (
    APIC_ACCESS,
    CPUID_EXIT,
    EOI_INDUCED,
    EPT_LINEAR_VALID,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXIT_NAMES,
    EXTERNAL_INTERRUPT_EXIT,
    FAILED_ENTRY,
    HLT_EXIT,
    IDT_VECTORING_ALLOWED,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    INVALID_STATE,
    KVM_VECTORING_EXPECTED,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PML_FULL,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TASK_SWITCH,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
    exit_fields,
    exit_name,
    is_soft,
    may_carry_idt_vectoring,
    nmi_unblocking_defined,
)
from nvmx_core.arch.fields import (
    EXIT_INSTRUCTION_LEN,
    EXIT_INTR_ERROR_CODE,
    EXIT_INTR_INFO,
    EXIT_QUALIFICATION,
    EXIT_REASON,
    FIELD_COUNT,
    GUEST_LINEAR_ADDRESS,
    GUEST_PHYSICAL_ADDRESS,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    PIN_BASED,
    POISON,
    Vmcs,
)

GP_INFO: Final = interruption_info(HARDWARE_EXCEPTION, GP, has_error_code=True)
DB_INFO: Final = interruption_info(HARDWARE_EXCEPTION, DB, has_error_code=False)
INT_INFO: Final = interruption_info(SOFTWARE_INTERRUPT, 0x80, has_error_code=False)
INT3_INFO: Final = interruption_info(SOFTWARE_EXCEPTION, BP, has_error_code=False)
INT1_INFO: Final = interruption_info(PRIVILEGED_SOFTWARE_EXCEPTION, DB, has_error_code=False)

QUALIFICATION, INTERRUPTION, ERROR_CODE, VECTORING, VECTORING_ERROR, LENGTH, LINEAR, PHYSICAL = (
    range(1, 9)
)


VIRTUAL_NMIS = PIN_NMI_EXITING | PIN_VIRTUAL_NMIS


def exit_vmcs(
    reason: int, interruption: int = 0, vectoring: int = 0, qualification: int = 0
) -> Vmcs:
    """A VMCS after an exit in which every other exit field holds something."""
    vmcs = [0] * FIELD_COUNT
    vmcs[PIN_BASED] = VIRTUAL_NMIS
    vmcs[EXIT_REASON] = reason
    vmcs[EXIT_QUALIFICATION] = qualification
    vmcs[EXIT_INTR_INFO] = interruption
    vmcs[EXIT_INTR_ERROR_CODE] = 0x11
    vmcs[IDT_VECTORING_INFO] = vectoring
    vmcs[IDT_VECTORING_ERROR_CODE] = 0x22
    vmcs[EXIT_INSTRUCTION_LEN] = 3
    vmcs[GUEST_LINEAR_ADDRESS] = 0x1000
    vmcs[GUEST_PHYSICAL_ADDRESS] = 0x2000
    return vmcs


# -- what may come together ----


@pytest.mark.parametrize("interruption", [GP_INFO, DB_INFO, INT3_INFO, INT1_INFO])
def test_x1_an_exception_may_come_during_a_delivery(interruption: int) -> None:
    assert may_carry_idt_vectoring(EXCEPTION_NMI, interruption)


@pytest.mark.parametrize(
    "reason", [TASK_SWITCH, APIC_ACCESS, EPT_VIOLATION, EPT_MISCONFIG, PML_FULL]
)
def test_x1_memory_exits_and_task_switches_may_come_during_a_delivery(reason: int) -> None:
    assert may_carry_idt_vectoring(reason, 0)


@pytest.mark.parametrize("interruption", [NMI_INFO, DOUBLE_FAULT_INFO])
def test_x2_nmis_and_double_faults_may_not(interruption: int) -> None:
    assert not may_carry_idt_vectoring(EXCEPTION_NMI, interruption)


@pytest.mark.parametrize(
    "reason",
    [
        EXTERNAL_INTERRUPT_EXIT,
        TRIPLE_FAULT,
        INIT_SIGNAL,
        SIPI_SIGNAL,
        INTERRUPT_WINDOW,
        NMI_WINDOW,
        MONITOR_TRAP_FLAG,
        TPR_BELOW_THRESHOLD,
        EOI_INDUCED,
        PREEMPTION_TIMER,
        CPUID_EXIT,
        HLT_EXIT,
    ],
)
def test_x3_boundary_and_instruction_exits_may_not(reason: int) -> None:
    assert not may_carry_idt_vectoring(reason, 0)


def test_x1_what_kvm_expects_is_allowed() -> None:
    assert KVM_VECTORING_EXPECTED < IDT_VECTORING_ALLOWED
    assert EPT_MISCONFIG in IDT_VECTORING_ALLOWED - KVM_VECTORING_EXPECTED


@pytest.mark.parametrize(
    ("info", "soft"),
    [(INT_INFO, True), (INT3_INFO, True), (INT1_INFO, True), (GP_INFO, False), (NMI_INFO, False)],
)
def test_x9_soft_types_are_4_5_6(info: int, soft: bool) -> None:
    assert is_soft(info) == soft


# -- which fields are defined ----


def test_x6_error_codes_need_their_bit() -> None:
    with_codes = exit_fields(
        exit_vmcs(EXCEPTION_NMI, GP_INFO, GP_INFO), (EXCEPTION_NMI, VIRTUAL_NMIS)
    )
    assert (with_codes[ERROR_CODE], with_codes[VECTORING_ERROR]) == (0x11, 0x22)
    without = exit_fields(exit_vmcs(EXCEPTION_NMI, DB_INFO, DB_INFO), (EXCEPTION_NMI, VIRTUAL_NMIS))
    assert (without[ERROR_CODE], without[VECTORING_ERROR]) == (POISON, POISON)


def test_x6_invalid_words_have_no_other_bits() -> None:
    fields = exit_fields(exit_vmcs(CPUID_EXIT, 0x7FFFFFFF, 0x7FFFFFFF), (CPUID_EXIT, VIRTUAL_NMIS))
    assert fields[INTERRUPTION] == fields[VECTORING] == 0


@pytest.mark.parametrize(
    ("reason", "interruption", "vectoring", "defined"),
    [
        (CPUID_EXIT, 0, 0, True),
        (EPT_VIOLATION, 0, 0, False),
        (EPT_VIOLATION, 0, INT_INFO, True),
        (EPT_VIOLATION, 0, GP_INFO, False),
        (EXCEPTION_NMI, GP_INFO, 0, False),
        (EXCEPTION_NMI, INT3_INFO, 0, True),
        (EXCEPTION_NMI, INT1_INFO, 0, True),
        (EXCEPTION_NMI, GP_INFO, INT3_INFO, True),
        (TASK_SWITCH, 0, NMI_INFO, False),
        (PREEMPTION_TIMER, 0, 0, False),
    ],
)
def test_x9_when_the_instruction_length_is_defined(
    reason: int, interruption: int, vectoring: int, defined: bool
) -> None:
    fields = exit_fields(exit_vmcs(reason, interruption, vectoring), (reason, VIRTUAL_NMIS))
    assert fields[LENGTH] == (3 if defined else POISON)


def test_addresses_belong_to_ept_exits() -> None:
    violation = exit_vmcs(EPT_VIOLATION, qualification=EPT_LINEAR_VALID)
    assert exit_fields(violation, (EPT_VIOLATION, VIRTUAL_NMIS))[LINEAR:] == (0x1000, 0x2000)
    without_linear = exit_vmcs(EPT_VIOLATION)
    assert exit_fields(without_linear, (EPT_VIOLATION, VIRTUAL_NMIS))[LINEAR:] == (POISON, 0x2000)
    assert exit_fields(exit_vmcs(EPT_MISCONFIG), (EPT_MISCONFIG, VIRTUAL_NMIS))[LINEAR:] == (
        POISON,
        0x2000,
    )
    assert exit_fields(exit_vmcs(CPUID_EXIT), (CPUID_EXIT, VIRTUAL_NMIS))[LINEAR:] == (
        POISON,
        POISON,
    )


def test_x12_when_nmi_unblocking_is_defined() -> None:
    assert nmi_unblocking_defined(VIRTUAL_NMIS, GP_INFO, 0)
    assert not nmi_unblocking_defined(VIRTUAL_NMIS, GP_INFO, NMI_INFO)
    assert not nmi_unblocking_defined(VIRTUAL_NMIS, DOUBLE_FAULT_INFO, 0)
    assert not nmi_unblocking_defined(PIN_NMI_EXITING, GP_INFO, 0)
    assert nmi_unblocking_defined(0, GP_INFO, 0)


def test_x12_the_controls_of_then_decide_and_not_those_of_now() -> None:
    bit = NMI_UNBLOCKING_BY_IRET
    vmcs = exit_vmcs(INVALID_STATE | FAILED_ENTRY, GP_INFO | bit)
    vmcs[PIN_BASED] = VIRTUAL_NMIS
    assert exit_fields(vmcs, (EXCEPTION_NMI, PIN_NMI_EXITING))[INTERRUPTION] == GP_INFO
    vmcs[PIN_BASED] = PIN_NMI_EXITING
    assert exit_fields(vmcs, (EXCEPTION_NMI, VIRTUAL_NMIS))[INTERRUPTION] == GP_INFO | bit


def test_x12_an_undefined_bit_is_not_shown() -> None:
    bit = NMI_UNBLOCKING_BY_IRET
    shown = exit_fields(exit_vmcs(EXCEPTION_NMI, GP_INFO | bit), (EXCEPTION_NMI, VIRTUAL_NMIS))
    hidden = exit_fields(
        exit_vmcs(EXCEPTION_NMI, GP_INFO | bit, NMI_INFO), (EXCEPTION_NMI, VIRTUAL_NMIS)
    )
    assert shown[INTERRUPTION] == GP_INFO | bit
    assert hidden[INTERRUPTION] == GP_INFO


@pytest.mark.parametrize(("vectoring", "shown"), [(0, True), (NMI_INFO, False)])
def test_x12_the_same_in_the_qualification_of_memory_exits(vectoring: int, shown: bool) -> None:
    bit = NMI_UNBLOCKING_BY_IRET
    for reason in (EPT_VIOLATION, PML_FULL):
        vmcs = exit_vmcs(reason, vectoring=vectoring, qualification=bit)
        assert exit_fields(vmcs, (reason, VIRTUAL_NMIS))[QUALIFICATION] == (bit if shown else 0)


def test_x12_bit_12_of_other_qualifications_is_their_own() -> None:
    vmcs = exit_vmcs(APIC_ACCESS, vectoring=NMI_INFO, qualification=3 << 12)
    assert exit_fields(vmcs, (APIC_ACCESS, VIRTUAL_NMIS))[QUALIFICATION] == 3 << 12


def test_e0_a_failed_entry_shows_the_fields_of_the_exit_before() -> None:
    """Reason and qualification are new; what they overwrote decides what else is defined."""
    vmcs = exit_vmcs(INVALID_STATE | FAILED_ENTRY)
    fields = exit_fields(vmcs, (CPUID_EXIT, VIRTUAL_NMIS))
    assert fields[0] == INVALID_STATE | FAILED_ENTRY
    assert fields[LENGTH] == 3


# -- names ----


def test_exit_names_ignore_the_high_bits() -> None:
    assert exit_name(INVALID_STATE | FAILED_ENTRY) == "INVALID_STATE"
    assert exit_name(EXTERNAL_INTERRUPT_EXIT) == "EXTERNAL_INTERRUPT"
    assert exit_name(66) == "reason 66"


def test_exit_names_are_unique() -> None:
    assert len(set(EXIT_NAMES.values())) == len(EXIT_NAMES)


def test_f3_a_fault_in_a_double_fault_may_carry_it() -> None:
    assert may_carry_idt_vectoring(EXCEPTION_NMI, GP_INFO)
    assert interruption_info(HARDWARE_EXCEPTION, DF, has_error_code=True) == DOUBLE_FAULT_INFO
