"""Basic exit reasons, what each may carry, and which exit fields each one defines.

Source: SDM, appendix "VMX Basic Exit Reasons"; "Information for VM Exits That Occur During Event Delivery".
"""

from typing import Final

from nvmx_core.arch.controls import PIN_NMI_EXITING, PIN_VIRTUAL_NMIS
from nvmx_core.arch.events import (
    DF,
    ERROR_CODE_VALID,
    HARDWARE_EXCEPTION,
    NMI_UNBLOCKING_BY_IRET,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.fields import (
    EXCEPTION_BITMAP,
    EXIT_INSTRUCTION_LEN,
    EXIT_INTR_ERROR_CODE,
    EXIT_INTR_INFO,
    EXIT_QUALIFICATION,
    EXIT_REASON,
    GUEST_LINEAR_ADDRESS,
    GUEST_PHYSICAL_ADDRESS,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    PF_ERROR_MASK,
    PF_ERROR_MATCH,
    POISON,
    Vmcs,
)

EXCEPTION_NMI: Final = 0
EXTERNAL_INTERRUPT_EXIT: Final = 1
TRIPLE_FAULT: Final = 2
INIT_SIGNAL: Final = 3
SIPI_SIGNAL: Final = 4
INTERRUPT_WINDOW: Final = 7
NMI_WINDOW: Final = 8
TASK_SWITCH: Final = 9
CPUID_EXIT: Final = 10
HLT_EXIT: Final = 12
INVD_EXIT: Final = 13
INVLPG_EXIT: Final = 14
RDPMC_EXIT: Final = 15
RDTSC_EXIT: Final = 16
VMCALL_EXIT: Final = 18
VMLAUNCH_EXIT: Final = 20
CR_ACCESS: Final = 28
MOV_DR_EXIT: Final = 29
IO_INSTRUCTION: Final = 30
RDMSR_EXIT: Final = 31
WRMSR_EXIT: Final = 32
INVALID_STATE: Final = 33
MSR_LOAD_FAIL: Final = 34
MWAIT_EXIT: Final = 36
MONITOR_TRAP_FLAG: Final = 37
MONITOR_EXIT: Final = 39
PAUSE_EXIT: Final = 40
MCE_DURING_ENTRY: Final = 41
TPR_BELOW_THRESHOLD: Final = 43
APIC_ACCESS: Final = 44
EOI_INDUCED: Final = 45
EPT_VIOLATION: Final = 48
EPT_MISCONFIG: Final = 49
RDTSCP_EXIT: Final = 51
PREEMPTION_TIMER: Final = 52
WBINVD_EXIT: Final = 54
XSETBV_EXIT: Final = 55
APIC_WRITE: Final = 56
PML_FULL: Final = 62

FAILED_ENTRY: Final = 1 << 31
BASIC_REASON_MASK: Final = 0xFFFF

EXIT_NAMES: Final[dict[int, str]] = {
    0: "EXCEPTION_NMI", 1: "EXTERNAL_INTERRUPT", 2: "TRIPLE_FAULT", 3: "INIT_SIGNAL",
    4: "SIPI_SIGNAL", 7: "INTERRUPT_WINDOW", 8: "NMI_WINDOW", 9: "TASK_SWITCH", 10: "CPUID",
    12: "HLT", 13: "INVD", 14: "INVLPG", 15: "RDPMC", 16: "RDTSC", 18: "VMCALL", 20: "VMLAUNCH",
    28: "CR_ACCESS", 29: "DR_ACCESS", 30: "IO_INSTRUCTION", 31: "MSR_READ", 32: "MSR_WRITE",
    33: "INVALID_STATE", 34: "MSR_LOAD_FAIL", 36: "MWAIT_INSTRUCTION", 37: "MONITOR_TRAP_FLAG",
    39: "MONITOR_INSTRUCTION", 40: "PAUSE_INSTRUCTION", 41: "MCE_DURING_VMENTRY",
    43: "TPR_BELOW_THRESHOLD", 44: "APIC_ACCESS", 45: "EOI_INDUCED", 48: "EPT_VIOLATION",
    49: "EPT_MISCONFIG", 51: "RDTSCP", 52: "PREEMPTION_TIMER", 54: "WBINVD", 55: "XSETBV",
    56: "APIC_WRITE", 62: "PML_FULL",
}  # fmt: skip

IDT_VECTORING_ALLOWED: Final = frozenset({0, 9, 44, 48, 49, 62, 66, 75})
"""Reasons that may come with a valid IDT-vectoring field (X1); for reason 0 not with NMI or #DF (X2)."""

KVM_VECTORING_EXPECTED: Final = frozenset({0, 9, 44, 48, 62, 75})
"""Reasons that a KVM host accepts with a valid IDT-vectoring field; on others it warns and gives up.
Source: Linux, arch/x86/kvm/vmx/vmx.c, __vmx_handle_exit."""

INSTRUCTION_EXITS: Final = frozenset(
    {
        CPUID_EXIT,
        HLT_EXIT,
        INVD_EXIT,
        INVLPG_EXIT,
        RDPMC_EXIT,
        RDTSC_EXIT,
        VMCALL_EXIT,
        VMLAUNCH_EXIT,
        CR_ACCESS,
        MOV_DR_EXIT,
        IO_INSTRUCTION,
        RDMSR_EXIT,
        WRMSR_EXIT,
        MWAIT_EXIT,
        MONITOR_EXIT,
        PAUSE_EXIT,
        RDTSCP_EXIT,
        WBINVD_EXIT,
        XSETBV_EXIT,
    }
)
"""Fault-like exits caused by an instruction: length valid, RIP at the instruction, RF saved as 0."""

_LENGTH_EXITS: Final = INSTRUCTION_EXITS | {TASK_SWITCH}
"""Exits with a valid instruction length, unless they come during a delivery (X9)."""

RF_OF_EVENT_EXITS: Final = frozenset({9, 44, 48, 49, 62})
"""Exits during delivery that save the RF value which the frame of the event would hold (X8)."""

_SOFT_TYPES: Final = (
    SOFTWARE_INTERRUPT << TYPE_SHIFT,
    PRIVILEGED_SOFTWARE_EXCEPTION << TYPE_SHIFT,
    SOFTWARE_EXCEPTION << TYPE_SHIFT,
)

# Qualification of an EPT violation.
EPT_READ: Final = 1 << 0
EPT_WRITE: Final = 1 << 1
EPT_FETCH: Final = 1 << 2
EPT_LINEAR_VALID: Final = 1 << 7
EPT_FINAL_TRANSLATION: Final = 1 << 8

APIC_ACCESS_WRITE: Final = 1 << 12
APIC_ACCESS_IN_EVENT_DELIVERY: Final = 3 << 12

TASK_SWITCH_BY_IRET: Final = 1 << 30
TASK_SWITCH_BY_IDT_GATE: Final = 3 << 30


def is_soft(info: int) -> bool:
    """Whether the event in *info* has a type whose instruction length counts (types 4, 5, 6)."""
    return info & TYPE_MASK in _SOFT_TYPES


def may_carry_idt_vectoring(reason: int, interruption: int) -> bool:
    """Whether a processor may return this exit with a valid IDT-vectoring field (X1, X2, X3)."""
    if reason not in IDT_VECTORING_ALLOWED:
        return False
    if reason != EXCEPTION_NMI:
        return True
    return (
        interruption & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
        and interruption & VECTOR_MASK != DF
    ) or is_soft(interruption)


def exception_exits(vmcs: Vmcs, vector: int, error_code: int) -> bool:
    """Whether the exception bitmap makes an exception exit: its bit, for #PF compared with mask and match.

    *error_code* counts for #PF only. Source: SDM, "Exception Bitmap", "Page-Fault Error-Code Mask".
    """
    wanted = vmcs[EXCEPTION_BITMAP] >> vector & 1 != 0
    if vector != PF:
        return wanted
    return wanted == (error_code & vmcs[PF_ERROR_MASK] == vmcs[PF_ERROR_MATCH])


def nmi_unblocking_defined(pin_based: int, interruption: int, vectoring: int) -> bool:
    """Whether bit 12, "NMI unblocking due to IRET", means anything on an exit under these controls (X12)."""
    nmi_mode = pin_based & (PIN_NMI_EXITING | PIN_VIRTUAL_NMIS)
    return (
        not vectoring & VALID
        and nmi_mode != PIN_NMI_EXITING
        and not (interruption & VALID and interruption & VECTOR_MASK == DF)
    )


ExitFields = tuple[int, int, int, int, int, int, int, int, int]
"""Reason, qualification, interruption information and error code, IDT-vectoring information and error
code, instruction length, linear and physical address."""


Origin = tuple[int, int]
"""An exit: its basic reason, and the pin-based controls under which it came."""

NO_EXIT: Final[Origin] = (-1, 0)


def exit_fields(vmcs: Vmcs, origin: Origin) -> ExitFields:
    """The exit-information fields as software may rely on them, the undefined ones as POISON.

    *origin* is the exit that the fields other than reason and qualification stem from: after a failed entry
    the last one of the same VMCS before.
    Source: SDM, "VM-Exit Information Fields"; the table of ``docs/SOURCES.md`` on undefined fields.
    """
    reason, pin_based = origin
    interruption = vmcs[EXIT_INTR_INFO]
    vectoring = vmcs[IDT_VECTORING_INFO]
    qualification = vmcs[EXIT_QUALIFICATION]
    length = vmcs[EXIT_INSTRUCTION_LEN]
    if not interruption & VALID:
        interruption = 0
    if not vectoring & VALID:
        vectoring = 0
    error_code = vmcs[EXIT_INTR_ERROR_CODE] if interruption & ERROR_CODE_VALID else POISON
    vectoring_error = vmcs[IDT_VECTORING_ERROR_CODE] if vectoring & ERROR_CODE_VALID else POISON
    if (interruption | qualification) & NMI_UNBLOCKING_BY_IRET and not nmi_unblocking_defined(
        pin_based, interruption, vectoring
    ):
        interruption &= ~NMI_UNBLOCKING_BY_IRET
        if reason == EPT_VIOLATION or reason == PML_FULL:
            qualification &= ~NMI_UNBLOCKING_BY_IRET
    if vectoring:
        vectoring &= ~NMI_UNBLOCKING_BY_IRET
    if (vectoring or reason not in _LENGTH_EXITS) and not (
        (vectoring and is_soft(vectoring)) or (reason == EXCEPTION_NMI and is_soft(interruption))
    ):
        length = POISON
    linear = physical = POISON
    if reason == EPT_VIOLATION or reason == EPT_MISCONFIG:
        physical = vmcs[GUEST_PHYSICAL_ADDRESS]
        if reason == EPT_VIOLATION and qualification & EPT_LINEAR_VALID:
            linear = vmcs[GUEST_LINEAR_ADDRESS]
    return (
        vmcs[EXIT_REASON], qualification, interruption, error_code, vectoring, vectoring_error,
        length, linear, physical,
    )  # fmt: skip


def exit_name(reason: int) -> str:
    """The name of an exit reason as KVM's trace points print it."""
    return EXIT_NAMES.get(reason & BASIC_REASON_MASK, f"reason {reason & BASIC_REASON_MASK}")
