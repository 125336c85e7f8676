"""Where Bochs and the model are known to disagree, who is right and why.

A *divergence* is recognised by a narrow predicate on the first difference; a campaign counts it and goes on. A
*mend* is a behaviour of Bochs that the helper replaces, because it would hide what comes after. `docs/FIDELITY.md`
is made from both tables.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from nvmx_core.arch.events import (
    DB,
    EXTERNAL_INTERRUPT,
    OTHER_EVENT,
    PF,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import (
    BASIC_REASON_MASK,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INVALID_STATE,
    MONITOR_TRAP_FLAG,
    MSR_LOAD_FAIL,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TASK_SWITCH,
    XSETBV_EXIT,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_NMI,
    INTERRUPT_SHADOW,
    PENDING_DBG_B,
    PENDING_DBG_BS,
    RFLAGS_RF,
    SHUTDOWN,
    WAIT_FOR_SIPI,
)
from nvmx_core.cpu.entry_checks import QUALIFICATION_LINK_POINTER
from nvmx_core.journal import DELIVER, END, EXIT, RECORD_FIELDS, VMFAIL, Record
from nvmx_fuzz.compare import Difference

Predicate = Callable[[Difference], bool]

BOCHS_WRONG: Final = "Bochs is wrong"
MODEL_WRONG: Final = "the model is wrong"
BOTH_ALLOWED: Final = "both are allowed"

_EXIT_INFORMATION: Final = frozenset(
    {"interruption info", "interruption error code", "IDT-vectoring info", "IDT-vectoring error code",
     "instruction length", "guest linear address", "guest physical address"}
)  # fmt: skip


class Divergence(NamedTuple):
    """One known disagreement: rules, verdict, the reason with its source, a scenario's steps, the predicate."""

    name: str
    rules: tuple[str, ...]
    verdict: str
    why: str
    scenario: str
    matches: Predicate


class Mend(NamedTuple):
    """A behaviour of Bochs that the helper replaces."""

    rules: tuple[str, ...]
    what: str
    why: str


def _field(record: Record, name: str) -> int:
    """A field of a record by its name; 0 if the record has none of that name."""
    names = RECORD_FIELDS[record[0]] if record else ()
    return record[1 + names.index(name)] if name in names else 0


def _is_exit(record: Record, *reasons: int) -> bool:
    return bool(record) and record[0] == EXIT and record[1] & BASIC_REASON_MASK in reasons


def _is_end(record: Record) -> bool:
    return bool(record) and record[0] == END


def _unchecked(*rules: str) -> Predicate:
    """The model refuses the entry by one of the rules, Bochs enters."""
    return lambda found: found.entry_rule in rules and (
        _is_exit(found.bare, INVALID_STATE) and not _is_exit(found.other, INVALID_STATE)
    )


def _failed_entry_information(found: Difference) -> bool:
    """Only the information of the exit before differs; with it goes what it says of RF, and G7's qualification."""
    if not _is_exit(found.bare, INVALID_STATE, MSR_LOAD_FAIL):
        return False
    fields = set(found.fields()) - _EXIT_INFORMATION
    if found.entry_rule == "G7":
        fields.discard("qualification")
    if (_field(found.bare, "rflags") ^ _field(found.other, "rflags")) == RFLAGS_RF:
        fields.discard("rflags")
    return bool(found.fields()) and not fields


def _xsetbv_outside_cpl_0(found: Difference) -> bool:
    return _is_exit(found.other, XSETBV_EXIT) and not _is_exit(found.bare, XSETBV_EXIT) and (
        _field(found.other, "ss_dpl") == 3
    )


def _virtual_interrupt_not_reported(found: Difference) -> bool:
    vectoring = _field(found.bare, "IDT-vectoring info")
    return (
        bool(found.fields())
        and set(found.fields()) <= {"IDT-vectoring info", "IDT-vectoring error code", "instruction length", "rflags"}
        and vectoring & VALID != 0
        and vectoring & TYPE_MASK == EXTERNAL_INTERRUPT << TYPE_SHIFT
    )


