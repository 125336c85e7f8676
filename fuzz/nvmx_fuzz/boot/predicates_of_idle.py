"""What is known of entries into HLT and wait-for-SIPI, which KVM emulates without the processor.

Checks that it leaves to the processor are made by nobody then, and what the processor would look for after
the entry nobody looks for.
"""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_INTR_WINDOW_EXITING,
    CPU_NMI_WINDOW_EXITING,
    CPU_TPR_SHADOW,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
)
from nvmx_core.arch.events import DB, HARDWARE_EXCEPTION, NMI
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INVALID_STATE,
    MONITOR_TRAP_FLAG,
    PREEMPTION_TIMER,
    SIPI_SIGNAL,
    TPR_BELOW_THRESHOLD,
    VMCALL_EXIT,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_INTR_STATUS,
    GUEST_PENDING_DBG,
    GUEST_RFLAGS,
    SECONDARY,
    TPR_THRESHOLD,
)
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import (
    ACTIVE,
    HLT,
    INTERRUPT_SHADOW,
    PENDING_DBG_BS,
    PENDING_DBG_ENABLED_BP,
    RFLAGS_IF,
    RFLAGS_TF,
    WAIT_FOR_SIPI,
)
from nvmx_core.journal import DELIVER, END, EXIT, RECORD_FIELDS, SMM_ENTRY, VMFAIL, Record
from nvmx_fuzz.bochs.predicates import field, is_exit
from nvmx_fuzz.boot.predicates import PROCESSOR_CHECKS, VMFAIL_CONTROLS
from nvmx_fuzz.boot.reading_differences import event_of, first_of_the_entry, goes_on, injects_mtf
from nvmx_fuzz.compare import Difference, Entry

_CHECKS: Final = ("G2", "G3", "G4", "G5", "G10")
"""Checks of the guest state that KVM does not make itself."""
_CHECK_OF_HLT: Final = "G9"
"""One that HLT alone makes, where there is no shadow: KVM enters as active."""
_CHECKED_BY_KVM: Final = ("G1", "E0")
"""Checks of the guest state that it does make: what the activity state may be, and the link pointer."""
_OUTSIDE: Final = (EXTERNAL_INTERRUPT_EXIT, EXCEPTION_NMI, PREEMPTION_TIMER)
_HLT: Final = INSTRUCTION_INDEX["hlt"]
_SETS_TF: Final = 1 << INSTRUCTION_INDEX["popf"] | 1 << INSTRUCTION_INDEX["iret"]
_END_ACTIVITY: Final = 1 + RECORD_FIELDS[END].index("activity")


def active_after_hlt(found: Difference) -> bool:
    """An exit out of HLT, in which no SMI has come, and the other machine saves active: Bochs, always."""
    return (
        not is_exit(found.bare, INVALID_STATE)
        and not met_smi_in_hlt(found.entry)
        and found.fields() == ("activity",)
        and field(found.bare, "activity") == HLT
    )


def window_makes_active(found: Difference) -> bool:
    """The same, and L1 has asked for a window with its entry into HLT, or injects the MTF exit that comes."""
    asked = found.entry.vmcs[CPU_BASED] & (CPU_INTR_WINDOW_EXITING | CPU_NMI_WINDOW_EXITING)
    makes = bool(asked) or (injects_mtf(found) and is_exit(found.bare, MONITOR_TRAP_FLAG))
    return active_after_hlt(found) and makes and found.entry.vmcs[GUEST_ACTIVITY] == HLT


def nmi_makes_active(found: Difference) -> bool:
    """The same, and it is an NMI that exits."""
    kind, _vector = event_of(field(found.bare, "interruption info"))
    return active_after_hlt(found) and is_exit(found.bare, EXCEPTION_NMI) and kind == NMI


def pending_makes_active(found: Difference) -> bool:
    """The same, and nothing came between entry and exit; or what HLT itself owes: the MTF exit, its #DB."""
    asleep = found.entry.vmcs[GUEST_ACTIVITY] == HLT and first_of_the_entry(found)
    is_debug = event_of(field(found.bare, "interruption info")) == (HARDWARE_EXCEPTION, DB)
    is_own = is_exit(found.bare, MONITOR_TRAP_FLAG) or is_debug
    owed = is_own and found.entry.met.executed >> _HLT & 1
    return active_after_hlt(found) and (asleep or bool(owed))


def failed_entry_saves_activity(found: Difference) -> bool:
    """An entry into HLT fails, by what KVM leaves to the processor, and the activity state is active then."""
    rows = found.entry.forbidden_by()
    return (
        is_exit(found.bare, INVALID_STATE)
        and found.fields() == ("activity",)
        and field(found.bare, "activity") == HLT
        and bool(rows)
        and not any(row.rule in _CHECKED_BY_KVM for row in rows)
    )


def inactive_state_accepted(found: Difference) -> bool:
    """An entry into another activity state that has to fail, and does not."""
    rules = {row.rule for row in found.entry.forbidden_by()}
    if not found.entry.vmcs[GUEST_INTERRUPTIBILITY] & INTERRUPT_SHADOW:
        rules.discard(_CHECK_OF_HLT)
    return (
        is_exit(found.bare, INVALID_STATE)
        and goes_on(found.other)
        and found.entry.vmcs[GUEST_ACTIVITY] != ACTIVE
        and bool(rules)
        and rules <= set(_CHECKS)
    )


def window_runs_hlt(found: Difference) -> bool:
    """L2 sleeps in HLT under an NMI window that is not open; elsewhere it runs."""
    return (
        _end_activity(found.bare) == HLT
        and found.entry.vmcs[GUEST_ACTIVITY] == HLT
        and bool(found.entry.vmcs[CPU_BASED] & CPU_NMI_WINDOW_EXITING)
        and (_end_activity(found.other) == ACTIVE or found.other[:1] == (EXIT,))
        and field(found.other, "activity") == ACTIVE
    )


