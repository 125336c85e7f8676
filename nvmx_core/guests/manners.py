"""L1's good manners: what a well-behaved hypervisor does about an exit before the next entry.

L1 is a good citizen unless a step says otherwise: it re-injects what IDT-vectoring reports (X11), repairs
the page it was told about, steps over an instruction that it emulates (I1, I2), ends interrupts and NMIs
that it handled, and closes the windows it no longer needs. Each of these is one small function, and each
can be left out by a bit of the ``enter`` step.
"""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_INTR_WINDOW_EXITING,
    CPU_NMI_WINDOW_EXITING,
    CPU_TPR_SHADOW,
)
from nvmx_core.arch.events import (
    DF,
    ERROR_CODE_VALID,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_UNBLOCKING_BY_IRET,
    PF,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import (
    APIC_ACCESS,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INSTRUCTION_EXITS,
    INTERRUPT_WINDOW,
    INVALID_STATE,
    MSR_LOAD_FAIL,
    NMI_WINDOW,
    PML_FULL,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TASK_SWITCH,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
    is_soft,
    nmi_unblocking_defined,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    ENTRY_MSR_LOAD_BAD,
    EXIT_INSTRUCTION_LEN,
    EXIT_INTR_ERROR_CODE,
    EXIT_INTR_INFO,
    EXIT_QUALIFICATION,
    GUEST_ACTIVITY,
    GUEST_CHECK_FIELDS,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_PHYSICAL_ADDRESS,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_SS_DPL,
    HOST_RIP,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    PIN_BASED,
    POISON,
    TPR_THRESHOLD,
    Vmcs,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_NMI,
    HLT,
    INTERRUPT_SHADOW,
    PENDING_DBG_BS,
    RFLAGS_FIXED,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_TF,
)
from nvmx_core.errors import ModelError
from nvmx_core.guests.l1 import L1, NOTHING_OWED, OWED_VMFAIL, L1Platform
from nvmx_core.guests.memory import CODE_BASE, NO_PAGE, page_of

MEMORY_ACCESS_LENGTH: Final = 3
TIMER_RELOAD: Final = 100

_REPAIRABLE: Final = frozenset(
    (EPT_VIOLATION, EPT_MISCONFIG, PML_FULL, APIC_ACCESS, TASK_SWITCH, TRIPLE_FAULT, EXCEPTION_NMI)
)
"""Exits after which :func:`_repair` may find something to do."""

_ADJUSTABLE: Final = frozenset(
    {INTERRUPT_WINDOW, NMI_WINDOW, PREEMPTION_TIMER, TPR_BELOW_THRESHOLD, SIPI_SIGNAL}
)
"""Exits after which :func:`_adjust` may find something to do."""

# Manners, one bit each; set = left out.
NO_REINJECT: Final = 1 << 0
NO_REPAIR: Final = 1 << 1
NO_ADVANCE: Final = 1 << 2
NO_EOI: Final = 1 << 3
NO_IRET: Final = 1 << 4
NO_ADJUST: Final = 1 << 5


def keep_manners(l1: L1, platform: L1Platform, left_out: int) -> None:
    """Do before an entry what a well-behaved hypervisor does about the last exit, once.

    *left_out* has a bit for each manner that this entry does without.
    """
    reason = l1.owed_reason
    if reason == NOTHING_OWED:
        return
    l1.owed_reason = NOTHING_OWED
    if reason == OWED_VMFAIL or reason == INVALID_STATE or reason == MSR_LOAD_FAIL:
        if not left_out & NO_REPAIR:
            _repair_failed_entry(l1, reason)
        return
    vmcs = l1.vmcs
    interruption = vmcs[EXIT_INTR_INFO] if vmcs[EXIT_INTR_INFO] & VALID else 0
    vectoring = vmcs[IDT_VECTORING_INFO] if vmcs[IDT_VECTORING_INFO] & VALID else 0
    if reason in _REPAIRABLE and not left_out & NO_REPAIR:
        _repair(l1, platform, reason, interruption, vectoring)
    if not left_out & NO_REINJECT and not vmcs[ENTRY_INTR_INFO] & VALID:
        _reinject(l1, reason, interruption, vectoring)
    if not left_out & NO_ADVANCE and not vectoring:
        _advance(l1, reason)
    if reason in _ADJUSTABLE and not left_out & NO_ADJUST:
        _adjust(l1, reason)
    if reason == EXTERNAL_INTERRUPT_EXIT:
        _serve_interrupt(l1, platform, interruption, not left_out & NO_EOI)
    elif interruption & TYPE_MASK == NMI << TYPE_SHIFT and interruption and not left_out & NO_IRET:
        platform.l1_iret()


def _repair_failed_entry(l1: L1, reason: int) -> None:
    """Put back a state that enters: the controls after VMfail, the guest state after exit 33 or 34."""
    vmcs = l1.vmcs
    initial = l1.initial
    if reason == OWED_VMFAIL:
        vmcs[PIN_BASED : HOST_RIP + 1] = initial[PIN_BASED : HOST_RIP + 1]
        return
    rip = vmcs[GUEST_RIP]
    vmcs[GUEST_CHECK_FIELDS] = initial[GUEST_CHECK_FIELDS]
    vmcs[GUEST_RIP] = rip
    vmcs[ENTRY_MSR_LOAD_BAD] = 0


def _repair(l1: L1, platform: L1Platform, reason: int, interruption: int, vectoring: int) -> None:
    """Make the page, gate or log usable that the exit complained about; restart a dead L2."""
    memory = l1.memory
    vmcs = l1.vmcs
    if reason == EPT_VIOLATION or reason == EPT_MISCONFIG:
        keep = ~(1 << page_of(_defined(vmcs[GUEST_PHYSICAL_ADDRESS])))
        memory.ept12_absent &= keep
        memory.ept12_misconfigured &= keep
    elif reason == PML_FULL:
        memory.pml_full = False
    elif reason == APIC_ACCESS and vectoring:
        memory.apic_page = NO_PAGE
    elif reason == TASK_SWITCH and not vectoring:
        vmcs[GUEST_RFLAGS] &= ~RFLAGS_NT
    elif reason == TASK_SWITCH:
        memory.gates.pop(vectoring & VECTOR_MASK, None)
    elif reason == TRIPLE_FAULT:
        _restart_l2(l1)
    elif reason == EXCEPTION_NMI and interruption & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT:
        vector = interruption & VECTOR_MASK
        if vector == PF:
            memory.l2_absent &= ~(1 << page_of(vmcs[EXIT_QUALIFICATION]))
        elif vectoring and interruption & ERROR_CODE_VALID and vector != DF:
            memory.gates.pop(_defined(vmcs[EXIT_INTR_ERROR_CODE]) >> 3, None)
        else:
            return
    else:
        return
    platform.l1_changed_tables()


def _restart_l2(l1: L1) -> None:
    vmcs = l1.vmcs
    vmcs[GUEST_RIP] = CODE_BASE
    vmcs[GUEST_RFLAGS] = RFLAGS_FIXED | RFLAGS_IF
    vmcs[GUEST_SS_DPL] = 0
    vmcs[GUEST_ACTIVITY] = ACTIVE
    vmcs[GUEST_INTERRUPTIBILITY] = 0
    vmcs[GUEST_PENDING_DBG] = 0
    l1.memory.l2_absent = 0
    l1.memory.gates.clear()


def _defined(value: int) -> int:
    """A field that L1 reads; the manual must define it here."""
    if value == POISON:
        raise ModelError("L1 reads an exit field that the manual leaves undefined")
    return value


def _reinject(l1: L1, reason: int, interruption: int, vectoring: int) -> None:
    """X11: give back the interrupted event; else reflect an exception that L1 only looked at."""
    vmcs = l1.vmcs
    if vectoring:
        _write_injection(vmcs, vectoring, vmcs[IDT_VECTORING_ERROR_CODE])
        if vectoring & TYPE_MASK == NMI << TYPE_SHIFT:
            vmcs[GUEST_INTERRUPTIBILITY] &= ~BLOCKING_BY_NMI
    elif _iret_unblocked_nmi(vmcs, reason, interruption):
        # X12: the interrupted IRET runs again, so the blocking that it ended comes back.
        vmcs[GUEST_INTERRUPTIBILITY] |= BLOCKING_BY_NMI
    elif (
        reason == EXCEPTION_NMI
        and interruption & TYPE_MASK != NMI << TYPE_SHIFT
        and interruption & VECTOR_MASK != PF
    ):
        _write_injection(vmcs, interruption, vmcs[EXIT_INTR_ERROR_CODE])
        vmcs[GUEST_INTERRUPTIBILITY] &= ~INTERRUPT_SHADOW
        if vmcs[GUEST_ACTIVITY] == HLT and vmcs[GUEST_RFLAGS] & RFLAGS_TF:
            vmcs[GUEST_PENDING_DBG] |= PENDING_DBG_BS  # G9


def _iret_unblocked_nmi(vmcs: Vmcs, reason: int, interruption: int) -> bool:
    """Whether the exit is a fault of an IRET that had ended the blocking of NMIs (X12)."""
    if reason == EPT_VIOLATION or reason == PML_FULL:
        unblocked = vmcs[EXIT_QUALIFICATION] & NMI_UNBLOCKING_BY_IRET != 0
    else:
        unblocked = interruption & NMI_UNBLOCKING_BY_IRET != 0
    return unblocked and nmi_unblocking_defined(vmcs[PIN_BASED], interruption, 0)


def _write_injection(vmcs: Vmcs, info: int, error_code: int) -> None:
    vmcs[ENTRY_INTR_INFO] = info & ~NMI_UNBLOCKING_BY_IRET
    if info & ERROR_CODE_VALID:
        vmcs[ENTRY_ERROR_CODE] = _defined(error_code)
    if is_soft(info):
        vmcs[ENTRY_INSTRUCTION_LEN] = _defined(vmcs[EXIT_INSTRUCTION_LEN])


def _advance(l1: L1, reason: int) -> None:
    """I1, I2: step over an emulated instruction: RIP, the end of its shadow, the single-step trap."""
    vmcs = l1.vmcs
    if reason in INSTRUCTION_EXITS:
        length = _defined(vmcs[EXIT_INSTRUCTION_LEN])
    elif reason == APIC_ACCESS:
        length = MEMORY_ACCESS_LENGTH
    else:
        return
    vmcs[GUEST_RIP] += length
    vmcs[GUEST_INTERRUPTIBILITY] &= ~INTERRUPT_SHADOW
    if vmcs[GUEST_RFLAGS] & RFLAGS_TF:
        vmcs[GUEST_PENDING_DBG] |= PENDING_DBG_BS


def _adjust(l1: L1, reason: int) -> None:
    """Close a window that has opened, reload an expired timer, lower a threshold, wake from SIPI."""
    vmcs = l1.vmcs
    if reason == INTERRUPT_WINDOW:
        vmcs[CPU_BASED] &= ~CPU_INTR_WINDOW_EXITING
    elif reason == NMI_WINDOW:
        vmcs[CPU_BASED] &= ~CPU_NMI_WINDOW_EXITING
    elif reason == PREEMPTION_TIMER:
        vmcs[GUEST_PREEMPTION_TIMER] = TIMER_RELOAD
    elif reason == TPR_BELOW_THRESHOLD and vmcs[CPU_BASED] & CPU_TPR_SHADOW:
        vmcs[TPR_THRESHOLD] = l1.memory.vtpr >> 4
    elif reason == SIPI_SIGNAL:
        vmcs[GUEST_ACTIVITY] = ACTIVE


def _serve_interrupt(l1: L1, platform: L1Platform, interruption: int, ends_it: bool) -> None:
    """K1: an acknowledged vector is in service already; without acknowledge L1 opens interrupts."""
    if interruption:
        if ends_it:
            platform.l1_end_interrupt()
    else:
        l1.open_interrupts(platform, ends_it)
