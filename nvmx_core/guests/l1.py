"""L1, the guest hypervisor: what it sees after an exit, and its good manners before the next entry.

L1 is a good citizen unless a step says otherwise: it re-injects what IDT-vectoring reports (X11), repairs
the page it was told about, steps over an instruction that it emulates (I1, I2), ends interrupts and NMIs
that it handled, and closes the windows it no longer needs. Each of these is one small function, and each
can be left out by a bit of the ``enter`` step.

L1 is one program for all machines. What differs, the interrupt controller and the NMI blocking of its
virtual processor, it reaches through :class:`L1Platform`.
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
    BASIC_REASON_MASK,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    FAILED_ENTRY,
    INSTRUCTION_EXITS,
    INTERRUPT_WINDOW,
    INVALID_STATE,
    KVM_VECTORING_EXPECTED,
    MSR_LOAD_FAIL,
    NMI_WINDOW,
    PML_FULL,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TASK_SWITCH,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
    exit_fields,
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
    EXIT_REASON,
    GUEST_ACTIVITY,
    GUEST_CHECK_FIELDS,
    GUEST_INTERRUPTIBILITY,
    GUEST_INTR_STATUS,
    GUEST_PENDING_DBG,
    GUEST_PHYSICAL_ADDRESS,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_DPL,
    HOST_RIP,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    LAUNCH_STATE,
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
    RFLAGS_RF,
    RFLAGS_TF,
)
from nvmx_core.errors import ModelError
from nvmx_core.guests.memory import CODE_BASE, NO_PAGE, L2Memory, page_of
from nvmx_core.journal import (
    EXIT,
    L1_INTERRUPT,
    L1_UNEXPECTED_VECTORING,
    Record,
)

MEMORY_ACCESS_LENGTH: Final = 3
TIMER_RELOAD: Final = 100

NOTHING_OWED: Final = -1
OWED_VMFAIL: Final = -2


class L1Platform:
    """The virtual processor under L1, as L1 can work it."""

    def l1_take_interrupt(self) -> int:
        """L1's interrupts are open for a moment: the vector that arrives, now in service, or -1."""
        raise ModelError("a machine gives L1 its interrupts")

    def l1_end_interrupt(self) -> None:
        """L1 wrote the EOI register."""

    def l1_iret(self) -> None:
        """L1 executed IRET: NMIs are open again, and one that was latched arrives."""

    def l1_changed_tables(self) -> None:
        """L1 changed its EPT or repaired L2's tables."""


class L1:
    """L1's VMCSs, what it knows of the last exit, and what it still owes to it."""

    __slots__ = (
        "has_current",
        "in_mov_ss_shadow",
        "info_reason",
        "initial",
        "journal",
        "memory",
        "owed_reason",
        "regions",
        "vmcs",
    )

    def __init__(self, initial: Vmcs, memory: L2Memory, journal: list[Record]) -> None:
        self.initial: Final = initial
        self.memory: Final = memory
        self.journal: Final = journal
        self.vmcs: Vmcs = initial[:]
        self.regions: list[Vmcs] = [self.vmcs]
        self.has_current: bool = True
        self.in_mov_ss_shadow: bool = False
        self.info_reason: int = NOTHING_OWED
        self.owed_reason: int = NOTHING_OWED

    # -- instructions of L1 ---------------------------------------------------------------------------

    def region(self, number: int) -> Vmcs:
        """VMCS region 0 or 1; the second one comes into being when it is first named."""
        if number and len(self.regions) == 1:
            self.regions.append(self.initial[:])
        return self.regions[number]

    def vmptrld(self, number: int) -> None:
        """Make a region current."""
        self.vmcs = self.region(number)
        self.has_current = True
        self.owed_reason = NOTHING_OWED

    def vmclear(self, number: int) -> None:
        """Clear a region's launch state; a current one is current no more."""
        region = self.region(number)
        region[LAUNCH_STATE] = 0
        if region is self.vmcs:
            self.has_current = False

    def open_interrupts(self, platform: L1Platform, ends_them: bool = True) -> None:
        """L1 sets IF for a moment: every interrupt that its controller offers arrives in order."""
        vector = platform.l1_take_interrupt()
        while vector >= 0:
            self.journal.append((L1_INTERRUPT, vector))
            if ends_them:
                platform.l1_end_interrupt()
            vector = platform.l1_take_interrupt()

    # -- what L1 sees ---------------------------------------------------------------------------------

    def observe_exit(self, cr2: int, dr6: int) -> None:
        """Read the exit of the current VMCS into the journal, then make KVM's own check of it."""
        vmcs = self.vmcs
        reason = vmcs[EXIT_REASON] & BASIC_REASON_MASK
        failed = vmcs[EXIT_REASON] & FAILED_ENTRY != 0
        if not failed:
            self.info_reason = reason
        (
            full_reason, qualification, interruption, error_code, vectoring, vectoring_error,
            length, linear, physical,
        ) = exit_fields(vmcs, self.info_reason)  # fmt: skip
        rflags = vmcs[GUEST_RFLAGS]
        if rflags & RFLAGS_RF and not _rf_is_defined(reason, interruption, vectoring):
            rflags &= ~RFLAGS_RF
        self.journal.append(
            (
                EXIT,
                full_reason,
                qualification,
                interruption,
                error_code,
                vectoring,
                vectoring_error,
                length,
                linear,
                physical,
                vmcs[GUEST_RIP],
                vmcs[GUEST_RSP],
                rflags,
                vmcs[GUEST_SS_DPL],
                vmcs[GUEST_INTERRUPTIBILITY],
                vmcs[GUEST_ACTIVITY],
                vmcs[GUEST_PENDING_DBG],
                vmcs[GUEST_PREEMPTION_TIMER],
                vmcs[GUEST_INTR_STATUS],
                vmcs[ENTRY_INTR_INFO],
                vmcs[ENTRY_ERROR_CODE],
                vmcs[ENTRY_INSTRUCTION_LEN],
                cr2,
                dr6,
            )
        )
        self.owed_reason = reason
        if vectoring and not failed and reason not in KVM_VECTORING_EXPECTED:
            self.journal.append((L1_UNEXPECTED_VECTORING, reason, vectoring))

    def observe_vmfail(self, error: int) -> None:
        """A VMLAUNCH or VMRESUME failed early; for errors 7 and 8 something in the VMCS is to be repaired."""
        self.owed_reason = OWED_VMFAIL if error in (7, 8) else NOTHING_OWED


def _rf_is_defined(reason: int, interruption: int, vectoring: int) -> bool:
    """Whether the RF bit of the saved RFLAGS is the same on every processor (X8, Y3).

    An exit that an L0 kept for itself leaves RF = 1 behind, and no software can tell where it came from;
    so RF counts only where the exit itself determines it.
    """
    if reason == EXCEPTION_NMI:
        return interruption & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
    if vectoring:
        return vectoring & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
    return reason in INSTRUCTION_EXITS or reason in (EPT_VIOLATION, EPT_MISCONFIG, PML_FULL)


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
    return unblocked and nmi_unblocking_defined(vmcs, interruption, 0)


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
