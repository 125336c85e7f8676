"""The loop of L0: one pass evaluates what is pending, enters, and handles the exit (S1-S9).

An immediate exit is a VMX-preemption timer of 0 in vmcs02, executed by the processor: the injection
completes, pending debug traps come first (P7), then the processor is back (P8). The request to look at
events again is raised at the same time, else the exit would be for nothing.

Source: Linux, vcpu_run, vcpu_enter_guest, vmx_vcpu_run, kvm_vcpu_block.
"""

from typing import Final

from nvmx_core.arch.controls import CPU_MONITOR_TRAP_FLAG
from nvmx_core.arch.events import VALID
from nvmx_core.arch.exits import TRIPLE_FAULT, is_soft
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_INTR_INFO,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    VM_INSTRUCTION_ERROR,
)
from nvmx_core.arch.state import ACTIVE, BLOCKING_BY_MOV_SS, HLT, RFLAGS_RF, WAIT_FOR_SIPI
from nvmx_core.journal import L1_NMI, L1_SPURIOUS_EVENT, SMM_ENTRY, VM_DEAD, VMFAIL
from nvmx_core.l0 import reach
from nvmx_core.l0.audit import NO_RANK, highest_rank, waiting_events
from nvmx_core.l0.log import (
    CHECK_ENTRY_FAILED,
    CHECK_EVENT_FOR_L1,
    HARDWARE_ENTRY,
    INJECT,
    KICK,
    STUCK,
    WAKE,
)
from nvmx_core.l0.routing import Routing

KICK_VECTOR: Final = 0xFC
TIMER_IDLE: Final = 1 << 31
ROUND_TRIPS_MAX: Final = 64
"""Passes of the loop, or returns to userspace, between two moments of rest; more are no progress."""


