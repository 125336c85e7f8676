"""Where Bochs and the model are known to disagree, who is right and why.

A *divergence* is recognised by a narrow predicate on the first difference; a campaign counts it and goes on. A
*mend* is a behaviour of Bochs that the helper replaces, because it would hide what comes after. `docs/FIDELITY.md`
is made from both tables.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from nvmx_core.arch.events import PF, VALID, VECTOR_MASK
from nvmx_core.arch.exits import (
    BASIC_REASON_MASK,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INVALID_STATE,
    MSR_LOAD_FAIL,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TASK_SWITCH,
)
from nvmx_core.arch.state import BLOCKING_BY_NMI, INTERRUPT_SHADOW, WAIT_FOR_SIPI
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
    return _is_exit(found.bare, INVALID_STATE, MSR_LOAD_FAIL) and bool(found.fields()) and (
        set(found.fields()) <= _EXIT_INFORMATION
    )


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


def _entry_to_smm(found: Difference) -> bool:
    return found.entry_rule == "G12" and found.bare[:1] == (VMFAIL,) and _is_exit(found.other, INVALID_STATE)


def _empty_descriptor(found: Difference) -> bool:
    return found.fields() == ("interrupt status",) and (
        _field(found.other, "interrupt status") & 0xFF == 0xFF
        and _field(found.bare, "interrupt status") & 0xFF != 0xFF
    )


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
        "no vector was posted", ("K3",), BOCHS_WRONG,
        "Without a bit in PIR, RVI stays as it is (SDM: Posted-Interrupt Processing); Bochs makes it 0xff.",
        "config posted-interrupts=on ... / L1 enter / outside interrupt 0xf2",
        _empty_descriptor,
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
    Mend(("P12",), "A boundary is evaluated until nothing is left.",
         "Bochs takes one event, then executes an instruction; this includes posted interrupts."),
    Mend(("K1",), "An interrupt of the class in service waits.", "Bochs compares vectors and then acknowledges the spurious one."),
)  # fmt: skip


def known(found: Difference) -> Divergence | None:
    """The divergence that a difference is an instance of, or None."""
    return next((entry for entry in DIVERGENCES if entry.matches(found)), None)
