"""Rules of delivery and exit: what an event does, and what its exit leaves behind.

D is the delivery, Y the exit that an event causes directly, X the exit in the middle of a
delivery, F double and triple faults, K the acknowledgement of interrupts.

In X and F, E1 is the event being delivered and E2 the exception met while delivering it.
"""

from typing import Final

from nvmx_core.arch.rule import Rule

_DURING: Final = "SDM: Information for VM Exits During Event Delivery"
_BEFORE: Final = "SDM: Architectural State Before a VM Exit"

DELIVERY_RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "D1",
        "An injected event is never intercepted",
        "NMI exiting, external-interrupt exiting and the exception bitmap do not apply to the "
        "event being injected, only to what its delivery meets.",
        "SDM: VM Exits During Event Injection; test vmx_preemption_timer_zero_test",
    ),
    Rule(
        "D2",
        "RFLAGS pushed by an injection",
        "The frame holds RFLAGS as loaded from the guest state, RF included. After delivery TF, "
        "NT, RF and VM are 0, and an interrupt gate clears IF.",
        "SDM: Details of Vectored-Event Injection; Bochs protected_mode_int",
    ),
    Rule(
        "D3",
        "Injected and natural delivery are alike",
        "The delivery of an injected event meets the same faults, intercepts and combinations as "
        "that of a natural one.",
        "SDM: Vectored-Event Injection",
    ),
    Rule(
        "D4",
        "A delivered fault replaces the event",
        "If E2 is delivered to the guest, E1 is gone and L1 is not told; it comes back only if the "
        "guest executes its cause again.",
        "SDM: Vectored-Event Injection; Bochs exception",
    ),
    Rule(
        "D5",
        "No error codes in real mode",
        "With CR0.PE = 0 delivery goes through the interrupt-vector table, pushes no error code, "
        "and an exit reports none.",
        "SDM: Event Injection for VM Entries to Real-Address Mode; Bochs real_mode_int; "
        "KVM nested_vmx_inject_exception_vmexit",
    ),
    Rule(
        "D6",
        "An exit clears only the valid bit of the injection",
        "Every exit after a successful entry clears bit 31 of the entry interruption information; "
        "its other bits, the error code and the instruction length for entry stay untouched.",
        "SDM: VM-Entry Controls for Event Injection; Bochs VMexit",
    ),
    Rule(
        "Y1",
        "An event that exits has not happened",
        "A #PF that exits leaves CR2, a #DB leaves DR6, DR7.GD and DEBUGCTL.LBR, an interrupt "
        "stays pending unless acknowledged on exit, an NMI blocks NMIs only after the exit.",
        f"{_BEFORE}; test vmx_db_test; Bochs page_fault",
    ),
    Rule(
        "Y2",
        "RIP saved by an event's exit",
        "RIP is what the event's frame would hold: the faulting instruction for faults, the next "
        "one for traps, interrupts and NMIs. INT3, INTO and INT1 save their own address and a "
        "valid exit instruction length.",
        "SDM: Saving RIP, RSP, RFLAGS, and SSP; KVM handle_exception_nmi",
    ),
    Rule(
        "Y3",
        "RFLAGS.RF saved by an exit",
        "An exit caused by an event saves the RF of its frame: 1 for faults other than #DB. An "
        "intercepted instruction saves 0, and exits such as timer, windows and MTF save the "
        "register.",
        "SDM: Saving RIP, RSP, RFLAGS, and SSP; Bochs VMexitReadEFLAGS",
    ),
    Rule(
        "Y4",
        "The activity state is saved as it was",
        "An exit out of HLT for an interrupt, NMI, window, MTF or timer saves activity HLT and no "
        "blocking by STI or MOV SS.",
        f"{_BEFORE}; KVM vcpu_block",
    ),
    Rule(
        "Y5",
        "How the host starts after an exit",
        "L1 is active with IF = 0, no blocking by STI or MOV SS, no pending debug exception and "
        "nothing that belonged to L2. An exit caused directly by an NMI leaves NMIs blocked; any "
        "other exit leaves their blocking as it was in the guest.",
        "SDM: Updating Non-Register State; Loading Host RIP, RSP, RFLAGS, and SSP; Bochs VMexit",
    ),
    Rule(
        "Y6",
        "When pending debug exceptions are saved",
        "The field is saved as 0 except by INIT, SMI and #MC exits, by exits 37, 43, 45 and 56, "
        "and by exits other than #DB under blocking by MOV SS; these save what was pending.",
        "SDM: Saving Non-Register State; tests vmx_mtf_test, vmx_db_test",
    ),
    Rule(
        "X1",
        "When IDT-vectoring information is valid",
        "It is valid exactly if the exit comes while E1 is being delivered and is an intercepted "
        "E2 other than #DF, a task gate, an APIC access, an EPT violation or misconfiguration, or "
        "a full page-modification log (and newer ones of that kind).",
        f"{_DURING}; Bochs VMexit",
    ),
    Rule(
        "X2",
        "When IDT-vectoring information is not valid",
        "It is invalid if E1 itself exits, for #DF, for a triple fault, and for an exit of "
        "fetching the first instruction of the handler.",
        f"{_DURING}; Bochs VMexit_Event, VMexit_TripleFault",
    ),
    Rule(
        "X3",
        "Boundary exits never carry IDT-vectoring information",
        "Exits 1, 3, 4, 7, 8, 37, 43, 52 and the NMI exit are recognised on boundaries only; none "
        "ever comes with a valid IDT-vectoring field, because delivery cannot be interrupted by "
        "them.",
        f"{_DURING}; KVM vmx_handle_exit",
    ),
    Rule(
        "X4",
        "IDT-vectoring information repeats the event",
        "Vector and type are those with which E1 was raised or injected; bit 11 tells whether E1 "
        "pushes an error code, which then is in the IDT-vectoring error code.",
        f"{_DURING}; Bochs VMenterInjectEvents",
    ),
    Rule(
        "X5",
        "Only the last event of a chain is reported",
        "If E1 itself was raised while an earlier event was being delivered, IDT-vectoring "
        "information names E1 and the earlier event is not reported.",
        f"{_DURING}; Bochs VMexit_Event",
    ),
    Rule(
        "X6",
        "Interruption information describes the nested event",
        "For exit reason 0 the exit interruption information and error code describe E2; for the "
        "other reasons its bit 31 is 0.",
        "SDM: Information for VM Exits Due to Vectored Events",
    ),
    Rule(
        "X7",
        "Registers as before the delivery",
        "RIP, CS, SS, RSP and RFLAGS are saved as before the delivery of E1; for types 4 to 6 RIP "
        "points at the instruction, or is as loaded. Stack memory may already be written.",
        f"{_BEFORE}; Bochs VMexit",
    ),
    Rule(
        "X8",
        "RFLAGS.RF of memory exits",
        "Exits 44, 48, 49, 62 and 66 save the RF of E1's frame if IDT-vectoring information is "
        "valid, and 1 if it is not.",
        "SDM: Saving RIP, RSP, RFLAGS, and SSP; Bochs VMexitReadEFLAGS",
    ),
    Rule(
        "X9",
        "Exit instruction length during a delivery",
        "If E1 has type 4, 5 or 6 the field holds the length of the instruction, or the entry "
        "instruction length if E1 was injected; for types 0, 2 and 3 it is undefined.",
        "SDM: Information for VM Exits Due to Instruction Execution; KVM vmx_complete_interrupts",
    ),
    Rule(
        "X10",
        "What of the first event has happened",
        "An interrupt is acknowledged, an NMI blocks (bit 3 saved as 1), a natural #PF has written "
        "CR2 and a natural #DB DR6; the guest is active and no blocking by STI or MOV SS is left.",
        _BEFORE,
    ),
    Rule(
        "X11",
        "How a host resumes an interrupted delivery",
        "The host copies IDT-vectoring information (bit 12 cleared), error code and length into "
        "the entry fields, and for an NMI clears bit 3 of the interruptibility state first.",
        "SDM: Resuming Guest Software after Handling an Exception; KVM vmx_complete_interrupts",
    ),
    Rule(
        "X12",
        "NMI unblocking due to IRET",
        "Bit 12 is 1 exactly if the exit is for a fault of an IRET that ran under (virtual-)NMI "
        "blocking, and bit 3 is then saved as 0. It is undefined with valid IDT-vectoring "
        "information, for #DF, and with NMI exiting = 1 but virtual NMIs = 0.",
        "SDM: Information About NMI Unblocking Due to IRET; Bochs IRET32; KVM "
        "vmx_recover_nmi_blocking",
    ),
    Rule(
        "X13",
        "One event per entry, none forgotten",
        "An event whose delivery was interrupted is completed or knowingly dropped before another "
        "one is injected; two events never share an entry.",
        "SDM: VM-Entry Controls for Event Injection; KVM kvm_event_needs_reinjection",
    ),
    Rule(
        "X14",
        "Which accesses belong to the delivery",
        "Reading IDT, GDT and TSS and pushing the frame belong to the delivery; fetching the "
        "handler's first instruction does not.",
        _DURING,
    ),
    Rule(
        "F1",
        "Injected events have the class of their kind",
        "An injected hardware exception counts with its vector's class in the double-fault table; "
        "injected types 0, 2, 4, 5 and 6 are benign.",
        "SDM: VM Exits During Event Injection; Bochs VMenterInjectEvents",
    ),
    Rule(
        "F2",
        "A fault while delivering #DF is a triple fault",
        "Any fault during the delivery of #DF that is not intercepted is exit 2, whether that #DF "
        "was natural, merged or injected.",
        "SDM: Interrupt 8—Double Fault Exception (#DF); Bochs exception; KVM "
        "kvm_multiple_exception",
    ),
    Rule(
        "F3",
        "An intercepted fault while delivering #DF",
        "It is exit 0 with IDT-vectoring information = #DF, hardware exception, error code valid, "
        "and an IDT-vectoring error code of 0.",
        f"{_DURING}; Bochs exception",
    ),
    Rule(
        "F4",
        "A triple fault always exits",
        "A triple fault in the guest is exit 2 under any controls, with IDT-vectoring information "
        "invalid and RIP as in the frame of the #DF.",
        "SDM: Other Causes of VM Exits; Saving RIP, RSP, RFLAGS, and SSP",
    ),
    Rule(
        "F5",
        "The error code of #DF is 0",
        "A #DF pushes error code 0 in protected mode, EXT bit included, and a merged #DF has type "
        "3.",
        "SDM: Interrupt 8—Double Fault Exception (#DF); Details of Vectored-Event Injection",
    ),
    Rule(
        "K1",
        "Acknowledge interrupt on exit",
        "With the control, exit 1 reports valid, type 0 and the vector, which moved from IRR to "
        "ISR; without it bit 31 is 0 and the interrupt stays pending.",
        f"{_BEFORE}; Bochs VMexit_ExtInterrupt, HandleExtInterrupt",
    ),
    Rule(
        "K2",
        "No interrupt exit without an interrupt",
        "Exit 1 implies an interrupt that was pending and unblocked; with acknowledge-on-exit its "
        "information is always valid.",
        "SDM: Information for VM Exits Due to Vectored Events",
    ),
    Rule(
        "K3",
        "Posted-interrupt processing",
        "An acknowledged interrupt with the notification vector is consumed without an exit and "
        "its posted requests raise RVI; any other vector exits. The vectors are compared when the "
        "interrupt is acknowledged, however long it was pending.",
        "SDM: Posted-Interrupt Processing; Bochs HandleExtInterrupt",
    ),
    Rule(
        "K4",
        "Virtual-interrupt delivery",
        "A virtual interrupt is recognised when RVI[7:4] exceeds VPPR[7:4] and is delivered "
        "without an exit once IF = 1 and neither STI nor MOV SS blocks. Entries, TPR and EOI "
        "virtualization and posted interrupts evaluate; a delivery ends the recognition.",
        "SDM: Evaluation of Pending Virtual Interrupts; Virtual-Interrupt Delivery",
    ),
)
