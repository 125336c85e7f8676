"""What the known disagreements of the machines that boot look like: predicates on the first difference.

Where a check of VM entry decides they ask the second reading of the checks (`entry_reading.py`), never the
model, which is what is being judged.
"""

from typing import Final

from nvmx_core.arch.controls import (
    PIN_NMI_EXITING,
    PIN_VIRTUAL_NMIS,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
)
from nvmx_core.arch.events import (
    BP,
    DB,
    DF,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_UNBLOCKING_BY_IRET,
    OF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
)
from nvmx_core.arch.exits import (
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INTERRUPT_WINDOW,
    INVALID_STATE,
    MONITOR_TRAP_FLAG,
    MWAIT_EXIT,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    TRIPLE_FAULT,
    VMCALL_EXIT,
)
from nvmx_core.arch.fields import (
    GUEST_INTERRUPTIBILITY,
    GUEST_INTR_STATUS,
    GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER,
    PIN_BASED,
    SECONDARY,
)
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    INTERRUPT_SHADOW,
    PENDING_DBG_BS,
    PENDING_DBG_ENABLED_BP,
    RFLAGS_FIXED,
    RFLAGS_IF,
)
from nvmx_core.journal import DELIVER, END, EXIT, L1_ENTRY, SMM_ENTRY, VMFAIL
from nvmx_core.scenario.steps import LOWEST_VECTOR
from nvmx_fuzz import entry_reading
from nvmx_fuzz.bochs.predicates import field, is_exit
from nvmx_fuzz.boot.reading_differences import (
    event_of,
    first_of_the_entry,
    goes_on,
    handler_of,
    injects_mtf,
    records_since_entry,
)
from nvmx_fuzz.compare import Difference

VMFAIL_CONTROLS: Final = 7
INSTRUCTION_LENGTH_MAX: Final = 15
INT1: Final = INSTRUCTION_INDEX["int1"]
_LOADS_SS: Final = 1 << INSTRUCTION_INDEX["mov-ss"] | 1 << INSTRUCTION_INDEX["pop-ss"]
IRET: Final = INSTRUCTION_INDEX["iret"]
NMI_VECTOR: Final = 2
SPURIOUS_VECTOR: Final = 0x0F
"""What L1 has in its APIC for spurious interrupts."""
PROCESSOR_CHECKS: Final = ("C5", "C6")
"""Checks of controls that KVM leaves to the processor, behind its own of the guest state."""
SOFT_TYPES: Final = (SOFTWARE_INTERRUPT, PRIVILEGED_SOFTWARE_EXCEPTION, SOFTWARE_EXCEPTION)


def _is_debug_exception(found: Difference) -> bool:
    """Whether the other machine shows a #DB: delivered, as an exit, or in flight."""
    record = found.other
    if record[:1] == (DELIVER,):
        return record[1] == DB
    words = (field(record, "interruption info"), field(record, "IDT-vectoring info"))
    return any(word & VALID and event_of(word) == (HARDWARE_EXCEPTION, DB) for word in words)


def single_step_of_an_exit(found: Difference) -> bool:
    """MOV SS holds a trap, and only BS of the pending debug exceptions differs.

    In the delivery of a software interrupt behind it the blocking is over, the trap still held.
    """
    name = "pending debug exceptions"
    in_delivery = field(found.bare, "IDT-vectoring info") & VALID
    behind = in_delivery and found.entry.met.executed & _LOADS_SS
    if not behind and not field(found.bare, "interruptibility") & BLOCKING_BY_MOV_SS:
        return False
    both = field(found.bare, name) ^ field(found.other, name)
    fields = set(found.fields()) - {"entry instruction length"}  # res4, on KVM
    return fields == {name} and both == PENDING_DBG_BS


def shadow_lost_by_an_injected_mtf(found: Difference) -> bool:
    """L1 injects an MTF exit under a shadow, and only the shadow is not in that exit."""
    name = "interruptibility"
    lost = field(found.bare, name) & ~field(found.other, name)
    return (
        injects_mtf(found)
        and is_exit(found.bare, MONITOR_TRAP_FLAG)
        and first_of_the_entry(found)
        and found.fields() == (name,)
        and bool(lost & INTERRUPT_SHADOW)
        and field(found.bare, name) == field(found.other, name) | lost & INTERRUPT_SHADOW
    )


