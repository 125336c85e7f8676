"""The instruction boundary: everything that may happen between two instructions, by rank.

``boundary`` takes the highest-ranked event that is pending and not blocked, until nothing is left, an exit
happened, or SMM was entered. Whether an event exits or is delivered never changes its rank (P16). The
ranks P1 (reset, machine check), P3 (TSS T flag) and P13 (code breakpoints) do not arise in this model.

Source: SDM, "Priority Among Concurrent Events", "Event Blocking", and the sections that facts cite by rank.
"""

from nvmx_core.arch.controls import (
    CPU_INTR_WINDOW_EXITING,
    CPU_NMI_WINDOW_EXITING,
    EXIT_ACK_INTR_ON_EXIT,
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_POSTED_INTR,
    PIN_VIRTUAL_NMIS,
)
from nvmx_core.arch.events import (
    DB,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI_INFO,
    TYPE_SHIFT,
    VALID,
)
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    EXIT_CONTROLS,
    GUEST_INTR_STATUS,
    PIN_BASED,
    POISON,
    POSTED_INTR_NV,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    INTERRUPT_SHADOW,
    PENDING_DBG_VALID,
    RFLAGS_IF,
    WAIT_FOR_SIPI,
    debug_conditions,
)
from nvmx_core.cpu.delivery import Delivery
from nvmx_core.cpu.processor_state import (
    PENDING_INIT,
    PENDING_INTERRUPT,
    PENDING_MTF,
    PENDING_NMI,
    PENDING_SIPI,
    PENDING_SMI,
    PENDING_TIMER,
    PENDING_TRAP_EXIT,
    PENDING_VIRTUAL_INTERRUPT,
)
from nvmx_core.journal import SMM_ENTRY


