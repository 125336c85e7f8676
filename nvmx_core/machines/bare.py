"""The machine ``bare``: L1 runs on the model processor itself. What it shows is what should be seen."""

from nvmx_core.arch.instructions import INSTRUCTIONS
from nvmx_core.arch.state import ACTIVE
from nvmx_core.cpu.processor_state import (
    PENDING_INIT,
    PENDING_NMI,
    PENDING_SMI,
)
from nvmx_core.errors import ModelError
from nvmx_core.journal import END, L1_NMI, SMM_ENTRY, SMM_RETURN
from nvmx_core.machines.machine import Machine
from nvmx_core.machines.modes import MODE_L1, MODE_L2, MODE_SMM
from nvmx_core.scenario.config import Config
from nvmx_core.scenario.steps import INIT, INTERRUPT, NMI, SIPI, SMI, TIMER


class Bare(Machine):
    """L1 on bare metal: its VMCS is the processor's, its events are the processor's."""

    entering: bool = False

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.checker)

    # -- who runs -------------------------------------------------------------------------------------

    def l1_is_current(self) -> bool:
        cpu = self.cpu
        return not cpu.non_root and not cpu.in_smm

    def l2_may_execute(self) -> bool:
        cpu = self.cpu
        return cpu.non_root and not cpu.in_smm and cpu.activity == ACTIVE

    # -- L1's platform --------------------------------------------------------------------------------

    def l1_take_interrupt(self) -> int:
        cpu = self.cpu
        vector = cpu.apic.deliverable()
        if vector >= 0:
            cpu.apic.acknowledge(vector)
            cpu.update_interrupt_line()
        return vector

    def l1_end_interrupt(self) -> None:
        self.cpu.apic.end_of_interrupt()
        self.cpu.update_interrupt_line()

    def l1_iret(self) -> None:
        self.cpu.root_nmi_blocked = False
        self._root_boundary()

    def l1_changed_tables(self) -> None:
        memory = self.memory
        if self.config.l1_ept:
            self.cpu.load_tables(
                memory.l2_absent, memory.ept12_absent, memory.ept12_misconfigured, 0
            )
        else:
            self.cpu.load_tables(memory.l2_absent, 0, 0, 0)

    # -- running --------------------------------------------------------------------------------------

    def vm_entry(self) -> int:
        vmcs = self.l1.vmcs
        error, _rule = self.cpu.checker.judge_controls(vmcs, self.memory.vtpr)
        if error:
            return error
        if self.armed_at_entry:
            self.entering = True
            self.at_entry()
            self.entering = False
        self.cpu.complete_entry(vmcs)
        self.cpu.entry_ticks = 0
        if not self.cpu.non_root:
            self._after_exit()
        return 0

    def execute(self, instruction: int, operand: int) -> None:
        cpu = self.cpu
        if self.armed_in_emulation and INSTRUCTIONS[instruction].emulated:
            self._execute_emulated(instruction, operand)
        else:
            cpu.execute(instruction, operand)
        if not cpu.non_root:
            self._after_exit()

    def _execute_emulated(self, instruction: int, operand: int) -> None:
        """Arrivals "in emulation" come while the instruction executes, if it executes at all."""
        if self.cpu.would_execute(instruction):
            self.in_emulation()
        self.cpu.execute(instruction, operand)

    def _after_exit(self) -> None:
        self.l1.observe_exit(self.cpu.cr2, self.cpu.dr6)
        self._root_boundary()

    # -- events ---------------------------------------------------------------------------------------

    def arrive(self, op: int, b: int) -> None:
        cpu = self.cpu
        if op == INTERRUPT:
            cpu.apic.request(b)
            cpu.update_interrupt_line()
        elif op == NMI:
            cpu.nmi()
        elif op == SMI:
            cpu.pending |= PENDING_SMI
        elif op == INIT:
            cpu.pending |= PENDING_INIT
        elif op == SIPI:
            cpu.sipi(b)
        elif op == TIMER:
            if self.entering:
                cpu.entry_ticks += b
            cpu.elapse(b)
        else:
            raise ModelError(f"no outside step {op}")

    def settle(self) -> None:
        cpu = self.cpu
        if cpu.non_root:
            cpu.boundary()
            if not cpu.non_root:
                self._after_exit()
        else:
            self._root_boundary()

    def _root_boundary(self) -> None:
        """L1 between two instructions: SMI first, then an NMI through its IDT, not behind MOV SS (B2)."""
        cpu = self.cpu
        if cpu.in_smm:
            return
        if cpu.pending & PENDING_SMI:
            cpu.pending &= ~PENDING_SMI
            cpu.in_smm = True
            self.journal.append((SMM_ENTRY, 0, 0))
        elif cpu.pending & PENDING_NMI and not (cpu.root_nmi_blocked or self.l1.in_mov_ss_shadow):
            cpu.pending &= ~PENDING_NMI
            self.journal.append((L1_NMI,))

    def rsm(self) -> None:
        if not self.cpu.in_smm:
            self.skipped += 1
            return
        self.cpu.in_smm = False
        self.journal.append((SMM_RETURN,))
        self.settle()

    def finish(self) -> None:
        cpu = self.cpu
        mode = MODE_SMM if cpu.in_smm else MODE_L2 if cpu.non_root else MODE_L1
        l2 = (0, 0, 0, 0)
        if cpu.non_root:
            l2 = (cpu.rip, cpu.rflags, cpu.activity, cpu.blocking)
        self.journal.append(
            (
                END,
                mode,
                cpu.apic.irr,
                cpu.apic.isr,
                1 if cpu.pending & PENDING_NMI else 0,
                1 if cpu.root_nmi_blocked and not cpu.non_root else 0,
                1 if cpu.pending & PENDING_INIT else 0,
                1 if cpu.pending & PENDING_SMI else 0,
                *l2,
            )
        )
