"""Where the machines that boot are known to disagree with the model: Bochs 2.7 and KVM 6.1.

What the catalogue of KVM's bugs predicts is not here (``predicted.py``), nor what every Bochs does
(``bochs/divergences.py``). `docs/KVM.md` is made from this table.
"""

from typing import Final, NamedTuple

from nvmx_fuzz.bochs.predicates import Predicate
from nvmx_fuzz.boot.predicates import (
    active_after_hlt,
    breakpoint_without_condition,
    closed_interrupt_does_not_exit,
    failed_entry_saves_activity,
    guest_before_controls,
    inactive_state_accepted,
    int1_as_hardware_exception,
    int1_behind_mov_ss,
    int1_dropped,
    interrupt_before_higher_rank,
    iret_opens_nmis,
    misconfiguration_qualified,
    monitor_never_armed,
    nmi_blocking_of_a_delivery,
    nmis_stay_blocked,
    refused_injection,
    shadow_lost_in_a_repair,
    shadow_of_a_fault,
    single_step_of_an_exit,
    spurious_interrupt,
    stale_length,
    step_before_the_instruction,
    timer_of_an_earlier_entry,
    trap_behind_injection,
    unblocking_by_iret,
    wrong_vector_in_delivery,
)
from nvmx_fuzz.boot.predicates_of_stops import (
    ended_timer_lost_by_a_save,
    nmi_exits_though_blocked,
    nmi_latched_in_l2_is_late,
    second_nmi_is_kept,
    smi_ends_hlt,
    timer_wakes_what_is_due,
)
from nvmx_fuzz.compare import Difference

BOCHS_WRONG: Final = "Bochs 2.7 is wrong"
KVM_WRONG: Final = "KVM is wrong"
BOTH_ALLOWED: Final = "both are allowed"

BOCHS: Final = ("bochs-boot", "kvm-bochs")
KVM: Final = ("kvm", "kvm-bochs")

EVERYWHERE: Final = ("bochs-boot", "kvm", "kvm-bochs")


class Listed(NamedTuple):
    """One known disagreement: on which machines, its rules, who is right, why, and a scenario."""

    name: str
    machines: tuple[str, ...]
    rules: tuple[str, ...]
    verdict: str
    why: str
    scenario: str
    matches: Predicate