class Boundary(Delivery):
    """The layer that ranks what is pending."""

    __slots__ = ()

    def boundary(self) -> None:
        """Take what is pending, highest rank first, until an instruction may execute or none may."""
        while self.non_root and not self.in_smm:
            if not (self.pending or self.pending_dbg or self.watches_boundaries):
                return
            if not self._take_highest():
                return

    def _take_highest(self) -> bool:
        """Take one event; False when nothing is pending that is not blocked."""
        pending = self.pending
        activity = self.activity
        if activity == WAIT_FOR_SIPI:
            return self._take_sipi()
        if pending & PENDING_TRAP_EXIT and activity <= HLT:  # P2; O8 waits for the wake-up
            self.vm_exit(self.trap_exit_reason, self.trap_exit_qualification)
        elif pending & PENDING_SMI:  # P4
            self.enter_smm()
        elif pending & PENDING_INIT:  # P5
            self.pending &= ~PENDING_INIT
            self.vm_exit(INIT_SIGNAL)
        elif pending & PENDING_MTF and activity <= HLT:  # P6
            self.vm_exit(MONITOR_TRAP_FLAG)
        elif self.pending_dbg and self._debug_trap_is_open():  # P7
            self._take_debug_trap()
        elif pending & PENDING_TIMER:  # P8
            self.vm_exit(PREEMPTION_TIMER)
        elif self.watches_boundaries and self.nmi_window_is_open():  # P9
            self.vm_exit(NMI_WINDOW)
        elif pending & PENDING_NMI and not self.nmi_is_blocked():  # P10
            self._take_nmi()
        elif activity > HLT:
            return False
        elif self.watches_boundaries and self.interrupt_window_is_open():  # P11
            self.vm_exit(INTERRUPT_WINDOW)
        elif pending & PENDING_VIRTUAL_INTERRUPT and self.interrupts_are_open():  # P11
            self._take_virtual_interrupt()
        elif pending & PENDING_INTERRUPT:  # P12
            return self._take_interrupt()
        else:
            return False
        return True

    # -- predicates (section "Event Blocking") --------------------------------------------------------

    def interrupts_are_open(self) -> bool:
        """IF = 1 and no blocking by STI or MOV SS."""
        return self.rflags & RFLAGS_IF != 0 and not self.blocking & INTERRUPT_SHADOW

    def interrupt_window_is_open(self) -> bool:
        """B5: the host wants to know that interrupts are open, and they are."""
        return self.vmcs[CPU_BASED] & CPU_INTR_WINDOW_EXITING != 0 and self.interrupts_are_open()

    def nmi_window_is_open(self) -> bool:
        """B6: the host wants to know that virtual NMIs are open, and they are."""
        return (
            self.vmcs[CPU_BASED] & CPU_NMI_WINDOW_EXITING != 0
            and not self.blocking & (BLOCKING_BY_NMI | BLOCKING_BY_MOV_SS)
            and not (self.caps.sti_blocks_nmi and self.blocking & BLOCKING_BY_STI)
        )

    def nmi_is_blocked(self) -> bool:
        """The table of NMI modes; NMIs that exit are not held by an interrupt shadow (B4, our choice)."""
        pin = self.vmcs[PIN_BASED]
        if pin & PIN_NMI_EXITING:
            return not pin & PIN_VIRTUAL_NMIS and self.blocking & BLOCKING_BY_NMI != 0
        if self.blocking & (BLOCKING_BY_NMI | BLOCKING_BY_MOV_SS):
            return True
        return self.caps.sti_blocks_nmi and self.blocking & BLOCKING_BY_STI != 0

    def _debug_trap_is_open(self) -> bool:
        """B2, O6: a valid pending debug exception, not held by MOV SS, not in shutdown."""
        return (
            self.pending_dbg & PENDING_DBG_VALID != 0
            and not self.blocking & BLOCKING_BY_MOV_SS
            and self.activity <= HLT
        )

    # -- the events -----------------------------------------------------------------------------------

    def enter_smm(self) -> None:
        """B8: the default treatment of an SMI; what is pending stays pending until RSM."""
        self.pending &= ~PENDING_SMI
        self.monitor_armed = False
        self.in_smm = True
        self.journal.append((SMM_ENTRY, 1, self.rip))

    def _take_debug_trap(self) -> None:
        conditions = debug_conditions(self.pending_dbg)
        info = VALID | HARDWARE_EXCEPTION << TYPE_SHIFT | DB
        self.pending_dbg = 0
        self.raise_exception(info, POISON, conditions, 0, 0)

    def _take_nmi(self) -> None:
        self.pending &= ~PENDING_NMI
        if self.vmcs[PIN_BASED] & PIN_NMI_EXITING:
            self.vm_exit(EXCEPTION_NMI, 0, POISON, NMI_INFO)
        else:
            self.deliver(NMI_INFO, POISON, 0, 0)

    def _take_virtual_interrupt(self) -> None:
        """K4: RVI becomes SVI, the next request becomes RVI; delivery like an external interrupt.

        Recognition ends with it; only an entry, TPR, EOI or a posted interrupt evaluates again.
        """
        vmcs = self.vmcs
        memory = self.memory
        vector = vmcs[GUEST_INTR_STATUS] & 0xFF
        memory.virr &= ~(1 << vector)
        memory.visr |= 1 << vector
        vmcs[GUEST_INTR_STATUS] = vector << 8 | max(memory.virr.bit_length() - 1, 0)
        self.pending &= ~PENDING_VIRTUAL_INTERRUPT
        self.deliver(VALID | EXTERNAL_INTERRUPT << TYPE_SHIFT | vector, POISON, 0, 0)

    def _take_interrupt(self) -> bool:
        """P12: exit, posted-interrupt processing, or delivery through L2's IDT."""
        apic = self.apic
        vector = apic.deliverable()
        vmcs = self.vmcs
        pin = vmcs[PIN_BASED]
        if not pin & PIN_EXT_INTR_EXITING:
            if not self.interrupts_are_open():
                return False
            self._acknowledge(vector)
            self.deliver(VALID | EXTERNAL_INTERRUPT << TYPE_SHIFT | vector, POISON, 0, 0)
        elif not vmcs[EXIT_CONTROLS] & EXIT_ACK_INTR_ON_EXIT:
            self.vm_exit(EXTERNAL_INTERRUPT_EXIT)  # K1: stays pending
        elif pin & PIN_POSTED_INTR and vector == vmcs[POSTED_INTR_NV]:
            self._acknowledge(vector)
            self._process_posted_interrupts()
        else:
            self._acknowledge(vector)
            info = VALID | EXTERNAL_INTERRUPT << TYPE_SHIFT | vector
            self.vm_exit(EXTERNAL_INTERRUPT_EXIT, 0, POISON, info)
        return True

    def _acknowledge(self, vector: int) -> None:
        self.apic.acknowledge(vector)
        self.update_interrupt_line()

    def _process_posted_interrupts(self) -> None:
        """K3: EOI the notification, move the posted vectors to the virtual IRR, evaluate."""
        self.apic.end_of_interrupt()
        self.update_interrupt_line()
        self.memory.take_posted_interrupts(self.vmcs)
        self.evaluate_virtual_interrupts()

    def sipi(self, vector: int) -> None:
        """A start-up IPI arrives: it waits for the boundary in wait-for-SIPI, else it is discarded."""
        if self.non_root and not self.in_smm and self.activity == WAIT_FOR_SIPI:
            self.sipi_vector = vector
            self.pending |= PENDING_SIPI

    def _take_sipi(self) -> bool:
        """Wait-for-SIPI holds everything but a SIPI, which exits."""
        if not self.pending & PENDING_SIPI:
            return False
        self.vm_exit(SIPI_SIGNAL, self.sipi_vector)
        return True
