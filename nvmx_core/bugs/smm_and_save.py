"""Bugs of SMM, and of saving and restoring a vCPU that runs L2."""

from nvmx_core.arch.exits import is_soft
from nvmx_core.l0.kvm import Kvm


class Bug56(Kvm):
    """RSM into L2 was not an entry that has to complete.

    With an interrupt pending, L1 gets its exit before the L2 that RSM returned to was entered.

    Commit 759cbd59674a, "KVM: x86: nSVM/nVMX: set nested_run_pending on VM entry which is a result of RSM";
    from about 4.14, fixed in about 5.15; breaks V11.
    """

    __slots__ = ()

    def set_run_pending_after_rsm(self) -> None:
        """Nothing is pending."""


class Bug55b(Kvm):
    """A restored vCPU started L1's timer again, with the value of the VMCS.

    Exit 52 comes too late. On bare metal the deadline is fixed at the entry (O7).

    Commit 850448f35aaf, "KVM: nVMX: Fix VMX preemption timer migration"; from 3.1, fixed in 5.8; breaks
    V11.
    """

    __slots__ = ()

    def save_and_restore(self) -> Kvm:
        successor = super().save_and_restore()
        if successor.guest_mode:
            successor.start_timer()
        return successor


class Bug58(Kvm):
    """Whether an entry was still to complete was not saved.

    L1's injection is lost or done twice; an accepted entry injects exactly once (D6).

    Commit 6514dc380d35, "KVM: nVMX: Use nested_run_pending rather than from_vmentry"; from about 4.20,
    fixed in about 5.0; breaks V11.
    """

    __slots__ = ()

    def save_and_restore(self) -> Kvm:
        successor = super().save_and_restore()
        successor.nested_run_pending = False
        return successor


class Bug59(Kvm):
    """A triple fault that had not become an exit yet was not saved.

    L2 goes on as if nothing had happened; on bare metal L1 gets exit 2 (F4).

    Commit "KVM: x86: Extend KVM_{G,S}ET_VCPU_EVENTS to support pending triple fault"; from 3.1, fixed in
    about 6.0; breaks V11.
    """

    __slots__ = ()

    def save_and_restore(self) -> Kvm:
        successor = super().save_and_restore()
        successor.request_triple_fault = False
        return successor


class Res7b(Kvm):
    """An MTF exit that was owed when an SMI came is not owed any more after RSM (B8).

    L2 runs on; on bare metal exit 37 comes at the boundary that RSM returns to.

    In short, "An MTF exit that is owed is lost by an SMI"; from about 6.1, not fixed in 6.12; breaks V11.
    """

    __slots__ = ()

    def enter_smm(self) -> None:
        super().enter_smm()
        self.mtf_pending = False


class Res11(Kvm):
    """Soft interrupts and soft exceptions in flight are not saved; the instruction would raise them again.

    L1 injected them, so there is no such instruction, and they are lost (D6).

    In short, "Userspace save drops soft events in flight"; from about 3.10, not fixed in 6.12; breaks V2.
    """

    __slots__ = ()

    def save_and_restore(self) -> Kvm:
        successor = super().save_and_restore()
        if is_soft(successor.interrupt_info):
            successor.interrupt_injected = False
        if is_soft(successor.exception_info):
            successor.exception_injected = False
        return successor