def _injects(found: Difference, *types: int) -> bool:
    return found.injected & VALID != 0 and found.injected >> TYPE_SHIFT & 7 in types


def _pending_mtf_is_taken_for_a_delivery(found: Difference) -> bool:
    lost = {"activity", "interruptibility", "pending debug exceptions"}
    return _injects(found, OTHER_EVENT) and bool(found.fields()) and set(found.fields()) <= lost


def _pending_mtf_under_the_control(found: Difference) -> bool:
    return _injects(found, OTHER_EVENT) and _is_exit(found.bare, MONITOR_TRAP_FLAG) and _is_end(found.other)


def _shutdown_keeps_traps(found: Difference) -> bool:
    """L2 is in shutdown; Bochs delivers a #DB that the entry should have dropped."""
    if found.fields() == ("pending debug exceptions",) and _field(found.bare, "activity") == SHUTDOWN:
        return _field(found.bare, "pending debug exceptions") == 0
    asleep = _field(found.bare, "activity") == SHUTDOWN or _field(found.before, "activity") == SHUTDOWN
    vector = _field(found.other, "vector" if found.other[:1] == (DELIVER,) else "IDT-vectoring info")
    info = _field(found.other, "interruption info")
    return asleep and (vector & VECTOR_MASK == DB or info & VECTOR_MASK == DB)


def _is_debug_trap(record: Record) -> bool:
    if record[:1] == (DELIVER,):
        return _field(record, "vector") == DB
    return _is_exit(record, EXCEPTION_NMI) and _field(record, "interruption info") == VALID | 0x301


def _breakpoint_without_condition(found: Difference) -> bool:
    """A #DB whose enabled breakpoint has no condition of its own."""
    conditions = _field(found.bare, "dr6" if found.bare[:1] == (DELIVER,) else "qualification")
    return _is_debug_trap(found.bare) and not _is_debug_trap(found.other) and (
        not conditions & PENDING_DBG_BS and found.before[:1] != (DELIVER,)
    )


def _trap_kept_by_soft_event(found: Difference) -> bool:
    """A #DB held by MOV SS comes directly behind the delivery of a soft event."""
    return _is_debug_trap(found.bare) and not _is_debug_trap(found.other) and found.before[:1] == (DELIVER,)


def _old_conditions_in_dr6(found: Difference) -> bool:
    differing = _field(found.bare, "dr6") ^ _field(found.other, "dr6")
    return found.fields() == ("dr6",) and differing != 0 and not differing & ~PENDING_DBG_B


def _nmi_under_sti(found: Difference) -> bool:
    return found.entry_rule == "G7" and found.fields() == ("qualification",)


def _wait_for_sipi_saved(found: Difference) -> bool:
    fields = found.fields()
    if not (_is_exit(found.bare, SIPI_SIGNAL) or _is_end(found.bare)) or "activity" not in fields:
        return False
    blocking = _field(found.bare, "interruptibility") ^ _field(found.other, "interruptibility")
    return (
        _field(found.bare, "activity") == WAIT_FOR_SIPI
        and _field(found.other, "activity") == 0
        and set(fields) <= {"activity", "interruptibility"}
        and not blocking & ~BLOCKING_BY_NMI
    )


def _shadow_holds(*reasons: int) -> Predicate:
    """The model exits at the boundary, Bochs rests in L2 under STI or MOV SS."""
    return lambda found: _is_exit(found.bare, *reasons) and _is_end(found.other) and (
        _field(found.other, "interruptibility") & INTERRUPT_SHADOW != 0
    )


def _shadow_holds_nmi(found: Difference) -> bool:
    nmi = VALID | 0x202
    return _shadow_holds(EXCEPTION_NMI)(found) and _field(found.bare, "interruption info") == nmi


def _pending_debug_lost(found: Difference) -> bool:
    return found.fields() == ("pending debug exceptions",) and (
        _field(found.other, "pending debug exceptions") == 0
    )


