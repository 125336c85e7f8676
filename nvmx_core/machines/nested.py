"""The machine ``nested``: L1 runs on our L0, L0 on the model processor."""

from typing import Final

from nvmx_core.arch.fields import GUEST_INTERRUPTIBILITY, GUEST_RFLAGS, GUEST_RIP
from nvmx_core.arch.state import RFLAGS_RF
from nvmx_core.cpu.apic import NO_VECTOR
from nvmx_core.cpu.processor import Processor
from nvmx_core.errors import ModelError
from nvmx_core.guests.memory import PAGE_COUNT
from nvmx_core.journal import END
from nvmx_core.l0 import reach
from nvmx_core.l0.audit import overdue_events
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.log import RAN_PAST
from nvmx_core.l0.run_loop import ROUND_TRIPS_MAX
from nvmx_core.machines.machine import Machine
from nvmx_core.machines.modes import MODE_DEAD, MODE_L1, MODE_L2, MODE_SMM
from nvmx_core.scenario.config import Config
from nvmx_core.scenario.steps import (
    CANCEL_ENTRY,
    DROP_PAGE,
    HOST_INTERRUPT,
    HOST_NMI,
    NOW,
    SAVE_RESTORE,
)

HOST_VECTOR: Final = 0xEE
STARTS_MAX: Final = 2 * PAGE_COUNT
"""How often an instruction may start: L0 repairs a page each time, and it needs two at most."""


