"""bug1: an exit to L1 while an event is still to be re-injected."""

from nvmx_core.l0.kvm import Kvm


class Bug1(Kvm):
    """KVM: nVMX: Fix warning-causing idt-vectoring-info behavior (51cfe38ea50aa631, fixed about 3.3).

    Wrong: an exit for L1 was synthesized as soon as an interrupt arrived, even while vmcs02 still held a
    vectoring event whose delivery had been interrupted by an exit that L0 handled itself. L1 sees an
    EXTERNAL_INTERRUPT exit with valid IDT-vectoring information, a pair that no processor returns (X3), and
    a Linux in L1 warns "unexpected, valid vectoring info". On bare metal the event is delivered first, and
    the exit follows at the handler's first instruction (O11, X13). At the
    time only interrupts were given to L1 this way; here every event of the boundary is, as in the regression
    of 2017 that is known as bug2.
    """

    __slots__ = ()

    def blocks_boundary_events(self) -> bool:
        return False
