"""The catalogue: known bugs of KVM's nested event handling, each a subclass of the fixed L0.

Ids, commits and versions are those of the project's notes on KVM's history. `introduced` is "" for what the
first nested VMX (3.1) had already, `fixed_in` "" for what 6.12 still has. Before a version stands "~" when it
follows from a date or from the bugs around it, and no source states it; ">" when the fix is not known and it
is the last version that the bug was read in. "?" is a bug that no version is known of. Versions of KVM are
made from the two (`versions.py`).
"""

from typing import Final, NamedTuple

from nvmx_core.bugs import asleep, entry, injection, ordering, smm_and_save
from nvmx_core.l0.kvm import Kvm

ABOUT: Final = "~"
AFTER: Final = ">"
UNKNOWN: Final = "?"


class Bug(NamedTuple):
    """One bug: its fix and subject, the first version with the fix, the rule it breaks, the L0 with it."""

    name: str
    commit: str
    subject: str
    introduced: str
    fixed_in: str
    rule: str
    l0: type[Kvm]


def shown_version(version: str) -> str:
    """A version of the catalogue in words; "" stays so."""
    if version == UNKNOWN:
        return "not known"
    return version.replace(ABOUT, "about ").replace(AFTER, "after ")


class Unexpressed(NamedTuple):
    """A known bug that the model cannot show, and why."""

    name: str
    subject: str
    reason: str


