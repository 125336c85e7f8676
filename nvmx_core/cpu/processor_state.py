"""The state of the logical processor in VMX non-root operation, and the VM exit that saves it.

The processor is one class built in layers, each in its own file and each a few small functions:
``ProcessorState`` (this file) -> ``Delivery`` -> ``Boundary`` -> ``Execution`` -> ``Processor``.

Root operation is not executed: whoever is host (L1 on bare metal, L0 in the nested machine) is a program
of ours that looks at the VMCS after an exit.
"""

from typing import Final

from nvmx_core.arch.controls import (
    EXIT_SAVE_PREEMPTION_TIMER,
    PIN_NMI_EXITING,
    PIN_VIRTUAL_NMIS,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
)
from nvmx_core.arch.events import (
    DB,
    NMI,
    NMI_UNBLOCKING_BY_IRET,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import (
    APIC_WRITE,
    EOI_INDUCED,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    INIT_SIGNAL,
    MONITOR_TRAP_FLAG,
    PML_FULL,
    RF_OF_EVENT_EXITS,
    TPR_BELOW_THRESHOLD,
    is_soft,
)
from nvmx_core.arch.fields import (
    ENTRY_INTR_INFO,
    EXIT_CONTROLS,
    EXIT_INSTRUCTION_LEN,
    EXIT_INTR_ERROR_CODE,
    EXIT_INTR_INFO,
    EXIT_QUALIFICATION,
    EXIT_REASON,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_INTR_STATUS,
    GUEST_LINEAR_ADDRESS,
    GUEST_PENDING_DBG,
    GUEST_PHYSICAL_ADDRESS,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_DPL,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    PIN_BASED,
    POISON,
    SECONDARY,
    Vmcs,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    RFLAGS_RF,
)
from nvmx_core.arch.virtual_apic import virtual_interrupt_is_recognised
from nvmx_core.cpu.apic import LocalApic
from nvmx_core.cpu.entry_checks import EntryChecker
from nvmx_core.guests.l1 import L1Platform
from nvmx_core.guests.memory import L2Memory
from nvmx_core.journal import Record

# What waits for the next boundary, as bits of ``pending``; pending debug exceptions have their own field.
PENDING_TRAP_EXIT: Final = 1 << 0
PENDING_SMI: Final = 1 << 1
PENDING_INIT: Final = 1 << 2
PENDING_MTF: Final = 1 << 3
PENDING_TIMER: Final = 1 << 4
PENDING_NMI: Final = 1 << 5
PENDING_VIRTUAL_INTERRUPT: Final = 1 << 6
PENDING_INTERRUPT: Final = 1 << 7
PENDING_SIPI: Final = 1 << 8

NO_EVENT: Final = 0
TIMER_OFF: Final = -1

_KEPT_BY_EXIT: Final = ~(
    PENDING_MTF | PENDING_TIMER | PENDING_TRAP_EXIT | PENDING_VIRTUAL_INTERRUPT | PENDING_SIPI
)
"""What an exit leaves pending: what comes from outside and not from the guest."""

_KEEPS_PENDING_DEBUG: Final = frozenset(
    {INIT_SIGNAL, MONITOR_TRAP_FLAG, TPR_BELOW_THRESHOLD, EOI_INDUCED, APIC_WRITE}
)
"""Exits that save the pending debug exceptions instead of clearing the field (Y6)."""

_ADDRESS_EXITS: Final = frozenset({EPT_VIOLATION, EPT_MISCONFIG})
_NMI_UNBLOCKING_EXITS: Final = frozenset({EPT_VIOLATION, PML_FULL})


class Platform(L1Platform):
    """The machine around a processor, as the processor and L0 see it: the moments at which events arrive.

    An arrival that a scenario ties to a moment is made there; the plain platform has none.
    """

    def in_delivery(self) -> None:
        """An event delivery has started while ``Processor.delivery_armed`` was set."""

    def at_entry(self) -> None:
        """L1's entry was accepted, and the processor has not entered yet."""

    def in_emulation(self) -> None:
        """L0 emulates an instruction of L2."""


NO_PLATFORM: Final = Platform()


class ProcessorState:
    """Registers, blocking, what is pending, the current VMCS; and the VM exit.

    ``event_info`` is the event being delivered through the IDT (0 for none), with its error code, its
    instruction length (soft types) and the RF value that its frame would hold.
    """

    __slots__ = (
        "activity",
        "apic",
        "blocking",
        "caps",
        "checker",
        "cpl",
        "cr2",
        "delivery_armed",
        "dr6",
        "entry_ticks",
        "ept_absent",
        "ept_misconfigured",
        "ept_read_only",
        "event_error_code",
        "event_info",
        "event_length",
        "event_rf",
        "fault_error_code",
        "fault_payload",
        "in_smm",
        "journal",
        "memory",
        "monitor_armed",
        "nmi_unblocked_by_iret",
        "non_root",
        "pending",
        "pending_dbg",
        "platform",
        "pt_absent",
        "real_mode",
        "rflags",
        "rip",
        "root_nmi_blocked",
        "rsp",
        "sipi_vector",
        "timer",
        "trap_exit_qualification",
        "trap_exit_reason",
        "unusual_pages",
        "vmcs",
        "watches_boundaries",
    )

    def __init__(
        self,
        checker: EntryChecker,
        memory: L2Memory,
        journal: list[Record],
    ) -> None:
        self.caps: Final = checker.caps
        self.checker: Final = checker
        self.memory: L2Memory = memory
        self.journal: list[Record] = journal
        self.platform: Platform = NO_PLATFORM
        self.apic: LocalApic = LocalApic()
        self.vmcs: Vmcs = []
        self.non_root: bool = False
        self.in_smm: bool = False
        self.rip: int = 0
        self.rsp: int = 0
        self.rflags: int = 0
        self.cpl: int = 0
        self.real_mode: bool = False
        self.cr2: int = 0
        self.dr6: int = 0
        self.activity: int = ACTIVE
        self.blocking: int = 0
        self.pending: int = 0
        self.pending_dbg: int = 0
        self.timer: int = TIMER_OFF
        self.entry_ticks: int = 0
        self.watches_boundaries: bool = False
        self.trap_exit_reason: int = 0
        self.sipi_vector: int = 0
        self.trap_exit_qualification: int = 0
        self.root_nmi_blocked: bool = False
        self.delivery_armed: bool = False
        self.event_info: int = NO_EVENT
        self.event_error_code: int = POISON
        self.event_length: int = 0
        self.event_rf: int = 0
        self.nmi_unblocked_by_iret: int = 0
        self.monitor_armed: bool = False  # by MONITOR; entries, exits and SMIs end it
        self.fault_error_code: int = 0
        self.fault_payload: int = 0
        # Who lacks which page, as this processor's paging sees it; see load_tables.
        self.pt_absent: int = 0
        self.ept_absent: int = 0
        self.ept_misconfigured: int = 0
        self.ept_read_only: int = 0
        self.unusual_pages: int = 0

    def uses_virtual_interrupts(self) -> bool:
        """Whether virtual-interrupt delivery is on in the current VMCS."""
        return self.vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY != 0

    def nmi_mode_is_physical(self) -> bool:
        """Whether bit 3 of the interruptibility state means blocking of physical NMIs."""
        return not self.vmcs[PIN_BASED] & PIN_VIRTUAL_NMIS

    def iret_unblocks_nmi(self) -> bool:
        """N1 and the table of NMI modes: not with NMI exiting but without virtual NMIs."""
        return self.vmcs[PIN_BASED] & (PIN_NMI_EXITING | PIN_VIRTUAL_NMIS) != PIN_NMI_EXITING

    # -- VM exit --------------------------------------------------------------------------------------

    def vm_exit(
        self,
        reason: int,
        qualification: int = 0,
        length: int = POISON,
        interruption: int = 0,
        error_code: int = POISON,
        rf: int = 0,
    ) -> None:
        """Save the guest and write the exit information; the processor is in root operation afterwards.

        *rf* is the RF bit that the saved RFLAGS show (X8, Y3). IDT-vectoring information is the event
        being delivered (X1, X4); callers clear ``event_info`` first where X2 wants it invalid. Fields that
        the manual leaves undefined become POISON.
        """
        vmcs = self.vmcs
        event = self.event_info
        if event:
            # X7, X9, X10: state before the delivery, but awake and out of any interrupt shadow.
            vmcs[IDT_VECTORING_INFO] = event
            vmcs[IDT_VECTORING_ERROR_CODE] = self.event_error_code
            if is_soft(event):
                length = self.event_length
            if reason in RF_OF_EVENT_EXITS:
                rf = self.event_rf
            self.event_info = NO_EVENT
        else:
            vmcs[IDT_VECTORING_INFO] = 0
            vmcs[IDT_VECTORING_ERROR_CODE] = POISON
            if self.nmi_unblocked_by_iret:
                self.nmi_unblocked_by_iret = 0
                if interruption & VALID:
                    interruption |= NMI_UNBLOCKING_BY_IRET
                elif reason in _NMI_UNBLOCKING_EXITS:
                    qualification |= NMI_UNBLOCKING_BY_IRET
        vmcs[EXIT_REASON] = reason
        vmcs[EXIT_QUALIFICATION] = qualification
        vmcs[EXIT_INTR_INFO] = interruption
        vmcs[EXIT_INTR_ERROR_CODE] = error_code
        vmcs[EXIT_INSTRUCTION_LEN] = length
        if reason not in _ADDRESS_EXITS:
            vmcs[GUEST_LINEAR_ADDRESS] = POISON
            vmcs[GUEST_PHYSICAL_ADDRESS] = POISON
        if vmcs[ENTRY_INTR_INFO]:
            vmcs[ENTRY_INTR_INFO] &= ~VALID
        self._save_guest_state(reason, event, rf)
        self.non_root = False
        self.monitor_armed = False
        self.timer = TIMER_OFF
        self.pending &= _KEPT_BY_EXIT

    def _save_guest_state(self, reason: int, event: int, rf: int) -> None:
        vmcs = self.vmcs
        vmcs[GUEST_RIP] = self.rip
        vmcs[GUEST_RSP] = self.rsp
        vmcs[GUEST_RFLAGS] = self.rflags | (RFLAGS_RF if rf else 0)
        vmcs[GUEST_SS_DPL] = self.cpl
        vmcs[GUEST_ACTIVITY] = self.activity
        vmcs[GUEST_INTERRUPTIBILITY] = self.blocking
        vmcs[GUEST_PENDING_DBG] = 0
        if self.pending_dbg:
            if event or self._keeps_pending_debug(reason):
                vmcs[GUEST_PENDING_DBG] = self.pending_dbg
            self.pending_dbg = 0
        if self.timer >= 0 and vmcs[EXIT_CONTROLS] & EXIT_SAVE_PREEMPTION_TIMER:
            vmcs[GUEST_PREEMPTION_TIMER] = self.timer
        self._leave_nmi_blocking(reason)

    def _keeps_pending_debug(self, reason: int) -> bool:
        """Y6: what saves the field; under MOV-SS blocking every exit that is not a #DB does."""
        if reason in _KEEPS_PENDING_DEBUG:
            return True
        if not self.blocking & BLOCKING_BY_MOV_SS:
            return False
        return reason != EXCEPTION_NMI or self.vmcs[EXIT_INTR_INFO] & VECTOR_MASK != DB

    def _leave_nmi_blocking(self, reason: int) -> None:
        """Y5: the host has NMIs blocked after an NMI exit; else blocking is as the guest left it.

        With virtual NMIs bit 3 is not physical blocking and NMIs were open in the guest.
        """
        if reason == EXCEPTION_NMI and self.vmcs[EXIT_INTR_INFO] & TYPE_MASK == NMI << TYPE_SHIFT:
            self.root_nmi_blocked = True
        else:
            self.root_nmi_blocked = (
                self.blocking & BLOCKING_BY_NMI != 0 and self.nmi_mode_is_physical()
            )

    # -- paging ---------------------------------------------------------------------------------------

    def load_tables(
        self, pt_absent: int, ept_absent: int, ept_misconfigured: int, ept_read_only: int
    ) -> None:
        """Tell the processor which pages its tables lack; bit masks over the pages of ``L2Memory``.

        Pages in none of the masks need no walk: ``unusual_pages`` lets a delivery test all at once.
        """
        self.pt_absent = pt_absent
        self.ept_absent = ept_absent
        self.ept_misconfigured = ept_misconfigured
        self.ept_read_only = ept_read_only
        unusual = pt_absent | ept_absent | ept_misconfigured | ept_read_only
        memory = self.memory
        if memory.apic_page >= 0:
            unusual |= 1 << memory.apic_page
        if memory.pml_full:
            unusual = -1
        self.unusual_pages = unusual

    # -- virtual interrupts (K4) ----------------------------------------------------------------------

    def evaluate_virtual_interrupts(self) -> None:
        """Make the pending-virtual-interrupt bit follow RVI, SVI and VTPR (K4)."""
        if self.uses_virtual_interrupts() and virtual_interrupt_is_recognised(
            self.vmcs[GUEST_INTR_STATUS], self.memory.vtpr
        ):
            self.pending |= PENDING_VIRTUAL_INTERRUPT
        else:
            self.pending &= ~PENDING_VIRTUAL_INTERRUPT

    def update_interrupt_line(self) -> None:
        """Make the pending-interrupt bit follow the local APIC."""
        apic = self.apic
        if apic.irr and apic.deliverable() >= 0:
            self.pending |= PENDING_INTERRUPT
        else:
            self.pending &= ~PENDING_INTERRUPT