def monitor_never_armed(found: Difference) -> bool:
    """Only MWAIT's qualification differs: MONITOR has armed the monitor, and the exit denies it."""
    name = "qualification"
    shown = (field(found.bare, name), field(found.other, name))
    return is_exit(found.bare, MWAIT_EXIT) and found.fields() == (name,) and shown == (1, 0)


def closed_interrupt_does_not_exit(found: Difference) -> bool:
    """An interrupt that L2 keeps closed, by IF = 0 or a shadow, does not exit at the entry."""
    closed = not field(found.bare, "rflags") & RFLAGS_IF
    closed |= bool(field(found.bare, "interruptibility") & INTERRUPT_SHADOW)
    return (
        is_exit(found.bare, EXTERNAL_INTERRUPT_EXIT)
        and closed
        and not is_exit(found.other, EXTERNAL_INTERRUPT_EXIT)
    )


def breakpoint_without_condition(found: Difference) -> bool:
    """Bit 12 alone was pending at the entry; the other machine has no #DB."""
    info, name = field(found.bare, "interruption info"), "pending debug exceptions"
    if found.fields() == (name,):  # an exit that ranks higher saves it, and there it is gone
        return (field(found.bare, name), field(found.other, name)) == (PENDING_DBG_ENABLED_BP, 0)
    exits = is_exit(found.bare, EXCEPTION_NMI) and event_of(info) == (HARDWARE_EXCEPTION, DB)
    return (
        (exits or found.bare[:2] == (DELIVER, DB))
        and found.entry.vmcs[GUEST_PENDING_DBG] == PENDING_DBG_ENABLED_BP
        and first_of_the_entry(found)
        and not found.injected & VALID
        and not _is_debug_exception(found)
    )


def spurious_interrupt(found: Difference) -> bool:
    """The other machine exits for an interrupt where the model has none, and acknowledges vector 15."""
    return (
        is_exit(found.other, EXTERNAL_INTERRUPT_EXIT)
        and not is_exit(found.bare, EXTERNAL_INTERRUPT_EXIT)
        and field(found.other, "interruption info") == VALID | SPURIOUS_VECTOR
    )


def iret_opens_nmis(found: Difference) -> bool:
    """L2 executes IRET with NMI exiting and without virtual NMIs, and NMIs are open on the other machine."""
    name = "interruptibility"
    controls = found.entry.vmcs[PIN_BASED] & (PIN_NMI_EXITING | PIN_VIRTUAL_NMIS)
    return (
        found.fields() == (name,)
        and controls == PIN_NMI_EXITING
        and bool(found.entry.met.executed >> IRET & 1)
        and not is_exit(found.bare, INVALID_STATE)
        and not field(found.bare, "IDT-vectoring info") & VALID
        and field(found.bare, name) & ~field(found.other, name) == BLOCKING_BY_NMI
    )


def int1_as_hardware_exception(found: Difference) -> bool:
    """L2 executes INT1, and an exit in its delivery stands behind it, as one of a hardware exception."""
    behind = field(found.other, "rip") - field(found.bare, "rip") == 1
    if not behind or not found.entry.met.executed >> INT1 & 1:
        return False
    of_bare, of_other = (
        event_of(field(record, "IDT-vectoring info")) for record in (found.bare, found.other)
    )
    if of_bare == (PRIVILEGED_SOFTWARE_EXCEPTION, DB):
        words = {"rip", "IDT-vectoring info", "instruction length", "dr6"}
        if is_exit(found.bare, EPT_MISCONFIG):  # which has a qualification too (F3)
            words.add("qualification")
        return of_other == (HARDWARE_EXCEPTION, DB) and set(found.fields()) <= words
    dies = is_exit(found.bare, TRIPLE_FAULT) or of_bare == (HARDWARE_EXCEPTION, DF)
    return dies and found.fields() == ("rip",)


def guest_before_controls(found: Difference) -> bool:
    """A control is wrong, and the other machine finds fault with the guest state first."""
    rows = found.entry.forbidden_by()
    return (
        found.bare == (VMFAIL, VMFAIL_CONTROLS)
        and is_exit(found.other, INVALID_STATE)
        and bool(rows)
        and all(row.rule in PROCESSOR_CHECKS for row in rows)
        and bool(found.entry.forbidden_guest_state())
    )