CATALOGUE: Final[tuple[Bug, ...]] = (
    Bug("bug1", "51cfe38ea50aa631", "KVM: nVMX: Fix warning-causing idt-vectoring-info behavior",
        "", "~3.3", "X3", ordering.Bug1),
    Bug("bug2", "acc9ab60132739e0", "KVM: nVMX: Fix pending events injection",
        "~4.10", "~4.11", "X3", ordering.Bug2),
    Bug("bug3", "d6185f20a0ef", "KVM: nVMX: Add KVM_REQ_IMMEDIATE_EXIT",
        "", "~3.3", "O11", ordering.Bug3),
    Bug("bug4", "1a680e355c94", "KVM: nVMX: Require immediate-exit when event reinjected to L2 and L1 event pending",
        "~4.11", "~4.17", "O11", ordering.Bug4),
    Bug("bug5", "7709aba8f716", "KVM: x86: Morph pending exceptions to pending VM-Exits at queue time",
        "", "6.1", "V11", injection.Bug5),
    Bug("bug8", "5f3d5799974b", "KVM: nVMX: Rework event injection and recovery",
        "", "~3.10", "S1", injection.Bug8),
    Bug("bug8b", "5f3d5799974b", "KVM: nVMX: Rework event injection and recovery (queues leak into L1)",
        "", "~3.10", "V6", injection.Bug8b),
    Bug("bug9", "", "KVM: nVMX: Fix injection of PENDING_INTERRUPT and NMI_WINDOW exits to L1",
        "", "~3.10", "V11", injection.Bug9),
    Bug("bug10", "", "KVM: nVMX: Fix conditions for NMI injection",
        "", "~3.10", "V11", injection.Bug10),
    Bug("bug11", "", "KVM: nVMX: Fix the NMI IDT-vectoring handling",
        "", "~4.9", "V2", injection.Bug11),
    Bug("bug13", "", "KVM: nVMX: Preserve exception priority irrespective of exiting behavior",
        "~3.15", "5.8", "V4", ordering.Bug13),
    Bug("bug15", "", "KVM: x86: Set KVM_REQ_EVENT if run is canceled with req_immediate_exit set",
        "~3.3", "5.8", "O11", ordering.Bug15),
    Bug("bug16", "b5861e5cf2fc", "KVM: nVMX: Fix loss of pending IRQ/NMI before entering L2",
        "", "4.19", "O11", ordering.Bug16),
    Bug("bug17", "3a25dfa67fe4", "KVM: nVMX: promptly process interrupts delivered while in guest mode",
        "~5.8", "5.15", "V11", ordering.Bug17),
    Bug("bug18", "f27a85c4988d", "KVM: nVMX: Re-evaluate L1 pending events when running L2 and L1 got posted-interrupt",
        "", "~4.16", "V11", ordering.Bug18),
    Bug("bug19", "a1c77abb8d93", "KVM: nVMX: Properly handle userspace interrupt window request",
        "", "5.7", "V11", ordering.Bug19),
    Bug("bug21", "cb6a32c2b877", "KVM: x86: Handle triple fault in L2 without killing L1",
        "", "5.13", "V11", injection.Bug21),
    Bug("bug23", "", "KVM: nVMX: Fix vmx_check_nested_events return value in case an event was reinjected to L2",
        "~4.11", "~4.15", "V10", ordering.Bug23),
    Bug("bug24", "b96fb439774e", "KVM: nVMX: fixes to nested virt interrupt injection",
        "", "~4.14", "V11", injection.Bug24),
    Bug("bug24b", "b96fb439774e", "KVM: nVMX: fixes to nested virt interrupt injection (information of another exit)",
        "", "~4.14", "V11", injection.Bug24b),
    Bug("bug25", "2d6144e366fb", "KVM: nVMX: Fix loss of L2's NMI blocking state",
        "", "~4.14", "V11", injection.Bug25),
    Bug("bug27", "", "KVM: nVMX: Prioritize SMI over nested IRQ/NMI",
        "", "5.8", "V4", ordering.Bug27),
    Bug("bug28", "", "#PF bit of the exception bitmap tested with the vector as mask",
        "", ">3.1", "V11", injection.Bug28),
    Bug("bug29", "b9bed78e2fa9", "KVM: VMX: Set vmcs.PENDING_DBG.BS on #DB in STI/MOVSS blocking shadow",
        "", "~5.17", "E0", injection.Bug29),
    Bug("bug30", "", "KVM: VMX: use preemption timer to force immediate VMExit",
        "~3.3", "4.19", "V11", ordering.Bug30),
    Bug("bug31", "4f350c6dbcb9", "kvm: nVMX: Handle deferred early VMLAUNCH/VMRESUME failure properly",
        "", "~4.15", "V11", entry.Bug31),
    Bug("bug32", "0447378a4a79", "kvm: vmx: Nested VM-entry prereqs for event inj.",
        "", "~4.18", "E0", entry.Bug32),
    Bug("bug33", "c3634d25fbee", "KVM: nVMX: Leave most VM-Exit info fields unmodified on failed VM-Entry",
        "", "5.19", "V11", entry.Bug33),
    Bug("bug33b", "", "Launch state set before the checks of the guest state",
        "", ">3.1", "V11", entry.Bug33b),
    Bug("bug36", "", "Disallow VM-entry in MOV-SS shadow",
        "", "?", "V11", entry.Bug36),
    Bug("bug37", "b6b8a1451fc4", "KVM: nVMX: Rework interception of IRQs and NMIs",
        "", "~3.15", "V11", asleep.Bug37),
    Bug("bug38", "", "KVM: nVMX: NMI-window and interrupt-window exiting should wake L2 from HLT",
        "~3.15", "~5.0", "V11", asleep.Bug38),
    Bug("bug40", "e6c67d8cf117", "KVM: nVMX: Wake blocked vCPU in guest-mode if pending interrupt in virtual APICv",
        "~4.0", "~4.20", "V11", asleep.Bug40),
    Bug("bug40b", "27c4fa42b11a", "KVM: nVMX: Check for pending posted interrupts when looking for nested events",
        "~6.1", "6.11", "V11", asleep.Bug40b),
    Bug("bug41", "4b9852f4f389", "KVM: x86: Fix INIT signal handling in various CPU states",
        "", "~5.4", "V11", asleep.Bug41),
    Bug("bug41b", "4b9852f4f389", "KVM: x86: Fix INIT signal handling in various CPU states (in root operation)",
        "", "~5.4", "V11", asleep.Bug41b),
    Bug("bug42", "a56953e9506c", "KVM: nVMX: Make an event request if INIT or SIPI is pending on VM-Enter",
        "~5.4", "6.1", "O11", ordering.Bug42),
    Bug("bug44", "1c96dcceaeb3", "KVM: x86: fix apic_accept_events vs check_nested_events",
        "~5.4", "5.11", "V11", asleep.Bug44),
    Bug("bug44b", "", "KVM: x86: Ignore SIPIs that are received while not in wait-for-sipi state",
        "~5.4", "~5.11", "V11", asleep.Bug44b),
    Bug("bug45", "c2086eca8658", "KVM: nVMX: Ignore SIPI that arrives in L2 when vCPU is not in WFS",
        "~5.11", "6.1", "V11", asleep.Bug45),
    Bug("bug46", "25bb2cf97139", "KVM: nVMX: Morph notification vector IRQ on nested VM-Enter to pending PI",
        "~4.0", "~5.9", "V11", asleep.Bug46),
    Bug("bug47", "6e0b456547f4", "KVM: nVMX: Detect nested posted interrupt NV at nested VM-Exit injection",
        "~4.0", "~6.12", "V11", asleep.Bug47),
    Bug("bug48", "32f55e475ce2", "KVM: nVMX: Request immediate exit iff pending nested event needs injection",
        "~6.10", "6.11", "S1", ordering.Bug48),
    Bug("bug50", "5ef8acbdd687", "KVM: nVMX: Emulate MTF when performing instruction emulation",
        "", "5.6", "V11", asleep.Bug50),
    Bug("bug50b", "2ea89c7f7f7b", "KVM: nVMX: Make an event request when pending an MTF nested VM-Exit",
        "~5.6", "6.1", "M1", asleep.Bug50b),
    Bug("bug51", "a06230b62b89", "KVM: x86: Deliver exception payload on KVM_GET_VCPU_EVENTS",
        "", "5.6", "Y1", injection.Bug51),
    Bug("bug51b", "", "An exit of higher rank leaves out the debug trap whose payload was written already",
        "", "5.6", "V11", injection.Bug51b),
    Bug("bug55", "", "KVM: nVMX: immediately mark preemption timer expired only for zero value",
        "~3.15", "4.19", "V11", asleep.Bug55),
    Bug("bug55b", "850448f35aaf", "KVM: nVMX: Fix VMX preemption timer migration",
        "", "5.8", "V11", smm_and_save.Bug55b),
    Bug("bug56", "759cbd59674a", "KVM: x86: nSVM/nVMX: set nested_run_pending on VM entry which is a result of RSM",
        "~4.14", "~5.15", "V11", smm_and_save.Bug56),
    Bug("bug58", "6514dc380d35", "KVM: nVMX: Use nested_run_pending rather than from_vmentry",
        "~4.20", "~5.0", "V11", smm_and_save.Bug58),
    Bug("bug59", "", "KVM: x86: Extend KVM_{G,S}ET_VCPU_EVENTS to support pending triple fault",
        "", "~6.0", "V11", smm_and_save.Bug59),
    Bug("res1", "", "No KVM_REQ_EVENT after the forced entry of a re-injection",
        "~3.3", "~3.10", "V10", ordering.Res1),
    Bug("res2", "", "Types of interrupted events are normalised by vector",
        "~3.10", "", "V2", injection.Res2),
    Bug("res3", "", "An injected INT1 (type 5) is dropped when its delivery is interrupted",
        "~3.10", "", "V2", injection.Res3),
    Bug("res3b", "", "An injected MTF exit (type 7) is dropped when the entry is cancelled",
        "~3.10", "", "V2", injection.Res3b),
    Bug("res4", "", "The length of a soft interrupt in flight goes into L1's entry length field",
        "~3.10", "", "V11", injection.Res4),
    Bug("res6", "", "Bit 12 of a synthesized exit 0 means NMI blocking",
        "~3.10", "", "V11", injection.Res6),
    Bug("res6b", "", "Bit 3 is set again before L1 gets an IRET fault",
        "~3.10", "", "V11", injection.Res6b),
    Bug("res6c", "", "A reflected EPT violation does not carry bit 12",
        "~3.12", "", "V11", injection.Res6c),
    Bug("res7", "", "SMI is ranked below MTF, debug traps and the timer",
        "~5.8", "", "V4", ordering.Res7),
    Bug("res7b", "", "An MTF exit that is owed is lost by an SMI",
        "~6.1", "", "V11", smm_and_save.Res7b),
    Bug("res8", "", "Activity states that the manual forbids are accepted",
        "", "", "V11", entry.Res8),
    Bug("res11", "", "Userspace save drops soft events in flight",
        "~3.10", "", "V2", smm_and_save.Res11),
)  # fmt: skip

