"""Check and inject: once per pass of the loop, decide what goes into the entry field of vmcs02.

Order (S4): the nested-event check; re-injection of what was interrupted; a new exception; SMI, NMI,
interrupt. What has to wait asks for an immediate exit, so that the entry completes what is in the field and
the processor is back before L2's first instruction.

Source: Linux, kvm_check_and_inject_events, vmx_cancel_injection, vmx_complete_interrupts.
"""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_INTR_WINDOW_EXITING,
    CPU_NMI_WINDOW_EXITING,
)
from nvmx_core.arch.events import (
    DB,
    ERROR_CODE_VALID,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_INFO,
    NMI_UNBLOCKING_BY_IRET,
    OTHER_EVENT,
    SOFTWARE_INTERRUPT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    is_vectoring,
)
from nvmx_core.arch.exits import is_soft
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_RFLAGS,
    GUEST_RIP,
    POISON,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    INTERRUPT_SHADOW,
    PENDING_DBG_BS,
    PENDING_DBG_VALID,
    RFLAGS_RF,
    RFLAGS_TF,
    WAIT_FOR_SIPI,
    debug_conditions,
)
from nvmx_core.journal import SMM_ENTRY
from nvmx_core.l0 import reach
from nvmx_core.l0.log import CANCEL, INJECT, LEAVE_FOR_SMM, REINJECT
from nvmx_core.l0.nested_check import NestedCheck

DB_TRAP_INFO: Final = VALID | HARDWARE_EXCEPTION << TYPE_SHIFT | DB


