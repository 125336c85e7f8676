"""Bugs of the nested entry: checks that were missing, and what a failed entry leaves behind."""

from nvmx_core.arch.events import VALID
from nvmx_core.arch.fields import (
    ENTRY_INTR_INFO,
    EXIT_INTR_INFO,
    GUEST_ACTIVITY,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    LAUNCH_STATE,
)
from nvmx_core.arch.state import ACTIVE
from nvmx_core.cpu.entry_checks import Verdict
from nvmx_core.cpu.processor import LAUNCHED
from nvmx_core.l0.kvm import Kvm

_EVENT_RULES = ("E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8")
_ACTIVITY_RULES = ("G2", "G3", "G4")


class Bug32(Kvm):
    """The checks of the injected event (E1 to E8) were left to the hardware entry.

    L1 gets its failure late, after L0 has accepted the entry. On bare metal VMLAUNCH fails at once.

    Commit 0447378a4a79, "kvm: vmx: Nested VM-entry prereqs for event inj."; from 3.1, fixed in about 4.18;
    breaks E0.
    """

    __slots__ = ()

    def check_controls(self) -> int:
        checker = self.config.checker
        error, rule = checker.judge_controls(self.vmcs12, self.memory.vtpr)
        if rule not in _EVENT_RULES:
            return error
        without_event = self.vmcs12[:]
        without_event[ENTRY_INTR_INFO] &= ~VALID
        return checker.judge_controls(without_event, self.memory.vtpr)[0]


class Bug31(Bug32):
    """A VMfail that only the hardware entry showed was treated like an exit, with an old reason.

    L1 goes on at its exit handler. On bare metal VMLAUNCH fails with error 7 and L1 goes on behind it. It
    needs an entry that L0 accepts and hardware refuses, so the checks of bug32 are missing here too.

    Commit 4f350c6dbcb9, "kvm: nVMX: Handle deferred early VMLAUNCH/VMRESUME failure properly"; from 3.1,
    fixed in about 4.15; breaks V11.
    """

    __slots__ = ()

    def late_vmfail(self, error: int) -> None:
        self.clear_queues()
        self.enter_l1_mode()
        self.l1.observe_exit(self.cpu.cr2, self.cpu.dr6)


class Bug33(Kvm):
    """A failed entry changed exit-information fields and the valid bit of L1's injection.

    On bare metal only reason and qualification change (E0).

    Commit c3634d25fbee, "KVM: nVMX: Leave most VM-Exit info fields unmodified on failed VM-Entry"; from
    3.1, fixed in 5.19; breaks V11.
    """

    __slots__ = ()

    def fail_entry(self, reason: int, qualification: int) -> None:
        vmcs12 = self.vmcs12
        vmcs12[EXIT_INTR_INFO] = 0
        vmcs12[IDT_VECTORING_INFO] = 0
        vmcs12[IDT_VECTORING_ERROR_CODE] = 0
        vmcs12[ENTRY_INTR_INFO] &= ~VALID
        super().fail_entry(reason, qualification)


class Bug33b(Kvm):
    """The launch state was set before the guest state was checked.

    After exit 33 L1's next VMLAUNCH fails with error 4. On bare metal the VMCS is still clear (E0).

    In short, "Launch state set before the checks of the guest state"; from 3.1, fixed in after 3.1; breaks
    V11.
    """

    __slots__ = ()

    def fail_entry(self, reason: int, qualification: int) -> None:
        self.vmcs12[LAUNCH_STATE] = LAUNCHED
        super().fail_entry(reason, qualification)


class Bug36(Kvm):
    """An entry in L1's MOV-SS shadow was not refused.

    L2 runs; on bare metal the entry fails with error 26.

    In short, "Disallow VM-entry in MOV-SS shadow"; from 3.1; the version with the fix is not known; breaks
    V11.
    """

    __slots__ = ()

    def refuses_entry_behind_mov_ss(self) -> bool:
        return False


class Res8(Kvm):
    """Entries into HLT or wait-for-SIPI that the manual forbids are accepted.

    With an event that the state does not take, with SS.DPL above 0, with an interrupt shadow: on bare metal
    each is exit 33 (G2 to G4).

    In short, "Activity states that the manual forbids are accepted"; from 3.1, not fixed in 6.12; breaks
    V11.
    """

    __slots__ = ()

    def check_guest_state(self) -> Verdict:
        verdict = super().check_guest_state()
        if verdict[1] not in _ACTIVITY_RULES or self.vmcs12[GUEST_ACTIVITY] == ACTIVE:
            return verdict
        active = self.vmcs12[:]
        active[GUEST_ACTIVITY] = ACTIVE
        return self.config.checker.judge_guest_state(active)
