"""Bugs of order: which event of a boundary comes first, and what has to wait for an injection."""

from nvmx_core.arch.exits import EXTERNAL_INTERRUPT_EXIT
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.nested_check import NEXT
from nvmx_core.scenario.steps import INTERRUPT


class Bug1(Kvm):
    """An exit for an interrupt was synthesized while vmcs02 still held an event to be re-injected.

    L1 sees EXTERNAL_INTERRUPT with valid IDT-vectoring information, which no processor returns, and a Linux
    in L1 warns "unexpected, valid vectoring info". On bare metal the event is delivered first, and the exit
    follows at the handler's first instruction (O11, X13).

    Commit 51cfe38ea50a, "KVM: nVMX: Fix warning-causing idt-vectoring-info behavior"; from 3.1, fixed in
    about 3.3; breaks X3.
    """

    __slots__ = ()

    def check_interrupt(self, blocked: bool) -> int:
        return super().check_interrupt(self.nested_run_pending)


class Bug2(Kvm):
    """The nested check ran before re-injection, and only an accepted entry held it back.

    The same pair as bug1, six years later and for every event: an L1 KVM stops with internal error 3.

    Commit acc9ab601327, "KVM: nVMX: Fix pending events injection"; from about 4.10, fixed in about 4.11;
    breaks X3.
    """

    __slots__ = ()

    def blocks_boundary_events(self) -> bool:
        return False


class Bug3(Kvm):
    """An interrupt was refused because an entry had to complete, and nothing brought L2 back.

    L1 gets its interrupt at the next unrelated exit. On bare metal the exit comes right after the injection,
    before L2's first instruction. What was missing serves every event that has to wait, so all of them are
    late here: NMI, INIT, SMI, the timer (O7), MTF (M1).

    Commit d6185f20a0ef, "KVM: nVMX: Add KVM_REQ_IMMEDIATE_EXIT"; from 3.1, fixed in about 3.3; breaks O11.
    """

    __slots__ = ()

    def request_immediate_exit(self) -> None:
        """No immediate exit."""


class Bug4(Kvm):
    """With an event to re-inject, the nested check was skipped, and with it the immediate exit.

    The event is delivered, L2 runs on, and L1's exit is late. On bare metal it comes at the first
    instruction of the handler.

    Commit 1a680e355c94, "KVM: nVMX: Require immediate-exit when event reinjected to L2 and L1 event
    pending"; from about 4.11, fixed in about 4.17; breaks O11.
    """

    __slots__ = ()

    def check_before_injection(self) -> bool:
        return not self.needs_reinjection() and super().check_before_injection()


class Bug13(Kvm):
    """A debug trap that L1 does not intercept lost to L1's timer on the same boundary.

    L1 sees exit 52 and the single step is gone from the handler. On bare metal #DB is delivered (P7 before
    P8), then exit 52 comes at the handler.

    Commit "KVM: nVMX: Preserve exception priority irrespective of exiting behavior"; from about 3.15, fixed
    in 5.8; breaks V4.
    """

    __slots__ = ()

    def check_debug_traps(self) -> int:
        return super().check_debug_traps() if self.vmexit_pending else NEXT


class Bug15(Kvm):
    """A cancelled entry forgot the exit that its immediate exit would have brought.

    The second try enters without one, so that L1's timer of 0 is late until the next event. On bare metal
    exit 52 comes first (O7).

    Commit "KVM: x86: Set KVM_REQ_EVENT if run is canceled with req_immediate_exit set"; from about 3.3,
    fixed in 5.8; breaks O11.
    """

    __slots__ = ()

    def request_event_after_cancel(self, immediate: bool) -> None:
        if self.needs_reinjection():
            super().request_event_after_cancel(immediate)


class Bug16(Kvm):
    """The request for what was pending before the entry stayed in vmcs01.

    L1 had interrupts closed when one arrived; L2 is entered and runs. On bare metal exit 1 comes before its
    first instruction.

    Commit b5861e5cf2fc, "KVM: nVMX: Fix loss of pending IRQ/NMI before entering L2"; from 3.1, fixed in
    4.19; breaks O11.
    """

    __slots__ = ()

    def request_event_at_entry(self) -> None:
        if not (self.has_interrupt() or self.nmi_pending):
            super().request_event_at_entry()


class Bug17(Kvm):
    """A posted interrupt for L1 reached the IRR without a request to look at it, while L2 ran.

    L2 is left and entered again; exit 1 comes late. On bare metal it comes at the boundary.

    Commit 3a25dfa67fe4, "KVM: nVMX: promptly process interrupts delivered while in guest mode"; from about
    5.8, fixed in 5.15; breaks V11.
    """

    __slots__ = ()

    def request_event_on_arrival(self, op: int) -> None:
        if not (op == INTERRUPT and self.guest_mode and self.cpu.non_root):
            super().request_event_on_arrival(op)


