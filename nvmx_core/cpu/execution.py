"""One L2 instruction: privilege, intercept, operation, retirement.

Every instruction goes the same way: fetch -> privilege (P15) -> VM exit -> operation -> RIP, shadow, debug
trap, monitor trap -> boundary.

Source: SDM, "Instructions That Cause VM Exits", "Changes to Instruction Behavior in VMX Non-Root Operation".
"""

from nvmx_core.arch.controls import (
    CPU_MONITOR_TRAP_FLAG,
    CPU_TPR_SHADOW,
)
from nvmx_core.arch.events import (
    BP,
    DB,
    GP,
    OF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_SHIFT,
    UD,
    VALID,
)
from nvmx_core.arch.exits import (
    EOI_INDUCED,
    EPT_FETCH,
    EPT_READ,
    EPT_WRITE,
    IO_INSTRUCTION,
    MONITOR_EXIT,
    MOV_DR_EXIT,
    MWAIT_EXIT,
    TASK_SWITCH,
    TASK_SWITCH_BY_IRET,
    TPR_BELOW_THRESHOLD,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    EOI_EXIT_BITMAP,
    GUEST_INTR_STATUS,
    POISON,
    TPR_THRESHOLD,
)
from nvmx_core.arch.instructions import (
    ALWAYS,
    APIC_EOI,
    ARM_MONITOR,
    BREAKPOINT,
    CLEAR_IF,
    FAULT,
    FAULT_ERROR_CODE,
    HALT,
    ICEBP,
    INSTRUCTIONS,
    INTERRUPT_RETURN,
    LOAD_SS,
    MEMORY_READ,
    MEMORY_WRITE,
    NEVER,
    NOTHING,
    OVERFLOW,
    POP_FLAGS,
    SET_IF,
    SOFT_INTERRUPT,
    WRITE_TPR,
    Instruction,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    INTERRUPT_SHADOW,
    PENDING_DBG_BS,
    RFLAGS_FIXED,
    RFLAGS_IF,
    RFLAGS_IOPL,
    RFLAGS_IOPL_SHIFT,
    RFLAGS_NT,
    RFLAGS_OF,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VIF,
    RFLAGS_VIP,
)
from nvmx_core.arch.virtual_apic import tpr_is_below_threshold
from nvmx_core.cpu.boundary import Boundary
from nvmx_core.cpu.delivery import DONE, EXITED
from nvmx_core.cpu.processor_state import PENDING_MTF, PENDING_TRAP_EXIT
from nvmx_core.errors import ModelError
from nvmx_core.guests.memory import (
    CODE,
    CODE_BASE,
    DATA,
    GDT,
    HANDLER,
    HANDLER_BASE,
    OLD_TASK_SELECTOR,
    STACK,
    TSS,
    Frame,
)
from nvmx_core.journal import RETIRE

_UD_OUTSIDE_CPL_0 = (MWAIT_EXIT, MONITOR_EXIT)

POPF_FLAGS = RFLAGS_IF | RFLAGS_TF | RFLAGS_OF

_KEPT_OUTSIDE_CPL_0 = RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP

BOTTOM_FLAGS = RFLAGS_FIXED | RFLAGS_IF
"""The flags that IRET pops from an empty stack, with the start of L2's program as return address."""


