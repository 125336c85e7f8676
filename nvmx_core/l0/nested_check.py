"""The nested-event check: what L1 gets at this boundary, in the order of the real ranks.

Each row is a method that answers BUSY (it is due but must wait: enter, come back at once), TAKEN (a nested
exit happened), STOP (nothing for L1 here: L2 goes on with it) or NEXT. ``ROWS`` of the check is the order of
``check_nested_events``; priority is decided first, destination second (P16).

What blocks a row: an accepted entry that the processor has not seen yet (``nested_run_pending``), and, for
what is recognised at a boundary only, an event that is still to be re-injected.

Source: Linux, vmx_check_nested_events; the ranks P4-P12.
"""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_INTR_WINDOW_EXITING,
    CPU_NMI_WINDOW_EXITING,
    EXIT_ACK_INTR_ON_EXIT,
    PIN_POSTED_INTR,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
    WINDOW_CONTROLS,
)
from nvmx_core.arch.events import (
    EXTERNAL_INTERRUPT,
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
    is_soft,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    EXIT_CONTROLS,
    GUEST_INTERRUPTIBILITY,
    GUEST_INTR_STATUS,
    PIN_BASED,
    POISON,
    POSTED_INTR_NV,
    SECONDARY,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    WAIT_FOR_SIPI,
    debug_conditions,
)
from nvmx_core.arch.virtual_apic import virtual_interrupt_is_recognised
from nvmx_core.cpu.apic import NO_VECTOR
from nvmx_core.l0 import reach
from nvmx_core.l0.log import POSTED
from nvmx_core.l0.nested_exit import NestedExit

NEXT: Final = 0
BUSY: Final = 1
TAKEN: Final = 2
STOP: Final = 3