class Bug18(Kvm):
    """The same in the window between the check for events and the entry.

    The interrupt is posted while L0 works for L2; nothing looks at it before L2 runs on.

    Commit f27a85c4988d, "KVM: nVMX: Re-evaluate L1 pending events when running L2 and L1 got
    posted-interrupt"; from 3.1, fixed in about 4.16; breaks V11.
    """

    __slots__ = ()

    def request_event_on_arrival(self, op: int) -> None:
        if not (op == INTERRUPT and self.guest_mode and not self.cpu.non_root):
            super().request_event_on_arrival(op)


class Bug19(Kvm):
    """An interrupt of a userspace controller became exit 1 before userspace had named its vector.

    With acknowledge-on-exit L1 gets invalid interruption information. On bare metal such an exit always
    carries the vector (K1).

    Commit a1c77abb8d93, "KVM: nVMX: Properly handle userspace interrupt window request"; from 3.1, fixed in
    5.7; breaks V11.
    """

    __slots__ = ()

    def wants_vector(self) -> bool:
        return self.config.in_kernel_apic and super().wants_vector()

    def exit_for_interrupt(self) -> None:
        if self.config.in_kernel_apic or self.userspace_vector >= 0:
            super().exit_for_interrupt()
        else:
            self.nested_vmexit(EXTERNAL_INTERRUPT_EXIT)


class Bug23(Kvm):
    """The nested check said busy although nothing was pending for L1.

    Each re-injection costs one useless immediate exit. Nothing is due, so none must be asked for.

    Commit "KVM: nVMX: Fix vmx_check_nested_events return value in case an event was reinjected to L2"; from
    about 4.11, fixed in about 4.15; breaks V10.
    """

    __slots__ = ()

    def check_before_injection(self) -> bool:
        return super().check_before_injection() or self.needs_reinjection()


class Bug27(Kvm):
    """Interrupts and NMIs for L1 came before an SMI of the same boundary.

    L1 sees exit 1 before the SMM handler runs; on bare metal the SMI comes first (P4).

    Commit "KVM: nVMX: Prioritize SMI over nested IRQ/NMI"; from 3.1, fixed in 5.8; breaks V4.
    """

    __slots__ = ()

    def check_smi(self, blocked: bool) -> int:
        return NEXT


class Bug30(Kvm):
    """The immediate exit was an interrupt that L0 sent to itself.

    It ranks below virtual interrupts and NMIs where the timer ranks above them (P8), so that L2 takes
    those first; exit 52 and the deferred exits are late.

    Commit "KVM: VMX: use preemption timer to force immediate VMExit"; from about 3.3, fixed in 4.19; breaks
    V11.
    """

    __slots__ = ()

    def request_immediate_exit(self) -> None:
        self.request_event = True
        self.kick_after_entry = True


class Bug42(Kvm):
    """An INIT that was latched in root operation was not looked at on entry.

    L2 runs. On bare metal exit 3 comes before its first instruction (A2).

    Commit a56953e9506c, "KVM: nVMX: Make an event request if INIT or SIPI is pending on VM-Enter"; from
    about 5.4, fixed in 6.1; breaks O11.
    """

    __slots__ = ()

    def request_event_at_entry(self) -> None:
        if not self.init_pending:
            super().request_event_at_entry()


class Bug48(Kvm):
    """An immediate exit was requested for a virtual interrupt, which ranks below it.

    The timer of 0 always wins (P8 before P11): L2 is entered and left for ever.

    Commit 32f55e475ce2, "KVM: nVMX: Request immediate exit iff pending nested event needs injection"; from
    about 6.10, fixed in 6.11; breaks S1.
    """

    __slots__ = ()

    def has_events_for_injection(self) -> bool:
        return super().has_events_for_injection() or self.has_virtual_interrupt()


class Res1(Kvm):
    """After the forced entry of a re-injection nobody asked for the evaluation again.

    The exit that waited comes only with the next event; on bare metal at the handler's first instruction.

    In short, "No KVM_REQ_EVENT after the forced entry of a re-injection"; from about 3.3, fixed in about
    3.10; breaks V10.
    """

    __slots__ = ()

    def request_immediate_exit(self) -> None:
        super().request_immediate_exit()
        if self.needs_reinjection() and not self.nested_run_pending:
            self.request_event = False


class Res7(Kvm):
    """An SMI is ranked below MTF, debug traps and the timer.

    L1 sees those exits before the SMM handler runs; on bare metal the SMI comes first (P4).

    In short, "SMI is ranked below MTF, debug traps and the timer"; from about 5.8, not fixed in 6.12;
    breaks V4.
    """

    __slots__ = ()

    def check_smi(self, blocked: bool) -> int:
        return NEXT

    def check_nmi_window(self, blocked: bool) -> int:
        result = super().check_smi(blocked)
        return result if result != NEXT else super().check_nmi_window(blocked)

    def waits_above_debug_traps(self) -> bool:
        return self.init_pending or self.mtf_pending