class Execution(Boundary):
    """The layer that executes L2's instructions."""

    __slots__ = ()

    def execute(self, index: int, operand: int) -> None:
        """Execute one instruction of the table in active non-root operation, then its boundary.

        *operand* is the vector of INT n, the flags of POPF, the class of MOV CR8; others ignore it.
        """
        instruction = INSTRUCTIONS[index]
        if self.unusual_pages and not self._fetch():
            pass
        elif instruction.privileged and self.cpl and self._faults_by_privilege(instruction):
            self.fault_error_code = 0
            self.raise_fault(UD if instruction.exit_reason in _UD_OUTSIDE_CPL_0 else GP)
        elif self._is_intercepted(instruction):
            qualification = instruction.qualification
            if instruction.exit_reason == MWAIT_EXIT and self.monitor_armed:
                qualification = 1
            self.vm_exit(instruction.exit_reason, qualification, instruction.length)
        else:
            self._operate(instruction, operand)
        self.boundary()

    def would_execute(self, index: int) -> bool:
        """Whether an instruction would neither fault before it executes nor exit."""
        instruction = INSTRUCTIONS[index]
        page = 1 << (CODE if self.rip < HANDLER_BASE else HANDLER)
        absent = self.ept_absent | self.ept_misconfigured
        if not self.real_mode:
            absent |= self.pt_absent
        return (
            not absent & page
            and not (instruction.privileged and self.cpl and self._faults_by_privilege(instruction))
            and not self._is_intercepted(instruction)
        )

    def _faults_by_privilege(self, instruction: Instruction) -> bool:
        """P15: whether a privileged instruction faults outside CPL 0.

        STI, CLI, IN and OUT depend on IOPL; the exit of MOV DR comes before its fault.
        """
        if instruction.action in (SET_IF, CLEAR_IF) or instruction.exit_reason == IO_INSTRUCTION:
            return self.cpl > self._iopl()
        return instruction.exit_reason != MOV_DR_EXIT or not self._is_intercepted(instruction)

    def _iopl(self) -> int:
        return (self.rflags & RFLAGS_IOPL) >> RFLAGS_IOPL_SHIFT

    def _fetch(self) -> bool:
        outcome = self.touch(CODE if self.rip < HANDLER_BASE else HANDLER, EPT_FETCH)
        if outcome == DONE:
            return True
        if outcome != EXITED:
            self.raise_fault(outcome, self.fault_payload)
        return False

    def _is_intercepted(self, instruction: Instruction) -> bool:
        field = instruction.exit_field
        if field == NEVER:
            return False
        return field == ALWAYS or self.vmcs[field] & instruction.exit_bit != 0

    def _operate(self, instruction: Instruction, operand: int) -> None:
        action = instruction.action
        length = instruction.length
        single_step = self.rflags & RFLAGS_TF
        shadow = self.blocking & INTERRUPT_SHADOW
        next_rip = self.rip + length
        if action == NOTHING:
            pass
        elif action == FAULT:
            self.fault_error_code = FAULT_ERROR_CODE
            self.raise_fault(instruction.fault)
            return
        elif action <= ICEBP and action != HALT:
            if action != OVERFLOW or self.rflags & RFLAGS_OF:
                self._soft_event(action, operand, length)
                return
        elif action == MEMORY_READ or action == MEMORY_WRITE:
            if not self._access(DATA, EPT_WRITE if action == MEMORY_WRITE else EPT_READ):
                return
        elif action == INTERRUPT_RETURN and self.rflags & RFLAGS_NT and not self.real_mode:
            if self._finds_old_task():
                self.vm_exit(TASK_SWITCH, OLD_TASK_SELECTOR | TASK_SWITCH_BY_IRET, length)
            return
        elif action == INTERRUPT_RETURN:
            frame = self._pop_frame()
            if frame is None:
                return
            next_rip, self.rflags, self.cpl = frame
        else:
            self.perform(instruction, operand)
        self.retire(next_rip, single_step, shadow)

    def retire(self, next_rip: int, single_step: int, shadow: int) -> None:
        """Complete an instruction: RIP, the end of the shadow it ran in, the traps it leaves pending.

        *single_step* is TF and *shadow* the interrupt shadow as they were before the instruction (B9).
        """
        self.rip = next_rip
        self.blocking &= ~shadow
        if single_step:
            self.pending_dbg |= PENDING_DBG_BS
        if self.vmcs[CPU_BASED] & CPU_MONITOR_TRAP_FLAG:
            self.pending |= PENDING_MTF
        self.journal.append((RETIRE, next_rip))

    def _soft_event(self, action: int, operand: int, length: int) -> None:
        if action == SOFT_INTERRUPT:
            info = VALID | SOFTWARE_INTERRUPT << TYPE_SHIFT | operand & 0xFF
            self.deliver(info, POISON, length, 0)
            return
        if action == ICEBP:
            info = VALID | PRIVILEGED_SOFTWARE_EXCEPTION << TYPE_SHIFT | DB
        else:
            vector = BP if action == BREAKPOINT else OF
            info = VALID | SOFTWARE_EXCEPTION << TYPE_SHIFT | vector
        self.raise_exception(info, POISON, 0, length, 0)

    def _access(self, page: int, access: int) -> bool:
        outcome = self.touch(page, access)
        if outcome == DONE:
            return True
        if outcome != EXITED:
            self.raise_fault(outcome, self.fault_payload)
        return False

    def _pop_frame(self) -> Frame | None:
        """N1, X12: IRET ends the blocking of NMIs first, then reads the frame and may fault."""
        self.nmi_unblocked_by_iret = 1 if self._unblock_nmi() else 0
        frame = self._read_frame()
        self.nmi_unblocked_by_iret = 0
        return frame

    def _finds_old_task(self) -> bool:
        """X12: the link to the old task and its TSS descriptor are read before exit 9, and may fault."""
        self.nmi_unblocked_by_iret = 1 if self._unblock_nmi() else 0
        found = self._access(TSS, EPT_READ) and self._access(GDT, EPT_READ)
        self.nmi_unblocked_by_iret = 0
        return found

    def _unblock_nmi(self) -> bool:
        """N1: what IRET does first, whatever becomes of it; whether NMIs had been blocked."""
        if not self.blocking & BLOCKING_BY_NMI or not self.iret_unblocks_nmi():
            return False
        self.blocking &= ~BLOCKING_BY_NMI
        return True

    def _read_frame(self) -> Frame | None:
        """The frame on top of the stack: it cannot raise the privilege.

        Outside CPL 0 it leaves IOPL, VIF and VIP alone, and IF too unless CPL <= IOPL; in real mode CPL
        stays 0, whatever the frame says (SDM: IRET).
        """
        if not self._access(STACK, EPT_READ):
            return None
        depth = min(self.rsp, len(self.memory.frames))
        if depth:
            rip, rflags, cpl = self.memory.frames[depth - 1]
        else:
            rip, rflags, cpl = CODE_BASE, BOTTOM_FLAGS, self.cpl
        if self.real_mode:
            cpl = 0
        elif cpl < self.cpl:
            self.fault_error_code = 0
            self.raise_fault(GP)
            return None
        if self.cpl:
            kept = _KEPT_OUTSIDE_CPL_0
            if self.cpl > self._iopl():
                kept |= RFLAGS_IF
            rflags = rflags & ~kept | self.rflags & kept
        self.rsp = max(depth - 1, 0)
        return rip, rflags, cpl

    def perform(self, instruction: Instruction, operand: int) -> None:
        """The operation of the instructions that neither fault nor jump."""
        action = instruction.action
        if action == NOTHING:
            return
        if action == HALT:
            self.activity = HLT
        elif action == SET_IF:
            if not self.rflags & RFLAGS_IF:
                self.rflags |= RFLAGS_IF
                self.blocking |= BLOCKING_BY_STI
        elif action == CLEAR_IF:
            self.rflags &= ~RFLAGS_IF
        elif action == POP_FLAGS:
            self._pop_flags(operand)
        elif action == LOAD_SS:
            if not self.blocking & BLOCKING_BY_MOV_SS:
                self.blocking |= BLOCKING_BY_MOV_SS
        elif action == WRITE_TPR:
            self._write_tpr(operand & 0xF)
        elif action == ARM_MONITOR:
            self.monitor_armed = True
        elif action == APIC_EOI:
            self._end_of_interrupt()
        else:
            raise ModelError(f"no operation for {instruction.name}")

    def _pop_flags(self, operand: int) -> None:
        """Operand bits 0, 1, 2 are IF, TF, OF; IF changes only if CPL <= IOPL."""
        writable = POPF_FLAGS if self.cpl <= self._iopl() else POPF_FLAGS & ~RFLAGS_IF
        flags = 0
        if operand & 1:
            flags |= RFLAGS_IF
        if operand & 2:
            flags |= RFLAGS_TF
        if operand & 4:
            flags |= RFLAGS_OF
        self.rflags = self.rflags & ~writable & ~RFLAGS_RF | flags & writable

    def _write_tpr(self, tpr_class: int) -> None:
        """MOV to CR8 under the TPR shadow: VTPR changes, then evaluation or the threshold trap (P2)."""
        vmcs = self.vmcs
        if not vmcs[CPU_BASED] & CPU_TPR_SHADOW:
            return
        self.memory.vtpr = tpr_class << 4
        if self.uses_virtual_interrupts():
            self.evaluate_virtual_interrupts()
        elif tpr_is_below_threshold(self.memory.vtpr, vmcs[TPR_THRESHOLD]):
            self._trap_exit(TPR_BELOW_THRESHOLD, 0)

    def _end_of_interrupt(self) -> None:
        """EOI virtualization (K4): the vector in service ends; exit 45 if the host asked for it."""
        if not self.uses_virtual_interrupts():
            return
        memory = self.memory
        status = self.vmcs[GUEST_INTR_STATUS]
        vector = status >> 8
        memory.visr &= ~(1 << vector)
        in_service = max(memory.visr.bit_length() - 1, 0)
        self.vmcs[GUEST_INTR_STATUS] = in_service << 8 | status & 0xFF
        if self.vmcs[EOI_EXIT_BITMAP] >> vector & 1:
            self._trap_exit(EOI_INDUCED, vector)
        self.evaluate_virtual_interrupts()

    def _trap_exit(self, reason: int, qualification: int) -> None:
        self.trap_exit_reason = reason
        self.trap_exit_qualification = qualification
        self.pending |= PENDING_TRAP_EXIT
