"""What each known divergence looks like: predicates on the first difference of two journals.

A predicate is narrow: it names the records and fields, never only the rule.
"""

from collections.abc import Callable
from typing import Final

from nvmx_core.arch.controls import SECONDARY_PML, SECONDARY_VIRTUAL_INTR_DELIVERY
from nvmx_core.arch.events import (
    EXTERNAL_INTERRUPT,
    NMI,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
)
from nvmx_core.arch.exits import (
    BASIC_REASON_MASK,
    INVALID_STATE,
    MSR_LOAD_FAIL,
    MWAIT_EXIT,
    PML_FULL,
    TASK_SWITCH,
    TASK_SWITCH_BY_IRET,
    XSETBV_EXIT,
)
from nvmx_core.arch.state import INTERRUPT_SHADOW, PENDING_DBG_B, RFLAGS_RF
from nvmx_core.cpu.entry_checks import QUALIFICATION_LINK_POINTER
from nvmx_core.journal import DELIVER, EXIT, RECORD_FIELDS, RETIRE, VMFAIL, Record
from nvmx_core.oracle.exit_info import BOUNDARY_REASONS
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


def unchecked(*rules: str) -> Predicate:
    """The model refuses the entry by one of the rules, Bochs enters."""
    return lambda found: (
        found.entry_rule in rules
        and (is_exit(found.bare, INVALID_STATE) and not is_exit(found.other, INVALID_STATE))
    )


def _not_rewritten(found: Difference) -> set[str]:
    """The fields that differ, without those that a failed entry of Bochs writes anew."""
    fields = set(found.fields()) - _EXIT_INFORMATION
    if (field(found.bare, "rflags") ^ field(found.other, "rflags")) == RFLAGS_RF:
        fields.discard("rflags")
    return fields


def failed_entry_information(found: Difference) -> bool:
    """Only the information of the exit before differs, with what it says of RF, and what G7 says."""
    if not is_exit(found.bare, INVALID_STATE, MSR_LOAD_FAIL):
        return False
    fields = _not_rewritten(found)
    if found.entry_rule == "G7":
        fields.discard("qualification")
    return bool(found.fields()) and not fields


def xsetbv_outside_cpl_0(found: Difference) -> bool:
    """Bochs exits where the model raises #GP."""
    return (
        is_exit(found.other, XSETBV_EXIT)
        and not is_exit(found.bare, XSETBV_EXIT)
        and (field(found.other, "ss_dpl") == 3)
    )


def virtual_interrupt_not_reported(found: Difference) -> bool:
    """The event in delivery is a virtual interrupt; Bochs reports none, or another event.

    With virtual-interrupt delivery every other interrupt exits (C3), so that an interrupt in delivery which
    was not injected is a virtual one.
    """
    fields = set(found.fields())
    vectoring = field(found.bare, "IDT-vectoring info")
    return (
        found.entry.secondary & SECONDARY_VIRTUAL_INTR_DELIVERY != 0
        and "IDT-vectoring info" in fields
        and fields
        <= {"IDT-vectoring info", "IDT-vectoring error code", "instruction length", "rflags"}
        and vectoring & (VALID | TYPE_MASK) == VALID | EXTERNAL_INTERRUPT << TYPE_SHIFT
        and vectoring != found.injected
        and (field(found.bare, "rflags") ^ field(found.other, "rflags")) & ~RFLAGS_RF == 0
    )


def held_conditions_with_int1(found: Difference) -> bool:
    """An INT1 that exits; Bochs reports conditions that MOV SS holds."""
    info = field(found.bare, "interruption info")
    return found.fields() == ("qualification",) and info == VALID | 0x501


def monitor_disarmed(found: Difference) -> bool:
    """Only MWAIT's qualification differs: armed in the model, not in Bochs."""
    return (
        is_exit(found.bare, MWAIT_EXIT)
        and found.fields() == ("qualification",)
        and field(found.bare, "qualification") == 1
        and field(found.other, "qualification") == 0
    )


def old_conditions_in_dr6(found: Difference) -> bool:
    """Only B0 to B3 of DR6 differ."""
    differing = field(found.bare, "dr6") ^ field(found.other, "dr6")
    return found.fields() == ("dr6",) and differing != 0 and not differing & ~PENDING_DBG_B


def nmi_under_sti(found: Difference) -> bool:
    """Only the qualification of G7 differs."""
    return found.entry_rule == "G7" and found.fields() == ("qualification",)


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


def order_of_guest_checks(found: Difference) -> bool:
    """Two guest-state checks fail; each reports its own qualification."""
    qualifications = {field(found.bare, "qualification"), field(found.other, "qualification")}
    return (
        is_exit(found.bare, INVALID_STATE)
        and _not_rewritten(found) == {"qualification"}
        and qualifications == {0, QUALIFICATION_LINK_POINTER}
    )


def posted_without_virtual_interrupts(found: Difference) -> bool:
    """The model refuses the entry by C4, without virtual interrupts; Bochs enters."""
    return (
        found.entry_rule == "C4"
        and found.entry.secondary & SECONDARY_VIRTUAL_INTR_DELIVERY == 0
        and found.bare == (VMFAIL, 7)
        and found.other[:1] not in ((), (VMFAIL,))
    )


def entry_to_smm(found: Difference) -> bool:
    """Both refuse the entry by G12, in different classes of failure."""
    if found.entry_rule != "G12" or found.bare[:1] != (VMFAIL,):
        return False
    return is_exit(found.other, INVALID_STATE) or found.other[:1] == (VMFAIL,)


def full_log(found: Difference) -> bool:
    """With a full log Bochs exits at a walk that writes nothing, before what the model does next.

    The model then goes on: it retires, delivers or exits by what came after the walk, which no exit of a
    boundary or of an entry is. Both may exit for the log in different deliveries.
    """
    bare = found.bare
    if not (
        found.entry.log_is_full
        and found.entry.secondary & SECONDARY_PML
        and is_exit(found.other, PML_FULL)
    ):
        return False
    vectoring = "IDT-vectoring info"
    if is_exit(bare, PML_FULL):
        return field(bare, vectoring) != field(found.other, vectoring)
    return bare[:1] in ((RETIRE,), (DELIVER,)) or (
        bare[:1] == (EXIT,)
        and not is_exit(bare, *BOUNDARY_REASONS, INVALID_STATE, MSR_LOAD_FAIL)
        and field(bare, "interruption info") & TYPE_MASK != NMI << TYPE_SHIFT
    )
