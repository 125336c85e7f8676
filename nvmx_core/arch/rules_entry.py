"""Rules of the VM entry: what is checked (E, C, G) and what then happens, in order (O).

The checks come in the order in which a processor may find them: first the instruction itself,
then the control fields (both leave L1 running), then the guest state (which already is an exit).
"""

from typing import Final

from nvmx_core.arch.rule import Rule

ENTRY_RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "E0",
        "How a VM entry fails, and what a failure changes",
        "Permission and a current VMCS come first, then blocking by MOV SS (error 26), launch "
        "state (4 or 5), controls (7) and host state (8): these resume L1 at its next instruction "
        "with no exit field written. Bad guest state (33) or a bad MSR list (34) is a VM exit that "
        "writes only exit reason and qualification; the injection stays valid in its field.",
        "SDM: VM Entries; VM-Entry Failures During or After Loading Guest State; "
        "test vmentry_movss_shadow_test",
    ),
    Rule(
        "E1",
        "Injected type 1 is reserved, type 7 needs MTF",
        "An injection of type 1 fails with error 7. Type 7 fails the same way on a processor "
        "without the monitor trap flag.",
        "SDM: Checks on VM-Entry Control Fields; test test_invalid_event_injection",
    ),
    Rule(
        "E2",
        "An injected NMI has vector 2",
        "Type 2 with a vector other than 2 fails with error 7.",
        "SDM: Checks on VM-Entry Control Fields; test test_invalid_event_injection",
    ),
    Rule(
        "E3",
        "An injected hardware exception has a vector up to 31",
        "Type 3 with a vector above 31 fails with error 7. The vectors of types 0, 4, 5 and 6 are "
        "not looked at.",
        "SDM: Checks on VM-Entry Control Fields; test test_invalid_event_injection",
    ),
    Rule(
        "E4",
        "An injected other event has vector 0",
        "Type 7 with a vector other than 0 fails with error 7 on a processor without FRED.",
        "SDM: Checks on VM-Entry Control Fields; Bochs VMenterLoadCheckVmControls",
    ),
    Rule(
        "E5",
        "When an injection must deliver an error code",
        "Bit 11 must be 1 for type 3 with vector 8, 10, 11, 12, 13, 14 or 17 when the guest will "
        "be in protected mode, and must be 0 otherwise; else error 7. A processor that sets "
        "IA32_VMX_BASIC[56] lets type 3 in protected mode have an error code or not.",
        "SDM: Checks on VM-Entry Control Fields; test test_invalid_event_injection",
    ),
    Rule(
        "E6",
        "Reserved bits of the entry interruption information",
        "Bits 30:12 must be 0 in a valid injection, else error 7 (FRED alone gives bit 13 a use).",
        "SDM: Checks on VM-Entry Control Fields; test test_invalid_event_injection",
    ),
    Rule(
        "E7",
        "An injected error code has 16 bits",
        "If the injection delivers an error code, bits 31:16 of that code must be 0, else error 7.",
        "SDM: Checks on VM-Entry Control Fields; test test_invalid_event_injection",
    ),
    Rule(
        "E8",
        "Instruction length of injected software events",
        "Types 4, 5 and 6 need an instruction length of 1 to 15, or also 0 if IA32_VMX_MISC[30] "
        "is 1; else error 7. The other types ignore the length.",
        "SDM: Checks on VM-Entry Control Fields; test test_invalid_event_injection",
    ),
    Rule(
        "C1",
        "Virtual NMIs need NMI exiting",
        "Virtual NMIs without NMI exiting fails with error 7.",
        "SDM: Checks on VM-Execution Control Fields; test test_nmi_ctrls",
    ),
    Rule(
        "C2",
        "NMI-window exiting needs virtual NMIs",
        "NMI-window exiting without virtual NMIs fails with error 7.",
        "SDM: Checks on VM-Execution Control Fields; test test_nmi_ctrls",
    ),
    Rule(
        "C3",
        "Virtual-interrupt delivery needs external-interrupt exiting",
        "Virtual-interrupt delivery without external-interrupt exiting, or without the TPR shadow, "
        "fails with error 7.",
        "SDM: Checks on VM-Execution Control Fields; test test_virtual_intr_ctls",
    ),
    Rule(
        "C4",
        "What posted interrupts need",
        "Posted-interrupt processing needs virtual-interrupt delivery, acknowledge-on-exit, a "
        "notification vector up to 255 and a 64-byte aligned descriptor; else error 7.",
        "SDM: Checks on VM-Execution Control Fields; test test_posted_intr",
    ),
    Rule(
        "C5",
        "Saving the preemption timer needs the timer",
        "The exit control that saves the timer without the control that activates it fails with "
        "error 7.",
        "SDM: Checks on VM-Exit Control Fields; test test_vmx_preemption_timer",
    ),
    Rule(
        "C6",
        "TPR threshold",
        "With the TPR shadow and without virtual-interrupt delivery, bits 31:4 of the threshold "
        "must be 0; if APIC accesses are not virtualized either, the threshold must not exceed "
        "bits 7:4 of the virtual TPR. Else error 7.",
        "SDM: Checks on VM-Execution Control Fields; Bochs VMenterLoadCheckVmControls",
    ),
    Rule(
        "G1",
        "The activity state must be supported",
        "The activity field must be 0 to 3 and offered by IA32_VMX_MISC, else exit 33.",
        "SDM: Checks on Guest Non-Register State; KVM nested_check_guest_non_reg_state",
    ),
    Rule(
        "G2",
        "HLT needs SS.DPL 0",
        "Activity HLT with SS.DPL other than 0 is exit 33.",
        "SDM: Checks on Guest Non-Register State; Bochs VMenterLoadCheckGuestState",
    ),
    Rule(
        "G3",
        "Blocking by STI or MOV SS needs an active guest",
        "Either of the two bits together with an activity other than active is exit 33.",
        "SDM: Checks on Guest Non-Register State; Bochs VMenterLoadCheckGuestState",
    ),
    Rule(
        "G4",
        "Which injections an inactive state accepts",
        "HLT accepts types 0, 2, 7 and type 3 with vector 1 or 18; shutdown accepts NMI and vector "
        "18 of type 3; wait-for-SIPI accepts none. Anything else is exit 33.",
        "SDM: Checks on Guest Non-Register State; tests vmx_nmi_window_test, vmx_intr_window_test",
    ),
    Rule(
        "G5",
        "Layout of the interruptibility state",
        "Reserved bits must be 0, blocking by STI and by MOV SS exclude each other, blocking by "
        "STI needs RFLAGS.IF, blocking by SMI exists only in SMM. Else exit 33.",
        "SDM: Checks on Guest Non-Register State; Guest Non-Register State",
    ),
    Rule(
        "G6",
        "Injecting an external interrupt needs an open window",
        "Type 0 needs RFLAGS.IF = 1 and no blocking by STI or MOV SS, else exit 33.",
        "SDM: Checks on Guest Non-Register State; Checks on Guest RIP, RFLAGS, and SSP",
    ),
    Rule(
        "G7",
        "Injecting an NMI under blocking by MOV SS or STI",
        "Type 2 under blocking by MOV SS is exit 33. Under blocking by STI a processor may accept "
        "it or fail with qualification 3.",
        "SDM: Checks on Guest Non-Register State; Bochs VMenterLoadCheckGuestState",
    ),
    Rule(
        "G8",
        "Injecting an NMI under virtual-NMI blocking",
        "Type 2 with virtual NMIs = 1 and bit 3 of the interruptibility state set is exit 33; with "
        "virtual NMIs = 0 the bit is not checked.",
        "SDM: Checks on Guest Non-Register State; Bochs VMenterLoadCheckGuestState",
    ),
    Rule(
        "G9",
        "Single step must be pending in a shadow",
        "Under blocking by STI or MOV SS, or in HLT, the pending-debug bit BS must be 1 if TF = 1 "
        "and DEBUGCTL.BTF = 0, and 0 otherwise; else exit 33.",
        "SDM: Checks on Guest Non-Register State; KVM handle_exception_nmi",
    ),
    Rule(
        "G10",
        "Reserved bits of the pending debug exceptions",
        "A reserved bit set in the pending-debug field is exit 33.",
        "SDM: Checks on Guest Non-Register State; Bochs VMenterLoadCheckGuestState",
    ),
    Rule(
        "G11",
        "Reserved bits of RFLAGS",
        "RFLAGS bit 1 must be 1 and the reserved bits 0, else exit 33.",
        "SDM: Checks on Guest RIP, RFLAGS, and SSP; Bochs VMenterLoadCheckGuestState",
    ),
    Rule(
        "G12",
        "Entry to SMM",
        "The entry-to-SMM control outside SMM fails, and with it blocking by SMI must be set. "
        "Under the default treatment of SMIs a guest hypervisor never uses it.",
        "SDM: Checks on Guest Non-Register State; VM Entries That Return from SMM",
    ),
    Rule(
        "O1",
        "Guest state, then MSRs, then launched",
        "A successful entry loads the guest state, then the entry MSR list, and only then marks "
        "the VMCS launched.",
        "SDM: VM Entries; Bochs VMLAUNCH",
    ),
    Rule(
        "O2",
        "The injection is part of the entry",
        "A vectoring event is delivered through the guest's IDT before any boundary is looked at, "
        "and an accepted entry delivers it exactly once.",
        "SDM: Vectored-Event Injection; Bochs VMenterInjectEvents",
    ),
    Rule(
        "O3",
        "A vectoring entry makes the guest active",
        "After a vectoring entry the guest is active, whatever the activity field says.",
        "SDM: Activity State; test vmx_intr_window_test",
    ),
    Rule(
        "O4",
        "A vectoring entry ends blocking by STI and MOV SS",
        "After a vectoring entry neither blocking is in effect; after a non-vectoring entry bits 0 "
        "and 1 hold for one instruction or until an exception.",
        "SDM: Interruptibility State; Bochs VMenterLoadCheckGuestState",
    ),
    Rule(
        "O5",
        "Blocking of NMIs after an entry",
        "With virtual NMIs = 0 bit 3 decides whether NMIs are blocked; with virtual NMIs = 1 NMIs "
        "are not blocked at all, even if they were in L1, and bit 3 is virtual-NMI blocking only. "
        "Injecting an NMI sets the blocking that bit 3 stands for.",
        "SDM: Interruptibility State; Bochs VMenterLoadCheckGuestState, VMenterInjectEvents",
    ),
    Rule(
        "O6",
        "What becomes of pending debug exceptions",
        "They are dropped by an injection of type 0, 2, 3 or 5, by types 4 and 6 without blocking "
        "by MOV SS, and by a non-vectoring entry into shutdown or wait-for-SIPI. Otherwise BS or "
        "enabled-breakpoint makes a #DB trap on the first boundary that MOV SS does not block.",
        "SDM: Delivery of Pending Debug Exceptions after VM Entry; "
        "tests vmx_preemption_timer_zero_test, vmx_db_test",
    ),
    Rule(
        "O7",
        "The preemption timer starts with the entry",
        "A timer of 0, or one that expires during the entry, exits (52) after injection and "
        "pending debug exceptions and before any guest instruction, unless in wait-for-SIPI.",
        "SDM: VMX-Preemption Timer; test vmx_preemption_timer_zero_test",
    ),
    Rule(
        "O8",
        "TPR below threshold right after the entry",
        "Exit 43 may follow the injection at once, ahead of SMI, INIT and pending debug "
        "exceptions; RFLAGS.IF, STI and MOV SS do not block it. It waits while the guest is in "
        "shutdown or wait-for-SIPI.",
        "SDM: VM Exits Induced by the TPR Threshold; Bochs handleAsyncEvent",
    ),
    Rule(
        "O9",
        "MTF pending from the entry",
        "An MTF exit is pending after a vectoring entry with the control set, and after injecting "
        "type 7 even without the control.",
        "SDM: Monitor Trap Flag; Injection of Pending MTF VM Exits; test vmx_mtf_test",
    ),
    Rule(
        "O10",
        "Windows come after the injection",
        "Interrupt-window exits, NMI-window exits and virtual-interrupt delivery may come before "
        "the first instruction, but never before the injection is complete.",
        "SDM: Interrupt-Window Exiting and Virtual-Interrupt Delivery; NMI-Window Exiting; "
        "tests vmx_intr_window_test, vmx_nmi_window_test",
    ),
    Rule(
        "O11",
        "What waited for the host exits before L2 runs",
        "An unblocked interrupt, NMI or INIT that is pending for L1 at the entry, or arrives during the "
        "injection, exits after the injection and before the first instruction of L2.",
        "SDM: Other Causes of VM Exits; tests vmx_pending_event_test, vmx_pending_event_hlt_test",
    ),
    Rule(
        "O12",
        "Entering an inactive state",
        "A non-vectoring entry into HLT, shutdown or wait-for-SIPI leaves the processor asleep "
        "there; only what that state does not block wakes it or exits.",
        "SDM: Activity State; test vmx_hlt_with_rvi_test",
    ),
)
