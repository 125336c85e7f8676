"""Who handles a hardware exit from L2: L0 itself, or L1.

L0 comes first where it must (its own interrupts and NMIs, its page tables, its immediate exits); what is
left belongs to L1 exactly if L1 asked for it.

Source: Linux, nested_vmx_reflect_vmexit, nested_vmx_l0_wants_exit, nested_vmx_l1_wants_exit,
vmx_complete_interrupts, __vmx_handle_exit.
"""

from typing import Final

from nvmx_core.arch.controls import CPU_MONITOR_TRAP_FLAG
from nvmx_core.arch.events import (
    DB,
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
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    FAILED_ENTRY,
    IDT_VECTORING_ALLOWED,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    MWAIT_EXIT,
    NMI_WINDOW,
    PML_FULL,
    PREEMPTION_TIMER,
    is_soft,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_INTR_INFO,
    EXIT_INSTRUCTION_LEN,
    EXIT_INTR_ERROR_CODE,
    EXIT_INTR_INFO,
    EXIT_QUALIFICATION,
    EXIT_REASON,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_PHYSICAL_ADDRESS,
    GUEST_RFLAGS,
    GUEST_RIP,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    POISON,
)
from nvmx_core.arch.instructions import ARM_MONITOR, EMULATED_BY_REASON, HALT, Instruction
from nvmx_core.arch.state import (
    BLOCKING_BY_NMI,
    HLT,
    INTERRUPT_SHADOW,
    PENDING_DBG_BS,
    PENDING_DBG_VALID,
    RFLAGS_RF,
    RFLAGS_TF,
    pending_dbg_of,
)
from nvmx_core.cpu.processor_state import PENDING_NMI
from nvmx_core.guests.memory import page_of
from nvmx_core.journal import RETIRE
from nvmx_core.l0 import reach
from nvmx_core.l0.injection import DB_TRAP_INFO
from nvmx_core.l0.log import (
    CHECK_ENTRY_FAILED,
    CHECK_VECTORING_WITH_REASON,
    EMULATE,
    HIDDEN_EXIT,
    SLEEP,
)
from nvmx_core.l0.nested_entry import NestedEntry
from nvmx_core.l0.tables import L0_REPAIRS

HOST_EXITS: Final = frozenset({EXTERNAL_INTERRUPT_EXIT, PREEMPTION_TIMER})


