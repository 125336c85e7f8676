"""What each known divergence looks like: predicates on the first difference of two journals.

A predicate is narrow: it names the records and fields, never only the rule.
"""

from collections.abc import Callable
from typing import Final

from nvmx_core.arch.events import (
    DB,
    EXTERNAL_INTERRUPT,
    NMI_VECTOR,
    OTHER_EVENT,
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
    MWAIT_EXIT,
    PML_FULL,
    SIPI_SIGNAL,
    TPR_BELOW_THRESHOLD,
    TRIPLE_FAULT,
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
from nvmx_core.journal import DELIVER, END, EXIT, L1_ENTRY, RECORD_FIELDS, VMFAIL, Record
from nvmx_fuzz.compare import Difference

Predicate = Callable[[Difference], bool]
"""Whether a difference is an instance of a divergence."""

_EXIT_INFORMATION: Final = frozenset(
    {"interruption info", "interruption error code", "IDT-vectoring info", "IDT-vectoring error code",
     "instruction length", "guest linear address", "guest physical address"}
)  # fmt: skip


def field(record: Record, name: str) -> int:
    """A field of a record by its name; 0 if the record has none of that name."""
    names = RECORD_FIELDS[record[0]] if record else ()
    return record[1 + names.index(name)] if name in names else 0


def is_exit(record: Record, *reasons: int) -> bool:
    """Whether a record is an exit for one of the reasons."""
    return bool(record) and record[0] == EXIT and record[1] & BASIC_REASON_MASK in reasons


def is_end(record: Record) -> bool:
    """Whether a record is the end of a run."""
    return bool(record) and record[0] == END


def unchecked(*rules: str) -> Predicate:
    """The model refuses the entry by one of the rules, Bochs enters."""
    return lambda found: (
        found.entry_rule in rules
        and (is_exit(found.bare, INVALID_STATE) and not is_exit(found.other, INVALID_STATE))
    )


def failed_entry_information(found: Difference) -> bool:
    """Only the information of the exit before differs, with what it says of RF, and what G7 says."""
    if not is_exit(found.bare, INVALID_STATE, MSR_LOAD_FAIL):
        return False
    fields = set(found.fields()) - _EXIT_INFORMATION
    if found.entry_rule == "G7":
        fields.discard("qualification")
    if (field(found.bare, "rflags") ^ field(found.other, "rflags")) == RFLAGS_RF:
        fields.discard("rflags")
    return bool(found.fields()) and not fields


def xsetbv_outside_cpl_0(found: Difference) -> bool:
    """Bochs exits where the model raises #GP."""
    return (
        is_exit(found.other, XSETBV_EXIT)
        and not is_exit(found.bare, XSETBV_EXIT)
        and (field(found.other, "ss_dpl") == 3)
    )


def virtual_interrupt_not_reported(found: Difference) -> bool:
    """The event in delivery is an interrupt; Bochs reports another one."""
    vectoring = field(found.bare, "IDT-vectoring info")
    return (
        bool(found.fields())
        and set(found.fields())
        <= {"IDT-vectoring info", "IDT-vectoring error code", "instruction length", "rflags"}
        and vectoring & VALID != 0
        and vectoring & TYPE_MASK == EXTERNAL_INTERRUPT << TYPE_SHIFT
    )


def injects(found: Difference, *types: int) -> bool:
    """Whether the last entry injected an event of one of the types."""
    return found.injected & VALID != 0 and found.injected >> TYPE_SHIFT & 7 in types


def pending_mtf_is_taken_for_a_delivery(found: Difference) -> bool:
    """An injected MTF exit, and what a delivery would have changed."""
    lost = {"activity", "interruptibility", "pending debug exceptions"}
    return injects(found, OTHER_EVENT) and bool(found.fields()) and set(found.fields()) <= lost


def pending_mtf_under_the_control(found: Difference) -> bool:
    """An injected MTF exit that comes late."""
    return (
        injects(found, OTHER_EVENT)
        and is_exit(found.bare, MONITOR_TRAP_FLAG)
        and not (is_exit(found.other, MONITOR_TRAP_FLAG))
    )


def shutdown_keeps_traps(found: Difference) -> bool:
    """L2 is in shutdown; Bochs takes or saves a #DB that the entry should have dropped."""
    woken = found.bare[:2] == (DELIVER, NMI_VECTOR) and found.before[:1] == (L1_ENTRY,)
    if woken and found.other[:2] == (DELIVER, DB):  # an NMI comes in front of a #DB only there
        return True
    if field(found.bare, "activity") != SHUTDOWN and field(found.before, "activity") != SHUTDOWN:
        return False
    if found.fields() == ("pending debug exceptions",):
        return field(found.bare, "pending debug exceptions") == 0
    name = "vector" if found.other[:1] == (DELIVER,) else "IDT-vectoring info"
    reported = field(found.other, name) & VECTOR_MASK == DB
    intercepted = field(found.other, "interruption info") & VECTOR_MASK == DB
    return reported or intercepted or "dr6" in found.fields()


def is_debug_trap(record: Record) -> bool:
    """Whether a record is a #DB, delivered or as an exit."""
    if record[:1] == (DELIVER,):
        return field(record, "vector") == DB
    return is_exit(record, EXCEPTION_NMI) and field(record, "interruption info") == VALID | 0x301


def breakpoint_without_condition(found: Difference) -> bool:
    """A #DB whose enabled breakpoint has no condition, delivered, exiting, or lost in its delivery."""
    if is_debug_trap(found.other) or found.before[:1] == (DELIVER,):
        return False
    if is_debug_trap(found.bare):
        name = "dr6" if found.bare[:1] == (DELIVER,) else "qualification"
        return not field(found.bare, name) & PENDING_DBG_BS
    directly = found.before[:1] == (L1_ENTRY,) and not found.injected & VALID
    in_delivery = field(found.bare, "IDT-vectoring info") == VALID | 0x301
    died = is_exit(found.bare, TRIPLE_FAULT, EXCEPTION_NMI) and is_end(found.other)
    return directly and not field(found.bare, "dr6") and (in_delivery or died)


def mwait_with_an_armed_monitor(found: Difference) -> bool:
    """Bochs reports an armed monitor."""
    return (
        is_exit(found.bare, MWAIT_EXIT)
        and found.fields() == ("qualification",)
        and (field(found.other, "qualification") == 1)
    )


def held_conditions_with_int1(found: Difference) -> bool:
    """An INT1 that exits; Bochs reports conditions that MOV SS holds."""
    info = field(found.bare, "interruption info")
    return found.fields() == ("qualification",) and info == VALID | 0x501


def trap_kept_by_soft_event(found: Difference) -> bool:
    """A #DB held by MOV SS comes directly behind the delivery of a soft event."""
    return (
        is_debug_trap(found.bare)
        and not is_debug_trap(found.other)
        and found.before[:1] == (DELIVER,)
    )


def old_conditions_in_dr6(found: Difference) -> bool:
    """Only B0 to B3 of DR6 differ."""
    differing = field(found.bare, "dr6") ^ field(found.other, "dr6")
    return found.fields() == ("dr6",) and differing != 0 and not differing & ~PENDING_DBG_B


def nmi_under_sti(found: Difference) -> bool:
    """Only the qualification of G7 differs."""
    return found.entry_rule == "G7" and found.fields() == ("qualification",)


def wait_for_sipi_saved(found: Difference) -> bool:
    """Bochs saves wait-for-SIPI as active, with NMIs blocked."""
    fields = found.fields()
    if not (is_exit(found.bare, SIPI_SIGNAL) or is_end(found.bare)) or "activity" not in fields:
        return False
    blocking = field(found.bare, "interruptibility") ^ field(found.other, "interruptibility")
    return (
        field(found.bare, "activity") == WAIT_FOR_SIPI
        and field(found.other, "activity") == 0
        and set(fields) <= {"activity", "interruptibility"}
        and not blocking & ~BLOCKING_BY_NMI
    )


def shadow_holds(*reasons: int) -> Predicate:
    """The model takes it at the boundary, Bochs rests in L2 under STI or MOV SS."""
    return lambda found: (
        is_exit(found.bare, *reasons)
        and is_end(found.other)
        and (field(found.other, "interruptibility") & INTERRUPT_SHADOW != 0)
    )


def shadow_holds_interrupt(found: Difference) -> bool:
    """An interrupt that exits or only notifies, held by STI or MOV SS."""
    held = (
        is_end(found.bare)
        and found.fields() == ("irr",)
        and (field(found.other, "interruptibility") & INTERRUPT_SHADOW != 0)
    )
    return held or shadow_holds(EXTERNAL_INTERRUPT_EXIT)(found)


def shadow_holds_nmi(found: Difference) -> bool:
    """The model exits for an NMI, Bochs rests in L2 under STI or MOV SS."""
    nmi = VALID | 0x202
    return shadow_holds(EXCEPTION_NMI)(found) and field(found.bare, "interruption info") == nmi


def pending_debug_lost(found: Difference) -> bool:
    """Bochs saves no pending debug exceptions, or not all conditions."""
    name = "pending debug exceptions"
    return found.fields() == (name,) and not field(found.other, name) & ~field(found.bare, name)


def order_of_guest_checks(found: Difference) -> bool:
    """Two guest-state checks fail; each reports its own qualification."""
    qualifications = {field(found.bare, "qualification"), field(found.other, "qualification")}
    return (
        is_exit(found.bare, INVALID_STATE)
        and found.fields() == ("qualification",)
        and qualifications == {0, QUALIFICATION_LINK_POINTER}
    )


def posted_without_virtual_interrupts(found: Difference) -> bool:
    """The model refuses the entry by C4, Bochs does not."""
    return found.entry_rule == "C4" and found.bare[:1] == (VMFAIL,)


def entry_to_smm(found: Difference) -> bool:
    """Both refuse the entry by G12, in different classes of failure."""
    if found.entry_rule != "G12" or found.bare[:1] != (VMFAIL,):
        return False
    return is_exit(found.other, INVALID_STATE) or found.other[:1] == (VMFAIL,)


def threshold_behind_a_fault(found: Difference) -> bool:
    """The injection of the entry faulted, another event was delivered, VTPR is below the threshold."""
    return (
        is_exit(found.bare, TPR_BELOW_THRESHOLD)
        and not is_exit(found.other, TPR_BELOW_THRESHOLD)
        and found.before[:1] == (DELIVER,)
        and found.injected & VALID != 0
        and field(found.before, "vector") != found.injected & VECTOR_MASK
    )


def threshold_in_shutdown(found: Difference) -> bool:
    """VTPR is below the threshold at an entry into shutdown or wait-for-SIPI, and Bochs exits at once.

    Only a SIPI that exits tells wait-for-SIPI, which Bochs saves as active.
    """
    return is_exit(found.other, TPR_BELOW_THRESHOLD) and (
        is_exit(found.bare, SIPI_SIGNAL)
        or (
            field(found.other, "activity") == SHUTDOWN
            and not is_exit(found.bare, TPR_BELOW_THRESHOLD)
        )
    )


def full_log(found: Difference) -> bool:
    """Bochs exits for a full log where the model does not, or in another delivery."""
    if not is_exit(found.other, PML_FULL):
        return False
    vectoring = "IDT-vectoring info"
    return not is_exit(found.bare, PML_FULL) or (
        field(found.bare, vectoring) != field(found.other, vectoring)
    )