def _order_of_guest_checks(found: Difference) -> bool:
    qualifications = {_field(found.bare, "qualification"), _field(found.other, "qualification")}
    return (
        _is_exit(found.bare, INVALID_STATE)
        and found.fields() == ("qualification",)
        and qualifications == {0, QUALIFICATION_LINK_POINTER}
    )


def _posted_without_virtual_interrupts(found: Difference) -> bool:
    return found.entry_rule == "C4" and found.bare[:1] == (VMFAIL,)


def _entry_to_smm(found: Difference) -> bool:
    return found.entry_rule == "G12" and found.bare[:1] == (VMFAIL,) and _is_exit(found.other, INVALID_STATE)


def _task_gate_reads_gdt(found: Difference) -> bool:
    """The model exits; Bochs has faulted on the descriptor, or died of it in a double fault."""
    if not _is_exit(found.bare, TASK_SWITCH) or _is_exit(found.other, TASK_SWITCH):
        return False
    vector = _field(found.other, "vector" if found.other[:1] == (DELIVER,) else "interruption info")
    return found.other[:1] == (DELIVER,) or _is_exit(found.other, 2, 48, 49) or vector & VECTOR_MASK == PF


DIVERGENCES: Final[tuple[Divergence, ...]] = (
    Divergence(
        "injection into HLT", ("G4",), BOCHS_WRONG,
        "HLT takes an interrupt, NMI, #DB, #MC and a pending MTF exit only (SDM: Checks on Guest Non-Register "
        "State); Bochs does not ask.",
        "L1 vmwrite GUEST_ACTIVITY 0x1 / L1 inject hardware-exception 0xd / L1 enter",
        _unchecked("G4"),
    ),
    Divergence(
        "NMI under virtual-NMI blocking", ("G8",), BOCHS_WRONG,
        "With virtual NMIs an NMI is not injected while bit 3 is set (SDM: Checks on Guest Non-Register State).",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x8 / L1 inject nmi / L1 enter",
        _unchecked("G8"),
    ),
    Divergence(
        "single step not pending", ("G9",), BOCHS_WRONG,
        "In an interrupt shadow or HLT, BS of the pending debug exceptions equals TF (SDM: Checks on Guest "
        "Non-Register State); Bochs does not ask.",
        "config single-step=on / L1 vmwrite GUEST_INTERRUPTIBILITY 0x2 / L1 enter",
        _unchecked("G9"),
    ),
    Divergence(
        "qualification of NMI under STI", ("G7",), BOCHS_WRONG,
        "The failed entry has qualification 3 (SDM: VM-Entry Failures During or After Loading Guest State).",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x1 / L1 inject nmi / L1 enter",
        _nmi_under_sti,
    ),
    Divergence(
        "entry to SMM", ("G12",), BOCHS_WRONG,
        "Outside SMM the control must be 0, a check on VM-entry control fields, VMfail 7 (SDM: Checks on "
        "VM-Entry Control Fields); Bochs fails in the guest state.",
        "L1 control entry-to-smm on / L1 enter",
        _entry_to_smm,
    ),
    Divergence(
        "failed entry rewrites exit information", ("E0",), BOCHS_WRONG,
        "Exits 33 and 34 write reason and qualification only (SDM: VM-Entry Failures During or After Loading "
        "Guest State); kvm c3634d25fbee.",
        "corpus/nested_events/failed-entry-leaves-exit-information.scn",
        _failed_entry_information,
    ),
    Divergence(
        "wait-for-SIPI is saved as active", ("Y4",), BOCHS_WRONG,
        "The activity state is saved as it was (SDM: Saving Non-Register State); Bochs saves states from "
        "wait-for-SIPI on as active, and NMIs as blocked there.",
        "L1 vmwrite GUEST_ACTIVITY 0x3 / L1 enter / outside sipi 0x0",
        _wait_for_sipi_saved,
    ),
    Divergence(
        "a shadow holds interrupts that exit", ("B3",), BOTH_ALLOWED,
        "STI and MOV SS may or may not hold back an interrupt that exits (SDM: Event Blocking).",
        "L2 run mov-ss / outside interrupt 0x51",
        _shadow_holds(EXTERNAL_INTERRUPT_EXIT),
    ),
    Divergence(
        "a shadow holds NMIs that exit", ("B4",), BOTH_ALLOWED,
        "The same for NMIs (SDM: Event Blocking).",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x2 / outside nmi at-entry / L1 enter",
        _shadow_holds_nmi,
    ),
    Divergence(
        "STI holds the NMI window", ("B6",), BOTH_ALLOWED,
        "STI may hold the NMI window too (SDM: NMI-Window Exiting).",
        "L1 control nmi-window-exiting on / L1 vmwrite GUEST_INTERRUPTIBILITY 0x1 / L1 enter",
        _shadow_holds(NMI_WINDOW),
    ),
    Divergence(
        "a shadow holds the timer", ("B7",), BOCHS_WRONG,
        "The VMX-preemption timer is not held back by STI or MOV SS (SDM: VMX-Preemption Timer).",
        "corpus/nested_events/timer-exits-under-sti-shadow.scn",
        _shadow_holds(PREEMPTION_TIMER),
    ),
    Divergence(
        "pending debug exceptions are not saved", ("Y6",), BOCHS_WRONG,
        "INIT, MTF and exits under MOV SS save what was pending (SDM: Saving Non-Register State); Bochs saves 0.",
        "corpus/lessons/init-keeps-breakpoint.scn",
        _pending_debug_lost,
    ),
    Divergence(
        "XSETBV outside CPL 0", ("P15",), BOCHS_WRONG,
        "Faults based on privilege come before VM exits (SDM: Relative Priority of Faults and VM Exits).",
        "config user-mode=on / L1 enter / L2 run xsetbv",
        _xsetbv_outside_cpl_0,
    ),
    Divergence(
        "virtual interrupt in IDT-vectoring", ("X4",), BOCHS_WRONG,
        "An exit in the delivery of a virtual interrupt reports it like an external interrupt (SDM: Virtual-Interrupt "
        "Delivery; Information for VM Exits During Event Delivery); Bochs reports the event before it.",
        "config virtual-interrupt-delivery=on ... / L1 virtual-interrupt 0x40 / L1 ept stack absent / L1 enter",
        _virtual_interrupt_not_reported,
    ),
    Divergence(
        "a pending MTF exit is taken for a delivery", ("O4", "O6"), BOCHS_WRONG,
        "Type 7 is no vectoring event: shadow, activity and pending debug exceptions stay (SDM: Event Injection; "
        "Injection of Pending MTF VM Exits).",
        "L1 vmwrite GUEST_ACTIVITY 0x1 / L1 inject other-event / L1 enter",
        _pending_mtf_is_taken_for_a_delivery,
    ),
    Divergence(
        "a pending MTF exit under the control", ("O9", "M5"), BOCHS_WRONG,
        "The exit comes before the first instruction whatever the control says (SDM: Injection of Pending MTF VM "
        "Exits); Bochs opens it behind that instruction.",
        "L1 control monitor-trap-flag on / L1 inject other-event / L1 enter",
        _pending_mtf_under_the_control,
    ),
    Divergence(
        "pending debug exceptions in shutdown", ("O6",), BOCHS_WRONG,
        "An entry into shutdown without an event drops them (SDM: Delivery of Pending Debug Exceptions after VM "
        "Entry).",
        "L1 vmwrite GUEST_ACTIVITY 0x2 / L1 vmwrite GUEST_PENDING_DBG 0x1001 / L1 enter / outside nmi",
        _shutdown_keeps_traps,
    ),
    Divergence(
        "enabled breakpoint without a condition", ("O6",), BOCHS_WRONG,
        "Bit 12 alone makes a #DB pending (SDM: Delivery of Pending Debug Exceptions after VM Entry).",
        "L1 vmwrite GUEST_PENDING_DBG 0x1000 / L1 enter",
        _breakpoint_without_condition,
    ),
    Divergence(
        "a trap held by MOV SS behind a soft event", ("O6", "B2"), BOCHS_WRONG,
        "INT n, INT3 and INTO behind MOV SS keep the trap, which comes before the handler runs (SDM: Masking Exceptions and "
        "Interrupts When Switching Stacks); for injected ones of other vectors the choice is the processor's.",
        "config single-step=on / L1 enter / L2 run pop-ss / L2 run int 0x80",
        _trap_kept_by_soft_event,
    ),
    Divergence(
        "old conditions in DR6", ("Y1",), BOTH_ALLOWED,
        "A debug exception may clear bits 3:0 of DR6 (SDM: Debug Status Register); Bochs does, the model does not.",
        "corpus/lessons/shadow-of-held-trap.scn",
        _old_conditions_in_dr6,
    ),
    Divergence(
        "reserved bits of pending debug exceptions", ("G10",), BOCHS_WRONG,
        "All reserved bits must be 0 (SDM: Checks on Guest Non-Register State); Bochs looks at the low half.",
        "L1 vmwrite GUEST_PENDING_DBG 0x200004000 / L1 enter",
        _unchecked("G10"),
    ),
    Divergence(
        "order of guest-state checks", ("E0",), BOTH_ALLOWED,
        "With several faults in the guest state any of them may be reported (SDM: Checking and Loading Guest State).",
        "L1 vmwrite VMCS_LINK_POINTER 0x0 / L1 vmwrite GUEST_INTERRUPTIBILITY 0x1 / L1 inject external-interrupt 0x0 / "
        "L1 enter",
        _order_of_guest_checks,
    ),
    Divergence(
        "posted interrupts without virtual ones", ("C4",), BOCHS_WRONG,
        "Process posted interrupts needs virtual-interrupt delivery, VMfail 7 (SDM: Checks on VM-Execution Control "
        "Fields); Bochs enters.",
        "config acknowledge-interrupt-on-exit=on / L1 control posted-interrupts on / L1 enter",
        _posted_without_virtual_interrupts,
    ),
    Divergence(
        "a task gate reads the GDT", ("X1",), MODEL_WRONG,
        "The descriptor of the new TSS is read before the exit, and its page may fault (SDM: Treatment of Task "
        "Switches); the model exits without looking.",
        "L2 gate 0x8 task / L2 page gdt absent / L1 enter / L2 run div0",
        _task_gate_reads_gdt,
    ),
)  # fmt: skip

