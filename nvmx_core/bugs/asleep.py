"""Bugs that need one feature more: an L2 asleep, INIT and SIPI, MTF, posted interrupts, the timer."""

from nvmx_core.arch.controls import PIN_POSTED_INTR
from nvmx_core.arch.fields import PIN_BASED, POSTED_INTR_NV
from nvmx_core.arch.state import ACTIVE, HLT, WAIT_FOR_SIPI
from nvmx_core.bugs.remembering import Remembering
from nvmx_core.cpu.apic import NO_VECTOR
from nvmx_core.journal import VM_DEAD
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.nested_check import NEXT, STOP
from nvmx_core.scenario.steps import INIT, SIPI


class Bug37(Kvm):
    """An exit for L1 was only a side effect of injecting, which does not happen while L2 sleeps.

    L2 in HLT is neither woken nor left. On bare metal exit 1 comes, with activity HLT saved (Y4).

    Commit b6b8a1451fc4, "KVM: nVMX: Rework interception of IRQs and NMIs"; from 3.1, fixed in about 3.15;
    breaks V11.
    """

    __slots__ = ()

    def check_before_waking(self) -> None:
        """Nothing is looked at."""


class Bug38(Kvm):
    """NMI-window and interrupt-window exits did not end L2's HLT.

    The vCPU sleeps; on bare metal exit 8 or 7 comes at once (O10).

    Commit "KVM: nVMX: NMI-window and interrupt-window exiting should wake L2 from HLT"; from about 3.15,
    fixed in about 5.0; breaks V11.
    """

    __slots__ = ()

    def check_nmi_window(self, blocked: bool) -> int:
        return super().check_nmi_window(blocked) if self.mp_state == ACTIVE else NEXT

    def check_interrupt_window(self, blocked: bool) -> int:
        return super().check_interrupt_window(blocked) if self.mp_state == ACTIVE else NEXT


class Bug40(Kvm):
    """A pending virtual interrupt did not wake L2 from HLT.

    L2 sleeps; on bare metal the interrupt is delivered (K4).

    Commit e6c67d8cf117, "KVM: nVMX: Wake blocked vCPU in guest-mode if pending interrupt in virtual APICv";
    from about 4.0, fixed in about 4.20; breaks V11.
    """

    __slots__ = ()

    def has_virtual_interrupt(self) -> bool:
        return self.mp_state != HLT and super().has_virtual_interrupt()


class Bug40b(Kvm):
    """A posted interrupt was no reason to wake L2 from HLT, because only RVI was looked at.

    L2 sleeps, with the notification pending. On bare metal it is processed, and L2 wakes (K3, K4).

    Commit 27c4fa42b11a, "KVM: nVMX: Check for pending posted interrupts when looking for nested events";
    from about 6.1, fixed in 6.11; breaks V11.
    """

    __slots__ = ()

    def check_interrupt(self, blocked: bool) -> int:
        if self.mp_state == HLT and self._is_notification():
            return NEXT
        return super().check_interrupt(blocked)

    def _is_notification(self) -> bool:
        vector = self.apic.deliverable() if self.userspace_vector < 0 else self.userspace_vector
        return (
            self.vmcs12[PIN_BASED] & PIN_POSTED_INTR != 0 and vector == self.vmcs12[POSTED_INTR_NV]
        )


class Bug41(Kvm):
    """INIT reset the vCPU, nested or not.

    The machine as L1 knew it is gone; on bare metal L1 gets exit 3 (P5).

    Commit 4b9852f4f389, "KVM: x86: Fix INIT signal handling in various CPU states"; from 3.1, fixed in
    about 5.4; breaks V11.
    """

    __slots__ = ()

    def check_init(self, blocked: bool) -> int:
        if not self.init_pending:
            return NEXT
        self.init_pending = False
        self.journal.append((VM_DEAD, 0))
        self.dead = True
        self.guest_mode = False
        return STOP


class Bug41b(Kvm):
    """INIT reset the vCPU while L1 ran, too.

    On bare metal INIT is latched in VMX root operation (A2).

    Commit 4b9852f4f389, "KVM: x86: Fix INIT signal handling in various CPU states (in root operation)";
    from 3.1, fixed in about 5.4; breaks V11.
    """

    __slots__ = ()

    def arrive(self, op: int, operand: int) -> None:
        super().arrive(op, operand)
        if op == INIT and not (self.guest_mode or self.in_smm):
            self.journal.append((VM_DEAD, 0))
            self.dead = True


class Bug44(Kvm):
    """A SIPI was eaten by L0's own handling of INIT and SIPI.

    L2 waits for it for ever; on bare metal a SIPI in wait-for-SIPI is exit 4.

    Commit 1c96dcceaeb3, "KVM: x86: fix apic_accept_events vs check_nested_events"; from about 5.4, fixed in
    5.11; breaks V11.
    """

    __slots__ = ()

    def check_sipi(self) -> int:
        self.sipi_vector = NO_VECTOR
        return STOP


