"""bug3: nothing brings L2 back for an interrupt that had to wait for the entry."""

from nvmx_core.l0.kvm import Kvm


class Bug3(Kvm):
    """KVM: nVMX: Add KVM_REQ_IMMEDIATE_EXIT (d6185f20a0ef, fixed about 3.3).

    Wrong: an interrupt that was pending when L1 entered L2 was refused because the entry had to complete
    first, and then L2 was entered with nothing that would end it again. L1 gets its interrupt at the next
    unrelated exit of L2. On bare metal the exit comes right after the injection, before L2's first
    instruction (O11). What was missing serves every event that has to
    wait, so all of them are late here: NMI, INIT, SMI, the preemption timer (O7), MTF (M1).
    """

    __slots__ = ()

    def request_immediate_exit(self) -> None:
        """No immediate exit."""