class RunLoop(Routing):
    """The outermost layer: runs until L1 acts, L2 executes or sleeps, or userspace is wanted."""

    __slots__ = ()

    def run(self) -> None:
        """Run until nothing more happens by itself."""
        self.round_trips = 0
        while not (self.userspace_exit or self.asks_userspace or self.in_smm or self.dead):
            self.round_trips += 1
            if self.round_trips > ROUND_TRIPS_MAX:
                self.give_up(self.round_trips)
                return
            if not self.guest_mode:
                self.enter_l1()
                return
            if self.mp_state != ACTIVE:
                if not self.block():
                    return
            elif self.enter_guest():
                return

    def give_up(self, round_trips: int) -> None:
        """L0 goes round in circles; the virtual machine is stopped so that the run can end."""
        self.log.append((STUCK, len(self.journal), round_trips))
        self.journal.append((VM_DEAD, 0))
        self.dead = True
        self.cpu.non_root = False

    # -- one pass -------------------------------------------------------------------------------------

    def enter_guest(self) -> bool:
        """S2-S8: one pass; True when L2 is in the processor and nothing is pending there."""
        if self.request_triple_fault and self.triple_fault_exits():
            self.exit_for_triple_fault()
            return False
        immediate = False
        if self.request_event:
            self.request_event = False
            immediate = self.check_and_inject_events()
            if not self.guest_mode or self.asks_userspace:
                return False
        if self.cancel_armed:
            self.cancel_armed = False
            self.cancel_injection(immediate)
            return False
        self.hardware_entry(immediate)
        if self.cpu.non_root:
            return True
        if self.guest_mode:
            self.handle_exit()
        return False

    def triple_fault_exits(self) -> bool:
        """F4: a triple fault is an exit for L1, after an accepted entry has completed."""
        return not self.nested_run_pending

    def exit_for_triple_fault(self) -> None:
        """F4: L2's triple fault ends L2, not L1."""
        self.request_triple_fault = False
        self.nested_vmexit(TRIPLE_FAULT)

    def hardware_entry(self, immediate: bool) -> None:
        """S6: enter vmcs02; with an immediate exit its timer is 0."""
        vmcs02 = self.vmcs02
        vmcs02[GUEST_PREEMPTION_TIMER] = TIMER_IDLE
        if immediate:
            self.request_immediate_exit()
        if self.kick_after_entry:
            self.kick_after_entry = False
            self.kick()
        self._log_entry(vmcs02[GUEST_PREEMPTION_TIMER] == 0)
        self.entered_info = vmcs02[ENTRY_INTR_INFO]
        self.entered_rf = vmcs02[GUEST_RFLAGS] & RFLAGS_RF
        error = self.cpu.vm_entry(vmcs02)
        self.nested_run_pending = False
        if self.cpu.non_root:
            self.entered_info = 0
        if error:
            self.late_vmfail(error)

    def request_immediate_exit(self) -> None:
        """A timer of 0, and the evaluation after the exit requested together with it (V10)."""
        vmcs02 = self.vmcs02
        vmcs02[GUEST_PREEMPTION_TIMER] = 0
        if vmcs02[GUEST_PENDING_DBG] and self._debug_traps_outlive_injection():
            vmcs02[CPU_BASED] |= CPU_MONITOR_TRAP_FLAG
        self.request_event = True
        counts = self.reach
        counts[reach.IMMEDIATE_EXIT] += 1
        if self.nested_run_pending:
            counts[reach.IMMEDIATE_EXIT_RUN_PENDING] += 1
        if self.needs_reinjection():
            counts[reach.IMMEDIATE_EXIT_REINJECTION] += 1
        if self.timer_expired:
            counts[reach.IMMEDIATE_EXIT_TIMER] += 1
        if self.mtf_pending:
            counts[reach.IMMEDIATE_EXIT_MTF] += 1

    def _debug_traps_outlive_injection(self) -> bool:
        """O6: whether traps that MOV SS holds would come between a soft event and the immediate exit.

        They outrank the timer (P7, P8). When an SMI, INIT or MTF exit waits, which outranks them (P4-P6),
        L0 uses an MTF of its own, which comes behind the delivery and before the traps (M1).
        """
        vmcs02 = self.vmcs02
        info = vmcs02[ENTRY_INTR_INFO]
        if not (info & VALID and is_soft(info)):
            return False
        if not vmcs02[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_MOV_SS:
            return False
        return self.waits_above_debug_traps()

    def _log_entry(self, immediate: bool) -> None:
        self.log.append(
            (
                HARDWARE_ENTRY,
                len(self.journal),
                self.vmcs02[ENTRY_INTR_INFO],
                1 if immediate else 0,
                1 if self.nested_run_pending else 0,
                1 if self.needs_reinjection() else 0,
                waiting_events(self),
                1 if self.request_event else 0,
                highest_rank(self) if self.log and self.log[-1][0] == INJECT else NO_RANK,
            )
        )

    def late_vmfail(self, error: int) -> None:
        """The processor refuses vmcs02's controls: VMfailValid for L1, which goes on after its VMLAUNCH."""
        self.self_check(CHECK_ENTRY_FAILED)
        self.clear_queues()
        self.enter_l1_mode()
        self.vmcs12[VM_INSTRUCTION_ERROR] = error
        self.journal.append((VMFAIL, error))
        self.l1.observe_vmfail(error)

    def kick(self) -> None:
        """Make the processor leave L2 at the next boundary, by an interrupt of the host."""
        cpu = self.cpu
        cpu.apic.request(KICK_VECTOR)
        cpu.update_interrupt_line()
        self.log.append((KICK, len(self.journal)))

    # -- L2 asleep ------------------------------------------------------------------------------------

    def block(self) -> bool:
        """S9: L2 sleeps in L0's hands. True when the loop has something to do again.

        What L1 gets comes before L2 wakes, so that the exit records the activity L2 was in (Y4).
        """
        self.check_before_waking()
        if not self.guest_mode or self.asks_userspace:
            return True
        if self.smi_pending and self.mp_state != WAIT_FOR_SIPI:
            self.enter_smm()
            return True
        if not self.has_wake_event():
            return False
        self.log.append((WAKE, len(self.journal), self.mp_state))
        self.reach[reach.WAKE] += 1
        self.mp_state = ACTIVE
        self.request_event = True
        return True

    def check_before_waking(self) -> None:
        """The nested-event check of a sleeping L2."""
        self.check_nested_events()

    def has_wake_event(self) -> bool:
        """Whether something for L2 itself ends its sleep (the table of activity states)."""
        if self.exception_pending:
            return True
        if self.mp_state == WAIT_FOR_SIPI:
            return False
        if self.nmi_pending and not self.l1_wants_nmis() and not self.nmi_blocked():
            return True
        if self.mp_state != HLT or not self.interrupts_open():
            return False
        if self.has_virtual_interrupt():
            return True
        return self.has_interrupt() and not self.l1_wants_interrupts()

    # -- L1 -------------------------------------------------------------------------------------------

    def enter_l1(self) -> None:
        """L1 goes on: SMI first, then an NMI through its IDT, not behind MOV SS (B2).

        Interrupts wait until L1 opens them.
        """
        self.request_event = False
        self._expect_no_event_of_l2()
        if self.smi_pending:
            self.smi_pending = False
            self.in_smm = True
            self.smm_guest_mode = False
            self.journal.append((SMM_ENTRY, 0, 0))
        elif self.nmi_pending and not (self.l1_nmi_blocked or self.l1.in_mov_ss_shadow):
            self.nmi_pending = False
            self.journal.append((L1_NMI,))

    def _expect_no_event_of_l2(self) -> None:
        """V6: whatever is still queued would be injected into L1."""
        if not (self.needs_reinjection() or self.exception_pending):
            return
        self.self_check(CHECK_EVENT_FOR_L1)
        info = self.exception_info if not self.interrupt_injected else self.interrupt_info
        self.journal.append((L1_SPURIOUS_EVENT, info))
        self.clear_queues()