class Injection(NestedCheck):
    """The layer that fills the entry field."""

    __slots__ = ()

    def check_and_inject_events(self) -> bool:
        """One evaluation of everything that is pending; True when an immediate exit is needed."""
        if self.vmcs02[GUEST_PENDING_DBG]:
            self.withhold_debug_traps()
        busy = self.check_before_injection()
        if not self.guest_mode:
            return False
        self.reinject()
        if not busy:
            busy = self._inject_new_events()
            if not self.guest_mode:
                return False
        self.update_windows()
        return busy or self.has_events_for_injection()

    def check_before_injection(self) -> bool:
        """Give L1 what is due; True when something is due that has to wait."""
        return self.check_nested_events()

    def has_events_for_injection(self) -> bool:
        """Whether an exit is owed to L1 that only this loop can produce (V10)."""
        return (
            self.timer_expired
            or self.mtf_pending
            or self.init_pending
            or (self.vmexit_pending and self.vmexit_trap)
        )

    # -- what was interrupted -------------------------------------------------------------------------

    def reinject(self) -> None:
        """Write the interrupted event into the entry field again; a new exception takes its place (D4)."""
        if self.exception_injected:
            self._write_entry(self.exception_info, self.exception_error_code, self.exception_length)
            if is_soft(self.exception_info):
                self.reach[reach.REINJECT_SOFT] += 1
            else:
                self.reach[reach.REINJECT_EXCEPTION] += 1
        elif self.mtf_injected:
            # Before an exception: only a debug trap can be there, and P6 comes before P7.
            self._write_entry(VALID | OTHER_EVENT << TYPE_SHIFT, POISON, 0)
        elif self.exception_pending:
            return
        elif self.nmi_injected:
            self.unblock_nmi_for_reinjection()
            self._write_entry(NMI_INFO, POISON, 0)
            self.reach[reach.REINJECT_NMI] += 1
        elif self.interrupt_injected:
            self._write_entry(self.interrupt_info, POISON, self.interrupt_length)
            if is_soft(self.interrupt_info):
                self.reach[reach.REINJECT_SOFT] += 1
            else:
                self.reach[reach.REINJECT_INTERRUPT] += 1
        else:
            return
        self.log.append((REINJECT, len(self.journal), self.vmcs02[ENTRY_INTR_INFO]))

    def unblock_nmi_for_reinjection(self) -> None:
        """X11, G8: the interrupted delivery has set the blocking; the injection sets it again."""
        self.vmcs02[GUEST_INTERRUPTIBILITY] &= ~BLOCKING_BY_NMI

    def _write_entry(self, info: int, error_code: int, length: int) -> None:
        vmcs02 = self.vmcs02
        vmcs02[ENTRY_INTR_INFO] = info & ~NMI_UNBLOCKING_BY_IRET
        if info & ERROR_CODE_VALID:
            vmcs02[ENTRY_ERROR_CODE] = error_code
        if is_soft(info):
            vmcs02[ENTRY_INSTRUCTION_LEN] = length
            if self.soft_event_holds_traps:
                # O6: traps that MOV SS held outlive the injection of a soft event only under MOV SS.
                vmcs02[GUEST_INTERRUPTIBILITY] |= BLOCKING_BY_MOV_SS

    def requeue(self, info: int, error_code: int, length: int) -> None:
        """Put an event that was in the entry field back into its queue, with its type as it was (X4)."""
        event_type = (info & TYPE_MASK) >> TYPE_SHIFT
        if event_type == NMI:
            self.nmi_injected = True
        elif event_type == EXTERNAL_INTERRUPT or event_type == SOFTWARE_INTERRUPT:
            self.interrupt_injected = True
            self.interrupt_info = info
            self.interrupt_length = length
        elif event_type == OTHER_EVENT:
            self.mtf_injected = True
        else:
            self.exception_injected = True
            self.exception_info = info
            self.exception_error_code = error_code
            self.exception_length = length
            self.exception_trap = False

    def cancel_injection(self, immediate: bool) -> None:
        """The entry does not happen: take the event back and look at everything again (S5)."""
        self.reach[reach.CANCELLED_ENTRY] += 1
        self.log.append((CANCEL, len(self.journal), self.vmcs02[ENTRY_INTR_INFO]))
        if self.take_back_injection():
            self.reach[reach.CANCELLED_INJECTION] += 1
        self.request_event_after_cancel(immediate)

    def take_back_injection(self) -> bool:
        """Put the event of an entry that the processor has not seen back into its queue, if there is one.

        It is injected exactly once then (D6), by the next entry.
        """
        vmcs02 = self.vmcs02
        info = vmcs02[ENTRY_INTR_INFO]
        if self.own_mtf:
            self.own_mtf = False
            vmcs02[ENTRY_INTR_INFO] = 0
            return False
        if not info & VALID:
            return False
        error_code = vmcs02[ENTRY_ERROR_CODE] if info & ERROR_CODE_VALID else POISON
        self.requeue(info, error_code, vmcs02[ENTRY_INSTRUCTION_LEN])
        vmcs02[ENTRY_INTR_INFO] = info & ~VALID
        return True

    def request_event_after_cancel(self, immediate: bool) -> None:
        """The cancelled pass had decided something; decide again."""
        self.request_event = True

    # -- debug traps ----------------------------------------------------------------------------------

    def withhold_debug_traps(self) -> None:
        """Take the pending debug exceptions of an entry into L0's hands when something outranks them.

        The processor would take them (P7) before it comes back for the SMI, INIT or MTF exit that L0 has
        pending (P4-P6).
        """
        vmcs02 = self.vmcs02
        pending_dbg = vmcs02[GUEST_PENDING_DBG]
        if not pending_dbg & PENDING_DBG_VALID:
            return
        if vmcs02[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_MOV_SS or self.needs_reinjection():
            return
        if is_vectoring(vmcs02[ENTRY_INTR_INFO]) or self.exception_pending:
            return
        if self.waits_above_debug_traps():
            if self.single_step_must_be_pending():
                self.come_back_before_traps()
            else:
                self.take_debug_traps()

    def single_step_must_be_pending(self) -> bool:
        """G9: an entry into an interrupt shadow with TF = 1 fails unless the BS bit is pending."""
        vmcs02 = self.vmcs02
        return (
            vmcs02[GUEST_INTERRUPTIBILITY] & INTERRUPT_SHADOW != 0
            and vmcs02[GUEST_RFLAGS] & RFLAGS_TF != 0
        )

    def come_back_before_traps(self) -> None:
        """Enter with a pending MTF exit of L0's own: it comes before the traps (P6, P7), which stay pending.

        An MTF exit that L1 injects does the same, also when its entry was cancelled (M5).
        """
        vmcs02 = self.vmcs02
        if not (self.mtf_injected or vmcs02[ENTRY_INTR_INFO] & VALID):
            vmcs02[ENTRY_INTR_INFO] = VALID | OTHER_EVENT << TYPE_SHIFT
            self.own_mtf = True

    def waits_above_debug_traps(self) -> bool:
        """P4-P6: whether L0 has an SMI, INIT or MTF exit pending, which debug traps must not overtake."""
        return self.smi_pending or self.init_pending or self.mtf_pending

    def take_debug_traps(self) -> None:
        """Move the pending debug exceptions of vmcs02 into the exception queue."""
        pending_dbg = self.vmcs02[GUEST_PENDING_DBG]
        self.vmcs02[GUEST_PENDING_DBG] = 0
        self.reach[reach.DEBUG_TRAP_WITHHELD] += 1
        self.queue_exception(DB_TRAP_INFO, POISON, pending_dbg, 0, True)

    # -- new events -----------------------------------------------------------------------------------

    def _inject_new_events(self) -> bool:
        """A new exception, SMI, NMI or interrupt; True when one of them has to wait."""
        can_inject = not (self.needs_reinjection() or self.mtf_injected)
        if self.exception_pending and not self.exception_trap:
            self.inject_exception()
            can_inject = False
        if self.smi_pending and self.mp_state != WAIT_FOR_SIPI:
            if not can_inject or self.nested_run_pending:
                return True
            self.enter_smm()
            return False
        if self.exception_pending:
            self.inject_exception()
            can_inject = False
        busy = False
        if self.nmi_pending and not self.nmi_blocked():
            if not can_inject or self.l1_wants_nmis() or self.nested_run_pending:
                busy = True
            else:
                self.inject_nmi()
                can_inject = False
        if self.has_interrupt() and not self.interrupt_blocked() and not self.kick_after_entry:
            if not can_inject or self.l1_wants_interrupts() or self.nested_run_pending:
                busy = True
            elif not self.must_ask_userspace():
                self.inject_interrupt()
        return busy

    def inject_exception(self) -> None:
        """A queued exception goes to L2: now, and not earlier, CR2 and DR6 change (Y1)."""
        info = self.exception_info
        vector = info & VECTOR_MASK
        payload = self.exception_payload
        if self.exception_trap:
            payload = debug_conditions(payload)
        self.deliver_payload(vector, payload)
        vmcs02 = self.vmcs02
        is_fault = info & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT and vector != DB
        if is_fault:
            vmcs02[GUEST_RFLAGS] |= RFLAGS_RF
        else:
            vmcs02[GUEST_RFLAGS] &= ~RFLAGS_RF
        self.keep_single_step_consistent()
        self._write_entry(info, self.exception_error_code, self.exception_length)
        self.exception_pending = False
        self.exception_injected = True
        self.nmi_injected = False
        self.interrupt_injected = False
        self.log.append((INJECT, len(self.journal), info))

    def deliver_payload(self, vector: int, payload: int) -> None:
        """The register writes of the exception that is being injected."""
        self.cpu.apply_payload(vector, payload)

    def keep_single_step_consistent(self) -> None:
        """G9: in an interrupt shadow with TF = 1 the BS bit must be set, although the injection drops it."""
        vmcs02 = self.vmcs02
        if self.single_step_must_be_pending():
            vmcs02[GUEST_PENDING_DBG] |= PENDING_DBG_BS

    def inject_nmi(self) -> None:
        """An NMI that L1 does not intercept goes to L2."""
        self.nmi_pending = False
        self.nmi_injected = True
        self.vmcs02[GUEST_RFLAGS] &= ~RFLAGS_RF
        self._write_entry(NMI_INFO, POISON, 0)
        self.reach[reach.NMI_INJECTED_FOR_L2] += 1
        self.log.append((INJECT, len(self.journal), NMI_INFO))

    def inject_interrupt(self) -> None:
        """An interrupt that L1 does not intercept goes to L2; it is acknowledged here."""
        vector = self.take_interrupt()
        info = VALID | EXTERNAL_INTERRUPT << TYPE_SHIFT | vector
        self.interrupt_injected = True
        self.interrupt_info = info
        self.vmcs02[GUEST_RFLAGS] &= ~RFLAGS_RF
        self._write_entry(info, POISON, 0)
        self.reach[reach.INTERRUPT_INJECTED_FOR_L2] += 1
        self.log.append((INJECT, len(self.journal), info))

    # -- windows --------------------------------------------------------------------------------------

    def update_windows(self) -> None:
        """Ask the processor to come back when a blocked NMI or interrupt for L2 may be injected."""
        windows = self.l1_windows()
        if self.nmi_pending and not self.l1_wants_nmis():
            windows |= CPU_NMI_WINDOW_EXITING
            self.reach[reach.NMI_WINDOW_BY_L0] += 1
        if self.has_interrupt() and not self.l1_wants_interrupts():
            windows |= CPU_INTR_WINDOW_EXITING
            self.reach[reach.INTERRUPT_WINDOW_BY_L0] += 1
        self.vmcs02[CPU_BASED] = self.processor_controls02 | windows

    def l1_windows(self) -> int:
        """The windows that L1 itself asked for."""
        return self.vmcs12[CPU_BASED] & (CPU_INTR_WINDOW_EXITING | CPU_NMI_WINDOW_EXITING)

    # -- SMM ------------------------------------------------------------------------------------------

    def enter_smm(self) -> None:
        """B8: L2 is left without an exit for L1; what is owed to L1 stays owed until RSM."""
        self.smi_pending = False
        self.own_mtf = False
        self.in_smm = True
        self.smm_guest_mode = self.guest_mode
        self.monitor_armed = False
        if not self.guest_mode:
            self.journal.append((SMM_ENTRY, 0, 0))
            return
        self.reach[reach.SMM_FROM_L2] += 1
        self.log.append((LEAVE_FOR_SMM, len(self.journal)))
        self.sync_vmcs02_to_vmcs12()
        self._merge_trap_into_pending_debug()
        self.forget_exception()
        self.guest_mode = False
        self.journal.append((SMM_ENTRY, 1, self.vmcs02[GUEST_RIP]))
