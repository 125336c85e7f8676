"""Bugs of injection: events lost, doubled or changed on their way into L2, exceptions for the wrong one."""

from typing import Final

from nvmx_core.arch.events import (
    BP,
    HARDWARE_EXCEPTION,
    NMI_UNBLOCKING_BY_IRET,
    OF,
    OTHER_EVENT,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import EPT_VIOLATION, EXCEPTION_NMI, is_soft
from nvmx_core.arch.fields import (
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    EXCEPTION_BITMAP,
    EXIT_INTR_INFO,
    EXIT_QUALIFICATION,
    EXIT_REASON,
    GUEST_INTERRUPTIBILITY,
    GUEST_RIP,
    GUEST_RSP,
    IDT_VECTORING_INFO,
    PF_ERROR_MASK,
    PF_ERROR_MATCH,
    POISON,
    Vmcs,
)
from nvmx_core.arch.state import BLOCKING_BY_NMI
from nvmx_core.bugs.remembering import NOWHERE, Remembering
from nvmx_core.journal import VM_DEAD
from nvmx_core.l0.kvm import Kvm

_INT1_TYPE: Final = PRIVILEGED_SOFTWARE_EXCEPTION << TYPE_SHIFT


def _filter_matches(vmcs12: Vmcs, error_code: int) -> bool:
    """Whether a #PF is one that L1's filter leaves to the exception bitmap; it turns the others round."""
    return error_code & vmcs12[PF_ERROR_MASK] == vmcs12[PF_ERROR_MATCH]


class Bug5(Kvm):
    """Whether L1 wants an exception was looked up when it was injected, after merging it.

    A fault during the delivery of an injected exception becomes #DF first; L1, which intercepts the fault,
    sees #DF or nothing. On bare metal interception comes before merging: exit 0 for the second exception,
    with the first as IDT-vectoring information.

    Commit 7709aba8f716, "KVM: x86: Morph pending exceptions to pending VM-Exits at queue time"; from 3.1,
    fixed in 6.1; breaks V11.
    """

    __slots__ = ()

    def queue_exception(
        self, info: int, error_code: int, payload: int, length: int, trap: bool
    ) -> None:
        self.request_event = True
        if self.exception_injected:
            self._merge(info, error_code, payload, length)
        else:
            self._set_pending(info, error_code, payload, length, trap)

    def check_faults(self) -> int:
        self._give_to_l1()
        return super().check_faults()

    def check_debug_traps(self) -> int:
        self._give_to_l1()
        return super().check_debug_traps()

    def _give_to_l1(self) -> None:
        if not self.exception_pending:
            return
        info = self.exception_info
        if self.l1_intercepts_queued(info & VECTOR_MASK, self.exception_error_code):
            self.exception_pending = False
            self.queue_vmexit(
                info,
                self.exception_error_code,
                self.exception_payload,
                self.exception_length,
                self.exception_trap,
            )


class Bug8(Kvm):
    """What was to be re-injected was copied from the last exit, over any exception that L0 had queued.

    With shadow paging L2's own #PF during a delivery is overwritten by the event, faults again, and so on
    for ever. On bare metal the #PF is delivered and the event is lost (D4).

    Commit 5f3d5799974b, "KVM: nVMX: Rework event injection and recovery"; from 3.1, fixed in about 3.10;
    breaks S1.
    """

    __slots__ = ()

    def queue_exception(
        self, info: int, error_code: int, payload: int, length: int, trap: bool
    ) -> None:
        if self.needs_reinjection() and not self.l1_intercepts(info & VECTOR_MASK, error_code):
            self.request_event = True
            return
        super().queue_exception(info, error_code, payload, length, trap)


class Bug8b(Kvm):
    """The queues of L2 were not emptied when L2 was left.

    What was being delivered to L2 is injected into L1. On bare metal it is in the IDT-vectoring field, and
    nothing of L2 crosses into L1 (V6).

    Commit 5f3d5799974b, "KVM: nVMX: Rework event injection and recovery (queues leak into L1)"; from 3.1,
    fixed in about 3.10; breaks V6.
    """

    __slots__ = ()

    def forget_queues(self) -> None:
        """They are kept."""


class Bug9(Kvm):
    """Interrupt-window and NMI-window exits always went to L1.

    L1 gets a window exit that it did not ask for, because L0 had opened the window for itself. On bare metal
    there is none (B6).

    Commit "KVM: nVMX: Fix injection of PENDING_INTERRUPT and NMI_WINDOW exits to L1"; from 3.1, fixed in
    about 3.10; breaks V11.
    """

    __slots__ = ()

    def handle_window(self, reason: int) -> None:
        self.nested_vmexit(reason)


class Bug10(Kvm):
    """Injecting an NMI did nothing while L2 was current, so that an NMI for L1 was no exit.

    It reaches L1 after the next unrelated exit. On bare metal exit 0 comes at once (P10).

    Commit "KVM: nVMX: Fix conditions for NMI injection"; from 3.1, fixed in about 3.10; breaks V11.
    """

    __slots__ = ()

    def nmi_blocked(self) -> bool:
        return self.l1_wants_nmis() or super().nmi_blocked()


class Bug11(Kvm):
    """The same no-op was met by an NMI that had to be injected again.

    The NMI is lost; on bare metal it is delivered once (X11, X13).

    Commit "KVM: nVMX: Fix the NMI IDT-vectoring handling"; from 3.1, fixed in about 4.9; breaks V2.
    """

    __slots__ = ()

    def reinject(self) -> None:
        self.nmi_injected = False
        super().reinject()


class Bug21(Kvm):
    """A triple fault of L2 that L0 noticed stopped the whole machine.

    On bare metal L1 gets exit 2 (F4).

    Commit cb6a32c2b877, "KVM: x86: Handle triple fault in L2 without killing L1"; from 3.1, fixed in 5.13;
    breaks V11.
    """

    __slots__ = ()

    def exit_for_triple_fault(self) -> None:
        self.request_triple_fault = False
        self.journal.append((VM_DEAD, 0))
        self.dead = True


class Bug24(Kvm):
    """L1's #PF filter was ignored for page faults that L0 queued.

    L1 gets exits that its mask and match exclude, or misses those that they ask for.

    Commit b96fb439774e, "KVM: nVMX: fixes to nested virt interrupt injection"; from 3.1, fixed in about
    4.14; breaks V11.
    """

    __slots__ = ()

    def l1_intercepts_queued(self, vector: int, error_code: int) -> bool:
        wanted = super().l1_intercepts_queued(vector, error_code)
        return wanted == (vector != PF or _filter_matches(self.vmcs12, error_code))


class Bug24b(Kvm):
    """An exit for an exception that L0 raised took information and qualification of the last hardware exit.

    L1 gets exit 0 without a vector, or with the qualification of another exit. On bare metal they say what
    was raised (section "Exits", exit 0; Y1).

    Commit b96fb439774e, "KVM: nVMX: fixes to nested virt interrupt injection (information of another
    exit)"; from 3.1, fixed in about 4.14; breaks V11.
    """

    __slots__ = ()

    def exit_for_exception(self) -> int:
        if not self.nested_run_pending:
            info = self.vmcs02[EXIT_INTR_INFO]
            self.vmexit_info = info if info & VALID else 0
            self.vmexit_payload = self.vmcs02[EXIT_QUALIFICATION]
            self.vmexit_trap = False
        return super().exit_for_exception()


class Bug25(Remembering):
    """What L0 remembered of the last run, that NMIs were not blocked, survived a nested entry.

    L1 enters L2 with NMIs blocked, L2's IRET faults on a page that L0 brings back, and the blocking that the
    IRET had ended is not restored (X12): the next NMI comes into the handler.

    Commit 2d6144e366fb, "KVM: nVMX: Fix loss of L2's NMI blocking state"; from 3.1, fixed in about 4.14;
    breaks V11.
    """

    __slots__ = ()

    def complete_interrupts(self) -> None:
        super().complete_interrupts()
        vmcs02 = self.vmcs02
        if vmcs02[EXIT_REASON] not in (EPT_VIOLATION, EXCEPTION_NMI):
            self.nmi_known_unmasked = not vmcs02[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_NMI

    def inject_nmi(self) -> None:
        self.nmi_known_unmasked = False
        super().inject_nmi()

    def restore_nmi_blocking(self) -> None:
        if not self.nmi_known_unmasked:
            super().restore_nmi_blocking()


class Bug28(Kvm):
    """The #PF bit of L1's exception bitmap was tested with the vector as mask.

    Bits 1 to 3 decide instead of bit 14; the filter is as it was.

    In short, "#PF bit of the exception bitmap tested with the vector as mask"; from 3.1, fixed in after
    3.1; breaks V11.
    """

    __slots__ = ()

    def l1_intercepts(self, vector: int, error_code: int) -> bool:
        if vector == PF:
            wanted = self.vmcs12[EXCEPTION_BITMAP] & PF != 0
            return wanted == _filter_matches(self.vmcs12, error_code)
        return super().l1_intercepts(vector, error_code)


class Bug29(Kvm):
    """L0 injected #DB in an interrupt shadow without the single-step bit that TF asks for (G9).

    The hardware entry fails, and L1 gets exit 33 for a VMCS that was valid. On bare metal #DB is delivered.

    Commit b9bed78e2fa9, "KVM: VMX: Set vmcs.PENDING_DBG.BS on #DB in STI/MOVSS blocking shadow"; from 3.1,
    fixed in about 5.17; breaks E0.
    """

    __slots__ = ()

    def keep_single_step_consistent(self) -> None:
        """The bit stays as it is."""


class Bug51(Kvm):
    """CR2 and DR6 were written when the exception was queued.

    L1, which intercepts it, sees them changed; on bare metal only a delivery changes them (Y1).

    Commit a06230b62b89, "KVM: x86: Deliver exception payload on KVM_GET_VCPU_EVENTS"; from 3.1, fixed in
    5.6; breaks Y1.
    """

    __slots__ = ()

    def queue_exception(
        self, info: int, error_code: int, payload: int, length: int, trap: bool
    ) -> None:
        self.deliver_payload(info & VECTOR_MASK, payload)
        super().queue_exception(info, error_code, payload, length, trap)


class Bug51b(Kvm):
    """Since the payload of a debug trap was in DR6 already, an exit of higher rank left it out.

    The pending-debug field of L1 is empty, and the trap is gone. On bare metal it is pending there (M4, Y6).

    In short, "An exit of higher rank leaves out the debug trap whose payload was written already"; from
    3.1, fixed in 5.6; breaks V11.
    """

    __slots__ = ()

    def _merge_trap_into_pending_debug(self) -> None:
        """Nothing is merged."""


class Res2(Kvm):
    """Types are normalised by vector on the way back: 3 and 4 become soft, other soft ones hardware.

    The type that L1 chose is lost: an error code is missing, a DPL check appears, the length is stale (X4).

    In short, "Types of interrupted events are normalised by vector"; from about 3.10, not fixed in 6.12;
    breaks V2.
    """

    __slots__ = ()

    def requeue(self, info: int, error_code: int, length: int) -> None:
        event_type = (info & TYPE_MASK) >> TYPE_SHIFT
        vector = info & VECTOR_MASK
        if event_type in (HARDWARE_EXCEPTION, SOFTWARE_EXCEPTION):
            changed = SOFTWARE_EXCEPTION if vector in (BP, OF) else HARDWARE_EXCEPTION
            info = info & ~TYPE_MASK | changed << TYPE_SHIFT
            if length == POISON:
                length = self.exception_length
        super().requeue(info, error_code, length)


class Res3(Remembering):
    """INT1 (type 5) that L1 injects is not known to what puts interrupted events back.

    The event is gone; on bare metal it is delivered (X13). One that L2 executes is not lost: RIP is at the
    instruction, and the next entry executes it again.

    In short, "An injected INT1 (type 5) is dropped when its delivery is interrupted"; from about 3.10, not
    fixed in 6.12; breaks V2.
    """

    __slots__ = ()

    def prepare_vmcs02(self, from_vmentry: bool) -> None:
        super().prepare_vmcs02(from_vmentry)
        injects = self.vmcs02[ENTRY_INTR_INFO] & (VALID | TYPE_MASK) == VALID | _INT1_TYPE
        self.injected_int1_at = self._place() if injects else NOWHERE

    def complete_interrupts(self) -> None:
        super().complete_interrupts()
        self.injected_int1_at = NOWHERE

    def requeue(self, info: int, error_code: int, length: int) -> None:
        if info & TYPE_MASK == _INT1_TYPE and self._place() == self.injected_int1_at:
            self.injected_int1_at = NOWHERE
        else:
            super().requeue(info, error_code, length)

    def _place(self) -> tuple[int, int]:
        return self.vmcs02[GUEST_RIP], self.vmcs02[GUEST_RSP]


class Res3b(Kvm):
    """A pending MTF exit that L1 injects (type 7) is not known to what takes a cancelled entry back.

    The exit never comes; on bare metal it comes before L2's first instruction (M5).

    In short, "An injected MTF exit (type 7) is dropped when the entry is cancelled"; from about 3.10, not
    fixed in 6.12; breaks V2.
    """

    __slots__ = ()

    def requeue(self, info: int, error_code: int, length: int) -> None:
        if info & TYPE_MASK != OTHER_EVENT << TYPE_SHIFT:
            super().requeue(info, error_code, length)


class Res4(Kvm):
    """For a soft interrupt in flight, the exit writes its length into L1's entry length field.

    The field is L1's own, and no exit changes it.

    In short, "The length of a soft interrupt in flight goes into L1's entry length field"; from about 3.10,
    not fixed in 6.12; breaks V11.
    """

    __slots__ = ()

    def save_pending_event(self, reason: int, info: int, length: int) -> None:
        super().save_pending_event(reason, info, length)
        if self.interrupt_injected and is_soft(self.interrupt_info):
            self.vmcs12[ENTRY_INSTRUCTION_LEN] = self.interrupt_length


class Res6(Kvm):
    """Bit 12 of an exit that L0 makes up says "L2 has NMIs blocked", not "an IRET faulted" (X12).

    In short, "Bit 12 of a synthesized exit 0 means NMI blocking"; from about 3.10, not fixed in 6.12;
    breaks V11.
    """

    __slots__ = ()

    def exit_for_exception(self) -> int:
        blocked = self.l2_blocking(self.vmcs02[GUEST_INTERRUPTIBILITY]) & BLOCKING_BY_NMI
        if blocked and not self.vmcs12[IDT_VECTORING_INFO] & VALID and not self.nested_run_pending:
            self.vmexit_info |= NMI_UNBLOCKING_BY_IRET
        return super().exit_for_exception()


class Res6b(Kvm):
    """An IRET fault that L1 gets has bit 3 set again already, although bit 12 says that it was ended (X12).

    On bare metal bit 3 is 0, and the host sets it before it runs the IRET again.

    In short, "Bit 3 is set again before L1 gets an IRET fault"; from about 3.10, not fixed in 6.12; breaks
    V11.
    """

    __slots__ = ()

    def nested_vmexit(
        self,
        reason: int,
        qualification: int = 0,
        info: int = 0,
        error_code: int = POISON,
        length: int = POISON,
    ) -> None:
        reported = info if reason == EXCEPTION_NMI else qualification
        if reason in (EXCEPTION_NMI, EPT_VIOLATION) and reported & NMI_UNBLOCKING_BY_IRET:
            self.vmcs02[GUEST_INTERRUPTIBILITY] |= BLOCKING_BY_NMI
        super().nested_vmexit(reason, qualification, info, error_code, length)


class Res6c(Kvm):
    """Bit 12 of an EPT violation is made anew for L1, and left out (X12).

    In short, "A reflected EPT violation does not carry bit 12"; from about 3.12, not fixed in 6.12; breaks
    V11.
    """

    __slots__ = ()

    def nested_vmexit(
        self,
        reason: int,
        qualification: int = 0,
        info: int = 0,
        error_code: int = POISON,
        length: int = POISON,
    ) -> None:
        if reason == EPT_VIOLATION:
            qualification &= ~NMI_UNBLOCKING_BY_IRET
        super().nested_vmexit(reason, qualification, info, error_code, length)
