"""VM entry, and the finished processor.

Order of a VM entry: controls and host state (VMfail) -> guest state and MSR list (exit 33, 34) -> load ->
injection through the guest's IDT -> the first boundary. Nothing at the boundary is looked at before the
injection is complete (O2), and nothing of the guest is loaded before the checks have passed (E0).

Source: SDM, "VM Entries", "Event Injection", "Special Features of VM Entry".
"""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_TPR_SHADOW,
    PIN_PREEMPTION_TIMER,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
    WINDOW_CONTROLS,
)
from nvmx_core.arch.events import (
    ERROR_CODE_VALID,
    OTHER_EVENT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    is_vectoring,
)
from nvmx_core.arch.exits import FAILED_ENTRY, INVALID_STATE, MSR_LOAD_FAIL, TPR_BELOW_THRESHOLD
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    ENTRY_MSR_LOAD_BAD,
    EXIT_QUALIFICATION,
    EXIT_REASON,
    GUEST_ACTIVITY,
    GUEST_CR0,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_DPL,
    LAUNCH_STATE,
    PIN_BASED,
    POISON,
    SECONDARY,
    TPR_THRESHOLD,
    Vmcs,
)
from nvmx_core.arch.state import CR0_PE, PENDING_DBG_VALID, RFLAGS_RF, SHUTDOWN
from nvmx_core.arch.virtual_apic import tpr_is_below_threshold
from nvmx_core.cpu.entry_checks import PASSED
from nvmx_core.cpu.execution import Execution
from nvmx_core.cpu.processor_state import (
    PENDING_MTF,
    PENDING_NMI,
    PENDING_TIMER,
    PENDING_TRAP_EXIT,
    TIMER_OFF,
)

ENTERED: Final = 0
LAUNCHED: Final = 1


class Processor(Execution):
    """The model processor: ``vm_entry``, then ``execute`` and arrivals while ``non_root`` holds."""

    __slots__ = ()

    def vm_entry(self, vmcs: Vmcs) -> int:
        """VMLAUNCH or VMRESUME with a VMCS whose launch state the caller has checked.

        Returns 0, or the VM-instruction error of a VMfailValid. A failed entry (33, 34) returns 0 too and
        is an exit: ``non_root`` is False and only reason and qualification are written.
        """
        error, _rule = self.checker.judge_controls(vmcs, self.memory.vtpr)
        if error:
            return error
        self.complete_entry(vmcs)
        return ENTERED

    def complete_entry(self, vmcs: Vmcs) -> None:
        """The part of the entry after the checks that VMfail: everything that ends in an exit or in L2."""
        self.vmcs = vmcs
        qualification, rule = self.checker.judge_guest_state(vmcs)
        if rule != PASSED:
            self._failed_entry(INVALID_STATE, qualification)
            return
        bad_entry = vmcs[ENTRY_MSR_LOAD_BAD]
        if bad_entry:
            self._failed_entry(MSR_LOAD_FAIL, bad_entry)
            return
        self._load_guest_state()
        vmcs[LAUNCH_STATE] = LAUNCHED
        self._inject()
        self.boundary()

    def _failed_entry(self, reason: int, qualification: int) -> None:
        """E0, class 5: only reason and qualification change."""
        self.vmcs[EXIT_REASON] = reason | FAILED_ENTRY
        self.vmcs[EXIT_QUALIFICATION] = qualification

    def _load_guest_state(self) -> None:
        vmcs = self.vmcs
        self.non_root = True
        self.monitor_armed = False
        self.rip = vmcs[GUEST_RIP]
        self.rsp = vmcs[GUEST_RSP]
        self.rflags = vmcs[GUEST_RFLAGS] & ~RFLAGS_RF
        self.cpl = vmcs[GUEST_SS_DPL]
        self.activity = vmcs[GUEST_ACTIVITY]
        self.blocking = vmcs[GUEST_INTERRUPTIBILITY]
        # Conditions that no enabled breakpoint and no single step goes with never become a #DB.
        pending_dbg = vmcs[GUEST_PENDING_DBG]
        self.pending_dbg = pending_dbg if pending_dbg & PENDING_DBG_VALID else 0
        self.real_mode = not vmcs[GUEST_CR0] & CR0_PE  # D5
        self.root_nmi_blocked = False
        self.watches_boundaries = vmcs[CPU_BASED] & WINDOW_CONTROLS != 0
        self._start_timer()
        if vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY:
            self.evaluate_virtual_interrupts()
        elif vmcs[TPR_THRESHOLD] and vmcs[CPU_BASED] & CPU_TPR_SHADOW:
            self._check_tpr_threshold()

    def _start_timer(self) -> None:
        """O7: value 0, or expiry during the entry, means an exit before L2's first instruction."""
        vmcs = self.vmcs
        if not vmcs[PIN_BASED] & PIN_PREEMPTION_TIMER:
            self.timer = TIMER_OFF
            return
        ticks = vmcs[GUEST_PREEMPTION_TIMER] - self.entry_ticks
        if ticks > 0:
            self.timer = ticks
        else:
            self.timer = 0
            self.pending |= PENDING_TIMER

    def _check_tpr_threshold(self) -> None:
        """O8: VTPR below the threshold exits after the injection; the boundary holds it in shutdown."""
        if tpr_is_below_threshold(self.memory.vtpr, self.vmcs[TPR_THRESHOLD]):
            self.trap_exit_reason = TPR_BELOW_THRESHOLD
            self.trap_exit_qualification = 0
            self.pending |= PENDING_TRAP_EXIT

    def _inject(self) -> None:
        """O2-O6, O9: deliver the event of the entry field, or make the MTF exit pending."""
        vmcs = self.vmcs
        info = vmcs[ENTRY_INTR_INFO]
        if info and is_vectoring(info):
            has_error_code = info & ERROR_CODE_VALID
            error_code = vmcs[ENTRY_ERROR_CODE] if has_error_code else POISON
            rf = 1 if vmcs[GUEST_RFLAGS] & RFLAGS_RF else 0
            self.deliver(info, error_code, self._injected_length(info), rf)
        elif info & VALID and info & TYPE_MASK == OTHER_EVENT << TYPE_SHIFT:
            self.pending |= PENDING_MTF
        elif self.activity >= SHUTDOWN:
            self.pending_dbg = 0

    def _injected_length(self, info: int) -> int:
        """401Ah counts for the soft types only (E8, X9)."""
        soft = info >> TYPE_SHIFT & 7 in (4, 5, 6)
        return self.vmcs[ENTRY_INSTRUCTION_LEN] if soft else 0

    # -- arrivals -------------------------------------------------------------------------------------

    def elapse(self, ticks: int) -> None:
        """Let *ticks* units of the VMX-preemption timer pass; it is exact and stops at 0 (O7)."""
        if self.timer < 0:
            return
        self.timer = max(0, self.timer - ticks)
        if self.timer == 0:
            self.pending |= PENDING_TIMER

    def nmi(self) -> None:
        """Latch an NMI; a second one that arrives while one is latched is the same (N2)."""
        self.pending |= PENDING_NMI