def what_is_due_in_hlt(found: Difference) -> bool:
    """The TPR exit is due in HLT, or its check, or a #DB, and something else comes first: L2 was asleep."""
    rows = found.entry.forbidden_by()
    asleep = field(found.other, "activity") == HLT
    ended = is_exit(found.other, PREEMPTION_TIMER, EXTERNAL_INTERRUPT_EXIT)
    is_debug = event_of(field(found.bare, "interruption info")) == (HARDWARE_EXCEPTION, DB)
    if is_debug or found.bare[:2] == (DELIVER, DB):
        return asleep and ended and field(found.other, "pending debug exceptions") != 0
    if found.bare == (VMFAIL, VMFAIL_CONTROLS) and rows:
        forbidden = all(row.rule in PROCESSOR_CHECKS for row in rows)
        return asleep and is_exit(found.other, PREEMPTION_TIMER) and forbidden
    return (
        is_exit(found.bare, TPR_BELOW_THRESHOLD)
        and ended
        and set(found.fields()) <= {"reason", "interruption info", "activity"}
        and field(found.bare, "activity") == HLT
    )


def pending_debug_kept(found: Difference) -> bool:
    """An exit that KVM makes itself saves the pending debug exceptions as they were, and not as 0.

    Out of HLT they are those that L1 wrote; a #DB behind an instruction that KVM emulates exits with its own.
    """
    name = "pending debug exceptions"
    if set(found.fields()) - {"activity"} != {name} or field(found.bare, name):
        return False
    if event_of(field(found.bare, "interruption info")) == (HARDWARE_EXCEPTION, DB):
        return is_exit(found.bare, EXCEPTION_NMI) and field(found.other, name) == PENDING_DBG_BS
    asleep = field(found.bare, "activity") == HLT == found.entry.vmcs[GUEST_ACTIVITY]
    return asleep and field(found.other, name) == found.entry.vmcs[GUEST_PENDING_DBG]


def event_in_wait_for_sipi(found: Difference) -> bool:
    """Something exits out of wait-for-SIPI that this state blocks."""
    return (
        found.entry.vmcs[GUEST_ACTIVITY] == WAIT_FOR_SIPI == field(found.other, "activity")
        and is_exit(found.other, *_OUTSIDE)
        and (is_exit(found.bare, SIPI_SIGNAL) or found.bare[:1] in ((END,), (SMM_ENTRY,)))
    )


def init_lost_in_wait_for_sipi(found: Difference) -> bool:
    """An INIT that wait-for-SIPI has blocked exits at the next entry; elsewhere it does not."""
    return (
        found.entry.met.late_init
        and is_exit(found.bare, INIT_SIGNAL)
        and not is_exit(found.other, INIT_SIGNAL)
        and goes_on(found.other)
    )


def met_smi_in_hlt(entry: Entry) -> bool:
    """Whether an SMI has come in HLT."""
    return entry.met.smi_at >= 0 and entry.met.smi_activity == HLT


def smi_ends_hlt(found: Difference) -> bool:
    """An SMI has come in HLT, and behind it L2 is active, and goes on to what ends the scenario."""
    if not met_smi_in_hlt(found.entry):
        return False
    if found.bare[:1] == (SMM_ENTRY,):
        return is_exit(found.other, VMCALL_EXIT)
    fields = set(found.fields())
    of_running = {"reason", "instruction length", "rip", "rflags", "interruptibility", "activity"}
    if is_exit(found.other, VMCALL_EXIT):  # at what brings L1 back, before the event came
        of_running.add("interruption info")
    was_asleep = field(found.bare, "activity") == HLT
    now_active = field(found.other, "activity") == ACTIVE
    return {"activity"} <= fields <= of_running and was_asleep and now_active


def sleeps_though_due(entry: Entry) -> bool:
    """Whether L2 falls asleep at an entry, or behind it, with something due that KVM does not look for (F2).

    A #DB or the exit of the TPR threshold in HLT, a check that nobody makes of a state that is not active, or
    the single step of HLT itself.
    """
    vmcs = entry.vmcs
    if (
        entry.met.executed >> _HLT & 1
        and entry.met.executed & _SETS_TF | vmcs[GUEST_RFLAGS] & RFLAGS_TF
    ):
        return True
    if vmcs[GUEST_ACTIVITY] == ACTIVE:
        return False
    has_shadow = vmcs[CPU_BASED] & CPU_TPR_SHADOW
    is_below = has_shadow and vmcs[TPR_THRESHOLD] & 15 > entry.vtpr & 15
    pending = vmcs[GUEST_PENDING_DBG] & (PENDING_DBG_BS | PENDING_DBG_ENABLED_BP)
    return bool(pending or is_below or entry.forbidden_by())


def sleeps_in_bochs(entry: Entry) -> bool:
    """Whether at an entry into HLT a window is open or a virtual interrupt due: Bochs looks for neither."""
    vmcs = entry.vmcs
    window = vmcs[CPU_BASED] & CPU_INTR_WINDOW_EXITING and vmcs[GUEST_RFLAGS] & RFLAGS_IF
    has_virtual = vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY
    is_due = has_virtual and vmcs[GUEST_INTR_STATUS] & 0xF0
    return vmcs[GUEST_ACTIVITY] == HLT and bool(window or is_due)


def _end_activity(record: Record) -> int:
    """The activity state at the end; -1 for another record."""
    return record[_END_ACTIVITY] if record[:1] == (END,) else -1
