"""``Kvm``: the finished L0, in its default version ``fixed``."""

from nvmx_core.arch.state import WAIT_FOR_SIPI
from nvmx_core.errors import ModelError
from nvmx_core.l0.log import ARRIVAL
from nvmx_core.l0.run_loop import RunLoop
from nvmx_core.l0.save_restore import restore_vcpu, save_vcpu
from nvmx_core.scenario.steps import INIT, INTERRUPT, NMI, SIPI, SMI, TIMER


class Kvm(RunLoop):
    """L0 as the machine around it uses it: arrivals, then ``run``."""

    __slots__ = ()

    def arrive(self, op: int, operand: int) -> None:
        """An event reaches L1's virtual processor: into the queues, and a reason to look at them."""
        self.log.append((ARRIVAL, len(self.journal), op, operand))
        if op == INTERRUPT:
            self.apic.request(operand)
        elif op == NMI:
            self.nmi_pending = True
        elif op == SMI:
            self.smi_pending = True
        elif op == INIT:
            self.init_pending = True
        elif op == SIPI:
            if self.guest_mode and self.mp_state == WAIT_FOR_SIPI:
                self.sipi_vector = operand
        elif op == TIMER:
            self.elapse(operand)
        else:
            raise ModelError(f"no outside step {op}")
        self.request_event_on_arrival(op)
        if self.cpu.non_root:
            self.kick()

    def request_event_on_arrival(self, op: int) -> None:
        """Every arrival makes the next pass look at events."""
        self.request_event = True

    def elapse(self, ticks: int) -> None:
        """Time passes for L1's VMX-preemption timer; it goes on counting in SMM."""
        if self.nested_run_pending and not self.guest_mode:
            self.entry_ticks += ticks
        if self.timer < 0 or not (self.guest_mode or (self.in_smm and self.smm_guest_mode)):
            return
        self.timer = max(0, self.timer - ticks)
        if self.timer == 0:
            self.timer_expired = True

    def save_and_restore(self) -> "Kvm":
        """Userspace saves this vCPU and restores it into a new one of the same kind."""
        saved = save_vcpu(self)
        successor = type(self)(self.config, self.cpu, self.memory, self.l1, self.journal)
        restore_vcpu(successor, saved)
        return successor