class NestedCheck(NestedExit):
    """The layer that decides what L1 gets."""

    __slots__ = ()

    def check_nested_events(self) -> bool:
        """Walk the rows; True when something is due that has to wait (busy)."""
        if self.is_quiet():
            return False
        blocked = self.nested_run_pending or self.blocks_boundary_events()
        result = self.check_faults()
        if result == NEXT:
            if self.mp_state == WAIT_FOR_SIPI:
                result = self.check_sipi()
            else:
                self.sipi_vector = NO_VECTOR
                result = self._check_before_traps(blocked)
                if result == NEXT:
                    result = self.check_debug_traps()
                if result == NEXT:
                    result = self._check_after_traps(blocked)
        return result == BUSY

    def is_quiet(self) -> bool:
        """Whether no row can apply, which is so at most entries: nothing is pending, no window is open."""
        return not (
            self.apic.irr
            or self.userspace_vector >= 0
            or self.nmi_pending
            or self.exception_pending
            or self.vmexit_pending
            or self.timer_expired
            or self.mtf_pending
            or self.smi_pending
            or self.init_pending
            or self.sipi_vector >= 0
            or self.vmcs12[CPU_BASED] & WINDOW_CONTROLS
        )

    def _check_before_traps(self, blocked: bool) -> int:
        result = self.check_smi(blocked)  # P4
        if result == NEXT:
            result = self.check_init(blocked)  # P5
        if result == NEXT:
            result = self.check_mtf(blocked)  # P6
        return result

    def _check_after_traps(self, blocked: bool) -> int:
        result = self.check_timer(blocked)  # P8
        if result == NEXT:
            result = self.check_nmi_window(blocked)  # P9
        if result == NEXT:
            result = self.check_nmi(blocked)  # P10
        if result == NEXT and self.mp_state <= HLT:
            result = self.check_interrupt_window(blocked)  # P11
            if result == NEXT:
                result = self.check_interrupt(blocked)  # P12
        return result

    def blocks_boundary_events(self) -> bool:
        """Whether an event in flight keeps the boundary from being reached."""
        return self.needs_reinjection()

    # -- faults of the instruction or the delivery in progress -----------------------------------------

    def check_faults(self) -> int:
        """P14: an exception of the current instruction or delivery comes before any boundary."""
        if self.vmexit_pending and not self.vmexit_trap:
            return self.exit_for_exception()
        if self.exception_pending and not self.exception_trap:
            return STOP
        return NEXT

    def exit_for_exception(self) -> int:
        """Exit 0 for the exception that L1 intercepts; an accepted entry comes first."""
        if self.nested_run_pending:
            return BUSY
        info = self.vmexit_info
        length = self.vmexit_length if is_soft(info) else POISON
        payload = self.vmexit_payload
        if self.vmexit_trap:
            payload = debug_conditions(payload)
        error_code = self.vmexit_error_code
        self.vmexit_pending = False
        self.nested_vmexit(EXCEPTION_NMI, payload, info, error_code, length)
        return TAKEN

    # -- the ranks ------------------------------------------------------------------------------------

    def check_sipi(self) -> int:
        """Wait-for-SIPI holds everything but a SIPI."""
        if self.sipi_vector == NO_VECTOR:
            return STOP
        vector = self.sipi_vector
        self.sipi_vector = NO_VECTOR
        self.nested_vmexit(SIPI_SIGNAL, vector)
        return TAKEN

    def check_smi(self, blocked: bool) -> int:
        """P4: an SMI is not an exit, but nothing of lower rank may come before it."""
        if not self.smi_pending:
            return NEXT
        return BUSY if blocked else STOP

    def check_init(self, blocked: bool) -> int:
        """P5: INIT exits."""
        if not self.init_pending:
            return NEXT
        if blocked:
            return BUSY
        self.init_pending = False
        self.nested_vmexit(INIT_SIGNAL)
        return TAKEN

    def check_mtf(self, blocked: bool) -> int:
        """P6: the MTF exit owed for an instruction that L0 emulated, or reported by the processor."""
        if not self.mtf_pending or self.mp_state > HLT:
            return NEXT
        if blocked:
            return BUSY
        self.nested_vmexit(MONITOR_TRAP_FLAG)
        return TAKEN

    def check_debug_traps(self) -> int:
        """P7: a debug trap, for L1 or for L2."""
        if self.vmexit_pending:
            return self.exit_for_exception()
        if self.exception_pending:
            return STOP
        return NEXT

    def check_timer(self, blocked: bool) -> int:
        """P8: L1's VMX-preemption timer."""
        if not self.timer_expired:
            return NEXT
        if blocked:
            return BUSY
        self.nested_vmexit(PREEMPTION_TIMER)
        return TAKEN

    def check_nmi_window(self, blocked: bool) -> int:
        """P9: L1's NMI window, when an event of lower rank could otherwise overtake it."""
        if blocked or not self.vmcs12[CPU_BASED] & CPU_NMI_WINDOW_EXITING:
            return NEXT
        shadow = self.vmcs02[GUEST_INTERRUPTIBILITY]
        if shadow & (BLOCKING_BY_NMI | BLOCKING_BY_MOV_SS):
            return NEXT
        if self.config.caps.sti_blocks_nmi and shadow & BLOCKING_BY_STI:
            return NEXT
        self.nested_vmexit(NMI_WINDOW)
        return TAKEN

    def check_nmi(self, blocked: bool) -> int:
        """P10: an NMI, as exit or for L2."""
        if not self.nmi_pending or self.nmi_blocked():
            return NEXT
        if blocked:
            return BUSY
        if not self.l1_wants_nmis():
            return STOP
        self.nmi_pending = False
        self.nested_vmexit(EXCEPTION_NMI, 0, NMI_INFO)
        return TAKEN

    def check_interrupt_window(self, blocked: bool) -> int:
        """P11: L1's interrupt window; then a virtual interrupt that the processor must deliver first."""
        if blocked or not self.interrupts_open():
            return NEXT
        if self.vmcs12[CPU_BASED] & CPU_INTR_WINDOW_EXITING:
            self.nested_vmexit(INTERRUPT_WINDOW)
            return TAKEN
        if self.has_virtual_interrupt() and self.has_interrupt():
            self.reach[reach.VIRTUAL_INTERRUPT_BEFORE_EXIT] += 1
            self.kick_after_entry = True
            self.request_event = True
            return STOP
        return NEXT

    def check_interrupt(self, blocked: bool) -> int:
        """P12: an external interrupt: exit, posted-interrupt processing, or for L2."""
        while self.has_interrupt() and not self.interrupt_blocked():
            if blocked:
                return BUSY
            if not self.l1_wants_interrupts():
                return STOP
            if self.wants_vector() and self.must_ask_userspace():
                return STOP
            if not self.takes_posted_interrupts():
                self.exit_for_interrupt()
                return TAKEN
            if self.interrupts_open() and self.has_virtual_interrupt():
                return self.check_interrupt_window(blocked)
        return NEXT

    def wants_vector(self) -> bool:
        """K1: only with acknowledge-on-exit does L0 have to know which interrupt it is."""
        return self.vmcs12[EXIT_CONTROLS] & EXIT_ACK_INTR_ON_EXIT != 0

    def exit_for_interrupt(self) -> None:
        """K1: with acknowledge-on-exit the vector comes along and is in service; else it stays pending."""
        if not self.vmcs12[EXIT_CONTROLS] & EXIT_ACK_INTR_ON_EXIT:
            self.nested_vmexit(EXTERNAL_INTERRUPT_EXIT)
            return
        vector = self.take_interrupt()
        info = VALID | EXTERNAL_INTERRUPT << TYPE_SHIFT | vector
        self.nested_vmexit(EXTERNAL_INTERRUPT_EXIT, 0, info)

    # -- virtual and posted interrupts ----------------------------------------------------------------

    def has_virtual_interrupt(self) -> bool:
        """K4: whether the processor would deliver a virtual interrupt to L2 if interrupts are open."""
        if not self.vmcs12[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY:
            return False
        return virtual_interrupt_is_recognised(self.vmcs02[GUEST_INTR_STATUS], self.memory.vtpr)

    def takes_posted_interrupts(self) -> bool:
        """K3: the notification vector is no exit; what was posted becomes L2's virtual interrupts."""
        if not self.vmcs12[PIN_BASED] & PIN_POSTED_INTR:
            return False
        vector = self.apic.deliverable() if self.userspace_vector < 0 else self.userspace_vector
        if vector != self.vmcs12[POSTED_INTR_NV]:
            return False
        notification = self.take_interrupt()
        self.apic.end_of_interrupt()
        highest = self.memory.take_posted_interrupts(self.vmcs02)
        self.reach[reach.POSTED_INTERRUPT_PROCESSED] += 1
        self.log.append((POSTED, len(self.journal), notification, highest))
        return True