class Routing(NestedEntry):
    """The layer that handles hardware exits."""

    __slots__ = ()

    def handle_exit(self) -> None:
        """Everything between a hardware exit from L2 and the next decision to enter."""
        vmcs02 = self.vmcs02
        reason = vmcs02[EXIT_REASON]
        self.host_takes_interrupts()
        if reason & FAILED_ENTRY:
            self.reflect_failed_entry(reason)
            return
        self.complete_interrupts()
        vectoring = vmcs02[IDT_VECTORING_INFO]
        self.log.append((HIDDEN_EXIT, len(self.journal), reason, vectoring))
        if vectoring and reason not in IDT_VECTORING_ALLOWED:
            self.self_check(CHECK_VECTORING_WITH_REASON)
        if reason == EXCEPTION_NMI:
            self.handle_exception(vmcs02[EXIT_INTR_INFO])
        elif reason in HOST_EXITS:
            return
        elif reason == EPT_VIOLATION:
            self.handle_ept_violation()
        elif reason == INTERRUPT_WINDOW or reason == NMI_WINDOW:
            self.handle_window(reason)
        elif reason == MONITOR_TRAP_FLAG:
            # L0's own is not in the controls that L1 and L0 need all the time.
            own = vmcs02[CPU_BASED] & ~self.processor_controls02 & CPU_MONITOR_TRAP_FLAG
            if not own and not self.own_mtf:
                self.mtf_pending = True
            self.own_mtf = False
            self.request_event = True
        else:
            self._handle_instruction_exit(reason)

    def host_takes_interrupts(self) -> None:
        """The host's interrupts and NMIs are handled as soon as L0 runs."""
        cpu = self.cpu
        apic = cpu.apic
        if apic.irr:
            while apic.deliverable() >= 0:
                apic.acknowledge(apic.deliverable())
                apic.end_of_interrupt()
            cpu.update_interrupt_line()
        apic.isr = 0
        cpu.pending &= ~PENDING_NMI

    def complete_interrupts(self) -> None:
        """Derive the events in flight from the exit: the one source of truth about them (S7)."""
        vmcs02 = self.vmcs02
        self.exception_injected = False
        self.nmi_injected = False
        self.interrupt_injected = False
        self.mtf_injected = False
        self.soft_event_holds_traps = False
        info = vmcs02[IDT_VECTORING_INFO]
        if info & VALID:
            self.request_event = True
            error_code = vmcs02[IDT_VECTORING_ERROR_CODE]
            self.requeue(info, error_code, vmcs02[EXIT_INSTRUCTION_LEN])
            self.soft_event_holds_traps = is_soft(info) and vmcs02[GUEST_PENDING_DBG] != 0

    def reflect_failed_entry(self, reason: int) -> None:
        """The processor refused vmcs02's guest state: exit 33 or 34 for L1, after L0's own checks passed."""
        self.self_check(CHECK_ENTRY_FAILED)
        self.clear_queues()
        self.enter_l1_mode()
        self.fail_entry(reason & ~FAILED_ENTRY, self.vmcs02[EXIT_QUALIFICATION])

    def reflect(self, reason: int) -> None:
        """Give the hardware exit to L1 as it is."""
        vmcs02 = self.vmcs02
        info = vmcs02[EXIT_INTR_INFO]
        error_code = vmcs02[EXIT_INTR_ERROR_CODE] if info & ERROR_CODE_VALID else POISON
        self.nested_vmexit(
            reason,
            vmcs02[EXIT_QUALIFICATION],
            info if info & VALID else 0,
            error_code,
            vmcs02[EXIT_INSTRUCTION_LEN],
        )

    # -- exceptions -----------------------------------------------------------------------------------

    def handle_exception(self, info: int) -> None:
        """Exit 0: the host's NMI, L0's own page faults, L1's exceptions, or back to L2."""
        vmcs02 = self.vmcs02
        if info & TYPE_MASK == NMI << TYPE_SHIFT:
            self.reach[reach.HOST_NMI] += 1
            return
        vector = info & VECTOR_MASK
        error_code = vmcs02[EXIT_INTR_ERROR_CODE] if info & ERROR_CODE_VALID else POISON
        if vector == PF and self.l0_needs_page_faults():
            if self._repairs_shadow_tables():
                return
        elif self.l1_intercepts(vector, error_code):
            self.reflect(EXCEPTION_NMI)
            return
        is_trap = vector == DB and info & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
        payload = vmcs02[EXIT_QUALIFICATION]
        self.queue_exception(
            info,
            error_code,
            pending_dbg_of(payload) if is_trap else payload,
            vmcs02[EXIT_INSTRUCTION_LEN] if is_soft(info) else 0,
            is_trap,
        )

    def _repairs_shadow_tables(self) -> bool:
        """Whether a #PF was L0's own doing; then the page is back. Else the fault is L2's."""
        page = page_of(self.vmcs02[EXIT_QUALIFICATION])
        if self.memory.l2_absent >> page & 1:
            self.reach[reach.SHADOW_PAGING_GUEST_FAULT] += 1
            return False
        self.reach[reach.SHADOW_PAGING_REPAIR] += 1
        self.before_resuming(self.vmcs02[EXIT_INTR_INFO])
        self.restore_resume_flag()
        self.repair_page(page)
        return True

    def restore_resume_flag(self) -> None:
        """RF as the frame of the event in flight has to show it: the #PF exit saved its own (X8, D2)."""
        vmcs02 = self.vmcs02
        event = vmcs02[IDT_VECTORING_INFO]
        if not event & VALID:
            return
        if event == self.entered_info:
            rf = self.entered_rf
        else:
            is_fault = event & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
            rf = RFLAGS_RF if is_fault and event & VECTOR_MASK != DB else 0
        vmcs02[GUEST_RFLAGS] = vmcs02[GUEST_RFLAGS] & ~RFLAGS_RF | rf

    # -- memory ---------------------------------------------------------------------------------------

    def handle_ept_violation(self) -> None:
        """Exit 48: what L1's EPT asks for becomes L1's exit; what L0 dropped comes back."""
        vmcs02 = self.vmcs02
        page = page_of(vmcs02[GUEST_PHYSICAL_ADDRESS])
        qualification = vmcs02[EXIT_QUALIFICATION]
        wanted = self.walk_ept12(page, qualification)
        if wanted == L0_REPAIRS:
            self.before_resuming(qualification)
            self.repair_page(page)
        elif wanted == EPT_VIOLATION:
            self.nested_vmexit(EPT_VIOLATION, qualification)
        elif wanted == PML_FULL:
            self.nested_vmexit(PML_FULL, qualification & NMI_UNBLOCKING_BY_IRET)
        else:
            self.nested_vmexit(wanted)

    def before_resuming(self, unblocking: int) -> None:
        """X12: an IRET that L0 runs again had already ended NMI blocking; counts the repair too."""
        vmcs02 = self.vmcs02
        vectoring = vmcs02[IDT_VECTORING_INFO]
        if unblocking & NMI_UNBLOCKING_BY_IRET and not vectoring & VALID:
            self.restore_nmi_blocking()
        if not vectoring & VALID:
            self.restarts_instruction = True
        else:
            counts = self.reach
            counts[reach.REPAIR_IN_DELIVERY] += 1
            if self.has_interrupt() and self.l1_wants_interrupts():
                counts[reach.REPAIR_IN_DELIVERY_INTERRUPT] += 1
            if self.nmi_pending and self.l1_wants_nmis():
                counts[reach.REPAIR_IN_DELIVERY_NMI] += 1
            if vectoring == self.vmcs12[ENTRY_INTR_INFO]:
                counts[reach.REPAIR_IN_DELIVERY_L1_INJECTION] += 1

    def restore_nmi_blocking(self) -> None:
        """X12: the IRET that runs again ends the blocking once more."""
        self.vmcs02[GUEST_INTERRUPTIBILITY] |= BLOCKING_BY_NMI
        self.reach[reach.NMI_UNBLOCKING_RESTORED] += 1

    # -- windows and instructions ---------------------------------------------------------------------

    def handle_window(self, reason: int) -> None:
        """Exits 7 and 8: look again; the check gives L1 its window by rank, L0's own window injects."""
        self.request_event = True

    def _handle_instruction_exit(self, reason: int) -> None:
        instruction = EMULATED_BY_REASON.get(reason)
        if instruction is None or self.l1_wants_instruction(instruction):
            if reason == MWAIT_EXIT and self.monitor_armed:
                self.vmcs02[EXIT_QUALIFICATION] = 1  # L0 took MONITOR: the processor's is not armed
            self.reflect(reason)
        else:
            self.emulate(instruction)

    def l1_wants_instruction(self, instruction: Instruction) -> bool:
        """Whether L1 asked for the exit of an instruction that L0 always intercepts."""
        return self.vmcs12[instruction.exit_field] & instruction.exit_bit != 0

    def emulate(self, instruction: Instruction) -> None:
        """Carry out an L2 instruction in software: operation, RIP, shadow, the traps it owes (I1, I2)."""
        vmcs02 = self.vmcs02
        self.reach[reach.EMULATED_INSTRUCTION] += 1
        self.log.append((EMULATE, len(self.journal), instruction.exit_reason))
        self.cpu.platform.in_emulation()
        if instruction.action == HALT:
            self.mp_state = HLT
            self.reach[reach.SLEEP] += 1
            self.log.append((SLEEP, len(self.journal), HLT))
        elif instruction.action == ARM_MONITOR:
            self.monitor_armed = True
        vmcs02[GUEST_RIP] += vmcs02[EXIT_INSTRUCTION_LEN]
        vmcs02[GUEST_INTERRUPTIBILITY] &= ~INTERRUPT_SHADOW
        self.journal.append((RETIRE, vmcs02[GUEST_RIP]))
        self.owe_debug_trap()
        self.owe_mtf()

    def owe_debug_trap(self) -> None:
        """The single-step trap of an emulated instruction, with any trap that MOV SS had held back."""
        vmcs02 = self.vmcs02
        pending_dbg = vmcs02[GUEST_PENDING_DBG]
        if vmcs02[GUEST_RFLAGS] & RFLAGS_TF:
            pending_dbg |= PENDING_DBG_BS
        if not pending_dbg & PENDING_DBG_VALID:
            return
        vmcs02[GUEST_PENDING_DBG] = 0
        self.reach[reach.DEBUG_TRAP_BY_L0] += 1
        self.queue_exception(DB_TRAP_INFO, POISON, pending_dbg, 0, True)

    def owe_mtf(self) -> None:
        """M1: the MTF exit of an emulated instruction."""
        if self.vmcs12[CPU_BASED] & CPU_MONITOR_TRAP_FLAG:
            self.mtf_pending = True
            self.request_event = True