def timer_of_an_earlier_entry(found: Difference) -> bool:
    """The VMX-preemption timer started with 0, not at the first entry, and some of it is left elsewhere."""
    name = "preemption timer"
    entries = sum(record[0] == L1_ENTRY for record in found.history)
    return (
        entries > 1
        and is_exit(found.bare, PREEMPTION_TIMER)
        and found.fields() == (name,)
        and not field(found.bare, name)
        and not found.entry.vmcs[GUEST_PREEMPTION_TIMER]
    )


def stale_length(found: Difference) -> bool:
    """Vector 3 or 4, injected as a hardware exception, returns behind an instruction that is not there."""
    kind, vector = event_of(found.injected)
    behind = field(found.other, "return rip") - field(found.bare, "return rip")
    return (
        kind == HARDWARE_EXCEPTION
        and vector in (BP, OF)
        and found.bare[:2] == (DELIVER, vector)
        and found.fields() == ("return rip",)
        and 0 < behind <= INSTRUCTION_LENGTH_MAX
        and first_of_the_entry(found)
    )


def trap_behind_injection(found: Difference) -> bool:
    """A soft event is injected behind MOV SS, which holds a trap; the other machine has dropped that."""
    info, name = field(found.bare, "interruption info"), "pending debug exceptions"
    kind, vector = event_of(found.injected)
    exits = is_exit(found.bare, EXCEPTION_NMI) and event_of(info) == (HARDWARE_EXCEPTION, DB)
    exits |= found.fields() == (name,) and not field(found.other, name)
    since = records_since_entry(found)
    return (
        (exits or found.bare[:2] == (DELIVER, DB))
        and not _is_debug_exception(found)
        and bool(found.injected & VALID)
        and kind in SOFT_TYPES
        and bool(found.entry.vmcs[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_MOV_SS)
        and bool(found.entry.vmcs[GUEST_PENDING_DBG])
        and all(record[:2] == (DELIVER, vector) for record in since)
    )


def wrong_vector_in_delivery(found: Difference) -> bool:
    """A virtual interrupt comes with another vector, or not: L0 injects again what the exit reported.

    Behind an IRET the frame tells no vector any more; L2 has returned from another handler.
    """
    has_virtual = found.entry.vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY
    if found.injected & VALID or not has_virtual or not found.entry.vmcs[GUEST_INTR_STATUS]:
        return False
    bare, other = found.bare, found.other
    in_flight = field(other, "IDT-vectoring info")
    of_virtual = bare[:1] == (DELIVER,) and bare[1] >= LOWEST_VECTOR
    if of_virtual and in_flight & VALID:
        return event_of(in_flight) != (EXTERNAL_INTERRUPT, bare[1])
    if other == (VMFAIL, VMFAIL_CONTROLS):  # what was reported could not be injected at all
        return of_virtual or bool(field(bare, "IDT-vectoring info") & VALID)
    if of_virtual and is_exit(other, VMCALL_EXIT):  # none was reported, though it is in service
        return field(other, "interrupt status") >> 8 != 0
    other_ends = (EXIT,) if bare[:1] == (END,) else (EXIT, END)
    if bare[:1] in ((EXIT,), (DELIVER,), (END,)) and other and other[0] in other_ends:  # elsewhere
        return handler_of(bare) != handler_of(other) and handler_of(other) >= 0
    if bare[:1] == other[:1] == (END,):
        moved = "rip" in found.fields() and set(found.fields()) <= {"rip", "rflags"}
        return moved and handler_of(bare) != handler_of(other)
    if bare[:1] == other[:1] and found.fields() == ("rflags",):  # behind an error code, it is CS
        return not field(other, "rflags") & RFLAGS_FIXED
    return of_virtual and found.fields() == ("vector",)


def misconfiguration_qualified(found: Difference) -> bool:
    """Exit 49 with a qualification; where it is res4 too, with a length for entry, or F6 or res6b too."""
    blocking = field(found.bare, "interruptibility") ^ field(found.other, "interruptibility")
    fields = set(found.fields()) - {"entry instruction length", "interruptibility"}
    is_one = is_exit(found.bare, EPT_MISCONFIG) and fields == {"qualification"}
    return is_one and not field(found.bare, "qualification") and blocking in (0, BLOCKING_BY_NMI)


def nmi_blocking_of_a_delivery(found: Difference) -> bool:
    """An exit in the delivery of an NMI does not say that NMIs are blocked."""
    name = "interruptibility"
    vectoring = field(found.bare, "IDT-vectoring info")
    return (
        found.fields() == (name,)
        and bool(vectoring & VALID)
        and event_of(vectoring)[0] == NMI
        and field(found.bare, name) & ~field(found.other, name) == BLOCKING_BY_NMI
    )


def unblocking_by_iret(found: Difference) -> bool:
    """A fault of IRET: NMIs blocked again, instead of bit 12 of the qualification."""
    names = ("qualification", "interruptibility")
    changed = tuple(field(found.bare, name) ^ field(found.other, name) for name in names)
    return (
        is_exit(found.bare, EPT_VIOLATION)
        and found.fields() == names
        and changed == (NMI_UNBLOCKING_BY_IRET, BLOCKING_BY_NMI)
    )


def interrupt_before_higher_rank(found: Difference) -> bool:
    """A window or a virtual interrupt is due, and the other machine exits first for an interrupt or NMI."""
    bare, other = found.bare, found.other
    if field(other, "IDT-vectoring info") & VALID:
        return False
    windows = {"reason", "interruption info", "activity"}
    if is_exit(bare, NMI_WINDOW) and other[:1] == (DELIVER,):
        return other[1] >= LOWEST_VECTOR and not found.injected & VALID
    if is_exit(other, EXCEPTION_NMI):
        kind, _vector = event_of(field(other, "interruption info"))
        return is_exit(bare, NMI_WINDOW) and kind == NMI and set(found.fields()) <= windows
    if not is_exit(other, EXTERNAL_INTERRUPT_EXIT):
        return False
    if is_exit(bare, NMI_WINDOW, INTERRUPT_WINDOW):
        return set(found.fields()) <= windows
    if found.injected & VALID or not found.entry.vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY:
        return False
    if bare[:1] == (EXIT,):  # the virtual interrupt is in service there, and its delivery exits
        in_service = field(bare, "interrupt status") & ~field(other, "interrupt status")
        return in_service >> 8 != 0
    return bare[:1] == (DELIVER,) and bare[1] >= LOWEST_VECTOR


def int1_dropped(found: Difference) -> bool:
    """INT1 was injected, and neither comes nor is in flight: L2 goes on as if nothing had been.

    A fault of what it executes instead has another frame, or another vector.
    """
    kind = event_of(found.injected)[0]
    frame = {"return rip", "vector"} & set(found.fields())
    in_flight = field(found.other, "IDT-vectoring info") & VALID
    return (
        bool(found.injected & VALID)
        and kind == PRIVILEGED_SOFTWARE_EXCEPTION
        and found.bare[:1] in ((DELIVER,), (EXIT,))
        and first_of_the_entry(found)
        and not found.entry.forbidden_by()
        and not in_flight
        and (goes_on(found.other) or found.other[:1] == (SMM_ENTRY,))
        and (not found.bare[:1] == found.other[:1] == (DELIVER,) or bool(frame))
    )


def failed_entry_opens_nmis(found: Difference) -> bool:
    """An NMI is injected with NMIs blocked, the entry fails, and the field has lost the blocking."""
    name = "interruptibility"
    return (
        is_exit(found.bare, INVALID_STATE)
        and found.fields() == (name,)
        and found.injected & (VALID | TYPE_MASK) == VALID | NMI << TYPE_SHIFT
        and field(found.bare, name) & ~field(found.other, name) == BLOCKING_BY_NMI
    )


def refused_injection(found: Difference) -> bool:
    """VMfail 7 for an injection that the model accepts: of type 6, or of vector 3 or 4."""
    kind, vector = event_of(found.injected)
    changes = kind == SOFTWARE_EXCEPTION or (kind == HARDWARE_EXCEPTION and vector in (BP, OF))
    legal = all(row.how != entry_reading.VMFAIL for row in found.entry.forbidden_by())
    accepted = bool(found.injected & VALID) and legal and found.bare[:1] != (VMFAIL,)
    return changes and accepted and found.other == (VMFAIL, VMFAIL_CONTROLS)
