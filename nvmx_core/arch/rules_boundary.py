"""Rules of the instruction boundary: who goes first, and what is blocked.

P is the priority, B blocking, N NMIs, A activity states, M the monitor trap flag and I the
instructions of L2.
"""

from typing import Final

from nvmx_core.arch.rule import Rule

_PRIORITY: Final = "SDM: Priority Among Concurrent Events"

BOUNDARY_RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "P1",
        "Rank 1: reset and machine check",
        "RESET and machine checks precede everything else on a boundary.",
        _PRIORITY,
    ),
    Rule(
        "P2",
        "Rank 2: traps of APIC virtualization",
        "Exits 43, 45 and 56 precede SMI, INIT and all that follows. That they also precede the "
        "T-flag trap is Bochs' order; the manual is silent.",
        "SDM: VM Exits Induced by the TPR Threshold; Bochs handleAsyncEvent",
    ),
    Rule(
        "P3",
        "Rank 3: T-flag trap of a task switch",
        "The #DB of a TSS with the T flag precedes SMI and INIT.",
        f"{_PRIORITY}; Bochs handleAsyncEvent",
    ),
    Rule(
        "P4",
        "Rank 4: SMI",
        "An SMI precedes INIT, a pending MTF exit, debug traps, the timer, NMIs and interrupts; "
        "under the default treatment it is no VM exit.",
        f"{_PRIORITY}; Default Treatment of SMI Delivery",
    ),
    Rule(
        "P5",
        "Rank 5: INIT",
        "An INIT in non-root operation is exit 3, after an SMI and before a pending MTF exit.",
        f"{_PRIORITY}; test vmx_init_signal_test",
    ),
    Rule(
        "P6",
        "Rank 6: pending MTF exit",
        "A pending MTF exit (37) precedes the debug traps of the previous instruction.",
        "SDM: Pending MTF VM Exits; test vmx_mtf_test",
    ),
    Rule(
        "P7",
        "Rank 7: debug traps of the previous instruction",
        "Single step, data and I/O breakpoints and pending debug exceptions precede the preemption "
        "timer and all NMIs and interrupts, whether the #DB exits or is delivered.",
        "SDM: Delivery of Pending Debug Exceptions after VM Entry; "
        "test vmx_preemption_timer_tf_test",
    ),
    Rule(
        "P8",
        "Rank 8: VMX-preemption timer",
        "An expired timer (52) precedes the NMI window, NMIs, the interrupt window, virtual "
        "interrupts and external interrupts.",
        "SDM: Other Causes of VM Exits; VMX-Preemption Timer",
    ),
    Rule(
        "P9",
        "Rank 9: NMI window",
        "An open NMI window (8) precedes the NMI itself.",
        "SDM: NMI-Window Exiting; test vmx_nmi_window_test",
    ),
    Rule(
        "P10",
        "Rank 10: NMI",
        "An unblocked NMI precedes the interrupt window, virtual and external interrupts.",
        f"{_PRIORITY}; KVM vmx_check_nested_events",
    ),
    Rule(
        "P11",
        "Rank 11: interrupt window, virtual interrupt",
        "An open interrupt window (7) or, without that control, a virtual interrupt precedes an "
        "external interrupt.",
        "SDM: Interrupt-Window Exiting and Virtual-Interrupt Delivery; test vmx_intr_window_test",
    ),
    Rule(
        "P12",
        "Rank 12: external interrupt",
        "An external interrupt precedes every fault of the next instruction, including its code "
        "breakpoint.",
        f"{_PRIORITY}; Bochs handleAsyncEvent",
    ),
    Rule(
        "P13",
        "Rank 13: code breakpoint, fetch, decode",
        "A code breakpoint precedes faults of fetching, and these precede faults of decoding the "
        "next instruction.",
        _PRIORITY,
    ),
    Rule(
        "P14",
        "Rank 14: the instruction",
        "An intercept of the instruction, or a fault of executing it, comes after everything that "
        "was pending on the boundary before it.",
        f"{_PRIORITY}; Relative Priority of Faults and VM Exits",
    ),
    Rule(
        "P15",
        "Fault or exit of one instruction",
        "#UD, the #GP of a privilege level and of I/O permission precede the instruction's exit, "
        "and so do faults on operands that the exit depends on; other faults come after it. VMX "
        "instructions and MOV DR exit before their privilege check.",
        "SDM: Relative Priority of Faults and VM Exits; Instructions That Cause VM Exits Conditionally",
    ),
    Rule(
        "P16",
        "Rank first, destination second",
        "Which event comes next never depends on whether it would exit or be delivered: rank "
        "chooses the event, then the controls choose where it goes.",
        f"{_PRIORITY}; KVM vmx_check_nested_events",
    ),
    Rule(
        "B1",
        "STI blocks interrupts for one instruction",
        "Only STI that changes IF from 0 to 1 blocks, and only until the next instruction or event "
        "is over; POPF and IRET that set IF block nothing.",
        "SDM: STI (volume 2); test vmx_intr_window_test; Bochs STI",
    ),
    Rule(
        "B2",
        "MOV SS blocks interrupts, NMIs and debug traps",
        "MOV SS and POP SS block external interrupts, NMIs and debug traps on the next boundary, "
        "but neither MTF exits nor faults. A debug trap held that way joins the one of the next "
        "instruction; of two such instructions in a row only the first surely blocks.",
        "SDM: Masking Exceptions and Interrupts When Switching Stacks; Guest Non-Register State; "
        "test vmx_db_test",
    ),
    Rule(
        "B3",
        "RFLAGS.IF and external-interrupt exiting",
        "With external-interrupt exiting = 1 an interrupt exits even if IF = 0, and STI or MOV SS "
        "may or may not hold it back; with 0 it is blocked by IF, STI and MOV SS.",
        "SDM: Event Blocking; test vmx_pending_event_test",
    ),
    Rule(
        "B4",
        "NMI exits in a shadow",
        "With NMI exiting = 1 blocking by STI or MOV SS may or may not delay the NMI exit.",
        "SDM: Event Blocking",
    ),
    Rule(
        "B5",
        "When the interrupt window is open",
        "Exit 7 occurs on any boundary with IF = 1 and no blocking by STI or MOV SS, and on no "
        "other; it needs the control.",
        "SDM: Other Causes of VM Exits; test vmx_intr_window_test",
    ),
    Rule(
        "B6",
        "When the NMI window is open",
        "Exit 8 occurs on any boundary without virtual-NMI blocking and without blocking by MOV "
        "SS; blocking by STI may delay it too. It needs the control.",
        "SDM: NMI-Window Exiting; test vmx_nmi_window_test",
    ),
    Rule(
        "B7",
        "Timer and MTF are not blocked",
        "Neither RFLAGS.IF nor blocking by STI or NMI holds back exit 52 or exit 37.",
        "SDM: VMX-Preemption Timer; Monitor Trap Flag",
    ),
    Rule(
        "B8",
        "SMIs come and go unseen",
        "A pending SMI is taken in non-root operation and RSM returns there; only SMM and "
        "wait-for-SIPI surely block it. Blocking by STI and MOV SS, virtual-NMI blocking and a "
        "pending MTF exit survive the visit, and the preemption timer goes on counting.",
        "SDM: Default Treatment of SMI Delivery; Default Treatment of RSM; VMX-Preemption Timer",
    ),
    Rule(
        "B9",
        "Shadows and exits",
        "A fault-like exit of the instruction in a shadow saves the shadow; a trap-like one, or a "
        "completed instruction, has ended it.",
        "SDM: Architectural State Before a VM Exit; Saving Non-Register State",
    ),
    Rule(
        "N1",
        "IRET unblocks before it can fault",
        "IRET ends NMI blocking (virtual-NMI blocking with virtual NMIs = 1) as it starts, also if "
        "it then faults. With NMI exiting = 1 and virtual NMIs = 0 it unblocks nothing.",
        "SDM: Changes to Instruction Behavior in VMX Non-Root Operation; Bochs IRET32",
    ),
    Rule(
        "N2",
        "One NMI is latched while NMIs are blocked",
        "After an NMI exit L1 runs with NMIs blocked until its own IRET, and of the NMIs that "
        "arrive meanwhile exactly one is kept.",
        "SDM: Handling Multiple NMIs; Loading Host State",
    ),
    Rule(
        "N3",
        "An injected NMI blocks at once",
        "Injecting an NMI sets (virtual-)NMI blocking before its delivery can fault, so an exit "
        "during the delivery saves bit 3 = 1.",
        "SDM: Interruptibility State; Architectural State Before a VM Exit; "
        "Bochs VMenterInjectEvents",
    ),
    Rule(
        "A1",
        "Leaving HLT by exit or by delivery",
        "An exit out of HLT saves activity HLT; an event that is delivered makes the guest active "
        "first, so an exit during that delivery saves active.",
        "SDM: Activity State; Architectural State Before a VM Exit; test vmx_hlt_with_rvi_test",
    ),
    Rule(
        "A2",
        "INIT is latched in root operation",
        "An INIT that arrives in root operation stays pending; it exits (3) right after the next "
        "VM entry, or acts when VMX operation ends.",
        "SDM: INIT signals in VMX operation; test vmx_init_signal_test",
    ),
    Rule(
        "A3",
        "L2 never shuts down by itself",
        "A triple fault in non-root operation is exit 2 and never the shutdown state; only an "
        "entry can put a guest into shutdown.",
        "SDM: Other Causes of VM Exits; Activity State",
    ),
    Rule(
        "M1",
        "MTF exits one step later",
        "With the control set, exit 37 comes on the boundary after the next instruction, or after "
        "the delivery of whatever event pre-empts that instruction, nested faults included.",
        "SDM: Monitor Trap Flag; test vmx_mtf_test",
    ),
    Rule(
        "M2",
        "What counts as one step",
        "INT n, INT3, INTO and INT1 end with their delivery, HLT with the halt, a repeated string "
        "instruction with its first iteration.",
        "SDM: Monitor Trap Flag; test vmx_mtf_test",
    ),
    Rule(
        "M3",
        "Another exit cancels MTF",
        "If the step causes any other VM exit, no MTF exit follows and none stays pending.",
        "SDM: Monitor Trap Flag; Bochs VMexit; KVM nested_vmx_vmexit",
    ),
    Rule(
        "M4",
        "MTF and single step on one boundary",
        "Exit 37 comes first and leaves BS in the pending-debug field.",
        "SDM: Saving Non-Register State; test vmx_mtf_test",
    ),
    Rule(
        "M5",
        "An injected MTF exit runs nothing",
        "After injecting type 7, exit 37 reports the guest RIP as loaded, with no instruction "
        "executed.",
        "SDM: Injection of Pending MTF VM Exits; test vmx_mtf_test",
    ),
    Rule(
        "I1",
        "Instruction exits are fault-like",
        "Nothing of an intercepted instruction has happened, and a shadow over it is saved; "
        "who emulates it must advance RIP by its length and clear bits 0 and 1.",
        "SDM: Architectural State Before a VM Exit; KVM skip_emulated_instruction",
    ),
    Rule(
        "I2",
        "Emulation owes the traps of the boundary",
        "Who emulates an instruction for a guest must also raise its single-step trap and its MTF "
        "exit, merged with debug exceptions that were held in a shadow.",
        "tests vmx_db_test, vmx_mtf_test, vmx_preemption_timer_tf_test",
    ),
)