class Nested(Machine):
    """L1's processor is a vCPU of L0. ``l0`` is the class of L0: ``Kvm``, or one with bugs put back.

    ``log_starts[i]`` is the length of L0's log before step i, as ``step_starts`` is for the journal.
    """

    def __init__(self, config: Config, l0: type[Kvm] = Kvm) -> None:
        super().__init__(config, config.host_checker)
        self.vcpu: Kvm = l0(config, self.cpu, self.memory, self.l1, self.journal)
        self.log_starts: list[int] = []

    def mark_step(self) -> None:
        self.step_starts.append(len(self.journal))
        self.log_starts.append(len(self.vcpu.log))

    # -- who runs -------------------------------------------------------------------------------------

    def l1_is_current(self) -> bool:
        vcpu = self.vcpu
        return not (vcpu.guest_mode or vcpu.in_smm or vcpu.dead)

    def l2_may_execute(self) -> bool:
        return self.cpu.non_root

    # -- L1's platform --------------------------------------------------------------------------------

    def l1_take_interrupt(self) -> int:
        vcpu = self.vcpu
        return vcpu.take_interrupt() if vcpu.has_interrupt() else NO_VECTOR

    def l1_end_interrupt(self) -> None:
        self.vcpu.apic.end_of_interrupt()

    def l1_iret(self) -> None:
        self.vcpu.l1_nmi_blocked = False
        self.vcpu.enter_l1()

    def l1_changed_tables(self) -> None:
        self.vcpu.load_tables()

    # -- running --------------------------------------------------------------------------------------

    def vm_entry(self) -> int:
        error = self.vcpu.nested_vmx_run()
        if not error:
            self.drive()
        return error

    def execute(self, instruction: int, operand: int) -> None:
        """Run an instruction; one that met a page which L0 had dropped runs again from its start."""
        runs = True
        starts = 0
        while runs:
            runs = False
            starts += 1
            if starts > STARTS_MAX:
                self.vcpu.give_up(starts)
                return
            vcpu = self.vcpu
            overdue = overdue_events(vcpu)
            if overdue:
                vcpu.log.append((RAN_PAST, len(self.journal), overdue))
            self.cpu.execute(instruction, operand)
            if not self.cpu.non_root:
                vcpu.restarts_instruction = False
                vcpu.handle_exit()
                runs = vcpu.restarts_instruction
                self.drive()
                runs = runs and self.cpu.non_root

    def drive(self) -> None:
        """Let L0 run until it rests, and do what it wants of userspace in between.

        Userspace hands over an interrupt of its APIC, or saves and restores the vCPU. An L0 that wants
        nothing but userspace again makes no progress (S1).
        """
        self.vcpu.run()
        returns = 0
        while (self.vcpu.userspace_exit or self.vcpu.asks_userspace) and not self.vcpu.dead:
            returns += 1
            if returns > ROUND_TRIPS_MAX:
                self.vcpu.give_up(returns)
                return
            if self.vcpu.asks_userspace:
                self._hand_over_interrupt()
            else:
                self.vcpu.userspace_exit = False
                self._replace_vcpu()
            self.vcpu.run()

    def _hand_over_interrupt(self) -> None:
        """Userspace acknowledges at its APIC; asked without an interrupt it has none to hand over."""
        apic = self.vcpu.apic
        vector = apic.deliverable()
        if vector == NO_VECTOR:
            self.vcpu.asks_userspace = False
            return
        apic.acknowledge(vector)
        self.vcpu.queue_userspace_interrupt(vector)

    def _replace_vcpu(self) -> None:
        self.vcpu = self.vcpu.save_and_restore()

    # -- events ---------------------------------------------------------------------------------------

    def arrive(self, op: int, b: int) -> None:
        self.vcpu.arrive(op, b)

    def settle(self) -> None:
        cpu = self.cpu
        if cpu.non_root:
            cpu.boundary()
            if cpu.non_root:
                return
            self.vcpu.handle_exit()
        self.drive()

    def refuses_entry_behind_mov_ss(self) -> bool:
        return self.vcpu.refuses_entry_behind_mov_ss()

    def in_delivery(self) -> None:
        self.vcpu.reach[reach.ARRIVAL_IN_DELIVERY] += 1
        self.fire(self.armed_in_delivery)

    def at_entry(self) -> None:
        if self.armed_at_entry:
            self.vcpu.reach[reach.ARRIVAL_AT_ENTRY] += 1
            self.fire(self.armed_at_entry)

    def in_emulation(self) -> None:
        if self.armed_in_emulation:
            self.vcpu.reach[reach.ARRIVAL_IN_EMULATION] += 1
            self.fire(self.armed_in_emulation)

    def rsm(self) -> None:
        if not self.vcpu.in_smm:
            self.skipped += 1
            return
        self.vcpu.leave_smm()
        self.drive()

    def hidden_step(self, op: int, a: int) -> None:
        vcpu = self.vcpu
        if op == DROP_PAGE:
            self.memory.l0_absent |= 1 << a
            vcpu.load_tables()
        elif op == CANCEL_ENTRY:
            vcpu.cancel_armed = True
        elif op == HOST_INTERRUPT:
            self._host_interrupt()
        elif op == HOST_NMI:
            if self.cpu.non_root:
                self.cpu.nmi()
                self.settle()
        elif op == SAVE_RESTORE:
            vcpu.userspace_exit = True
            if self.cpu.non_root:
                vcpu.kick()
            if a == NOW:
                self.settle()
        else:
            raise ModelError(f"no L0 step {op}")

    def _host_interrupt(self) -> None:
        cpu = self.cpu
        if cpu.non_root:
            self.vcpu.reach[reach.HOST_INTERRUPT] += 1
            cpu.apic.request(HOST_VECTOR)
            cpu.update_interrupt_line()
            self.settle()

    # -- the end --------------------------------------------------------------------------------------

    def finish(self) -> None:
        vcpu = self.vcpu
        cpu = self.cpu
        mode = MODE_L1
        l2 = (0, 0, 0, 0)
        if vcpu.dead:
            mode = MODE_DEAD
        elif vcpu.in_smm:
            mode = MODE_SMM
        if (mode == MODE_SMM and vcpu.smm_guest_mode) or (mode == MODE_L1 and vcpu.guest_mode):
            mode = MODE_SMM if vcpu.in_smm else MODE_L2
            l2 = self._l2_state(vcpu, cpu)
        self.journal.append(
            (
                END,
                mode,
                vcpu.apic.irr,
                vcpu.apic.isr,
                1 if vcpu.nmi_pending else 0,
                1 if vcpu.l1_nmi_blocked and not vcpu.guest_mode and not vcpu.smm_guest_mode else 0,
                1 if vcpu.init_pending else 0,
                1 if vcpu.smi_pending else 0,
                *l2,
            )
        )

    def _l2_state(self, vcpu: Kvm, cpu: Processor) -> tuple[int, int, int, int]:
        if cpu.non_root:
            return cpu.rip, cpu.rflags, cpu.activity, vcpu.l2_blocking(cpu.blocking)
        vmcs = vcpu.vmcs12 if vcpu.in_smm else vcpu.vmcs02
        return (
            vmcs[GUEST_RIP],
            vmcs[GUEST_RFLAGS] & ~RFLAGS_RF,
            vcpu.mp_state,
            vcpu.l2_blocking(vmcs[GUEST_INTERRUPTIBILITY]),
        )
