"""What each known divergence looks like: predicates on the first difference of two journals.

A predicate is narrow: it names the records and fields, and states itself what makes the divergence. Where
that is a check of VM entry it asks the second reading of the checks (`entry_reading.py`), never the model,
which is what is being judged.
"""

from collections.abc import Callable, Iterable
from typing import Final

from nvmx_core.arch.controls import SECONDARY_VIRTUAL_INTR_DELIVERY
from nvmx_core.arch.events import (
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    MC,
    PF,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import (
    BASIC_REASON_MASK,
    EXCEPTION_NMI,
    INVALID_STATE,
    MSR_LOAD_FAIL,
    MWAIT_EXIT,
    TASK_SWITCH,
    TASK_SWITCH_BY_IRET,
    TRIPLE_FAULT,
    XSETBV_EXIT,
)
from nvmx_core.arch.fields import (
    ENTRY_INTR_INFO,
    ENTRY_MSR_LOAD_BAD,
    GUEST_ACTIVITY,
    GUEST_PENDING_DBG,
    SECONDARY,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    HLT,
    INTERRUPT_SHADOW,
    PENDING_DBG_B,
    PENDING_DBG_BS,
    RFLAGS_RF,
    SHUTDOWN,
)
from nvmx_core.journal import DELIVER, EXIT, RECORD_FIELDS, VMFAIL, Record
from nvmx_fuzz.compare import Difference
from nvmx_fuzz.entry_reading import Row

Predicate = Callable[[Difference], bool]
"""Whether a difference is an instance of a divergence."""

# In the order of a record of an exit.
_INFORMATION: Final = RECORD_FIELDS[EXIT][2:9]
_LINK_POINTER: Final = 4
"""The qualification of a failed entry that tells of the link pointer."""
_POSTED: Final = "posted=1 virtual-interrupts=0"
"""The check of C4 that Bochs lacks."""
_UNDER_STI: Final = 3
"""That of an NMI under STI."""


def field(record: Record, name: str) -> int:
    """A field of a record by its name; 0 if the record has none of that name."""
    names = RECORD_FIELDS[record[0]] if record else ()
    return record[1 + names.index(name)] if name in names else 0


def is_exit(record: Record, *reasons: int) -> bool:
    """Whether a record is an exit for one of the reasons."""
    return bool(record) and record[0] == EXIT and record[1] & BASIC_REASON_MASK in reasons


def _bochs_asks(row: Row, found: Difference) -> bool:
    """Whether Bochs has a check that the second reading lists, in the same class of checks."""
    if row.rule in ("G8", "G9", "G12") or row.terms == _POSTED:
        return False
    if row.rule == "G4":
        activity = found.entry.vmcs[GUEST_ACTIVITY]
        by_vector = activity == SHUTDOWN and found.entry.vmcs[ENTRY_INTR_INFO] & VECTOR_MASK == MC
        return not (activity == HLT or by_vector)
    if row.rule == "G10":
        low = list(found.entry.vmcs)
        low[GUEST_PENDING_DBG] &= 0xFFFF_FFFF
        return row in found.entry._replace(vmcs=tuple(low)).forbidden_by()
    return True


def unchecked(rule: str, *activities: int) -> Predicate:
    """The entry breaks only checks of the guest state that Bochs lacks, one of them *rule*; Bochs enters.

    With *activities* it is an entry into one of these.
    """

    def matches(found: Difference) -> bool:
        if found.entry_rule != rule or not is_exit(found.bare, INVALID_STATE):
            return False
        if activities and found.entry.vmcs[GUEST_ACTIVITY] not in activities:
            return False
        rows = found.entry.forbidden_by()
        return (
            any(row.rule == rule for row in rows)
            and not any(_bochs_asks(row, found) for row in rows)
            and field(found.bare, "qualification") == 0
            and _enters(found)
        )

    return matches


def _enters(found: Difference) -> bool:
    """Whether Bochs gets past the guest state; what it loads then may still fail."""
    loads = found.entry.vmcs[ENTRY_MSR_LOAD_BAD] == 0
    return found.other[:1] not in ((), (VMFAIL,)) and not is_exit(
        found.other, INVALID_STATE, *((MSR_LOAD_FAIL,) if loads else ())
    )


def _differs_in_rf_only(found: Difference) -> bool:
    return (field(found.bare, "rflags") ^ field(found.other, "rflags")) & ~RFLAGS_RF == 0


def _not_rewritten(found: Difference) -> set[str]:
    """The fields that differ, without those that a failed entry of Bochs writes anew.

    Those count when the model shows what the VMCS held, and Bochs that there is no event.
    """
    fields = set(found.fields())
    kept = found.bare[1:10] == found.entry.exit_of_failure(*found.bare[1:3])
    cleared = not field(found.other, "interruption info") | field(found.other, "IDT-vectoring info")
    if kept and cleared:
        fields -= set(_INFORMATION)
        if _differs_in_rf_only(found):
            fields.discard("rflags")
    return fields


def failed_entry_information(found: Difference) -> bool:
    """Only the information of the exit before differs, with what it says of RF, and what G7 says."""
    if not is_exit(found.bare, INVALID_STATE, MSR_LOAD_FAIL):
        return False
    fields = _not_rewritten(found)
    if _tells_of_sti(found):
        fields.discard("qualification")
    return bool(found.fields()) and not fields


def _tells_of_sti(found: Difference) -> bool:
    """The model's qualification says that the NMI came under STI, as is the case; that of Bochs is 0."""
    return (
        is_exit(found.bare, INVALID_STATE)
        and (field(found.bare, "qualification"), field(found.other, "qualification"))
        == (_UNDER_STI, 0)
        and _UNDER_STI in _qualifications(found.entry.forbidden_by())
    )


def _qualifications(rows: Iterable[Row]) -> set[int]:
    return {row.qualification for row in rows}


def nmi_under_sti(found: Difference) -> bool:
    """Only the qualification differs, by what an NMI under STI makes it."""
    return found.fields() == ("qualification",) and _tells_of_sti(found)


def order_of_guest_checks(found: Difference) -> bool:
    """Two guest-state checks fail, one of them that of the link pointer; each reports its own."""
    ours, theirs = field(found.bare, "qualification"), field(found.other, "qualification")
    if not is_exit(found.bare, INVALID_STATE) or _not_rewritten(found) != {"qualification"}:
        return False
    allowed = _qualifications(found.entry.forbidden_by())
    of_bochs = {0 if value == _UNDER_STI else value for value in allowed}
    return ours in allowed and theirs in of_bochs and _LINK_POINTER in (ours, theirs)


def xsetbv_outside_cpl_0(found: Difference) -> bool:
    """Bochs exits at CPL 3 where the model raises #GP: delivers it, exits for it, or in its delivery."""
    bare = found.bare
    if not is_exit(found.other, XSETBV_EXIT) or field(found.other, "ss_dpl") != 3:
        return False
    if bare[:1] == (DELIVER,):  # a fault in its delivery may come in its place
        return field(bare, "vector") in (GP, PF, DF)
    return is_exit(bare, TRIPLE_FAULT) or any(
        _is_exception(field(bare, name), vector)
        for name in ("interruption info", "IDT-vectoring info")
        for vector in (GP, DF)
    )


def _is_exception(info: int, vector: int) -> bool:
    wanted = VALID | HARDWARE_EXCEPTION << TYPE_SHIFT | vector
    return info & (VALID | TYPE_MASK | VECTOR_MASK) == wanted


def virtual_interrupt_not_reported(found: Difference) -> bool:
    """The event in delivery is a virtual interrupt; Bochs reports none, or another event.

    With virtual-interrupt delivery every other interrupt exits (C3), so that an interrupt in delivery which
    was not injected is a virtual one.
    """
    fields = set(found.fields())
    vectoring = field(found.bare, "IDT-vectoring info")
    return (
        found.entry.vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY != 0
        and "IDT-vectoring info" in fields
        and fields
        <= {"IDT-vectoring info", "IDT-vectoring error code", "instruction length", "rflags"}
        and vectoring & (VALID | TYPE_MASK) == VALID | EXTERNAL_INTERRUPT << TYPE_SHIFT
        and vectoring != found.entry.vmcs[ENTRY_INTR_INFO]
        and _differs_in_rf_only(found)
    )


def held_conditions_with_int1(found: Difference) -> bool:
    """An INT1 that exits behind MOV SS; Bochs reports the conditions that are held as well."""
    ours, theirs = field(found.bare, "qualification"), field(found.other, "qualification")
    return (
        found.fields() == ("qualification",)
        and is_exit(found.bare, EXCEPTION_NMI)
        and field(found.bare, "interruption info") == VALID | 0x501
        and field(found.bare, "interruptibility") & BLOCKING_BY_MOV_SS != 0
        and theirs & ours == ours
        and (theirs ^ ours) & ~(PENDING_DBG_B | PENDING_DBG_BS) == 0
    )


def monitor_disarmed(found: Difference) -> bool:
    """Only MWAIT's qualification differs: armed in the model, lost by a TLB flush in Bochs."""
    return (
        is_exit(found.bare, MWAIT_EXIT)
        and found.fields() == ("qualification",)
        and (field(found.bare, "qualification"), field(found.other, "qualification")) == (1, 0)
        and found.entry.monitor_was_lost
    )


def old_conditions_in_dr6(found: Difference) -> bool:
    """Only B0 to B3 of DR6 differ: Bochs has cleared some that were there before this #DB."""
    ours, theirs = field(found.bare, "dr6"), field(found.other, "dr6")
    shown = [record for record in found.history if "dr6" in RECORD_FIELDS[record[0]]]
    before = field(shown[-1], "dr6") if shown else 0
    return (
        found.fields() == ("dr6",)
        and ours & theirs == theirs
        and (ours ^ theirs) & ~(before & PENDING_DBG_B) == 0
    )


def shadow_before_old_task(found: Difference) -> bool:
    """Exit 9 by IRET: the same but for the shadow that IRET stood in and the trap that it holds."""
    blocking = field(found.bare, "interruptibility")
    return (
        is_exit(found.bare, TASK_SWITCH)
        and is_exit(found.other, TASK_SWITCH)
        and set(found.fields()) <= {"interruptibility", "pending debug exceptions"}
        and field(found.bare, "qualification") >> 30 == TASK_SWITCH_BY_IRET >> 30
        and blocking & INTERRUPT_SHADOW != 0
        and field(found.other, "interruptibility") == blocking & ~INTERRUPT_SHADOW
        and field(found.other, "pending debug exceptions") == 0
    )


def posted_without_virtual_interrupts(found: Difference) -> bool:
    """The checks on controls fail, that of C4 among them; in Bochs none does, or a later one."""
    rows = found.entry.forbidden_by()
    return (
        any(row.terms == _POSTED for row in rows)
        and not any(row.rule == "G12" for row in rows)
        and _passes_controls(found, rows)
        and found.other != ()
    )


def _passes_controls(found: Difference, rows: tuple[Row, ...]) -> bool:
    """The model fails with error 7; Bochs does not, and with error 8 only for the sake of the host state."""
    numbers = {row.number for row in rows if _bochs_asks(row, found)}
    if found.bare != (VMFAIL, 7) or 7 in numbers:
        return False
    return found.other == (VMFAIL, 8) if 8 in numbers else found.other[:1] != (VMFAIL,)


def entry_to_smm(found: Difference) -> bool:
    """The checks on controls fail, G12 among them; Bochs fails in the host state or the guest state."""
    rows = found.entry.forbidden_by()
    return (
        any(row.rule == "G12" for row in rows)
        and _passes_controls(found, rows)
        and (found.other == (VMFAIL, 8) or is_exit(found.other, INVALID_STATE))
    )
