"""The journal: what L1 and L2 saw, one tuple of plain integers a record, the kind first.

Two machines showed the same when their journals are equal lists. What L0 did in secret is a second list
(``Vcpu.log``), never compared.
"""

from typing import Final

Record = tuple[int, ...]

# -- seen by L1 -------------------------------------------------------------------------------------------
EXIT: Final = 0
"""(EXIT, reason, qualification, interruption info, its error code, IDT-vectoring info, its error code,
instruction length, linear address, physical address, rip, rsp, rflags, ss_dpl, interruptibility, activity,
pending debug, timer, interrupt status, entry info, entry error code, entry length, cr2, dr6)"""
VMFAIL: Final = 1
"""(VMFAIL, VM-instruction error; 0 for VMfailInvalid)"""
L1_ENTRY: Final = 2
"""(L1_ENTRY, entry info, error code, instruction length): L1 executed VMLAUNCH or VMRESUME."""
L1_INTERRUPT: Final = 3
"""(L1_INTERRUPT, vector): L1 took an interrupt through its own IDT."""
L1_NMI: Final = 4
"""(L1_NMI,): L1 took an NMI through its own IDT."""
L1_UNEXPECTED_VECTORING: Final = 5
"""(L1_UNEXPECTED_VECTORING, reason, IDT-vectoring info): the warning of a KVM in L1."""
L1_SPURIOUS_EVENT: Final = 6
"""(L1_SPURIOUS_EVENT, info): an event arrived in L1 that nobody sent to it."""
SMM_ENTRY: Final = 7
"""(SMM_ENTRY, in L2, rip or 0): the system-management handler starts."""
SMM_RETURN: Final = 8
"""(SMM_RETURN,): RSM."""
VM_DEAD: Final = 9
"""(VM_DEAD, why): the whole virtual machine stopped; L1 never runs again."""

# -- seen by L2 -------------------------------------------------------------------------------------------
DELIVER: Final = 16
"""(DELIVER, vector, error code, return rip, rflags pushed, cr2, dr6)"""
RETIRE: Final = 17
"""(RETIRE, rip after the instruction)"""

# -- the end ----------------------------------------------------------------------------------------------
END: Final = 32
"""(END, mode, IRR, ISR, NMI latched, NMI blocked in L1, INIT latched, SMI latched, L2 rip, rflags,
activity, interruptibility)"""

RECORD_FIELDS: Final[dict[int, tuple[str, ...]]] = {
    EXIT: (
        "reason", "qualification", "interruption info", "interruption error code",
        "IDT-vectoring info", "IDT-vectoring error code", "instruction length",
        "guest linear address", "guest physical address", "rip", "rsp", "rflags", "ss_dpl",
        "interruptibility", "activity", "pending debug exceptions", "preemption timer",
        "interrupt status", "entry interruption info", "entry error code",
        "entry instruction length", "cr2", "dr6",
    ),
    VMFAIL: ("VM-instruction error",),
    L1_ENTRY: ("entry interruption info", "entry error code", "entry instruction length"),
    L1_INTERRUPT: ("vector",),
    L1_NMI: (),
    L1_UNEXPECTED_VECTORING: ("reason", "IDT-vectoring info"),
    L1_SPURIOUS_EVENT: ("event",),
    SMM_ENTRY: ("in L2", "rip"),
    SMM_RETURN: (),
    VM_DEAD: ("why",),
    DELIVER: ("vector", "error code", "return rip", "rflags", "cr2", "dr6"),
    RETIRE: ("rip",),
    END: (
        "mode", "irr", "isr", "nmi latched", "nmi blocked in L1", "init latched", "smi latched",
        "rip", "rflags", "activity", "interruptibility",
    ),
}  # fmt: skip

RECORD_NAMES: Final[dict[int, str]] = {
    EXIT: "VM exit to L1",
    VMFAIL: "VMfail",
    L1_ENTRY: "VM entry by L1",
    L1_INTERRUPT: "interrupt taken by L1",
    L1_NMI: "NMI taken by L1",
    L1_UNEXPECTED_VECTORING: "L1 warns: unexpected, valid vectoring info",
    L1_SPURIOUS_EVENT: "event that nobody sent to L1",
    SMM_ENTRY: "SMM entered",
    SMM_RETURN: "RSM",
    VM_DEAD: "virtual machine stopped",
    DELIVER: "event delivered in L2",
    RETIRE: "L2 instruction retired",
    END: "end",
}
