"""The nested exit: L2's state goes to vmcs12, the exit information is written, L1 is current again.

IDT-vectoring information comes from the queues, not from the hardware field: what is still to be
re-injected when L1 is told about an exit is exactly what L1 has to re-inject (X1, X4, X11).

Source: Linux, nested_vmx_vmexit, prepare_vmcs12, vmcs12_save_pending_event.
"""

from typing import Final

from nvmx_core.arch.controls import EXIT_SAVE_PREEMPTION_TIMER
from nvmx_core.arch.events import (
    DB,
    DF,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_INFO,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import (
    APIC_ACCESS,
    EOI_INDUCED,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    FAILED_ENTRY,
    IDT_VECTORING_ALLOWED,
    INIT_SIGNAL,
    INSTRUCTION_EXITS,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PML_FULL,
    PREEMPTION_TIMER,
    RF_OF_EVENT_EXITS,
    SIPI_SIGNAL,
    TASK_SWITCH,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
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
    GUEST_LINEAR_ADDRESS,
    GUEST_PENDING_DBG,
    GUEST_PHYSICAL_ADDRESS,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_STATE_FIELDS,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    POISON,
)
from nvmx_core.arch.state import ACTIVE, BLOCKING_BY_NMI, RFLAGS_RF
from nvmx_core.l0 import reach
from nvmx_core.l0.audit import highest_rank
from nvmx_core.l0.exception_queue import ExceptionQueue
from nvmx_core.l0.log import (
    CHECK_EXIT_WHILE_RUN_PENDING,
    CHECK_VECTORING_WITH_REASON,
    NESTED_EXIT,
)
from nvmx_core.l0.vcpu import TIMER_OFF

_REACH_OF_REASON: Final[dict[int, int]] = {
    TRIPLE_FAULT: reach.NESTED_EXIT_TRIPLE_FAULT,
    INIT_SIGNAL: reach.NESTED_EXIT_INIT,
    SIPI_SIGNAL: reach.NESTED_EXIT_SIPI,
    INTERRUPT_WINDOW: reach.NESTED_EXIT_INTERRUPT_WINDOW,
    NMI_WINDOW: reach.NESTED_EXIT_NMI_WINDOW,
    TASK_SWITCH: reach.NESTED_EXIT_TASK_SWITCH,
    MONITOR_TRAP_FLAG: reach.NESTED_EXIT_MTF,
    TPR_BELOW_THRESHOLD: reach.NESTED_EXIT_TPR_THRESHOLD,
    APIC_ACCESS: reach.NESTED_EXIT_APIC_ACCESS,
    EOI_INDUCED: reach.NESTED_EXIT_EOI,
    EPT_MISCONFIG: reach.NESTED_EXIT_EPT_MISCONFIG,
    PREEMPTION_TIMER: reach.NESTED_EXIT_TIMER,
    PML_FULL: reach.NESTED_EXIT_PML_FULL,
}


class NestedExit(ExceptionQueue):
    """The layer that leaves L2 for L1."""

    __slots__ = ()

    def nested_vmexit(
        self,
        reason: int,
        qualification: int = 0,
        info: int = 0,
        error_code: int = POISON,
        length: int = POISON,
    ) -> None:
        """Give L1 an exit; afterwards L1 is current and every queue is empty (V5, V6)."""
        if self.nested_run_pending:
            self.self_check(CHECK_EXIT_WHILE_RUN_PENDING)
        vmcs12 = self.vmcs12
        rank = highest_rank(self)
        self.mtf_pending = False
        self.save_pending_event(reason, info, length)
        self.sync_vmcs02_to_vmcs12()
        self._merge_trap_into_pending_debug()
        self._save_resume_flag(reason, info)
        if vmcs12[ENTRY_INTR_INFO]:
            vmcs12[ENTRY_INTR_INFO] &= ~VALID
        vmcs12[EXIT_REASON] = reason
        vmcs12[EXIT_QUALIFICATION] = qualification
        vmcs12[EXIT_INTR_INFO] = info
        vmcs12[EXIT_INTR_ERROR_CODE] = error_code
        self._save_addresses(reason)
        self._leave_nmi_blocking(reason, info)
        self._count(reason, info)
        self.log.append(
            (
                NESTED_EXIT,
                len(self.journal),
                reason,
                vmcs12[IDT_VECTORING_INFO],
                1 if self.nested_run_pending else 0,
                1 if info or self.has_interrupt() else 0,
                rank,
            )
        )
        self.forget_queues()
        self.enter_l1_mode()
        self.l1.observe_exit(self.cpu.cr2, self.cpu.dr6)

    def forget_queues(self) -> None:
        """Queues are cleared without condition: nothing of L2 crosses into L1 (V6)."""
        self.clear_queues()

    def enter_l1_mode(self) -> None:
        """L1 is current, active, with events to be looked at."""
        self.guest_mode = False
        self.mp_state = ACTIVE
        self.monitor_armed = False
        self.timer = TIMER_OFF
        self.timer_expired = False
        self.own_mtf = False
        self.request_triple_fault = False
        self.request_event = True

    # -- IDT-vectoring information --------------------------------------------------------------------

    def save_pending_event(self, reason: int, info: int, length: int) -> None:
        """Write IDT-vectoring information, its error code and the instruction length (X1, X2, X4, X9)."""
        vmcs12 = self.vmcs12
        event = 0
        error_code = POISON
        if not self.exit_forgets_event(reason, info):
            if self.exception_injected:
                event = self.exception_info
                error_code = self.exception_error_code
                if is_soft(event):
                    length = self.exception_length
            elif self.nmi_injected:
                event = NMI_INFO
            elif self.interrupt_injected:
                event = self.interrupt_info
                if is_soft(event):
                    length = self.interrupt_length
        if event and reason not in IDT_VECTORING_ALLOWED:
            self.self_check(CHECK_VECTORING_WITH_REASON)
        vmcs12[IDT_VECTORING_INFO] = event
        vmcs12[IDT_VECTORING_ERROR_CODE] = error_code
        vmcs12[EXIT_INSTRUCTION_LEN] = length

    def exit_forgets_event(self, reason: int, info: int) -> bool:
        """X2: a triple fault and a #DF exit never report the event that led to them."""
        return reason == TRIPLE_FAULT or (
            reason == EXCEPTION_NMI and info & VECTOR_MASK == DF and info & TYPE_MASK != 0
        )

    # -- state ----------------------------------------------------------------------------------------

    def sync_vmcs02_to_vmcs12(self) -> None:
        """Copy L2's state; activity, NMI blocking and timer are L0's own to fill in."""
        vmcs12 = self.vmcs12
        vmcs02 = self.vmcs02
        timer = vmcs12[GUEST_PREEMPTION_TIMER]
        vmcs12[GUEST_STATE_FIELDS] = vmcs02[GUEST_STATE_FIELDS]
        vmcs12[GUEST_ACTIVITY] = self.mp_state
        if self.timer >= 0 and vmcs12[EXIT_CONTROLS] & EXIT_SAVE_PREEMPTION_TIMER:
            timer = self.timer
        vmcs12[GUEST_PREEMPTION_TIMER] = timer
        vmcs12[GUEST_INTERRUPTIBILITY] = self.l2_blocking(vmcs02[GUEST_INTERRUPTIBILITY])

    def _merge_trap_into_pending_debug(self) -> None:
        """Y6: a debug trap that was queued but not taken is pending again."""
        if self.exception_pending and self.exception_trap:
            self.vmcs12[GUEST_PENDING_DBG] |= self.exception_payload
        elif self.vmexit_pending and self.vmexit_trap:
            self.vmcs12[GUEST_PENDING_DBG] |= self.vmexit_payload

    def _save_resume_flag(self, reason: int, info: int) -> None:
        """X8, Y3: RF as the exit determines it; an exit that L0 kept for itself must leave no trace."""
        is_fault = reason == EXCEPTION_NMI and info & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
        if is_fault and info & VECTOR_MASK != DB:
            self.vmcs12[GUEST_RFLAGS] |= RFLAGS_RF
        elif reason not in RF_OF_EVENT_EXITS:
            self.vmcs12[GUEST_RFLAGS] &= ~RFLAGS_RF

    def _save_addresses(self, reason: int) -> None:
        vmcs12 = self.vmcs12
        if reason == EPT_VIOLATION or reason == EPT_MISCONFIG:
            vmcs12[GUEST_LINEAR_ADDRESS] = self.vmcs02[GUEST_LINEAR_ADDRESS]
            vmcs12[GUEST_PHYSICAL_ADDRESS] = self.vmcs02[GUEST_PHYSICAL_ADDRESS]
        else:
            vmcs12[GUEST_LINEAR_ADDRESS] = POISON
            vmcs12[GUEST_PHYSICAL_ADDRESS] = POISON

    def _leave_nmi_blocking(self, reason: int, info: int) -> None:
        """Y5: L1 has NMIs blocked after an NMI exit, else as L2 left physical NMI blocking."""
        if reason == EXCEPTION_NMI and info & TYPE_MASK == NMI << TYPE_SHIFT:
            self.l1_nmi_blocked = True
        else:
            self.l1_nmi_blocked = (
                self.vmcs12[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_NMI != 0
                and not self.l1_uses_virtual_nmis()
            )

    def fail_entry(self, reason: int, qualification: int) -> None:
        """E0, class 5: L1 sees reason and qualification, and nothing else has changed."""
        vmcs12 = self.vmcs12
        vmcs12[EXIT_REASON] = reason | FAILED_ENTRY
        vmcs12[EXIT_QUALIFICATION] = qualification
        self.nested_run_pending = False
        self.request_event = True
        self.reach[reach.FAILED_ENTRY] += 1
        self.l1.observe_exit(self.cpu.cr2, self.cpu.dr6)

    def _count(self, reason: int, info: int) -> None:
        counts = self.reach
        vectoring = self.vmcs12[IDT_VECTORING_INFO]
        if vectoring:
            counts[reach.NESTED_EXIT_VECTORING] += 1
            if reason == EXCEPTION_NMI:
                counts[reach.NESTED_EXIT_EXCEPTION_VECTORING] += 1
            elif reason == EPT_VIOLATION:
                counts[reach.NESTED_EXIT_EPT_VECTORING] += 1
        if self.mp_state != ACTIVE:
            counts[reach.NESTED_EXIT_ASLEEP] += 1
        if reason == EXCEPTION_NMI:
            if info & TYPE_MASK == NMI << TYPE_SHIFT:
                counts[reach.NESTED_EXIT_NMI] += 1
            elif info & VECTOR_MASK == DF:
                counts[reach.NESTED_EXIT_DOUBLE_FAULT] += 1
        elif reason == EXTERNAL_INTERRUPT_EXIT:
            counts[reach.NESTED_EXIT_INTERRUPT] += 1
            if info:
                counts[reach.NESTED_EXIT_INTERRUPT_ACKNOWLEDGED] += 1
        elif reason in INSTRUCTION_EXITS:
            counts[reach.NESTED_EXIT_INSTRUCTION] += 1
        elif reason in _REACH_OF_REASON:
            counts[_REACH_OF_REASON[reason]] += 1