MENDS: Final[tuple[Mend, ...]] = (
    Mend(("O11",), "An interrupt pending at the entry exits although IF = 0.",
         "Bochs computes what is masked before it is in VMX non-root operation."),
    Mend(("A1",), "Windows, virtual interrupts, debug traps and interrupts that exit with IF = 0 end HLT.",
         "Bochs looks at unmasked interrupts and a few other events only."),
    Mend(("Y4",), "Exits out of HLT and shutdown save that state.", "Bochs is active before it exits."),
    Mend(("G1",), "Entering shutdown or wait-for-SIPI leaves IF alone.", "Bochs clears it."),
    Mend(("A2",), "INIT is latched while L1 runs.", "Bochs drops it."),
    Mend(("X8",), "RF of an exit in a delivery is that of the frame.", "Bochs saves 1."),
    Mend(("Y2",), "The return address behind an NMI is the handler's.", "Bochs keeps the old one until an instruction ends."),
    Mend(("K3",), "RVI is not changed when no vector was posted.", "Bochs makes it 0xff."),
    Mend(("K3",), "A posted interrupt that is not delivered leaves L2 asleep.", "Bochs wakes it."),
    Mend(("K4", "P11"), "A virtual interrupt that is held is not delivered in place of an interrupt that exits.",
         "Bochs looks whether one is pending, not whether it is masked."),
    Mend(("P12",), "A boundary is evaluated until nothing is left.",
         "Bochs takes one event, then executes an instruction; this includes posted interrupts."),
    Mend(("K1",), "An interrupt of the class in service waits.", "Bochs compares vectors and then acknowledges the spurious one."),
)  # fmt: skip


def known(found: Difference) -> Divergence | None:
    """The divergence that a difference is an instance of, or None."""
    return next((entry for entry in DIVERGENCES if entry.matches(found)), None)