class Bug44b(Kvm):
    """A SIPI that came outside wait-for-SIPI stayed latched.

    An L2 that begins to wait later is left at once. On bare metal the SIPI was discarded when it came.

    Commit "KVM: x86: Ignore SIPIs that are received while not in wait-for-sipi state"; from about 5.4,
    fixed in about 5.11; breaks V11.
    """

    __slots__ = ()

    def arrive(self, op: int, operand: int) -> None:
        if op == SIPI and self.guest_mode and self.mp_state != WAIT_FOR_SIPI:
            self.sipi_vector = operand
        super().arrive(op, operand)

    def check_nested_events(self) -> bool:
        latched = self.sipi_vector if self.mp_state != WAIT_FOR_SIPI else NO_VECTOR
        busy = super().check_nested_events()
        if latched != NO_VECTOR:
            self.sipi_vector = latched
        return busy


class Bug45(Kvm):
    """A SIPI outside wait-for-SIPI was kept, and ended the nested check early.

    Whatever else is pending is treated as if it were L2's; on bare metal the SIPI is discarded.

    Commit c2086eca8658, "KVM: nVMX: Ignore SIPI that arrives in L2 when vCPU is not in WFS"; from about
    5.11, fixed in 6.1; breaks V11.
    """

    __slots__ = ()

    def arrive(self, op: int, operand: int) -> None:
        if op == SIPI and self.guest_mode and self.mp_state != WAIT_FOR_SIPI:
            self.sipi_vector = operand
        super().arrive(op, operand)

    def check_nested_events(self) -> bool:
        if self.sipi_vector >= 0 and self.mp_state != WAIT_FOR_SIPI:
            self.sipi_vector = NO_VECTOR
            return False
        return super().check_nested_events()


class _NotificationAtEntry(Remembering):
    """Remembers whether the notification vector that is pending was so when L1 entered L2."""

    __slots__ = ()

    def request_event_at_entry(self) -> None:
        self.notification_at_entry = self.apic.irr >> self.vmcs12[POSTED_INTR_NV] & 1 != 0
        super().request_event_at_entry()


class Bug46(_NotificationAtEntry):
    """The notification vector was compared only while L2 ran, not for what was pending at the entry.

    L1 gets exit 1 for it, and tries again for ever. On bare metal the notification is consumed and what was
    posted becomes L2's virtual interrupts (K3).

    Commit 25bb2cf97139, "KVM: nVMX: Morph notification vector IRQ on nested VM-Enter to pending PI"; from
    about 4.0, fixed in about 5.9; breaks V11.
    """

    __slots__ = ()

    def takes_posted_interrupts(self) -> bool:
        return not self.notification_at_entry and super().takes_posted_interrupts()


class Bug47(_NotificationAtEntry):
    """The notification vector was compared at the entry only; one that comes while L2 runs is exit 1.

    On bare metal it is posted-interrupt processing then too (K3).

    Commit 6e0b456547f4, "KVM: nVMX: Detect nested posted interrupt NV at nested VM-Exit injection"; from
    about 4.0, fixed in about 6.12; breaks V11.
    """

    __slots__ = ()

    def takes_posted_interrupts(self) -> bool:
        if not (self.notification_at_entry and super().takes_posted_interrupts()):
            return False
        self.notification_at_entry = False
        return True


class Bug50(Kvm):
    """L0 did not owe an MTF exit for an instruction that it emulated.

    Exit 37 comes one instruction late; on bare metal behind the instruction (M1).

    Commit 5ef8acbdd687, "KVM: nVMX: Emulate MTF when performing instruction emulation"; from 3.1, fixed in
    5.6; breaks V11.
    """

    __slots__ = ()

    def owe_mtf(self) -> None:
        """Nothing is owed."""


class Bug50b(Kvm):
    """The MTF exit of an emulated instruction was owed, but nobody asked for the evaluation.

    Exit 37 comes one instruction late unless something else asks; on bare metal behind the instruction (M1).

    Commit 2ea89c7f7f7b, "KVM: nVMX: Make an event request when pending an MTF nested VM-Exit"; from about
    5.6, fixed in 6.1; breaks M1.
    """

    __slots__ = ()

    def owe_mtf(self) -> None:
        asked = self.request_event
        super().owe_mtf()
        self.request_event = asked


class Bug55(Kvm):
    """A timer value of 1 counted as expired before the entry.

    Exit 52 comes too early; on bare metal only 0 expires at once (O7).

    Commit "KVM: nVMX: immediately mark preemption timer expired only for zero value"; from about 3.15,
    fixed in 4.19; breaks V11.
    """

    __slots__ = ()

    def start_timer(self) -> None:
        super().start_timer()
        if self.timer == 1:
            self.timer = 0
            self.timer_expired = True