LISTED: Final[tuple[Listed, ...]] = (
    Listed(
        "single step before the instruction", ("kvm-bochs",), ("Y6", "X7"), BOCHS_WRONG,
        "A fault-like exit saves no single step of the instruction that has not completed (SDM: Saving "
        "Non-Register State). Bochs 2.7 saves BS with the EPT violation of the fetch; L0 repairs the page "
        "and enters again, and the #DB comes before the instruction.",
        "config single-step=on / L1 enter / L2 nop", step_before_the_instruction,
    ),
    Listed(
        "single step saved by an exit", BOCHS, ("Y6",), BOCHS_WRONG,
        "The same where L1 sees the exit; Bochs 2.7 also drops it where MOV SS holds it.",
        "corpus/lessons/trap-kept-for-reinjection.scn", single_step_of_an_exit,
    ),
    Listed(
        "shadow of a fault", BOCHS, ("B9",), BOCHS_WRONG,
        "The exit of a fault saves the blocking by STI that was in effect (SDM: Saving Non-Register "
        "State).",
        "corpus/nested_events/fault-in-sti-shadow-keeps-it.scn", shadow_of_a_fault,
    ),
    Listed(
        "shadow lost in a repair", ("kvm-bochs",), ("B9",), BOCHS_WRONG,
        "The same where the fault is an EPT violation that L0 repairs: L0 then exits for what came meanwhile "
        "with the state that the processor has saved.",
        "L1 vmwrite GUEST_RFLAGS 0x302 / L1 vmwrite GUEST_INTERRUPTIBILITY 0x1 / "
        "L1 vmwrite GUEST_PENDING_DBG 0x4000 / outside init / L1 enter", shadow_lost_in_a_repair,
    ),
    Listed(
        "INT1 behind MOV SS", BOCHS, ("B2", "Y6"), BOCHS_WRONG,
        "Bochs 2.7 adds the conditions that MOV SS holds, and drops the shadow (SDM: Basic VM-Exit "
        "Information).",
        "corpus/nested_events/int1-in-mov-ss-shadow-exits-without-pending-trap.scn", int1_behind_mov_ss,
    ),
    Listed(
        "closed interrupt does not exit", ("bochs-boot",), ("O11", "B3"), BOCHS_WRONG,
        "With external-interrupt exiting IF does not block (SDM: External-Interrupt Exiting); a shadow "
        "may.",
        "corpus/nested_events/interrupt-pending-at-entry-without-injection.scn",
        closed_interrupt_does_not_exit,
    ),
    Listed(
        "active after HLT", EVERYWHERE, ("Y4",), f"{BOCHS_WRONG}; {KVM_WRONG}",
        "The activity state is saved as it was before the exit (SDM: Saving Non-Register State). Bochs "
        "2.7 saves active; KVM enters L2 as active when a window is asked for, and saves what it entered "
        "with (nested_vmx_run, sync_vmcs02_to_vmcs12).",
        "corpus/nested_events/nmi-window-wakes-halted-l2.scn", active_after_hlt,
    ),
    Listed(
        "failed entry saves the activity state", KVM, ("E0", "Y4"), KVM_WRONG,
        "Exit 33 leaves the guest-state area as L1 wrote it (SDM: VM-Entry Failures During or After Loading "
        "Guest State). Checks that KVM leaves to the processor fail on its own VMCS, and it saves that with "
        "the exit (nested_vmx_vmexit, sync_vmcs02_to_vmcs12): HLT becomes active.",
        "L1 vmwrite GUEST_RFLAGS 0x2 / L1 vmwrite GUEST_ACTIVITY 0x1 / L1 inject external-interrupt 0x40 / "
        "L1 enter",
        failed_entry_saves_activity,
    ),
    Listed(
        "res8: inactive state accepted", KVM, ("G2", "G3", "G4"), KVM_WRONG,
        "HLT with SS.DPL 3 or with a shadow, and events that HLT does not take, fail the entry (SDM: Checks "
        "on Guest Non-Register State); KVM enters. Our L0 predicts it where nothing else shows.",
        "config user-mode=on / L1 vmwrite GUEST_ACTIVITY 0x1 / L1 control nmi-window-exiting on / L1 enter",
        inactive_state_accepted,
    ),
    Listed(
        "timer of an earlier entry", EVERYWHERE, ("O7",), f"{BOCHS_WRONG}; {KVM_WRONG}",
        "A VMX-preemption timer that has ended is saved as 0 (SDM: Saving Non-Register State). With a start "
        "value of 0 KVM starts no timer of its own, and saves what would be left of the one of an earlier "
        "entry (vmx_start_preemption_timer, vmx_get_preemption_timer_value). Bochs 2.7 does the same.",
        "config preemption-timer=on save-preemption-timer=on / L1 enter / L2 cpuid / "
        "L1 vmwrite GUEST_PREEMPTION_TIMER 0x0 / L1 enter", timer_of_an_earlier_entry,
    ),
    Listed(
        "guest state before controls", KVM, ("C6", "E0"), KVM_WRONG,
        "Checks of controls come first and fail with VMfail 7 (SDM: VM Entries). KVM leaves the TPR "
        "threshold against the virtual TPR to the processor, and has checked the guest state by then "
        "(nested_vmx_run): with both wrong L1 sees exit 33.",
        "config tpr-shadow=on / L1 vmwrite TPR_THRESHOLD 0x1 / L1 vmwrite GUEST_ACTIVITY 0x2 / L1 enter",
        guest_before_controls,
    ),
    Listed(
        "INT1 as a hardware exception", KVM, ("X7", "X4"), KVM_WRONG,
        "An exit in the delivery of INT1 has RIP at the instruction and reports type 5 (SDM: Saving RIP, "
        "RSP, RFLAGS, and SSP). KVM intercepts every #DB, steps over the instruction and injects type 3 "
        "(handle_exception_nmi).",
        "L2 page idt-low absent / L1 enter / L2 int1", int1_as_hardware_exception,
    ),
    Listed(
        "res2: refused injection", KVM, ("X4",), KVM_WRONG,
        "The same injections with length 0, and software exceptions of other vectors: what KVM injects again "
        "fails the checks of its own VMCS, and L1 sees VMfail 7. Our L0 predicts it where one of the eight "
        "pages is repaired; the real one repairs L2's page tables too.",
        "corpus/bugs/res2.scn", refused_injection,
    ),
    Listed(
        "res2: stale length", KVM, ("X4",), KVM_WRONG,
        "#BP and #OF that L1 injects as hardware exceptions are injected again as software exceptions, with "
        "the length of an earlier event: the return address is behind an instruction that is not there.",
        "outside interrupt 0x51 / L1 inject software-interrupt 0x80 length=2 / L1 enter / "
        "L1 inject hardware-exception #OF / L1 enter",
        stale_length,
    ),
    Listed(
        "IRET opens NMIs of L1", KVM, ("N1",), KVM_WRONG,
        "With NMI exiting and without virtual NMIs an IRET of L2 does not touch the blocking of NMIs (SDM: "
        "NMI Blocking by IRET in VMX Non-Root Operation). KVM runs L2 with virtual NMIs of its own.",
        "config virtual-nmis=off / L1 inject nmi / L1 enter / L2 iret / L2 nop", iret_opens_nmis,
    ),
    Listed(
        "breakpoint without a condition", BOCHS, ("O6",), BOCHS_WRONG,
        "Bit 12 alone makes a #DB pending (SDM: Delivery of Pending Debug Exceptions after VM Entry); Bochs "
        "looks for conditions.",
        "L1 vmwrite GUEST_PENDING_DBG 0x1000 / L1 enter / L2 nop", breakpoint_without_condition,
    ),
    Listed(
        "interrupt of the class in service", ("bochs-boot",), ("K1",), BOCHS_WRONG,
        "An interrupt whose class is in service waits (SDM: Interrupt, Task, and Processor Priority). Bochs "
        "compares vectors, exits, and acknowledges the spurious one.",
        "config acknowledge-interrupt-on-exit=on / outside interrupt 0x51 / L1 enter / "
        "outside interrupt 0x52 / L1 enter no-eoi / L2 vmcall",
        spurious_interrupt,
    ),
    Listed(
        "NMIs stay blocked", BOCHS, ("O5",), BOCHS_WRONG,
        "An entry with bit 3 clear opens NMIs (SDM: Interruptibility State); in Bochs 2.7 those that an "
        "earlier entry has blocked stay so.",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x8 / L1 enter / L2 cpuid / "
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x0 / L1 enter / L2 cpuid", nmis_stay_blocked,
    ),
    Listed(
        "res3: INT1 dropped", KVM, ("X4", "X13"), KVM_WRONG,
        "An injected INT1 whose delivery L0 had to repair is not injected again "
        "(__vmx_complete_interrupts knows no type 5).",
        "corpus/nested_events/inject-int1-under-mov-ss-drops-debug-exception.scn", int1_dropped,
    ),
    Listed(
        "trap behind a soft injection", EVERYWHERE, ("O6", "B2"), BOTH_ALLOWED,
        "For soft events behind MOV SS the manual leaves some of it to the processor; Bochs 2.7 drops "
        "every trap (SDM: Delivery of Pending Debug Exceptions after VM Entry).",
        "corpus/nested_events/soft-injection-under-mov-ss-keeps-debug-exception.scn", trap_behind_injection,
    ),
    Listed(
        "virtual interrupt with another vector", ("kvm-bochs",), ("X4",), BOCHS_WRONG,
        "Bochs reports the event before it when the delivery of a virtual interrupt exits "
        "(docs/FIDELITY.md); L0 repairs the page and injects that.",
        "corpus/nested_events/virtual-interrupt-delivered-at-entry.scn", wrong_vector_in_delivery,
    ),
    Listed(
        "qualification of an EPT misconfiguration", KVM, ("X1",), KVM_WRONG,
        "Exit 49 has no qualification, the field is cleared (SDM: Exit Qualification); KVM leaves that of "
        "the EPT violation it made the exit from (nested_ept_inject_page_fault).",
        "corpus/nested_events/ept12-misconfigured-in-delivery.scn", misconfiguration_qualified,
    ),
    Listed(
        "NMI blocking of an exit in a delivery", KVM, ("X10", "N3"), KVM_WRONG,
        "An NMI in delivery blocks NMIs, and the exit saves that (SDM: Information for VM Exits During "
        "Event Delivery; Saving Non-Register State). KVM opens them for its own injection before it hands "
        "the exit on (__vmx_complete_interrupts). A host that clears the bit before it injects again sees "
        "no difference.",
        "corpus/nested_events/ept12-then-l0-fault-in-nmi-delivery.scn", nmi_blocking_of_a_delivery,
    ),
    Listed(
        "res6: NMI unblocking due to IRET", KVM, ("X12", "N1"), KVM_WRONG,
        "The exit says it in bit 12 of the qualification, and NMIs are open (SDM: Information About NMI "
        "Unblocking Due to IRET). KVM blocks them again by itself (handle_ept_violation), and its walk of "
        "L1's tables forms a new qualification without the bit. A host that only keeps the blocking sees "
        "no difference.",
        "corpus/nested_events/iret-fault-in-ept12-reports-nmi-unblocking.scn", unblocking_by_iret,
    ),
    Listed(
        "monitor never armed", KVM, ("P14",), KVM_WRONG,
        "The exit of MWAIT says whether MONITOR has armed the monitor (SDM: Exit Qualification). KVM "
        "intercepts MONITOR for itself and emulates it as NOP, so the processor never arms one "
        "(vmx_exec_control, kvm_emulate_monitor).",
        "corpus/lessons/mwait-tells-the-armed-monitor.scn", monitor_never_armed,
    ),
    Listed(
        "NMI exits though NMIs are blocked", KVM, ("N1",), KVM_WRONG,
        "With NMI exiting and without virtual NMIs bit 3 of the interruptibility state blocks NMIs "
        "(SDM: Guest Non-Register State). KVM looks at the control only (vmx_nmi_blocked).",
        "config virtual-nmis=off / L1 vmwrite GUEST_INTERRUPTIBILITY 0x8 / L1 enter / outside nmi / L2 cpuid",
        nmi_exits_though_blocked,
    ),
    Listed(
        "NMI of L2 is late in L1", KVM, ("N2", "V8"), KVM_WRONG,
        "An NMI that L2 has kept closed comes when L1 opens NMIs (SDM: Interruptibility State). The window "
        "that KVM waits for is in vmcs02, and the exit to L1 asks for no new look at events "
        "(nested_vmx_vmexit).",
        "config nmi-exiting=off virtual-nmis=off / outside nmi in-delivery / "
        "L1 inject external-interrupt 0x40 / L1 enter / outside nmi", nmi_latched_in_l2_is_late,
    ),
    Listed(
        "second NMI is kept", KVM, ("N2",), BOTH_ALLOWED,
        "The manual latches one NMI while NMIs are blocked, and does not say that a second one is dropped "
        "while the first has not been taken yet; the model drops it. KVM takes the first for delivered and "
        "keeps one more (process_nmi).",
        "config nmi-exiting=off virtual-nmis=off / outside nmi in-delivery / outside nmi in-delivery / "
        "L1 inject external-interrupt 0x40 / L1 enter / L2 cpuid / outside interrupt 0x51",
        second_nmi_is_kept,
    ),
    Listed(
        "ended timer lost by a save", KVM, ("O7",), KVM_WRONG,
        "A VMX-preemption timer that has ended exits (SDM: VMX-Preemption Timer). A save keeps the time at "
        "which it ends, not that it has; what is left of it when it is restored is negative, and taken as a "
        "large number (vmx_calc_preemption_timer_value).",
        "config preemption-timer=on / L1 vmwrite GUEST_PREEMPTION_TIMER 0x0 / "
        "L1 inject external-interrupt 0x40 / L0 save-restore in-delivery / L1 enter",
        ended_timer_lost_by_a_save,
    ),
    Listed(
        "timer wakes what is due", KVM, ("O8", "P2"), KVM_WRONG,
        "L2 sleeps though the exit of the TPR threshold is due, or its check fails that KVM leaves to the "
        "processor, and the VMX-preemption timer ends that (SDM: VM Exits Induced by the TPR Threshold; "
        "nested_vmx_run).",
        "config tpr-shadow=on preemption-timer=on / L1 control virtualize-apic-accesses on / "
        "L1 vmwrite TPR_THRESHOLD 0x1 / L1 vmwrite GUEST_ACTIVITY 0x1 / "
        "L1 vmwrite GUEST_PREEMPTION_TIMER 0x0 / L1 enter",
        timer_wakes_what_is_due,
    ),
    Listed(
        "SMI ends HLT", ("kvm-bochs",), ("B8", "Y4"), f"{BOCHS_WRONG}; {KVM_WRONG}",
        "The activity state survives an SMI and its RSM (SDM: Default Treatment of SMI Delivery). KVM makes "
        "the processor runnable and forgets HLT; SMM blocks NMIs, and in Bochs 2.7 they stay blocked.",
        "corpus/nested_events/smi-in-halted-l2.scn", smi_ends_hlt,
    ),
    Listed(
        "interrupt before what ranks higher", KVM, ("P9", "P11", "P12"), KVM_WRONG,
        "An NMI window, an interrupt window and a virtual interrupt rank above an external interrupt "
        "(SDM: Other Causes of VM Exits; Virtual-Interrupt Delivery). KVM exits for the interrupt that it "
        "knows of before it lets the processor look for them (vmx_check_nested_events).",
        "corpus/nested_events/interrupt-window-before-pending-interrupt.scn", interrupt_before_higher_rank,
    ),
)  # fmt: skip

SLEEPS: Final = "L2 sleeps though something is due"
"""The name of an incident: the scenario enters HLT or wait-for-SIPI, and nothing comes back."""


def listed(machine: str, found: Difference) -> Listed | None:
    """The row that a difference on a machine is an instance of."""
    return next((row for row in LISTED if machine in row.machines and row.matches(found)), None)
