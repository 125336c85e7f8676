"""Bugs of SMM, and of saving and restoring a vCPU that runs L2."""

from nvmx_core.arch.exits import is_soft
from nvmx_core.l0.kvm import Kvm


class Bug56(Kvm):
    """RSM into L2 was not an entry that has to complete.

    With an interrupt pending, L1 gets its exit before the L2 that RSM returned to was entered.
    """

    __slots__ = ()

    def set_run_pending_after_rsm(self) -> None:
        """Nothing is pending."""


class Bug58(Kvm):
    """Whether an entry was still to complete was not saved.

    L1's injection is lost or done twice; an accepted entry injects exactly once (D6).
    """

    __slots__ = ()

    def save_and_restore(self) -> Kvm:
        successor = super().save_and_restore()
        successor.nested_run_pending = False
        return successor


class Bug59(Kvm):
    """A triple fault that had not become an exit yet was not saved.

    L2 goes on as if nothing had happened; on bare metal L1 gets exit 2 (F4).
    """

    __slots__ = ()

    def save_and_restore(self) -> Kvm:
        successor = super().save_and_restore()
        successor.request_triple_fault = False
        return successor


class Res11(Kvm):
    """Soft interrupts and soft exceptions in flight are not saved; the instruction would raise them again.

    L1 injected them, so there is no such instruction, and they are lost (D6).
    """

    __slots__ = ()

    def save_and_restore(self) -> Kvm:
        successor = super().save_and_restore()
        if is_soft(successor.interrupt_info):
            successor.interrupt_injected = False
        if is_soft(successor.exception_info):
            successor.exception_injected = False
        return successor