UNEXPRESSED: Final[tuple[Unexpressed, ...]] = (
    Unexpressed("bug6", "KVM: nVMX: Fix trying to cancel vmlauch/vmresume",
                "no step makes L0 queue an exception between the accepted entry and the hardware entry"),
    Unexpressed("bug19b", "KVM: nVMX: Properly handle userspace interrupt window request (no interrupt at all)",
                "no step makes userspace ask for an interrupt window when its controller has no interrupt"),
    Unexpressed("bug33c", "The guest-state area written by a failed entry",
                "the values that 3.1 wrote back are those that the entry had read, so that nothing changes"),
    Unexpressed("bug34", "KVM: nVMX: Do not report error code when synthesizing VM-Exit from Real Mode",
                "L0 makes up faults with an error code from paging and merging only, which real mode has not here"),
    Unexpressed("bug35", "KVM: x86: Evaluate ability to inject SMI/NMI/IRQ after potential VM-Exit",
                "a delay inside L0 after an exit, of which neither L1 nor L2 sees anything"),
    Unexpressed("bug47b", "KVM: nVMX: Suppress external interrupt VM-Exit injection if there's no IRQ",
                "an interrupt that the controller shows at a boundary is still there when L0 takes it"),
    Unexpressed("bug49", "KVM: nVMX: Unconditionally clear nested.pi_pending on nested VM-Enter",
                "the model processes posted interrupts at once, so that no request is left for another VMCS"),
    Unexpressed("bug50c", "KVM: nVMX: Unconditionally clear mtf_pending on nested VM-Exit",
                "the flag outlived exits in the middle of a re-injection only, and no MTF exit is owed in one here"),
    Unexpressed("bug52", "KVM: x86: Treat General Detect #DB (DR7.GD=1) as fault-like",
                "no general-detect faults and no task-switch traps: the model has neither DR7 nor a TSS trap bit"),
    Unexpressed("bug53", "KVM: async_pf: Force a nested vmexit if the injected #PF is async_pf",
                "paravirtual page faults have no counterpart on bare metal, which is what the model compares with"),
    Unexpressed("bug54", "KVM: VMX: Drop bits 31:16 when shoving exception error code into VMCS",
                "no step makes L0 queue an exception whose error code is wider than 16 bits"),
    Unexpressed("bug57", "KVM: x86: Forcibly leave nested virt when SMM state is toggled",
                "no step lets userspace change the mode of a vCPU; it saves and restores what was there"),
    Unexpressed("bug58b", "KVM: nVMX: Set nested_run_pending in vmx_set_nested_state after checks complete",
                "no step restores a state that the checks refuse, and none resets a vCPU"),
    Unexpressed("res5", "A second NMI that is queued behind an NMI exit is lost",
                "one NMI is latched while another is pending, also on bare metal; a second one needs an arrival"
                " between two instructions of L0"),
    Unexpressed("res9", "A triple-fault request is served although an entry is pending",
                "a triple fault follows from what L2 does, and by then the entry has completed"),
    Unexpressed("res10", "#CP and #VE count as benign when exceptions merge",
                "the modelled processor has neither CET nor EPT-violation #VE, so that both are benign to it"),
)  # fmt: skip

BUG_BY_NAME: Final[dict[str, Bug]] = {bug.name: bug for bug in CATALOGUE}
