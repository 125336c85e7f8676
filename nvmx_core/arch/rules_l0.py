"""Rules of L0: the pass of KVM's vCPU loop (S) and what must hold whenever it runs (V).

V1 to V11 are derived from KVM's nested event code and the rules of the processor; where a bug of
the past broke one of them, the bug's own entry says so.
"""

from typing import Final

from nvmx_core.arch.rule import Rule

_NESTED: Final = "KVM nested events"

L0_RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "S1",
        "Pass: run or block",
        "A runnable vCPU goes into the guest (S2), a halted one blocks (S9); signals and what "
        "userspace must do stop the loop.",
        "KVM vcpu_run",
    ),
    Rule(
        "S2",
        "Pass: requests first",
        "A triple fault of L2 becomes exit 2 at once, NMI and SMI requests become pending events; "
        "events are evaluated (S3, S4) only if KVM_REQ_EVENT was raised, which is consumed here, "
        "or if userspace wants an interrupt window.",
        "KVM vcpu_enter_guest",
    ),
    Rule(
        "S3",
        "Pass: INIT and SIPI",
        "In guest mode the nested check runs first and may hold them back. INIT stays latched in "
        "VMX root operation and in SMM, and a SIPI is dropped outside wait-for-SIPI.",
        "KVM kvm_apic_accept_events",
    ),
    Rule(
        "S4",
        "Pass: check, re-inject, inject",
        "The nested check comes first, then the event that was injected before is injected again, "
        "then a pending exception, then SMI, NMI and interrupt. Whatever has to wait asks for an "
        "immediate exit instead.",
        "KVM kvm_check_and_inject_events",
    ),
    Rule(
        "S5",
        "Pass: the late gate",
        "If a request or signal came in meanwhile, the entry is cancelled: what is in the entry "
        "fields returns to the queues as injected, and KVM_REQ_EVENT is raised again if an "
        "immediate exit was wanted.",
        "KVM vcpu_enter_guest, vmx_cancel_injection",
    ),
    Rule(
        "S6",
        "Pass: the hardware entry",
        "An immediate exit is asked for by a hardware preemption timer of 0 in vmcs02, and it "
        "raises KVM_REQ_EVENT again. The timer that L1 set is never in vmcs02.",
        "KVM vmx_vcpu_run, vmx_update_hv_timer",
    ),
    Rule(
        "S7",
        "Pass: after the hardware exit",
        "The nested run is no longer pending, NMI blocking that a faulting IRET ended is put back, "
        "and a valid IDT-vectoring field refills the queues of injected events.",
        "KVM vmx_recover_nmi_blocking, vmx_complete_interrupts",
    ),
    Rule(
        "S8",
        "Pass: who handles the exit",
        "In guest mode an exit that L1 asked for is reflected; otherwise L0 repairs and resumes, "
        "emulates the instruction, or queues an exception. A valid IDT-vectoring field with an "
        "exit reason that cannot have one is an internal error.",
        "KVM nested_vmx_reflect_vmexit, vmx_handle_exit",
    ),
    Rule(
        "S9",
        "Pass: a halted vCPU",
        "The vCPU sleeps until something can wake it; then the nested check runs before it leaves "
        "the halted state, so that an exit to L1 records activity HLT.",
        "KVM vcpu_block",
    ),
    Rule(
        "V1",
        "No boundary exit with IDT-vectoring information",
        "L1 never sees exits 1, 2, 3, 4, 7, 8, 37, 43 or 52, nor exit 0 for an NMI or #DF, with a "
        "valid IDT-vectoring field.",
        f"{_NESTED}; X2, X3; KVM vmcs12_save_pending_event",
    ),
    Rule(
        "V2",
        "Every injection of L1 ends exactly once",
        "An event that L1 injects is delivered, or reported by the IDT-vectoring field of the next "
        "exit to L1, or replaced by a nested exception that was delivered, or stays untouched in "
        "its field because the entry failed.",
        f"{_NESTED}; X13, D4, E0; KVM nested_vmx_run",
    ),
    Rule(
        "V3",
        "No instruction between the injection and a due exit",
        "If an exit to L1 is due when L2 is entered, L2 retires no instruction between the "
        "completed injection and that exit.",
        f"{_NESTED}; O7, O11; KVM vmx_check_nested_events",
    ),
    Rule(
        "V4",
        "L0 compares by rank, then by destination",
        "Events of one boundary reach L1 and L2 in the order of their ranks, whether they exit or "
        "not.",
        f"{_NESTED}; P16; KVM vmx_check_nested_events",
    ),
    Rule(
        "V5",
        "An accepted entry enters L2 first",
        "While a nested run is pending the vCPU is in guest mode and no nested exit takes place.",
        f"{_NESTED}; O2; KVM nested_vmx_vmexit",
    ),
    Rule(
        "V6",
        "Queues do not cross a mode change",
        "No queued event of L2 is left for L1 after a nested exit, and none of L1 for L2 after a "
        "nested entry.",
        f"{_NESTED}; Y5; KVM nested_vmx_vmexit",
    ),
    Rule(
        "V7",
        "An interrupt exit takes one interrupt",
        "Exit 1 implies a pending interrupt; with acknowledge-on-exit it reports the vector and "
        "moves it from IRR to ISR once, without it the interrupt stays pending.",
        f"{_NESTED}; K1, K2; KVM vmx_check_nested_events",
    ),
    Rule(
        "V8",
        "NMIs add up",
        "The NMIs taken plus the one latched are all that arrived, except those that came while "
        "NMIs were blocked with one already latched.",
        f"{_NESTED}; N2, X10, X11; KVM process_nmi",
    ),
    Rule(
        "V9",
        "CR2 and DR6 change on delivery only",
        "A fault or trap of L2 that exits to L1 leaves CR2 and DR6 as they were.",
        f"{_NESTED}; Y1; KVM kvm_deliver_exception_payload",
    ),
    Rule(
        "V10",
        "The immediate-exit rule",
        "L0 asks for an immediate exit exactly if a pending nested run or a re-injection holds "
        "something back, or if it owes L1 a timer or MTF exit; each such request raises "
        "KVM_REQ_EVENT again.",
        f"{_NESTED}; KVM kvm_check_and_inject_events, vmx_vcpu_run",
    ),
    Rule(
        "V11",
        "Transparency",
        "What L1 and L2 see (exits with all defined fields, deliveries, CR2, DR6, blocking) is "
        "what they would see without L0 for the same arrivals at the same boundaries.",
        f"{_NESTED}; P1 to P16",
    ),
)
