"""What KVM does otherwise than the processor, and the catalogue of bugs does not predict."""

from typing import Final

from nvmx_fuzz.boot.predicates import (
    failed_entry_opens_nmis,
    guest_before_controls,
    int1_as_hardware_exception,
    int1_dropped,
    interrupt_before_higher_rank,
    iret_opens_nmis,
    misconfiguration_qualified,
    monitor_never_armed,
    nmi_blocking_of_a_delivery,
    refused_injection,
    stale_length,
    unblocking_by_iret,
)
from nvmx_fuzz.boot.predicates_of_idle import (
    event_in_wait_for_sipi,
    failed_entry_saves_activity,
    inactive_state_accepted,
    init_lost_in_wait_for_sipi,
    nmi_makes_active,
    pending_debug_kept,
    pending_makes_active,
    smi_ends_hlt,
    what_is_due_in_hlt,
    window_makes_active,
    window_runs_hlt,
)
from nvmx_fuzz.boot.predicates_of_stops import (
    debug_exception_before_init,
    ended_timer_lost_by_a_save,
    event_kept_by_l2_is_late,
    injected_mtf_lost,
    intercepted_debug_lost,
    mtf_exit_before_init,
    nmi_blocking_stays_in_l2,
    nmi_exits_though_blocked,
    pdptes_lost_by_a_restore,
    rsm_is_an_instruction_of_l2,
    second_nmi_is_kept,
    shadow_lost_by_an_smi,
    smi_before_what_a_save_repeats,
    soft_event_lost_by_a_save,
    trap_before_smi,
)
from nvmx_fuzz.boot.rows import BOTH_ALLOWED, KVM, KVM_WRONG, SMI_ENDS_HLT, Listed

OF_KVM: Final[tuple[Listed, ...]] = (
    Listed(
        "res3b: injected MTF exit lost", KVM, ("O9", "X13"), KVM_WRONG,
        "A pending MTF exit that L1 injects comes before the first instruction (SDM: Injection of Pending "
        "MTF VM Exits). KVM prepares the first entry of a machine, cancels it by itself, and does not know "
        "the event any more (vmx_cancel_injection, __vmx_complete_interrupts). Our L0 predicts it where a "
        "step cancels the entry.",
        "corpus/nested_events/inject-monitor-trap.scn",
        injected_mtf_lost, "F22",
    ),
    Listed(
        "RSM is an instruction of L2", KVM, ("B8", "M1"), KVM_WRONG,
        "With the monitor trap flag the exit comes behind the next instruction of L2 (SDM: Monitor Trap "
        "Flag). KVM emulates RSM, and owes the exit for it (vmx_update_emulated_instruction).",
        "corpus/nested_events/mtf-after-smm.scn",
        rsm_is_an_instruction_of_l2, "F23",
    ),
    Listed(
        "failed entry saves the activity state", KVM, ("E0", "Y4"), KVM_WRONG,
        "Exit 33 leaves the guest-state area as L1 wrote it (SDM: VM-Entry Failures During or After Loading "
        "Guest State). Checks that KVM leaves to the processor fail on its own VMCS, and it saves that with "
        "the exit (nested_vmx_vmexit, sync_vmcs02_to_vmcs12): HLT becomes active.",
        "L1 vmwrite GUEST_RFLAGS 0x2 / L1 vmwrite GUEST_ACTIVITY 0x1 / L1 inject external-interrupt 0x40 / "
        "L1 enter",
        failed_entry_saves_activity, "F4",
    ),
    Listed(
        "res8: inactive state accepted", KVM, ("G2", "G3", "G4", "G5", "G10"), KVM_WRONG,
        "HLT with SS.DPL 3 or with a shadow, and events that HLT does not take, fail the entry (SDM: Checks "
        "on Guest Non-Register State); KVM enters. So do all checks that it leaves to the processor, which "
        "never runs then. Our L0 predicts the first where nothing else shows.",
        "config user-mode=on / L1 vmwrite GUEST_ACTIVITY 0x1 / L1 control nmi-window-exiting on / L1 enter",
        inactive_state_accepted,
    ),
    Listed(
        "guest state before controls", KVM, ("C6", "E0"), KVM_WRONG,
        "Checks of controls come first and fail with VMfail 7 (SDM: VM Entries). KVM leaves the TPR "
        "threshold against the virtual TPR to the processor, and has checked the guest state by then "
        "(nested_vmx_run): with both wrong L1 sees exit 33.",
        "config tpr-shadow=on / L1 vmwrite TPR_THRESHOLD 0x1 / L1 vmwrite GUEST_ACTIVITY 0x2 / L1 enter",
        guest_before_controls, "F10",
    ),
    Listed(
        "INT1 as a hardware exception", KVM, ("X7", "X4"), KVM_WRONG,
        "An exit in the delivery of INT1 has RIP at the instruction and reports type 5 (SDM: Saving RIP, "
        "RSP, RFLAGS, and SSP). KVM intercepts every #DB, steps over the instruction and injects type 3 "
        "(handle_exception_nmi).",
        "L2 page idt-low absent / L1 enter / L2 int1", int1_as_hardware_exception, "F8",
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
        "Changes to Instruction Behavior in VMX Non-Root Operation). KVM runs L2 with virtual NMIs of its "
        "own.",
        "config virtual-nmis=off / L1 inject nmi / L1 enter / L2 iret / L2 nop", iret_opens_nmis, "F7",
    ),
    Listed(
        "res3: INT1 dropped", KVM, ("X4", "X13"), KVM_WRONG,
        "An injected INT1 whose delivery L0 had to repair is not injected again "
        "(__vmx_complete_interrupts knows no type 5).",
        "corpus/nested_events/inject-int1-under-mov-ss-drops-debug-exception.scn", int1_dropped,
    ),
    Listed(
        "failed entry opens NMIs", KVM, ("E0", "N3"), KVM_WRONG,
        "Exit 33 leaves the guest-state area as L1 wrote it (SDM: VM-Entry Failures During or After Loading "
        "Guest State). With an NMI to inject KVM takes the blocking by NMI out when it cancels its first "
        "entry (vmx_cancel_injection, __vmx_complete_interrupts), and saves that; the processor's check of "
        "it (G8) sees nothing either.",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0xa / L1 inject nmi / L1 enter",
        failed_entry_opens_nmis, "F28",
    ),
    Listed(
        "qualification of an EPT misconfiguration", KVM, ("X1",), KVM_WRONG,
        "Exit 49 has no qualification, the field is cleared (SDM: Exit Qualification); KVM leaves that of "
        "the EPT violation it made the exit from (nested_ept_inject_page_fault).",
        "corpus/nested_events/ept12-misconfigured-in-delivery.scn",
        misconfiguration_qualified, "F3", until=(6, 12),
    ),
    Listed(
        "NMI blocking of an exit in a delivery", KVM, ("X10", "N3"), KVM_WRONG,
        "An NMI in delivery blocks NMIs, and the exit saves that (SDM: Information for VM Exits During "
        "Event Delivery; Saving Non-Register State). KVM opens them for its own injection before it hands "
        "the exit on (__vmx_complete_interrupts). A host that clears the bit before it injects again sees "
        "no difference.",
        "corpus/nested_events/ept12-then-l0-fault-in-nmi-delivery.scn", nmi_blocking_of_a_delivery, "F6",
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
        "corpus/lessons/mwait-tells-the-armed-monitor.scn", monitor_never_armed, "F15",
    ),
    Listed(
        "NMI exits though NMIs are blocked", KVM, ("N1",), KVM_WRONG,
        "With NMI exiting and without virtual NMIs bit 3 of the interruptibility state blocks NMIs "
        "(SDM: Guest Non-Register State). KVM looks at the control only (vmx_nmi_blocked).",
        "config virtual-nmis=off / L1 vmwrite GUEST_INTERRUPTIBILITY 0x8 / L1 enter / outside nmi / L2 cpuid",
        nmi_exits_though_blocked, "F11",
    ),
    Listed(
        "NMI blocking stays in L2", KVM, ("N1", "V8"), KVM_WRONG,
        "Without virtual NMIs there is one blocking of NMIs, and an exit leaves it as it is until L1 "
        "executes IRET (SDM: Updating Non-Register State; Interruptibility State). KVM keeps the blocking "
        "of L1 and that of L2 apart, in vmcs01 and vmcs02.",
        "config nmi-exiting=off virtual-nmis=off / L1 inject nmi / outside interrupt 0x51 at-entry / "
        "L1 enter / outside nmi",
        nmi_blocking_stays_in_l2, "F24",
    ),
    Listed(
        "second NMI is kept", KVM, ("N2",), BOTH_ALLOWED,
        "The manual latches one NMI while NMIs are blocked, and does not say that a second one is dropped "
        "while the first has not been taken yet; the model drops it. KVM takes the first for delivered and "
        "keeps one more (process_nmi).",
        "L1 ept gdt absent / outside nmi at-entry / outside nmi in-delivery / "
        "L1 inject external-interrupt 0x40 / L1 enter / L1 enter",
        second_nmi_is_kept,
    ),
    Listed(
        "event of L2 is late", KVM, ("N2", "V8", "O11"), KVM_WRONG,
        "An NMI or interrupt that L2 has kept closed comes when L1 opens it, or the next L2 (SDM: "
        "Interruptibility State). The window that KVM waits for is in vmcs02, and the exit to L1 asks for no "
        "new look at events (nested_vmx_vmexit; newer kernels do).",
        "config nmi-exiting=off virtual-nmis=off / outside nmi in-delivery / "
        "L1 inject external-interrupt 0x40 / L1 enter / outside nmi",
        event_kept_by_l2_is_late, "F12", until=(7, 2),
    ),
    Listed(
        "ended timer lost by a save", KVM, ("O7",), KVM_WRONG,
        "A VMX-preemption timer that has ended exits (SDM: VMX-Preemption Timer). A save keeps the time at "
        "which it ends, not that it has; what is left of it when it is restored is negative, and taken as a "
        "large number (vmx_calc_preemption_timer_value).",
        "config preemption-timer=on / L1 vmwrite GUEST_PREEMPTION_TIMER 0x0 / "
        "L1 inject external-interrupt 0x40 / L0 save-restore in-delivery / L1 enter",
        ended_timer_lost_by_a_save, "F13",
    ),
    Listed(
        "what is due in HLT", KVM, ("O8", "P2"), KVM_WRONG,
        "L2 sleeps though the exit of the TPR threshold is due, or its check fails that KVM leaves to the "
        "processor, and the VMX-preemption timer or an interrupt ends that (SDM: VM Exits Induced by the TPR "
        "Threshold; nested_vmx_run).",
        "config tpr-shadow=on preemption-timer=on / L1 control virtualize-apic-accesses on / "
        "L1 vmwrite TPR_THRESHOLD 0x1 / L1 vmwrite GUEST_ACTIVITY 0x1 / "
        "L1 vmwrite GUEST_PREEMPTION_TIMER 0x0 / L1 enter",
        what_is_due_in_hlt, "F2",
    ),
    Listed(
        "window makes active", KVM, ("Y4",), KVM_WRONG,
        "The activity state is saved as it was before the exit (SDM: Saving Non-Register State). KVM enters "
        "L2 as active when a window is asked for, or a pending MTF exit injected, and saves what it entered "
        "with (nested_vmx_run, sync_vmcs02_to_vmcs12).",
        "corpus/nested_events/nmi-window-wakes-halted-l2.scn", window_makes_active, "F5",
    ),
    Listed(
        "NMI makes active", KVM, ("Y4",), KVM_WRONG,
        "The same for an NMI that exits out of HLT, without any window. It is a request first, which the "
        "nested check does not see that is made before the processor is runnable; that is made again behind "
        "it, and exits as active (vcpu_block, process_nmi).",
        "L1 vmwrite GUEST_ACTIVITY 0x1 / L1 enter / outside nmi", nmi_makes_active, "F30",
    ),
    Listed(
        "what is pending makes active", KVM, ("Y4",), KVM_WRONG,
        "The same for all that is pending at the entry into HLT, and for the MTF exit or the single step of "
        "an HLT of L2's own: the processor is made runnable at once, and the nested check comes behind it "
        "(__kvm_emulate_halt).",
        "L1 vmwrite GUEST_ACTIVITY 0x1 / outside interrupt 0x51 at-entry / L1 enter",
        pending_makes_active, "F31", since=(6, 12),
    ),
    Listed(
        "pending debug exceptions kept", KVM, ("Y6",), KVM_WRONG,
        "Exits clear the field, but for those that the manual names (SDM: Saving Non-Register State). An "
        "exit that KVM makes without the processor leaves what is there (sync_vmcs02_to_vmcs12): what L1 "
        "wrote, out of an HLT that the processor has never entered; the single step, in the exit of its own "
        "#DB, behind an instruction that KVM has emulated.",
        "L1 vmwrite GUEST_ACTIVITY 0x1 / L1 vmwrite GUEST_PREEMPTION_TIMER 0x0 / "
        "L1 control preemption-timer on / L1 vmwrite GUEST_PENDING_DBG 0x1 / L1 enter",
        pending_debug_kept, "F19",
    ),
    Listed(
        "NMI window ends HLT", KVM, ("O12", "P9"), KVM_WRONG,
        "An entry into HLT sleeps while the NMI window is not open (SDM: NMI-Window Exiting). KVM runs L2 "
        "when the window is asked for, open or not, so that the instructions behind HLT run "
        "(nested_vmx_run).",
        "L1 inject nmi / L1 enter / L2 vmcall / L1 vmwrite GUEST_ACTIVITY 0x1 / "
        "L1 control nmi-window-exiting on / L1 enter",
        window_runs_hlt, "F18",
    ),
    Listed(
        "wait-for-SIPI does not block", KVM, ("O12",), KVM_WRONG,
        "Wait-for-SIPI blocks interrupts, NMIs and the VMX-preemption timer (SDM: Activity State; "
        "VMX-Preemption Timer). KVM looks at them without asking for the state (vmx_check_nested_events).",
        "L1 vmwrite GUEST_ACTIVITY 0x3 / outside interrupt 0x51 at-entry / L1 enter / outside sipi 0x9f",
        event_in_wait_for_sipi, "F16",
    ),
    Listed(
        "INIT lost in wait-for-SIPI", KVM, ("O12", "P5"), BOTH_ALLOWED,
        "Wait-for-SIPI blocks an INIT (SDM: Other Causes of VM Exits). Whether it is kept, and exits from "
        "the next state that does not block it, the manual does not say; in the model it does. KVM drops it "
        "(vmx_check_nested_events).",
        "L1 vmwrite GUEST_ACTIVITY 0x3 / outside init at-entry / L1 enter / outside sipi 0x10 / L1 enter",
        init_lost_in_wait_for_sipi, "F17",
    ),
    Listed(
        "res11: soft event lost by a save", KVM, ("X4",), KVM_WRONG,
        "The same for #BP and #OF of any type, under a shadow, and where the delivery itself exits or "
        "faults. KVM_GET_VCPU_EVENTS has no length, so it leaves soft events out; they are expected to come "
        "again, which holds for instructions and not for what L1 injects "
        "(kvm_vcpu_ioctl_x86_get_vcpu_events).",
        "L1 inject software-interrupt 0x80 length=2 / L2 page stack absent / L0 save-restore at-entry / "
        "L1 enter",
        soft_event_lost_by_a_save,
    ),
    Listed(
        "PDPTEs lost by a restore", KVM, ("V2",), KVM_WRONG,
        "A userspace saves and restores L2 in PAE paging, where L1 uses no EPT. The page-directory-pointer "
        "entries that it gives with KVM_SET_SREGS2 are forgotten by KVM_SET_NESTED_STATE, and not read again "
        "because they were given (nested_get_vmcs12_pages): L2 cannot fetch.",
        "config l1-ept=off / L1 enter / L0 save-restore",
        pdptes_lost_by_a_restore, "F27",
    ),
    Listed(
        "MTF exit before INIT", KVM, ("P5", "P6"), KVM_WRONG,
        "An INIT that is pending at the entry exits before the MTF exit behind an injection (SDM: Monitor "
        "Trap Flag). KVM has the processor complete the injection, which exits for the monitor "
        "trap flag then, and hands that on without looking for the INIT (nested_vmx_reflect_vmexit).",
        "L1 control monitor-trap-flag on / L1 inject external-interrupt 0x40 / outside init at-entry / "
        "L1 enter",
        mtf_exit_before_init, "F21",
    ),
    Listed(
        "debug exception before INIT", KVM, ("P5", "Y6"), KVM_WRONG,
        "An INIT exits before a pending #DB is taken, and saves it (SDM: "
        "Prioritization of Concurrent Events; Saving Non-Register State). KVM lets the processor take it "
        "first, intercepts it, and hands it to L1, or saves it without the bit that makes it pending "
        "(nested_vmx_update_pending_dbg): it is lost.",
        "L1 vmwrite GUEST_PENDING_DBG 0x1001 / outside init at-entry / L1 enter",
        debug_exception_before_init, "F20",
    ),
    Listed(
        "intercepted debug exception lost", KVM, ("M4", "P5", "Y6"), KVM_WRONG,
        "An MTF exit and an INIT come before the #DB of a single step and save it as pending (SDM: Saving "
        "Non-Register State). KVM saves that of an instruction which it emulates, but not if L1 intercepts "
        "#DB: it looks for it among the exceptions that L2 would take (nested_vmx_update_pending_dbg).",
        "config single-step=on exceptions=#DB / L1 control monitor-trap-flag on / L1 enter / L2 out",
        intercepted_debug_lost, "F29",
    ),
    Listed(
        SMI_ENDS_HLT, KVM, ("B8", "Y4"), KVM_WRONG,
        "The activity state survives an SMI and its RSM (SDM: Default Treatment of SMI Delivery). KVM makes "
        "the processor runnable and keeps HLT nowhere.",
        "corpus/nested_events/smi-in-halted-l2.scn", smi_ends_hlt, "F14",
    ),
    Listed(
        "interrupt before what ranks higher", KVM, ("P9", "P11", "P12"), KVM_WRONG,
        "An NMI window, an interrupt window and a virtual interrupt rank above an external interrupt "
        "(SDM: Other Causes of VM Exits; Virtual-Interrupt Delivery). KVM exits for the interrupt that it "
        "knows of before it lets the processor look for them (vmx_check_nested_events).",
        "corpus/nested_events/interrupt-window-before-pending-interrupt.scn",
        interrupt_before_higher_rank, "F1",
    ),
    Listed(
        "shadow lost by an SMI", KVM, ("B8", "B3"), KVM_WRONG,
        "RSM returns to the shadow of STI or MOV SS under which an SMI came (SDM: Default Treatment of SMI "
        "Delivery). KVM keeps it nowhere (enter_smm); since 6.2 it is saved.",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x1 / L1 enter / outside smi",
        shadow_lost_by_an_smi, "F25", until=(6, 2),
    ),
    Listed(
        "trap before SMI", KVM, ("P4", "P7"), KVM_WRONG,
        "An SMI ranks above the traps of the instruction before it (SDM: Prioritization of Concurrent "
        "Events). KVM injects a pending exception first (vmx_check_nested_events says so itself).",
        "config single-step=on / L1 enter / outside smi in-emulation / L2 out",
        trap_before_smi, "F26",
    ),
    Listed(
        "SMI before what a save repeats", KVM, ("B8",), BOTH_ALLOWED,
        "A userspace saves in the delivery of INT n or INT3 that L2 executes; the event is left out, and the "
        "instruction executed again (kvm_vcpu_ioctl_x86_get_vcpu_events). An SMI that came in the delivery "
        "comes before it.",
        "L0 save-restore in-delivery / outside smi in-delivery / L1 enter / L2 int 0x40",
        smi_before_what_a_save_repeats,
    ),
)  # fmt: skip
