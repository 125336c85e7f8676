"""What is known of differences that show only where something happens in the middle (``stops.py``)."""

from nvmx_core.arch.controls import PIN_NMI_EXITING, PIN_VIRTUAL_NMIS
from nvmx_core.arch.events import NMI
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    PREEMPTION_TIMER,
    TPR_BELOW_THRESHOLD,
    VMCALL_EXIT,
)
from nvmx_core.arch.fields import GUEST_PREEMPTION_TIMER, PIN_BASED
from nvmx_core.arch.state import ACTIVE, BLOCKING_BY_NMI, HLT
from nvmx_core.journal import END, SMM_ENTRY, VMFAIL
from nvmx_fuzz.bochs.predicates import field, is_exit
from nvmx_fuzz.boot.predicates import PROCESSOR_CHECKS, VMFAIL_CONTROLS, event_of
from nvmx_fuzz.compare import Difference


def nmi_exits_though_blocked(found: Difference) -> bool:
    """An NMI exits out of an L2 that has NMIs blocked, with NMI exiting and without virtual NMIs."""
    controls = found.entry.vmcs[PIN_BASED] & (PIN_NMI_EXITING | PIN_VIRTUAL_NMIS)
    kind, _vector = event_of(field(found.other, "interruption info"))
    return (
        controls == PIN_NMI_EXITING
        and is_exit(found.other, EXCEPTION_NMI)
        and kind == NMI
        and not is_exit(found.bare, EXCEPTION_NMI)
        and bool(field(found.other, "interruptibility") & BLOCKING_BY_NMI)
    )


def nmi_latched_in_l2_is_late(found: Difference) -> bool:
    """An NMI that L2 keeps closed, without NMI exiting, does not come when L1 has opened them."""
    return (
        found.bare[:1] == (END,)
        and found.fields() == ("nmi latched",)
        and not found.entry.vmcs[PIN_BASED] & PIN_NMI_EXITING
        and field(found.bare, "nmi latched") > field(found.other, "nmi latched")
    )


def second_nmi_is_kept(found: Difference) -> bool:
    """An NMI that comes while one is pending, without NMI exiting, is there at the end."""
    return (
        found.bare[:1] == (END,)
        and found.fields() == ("nmi latched",)
        and not found.entry.vmcs[PIN_BASED] & PIN_NMI_EXITING
        and field(found.bare, "nmi latched") < field(found.other, "nmi latched")
    )


def ended_timer_lost_by_a_save(found: Difference) -> bool:
    """The VMX-preemption timer has ended, a userspace saves and restores, and no exit comes."""
    return (
        found.entry.was_saved
        and is_exit(found.bare, PREEMPTION_TIMER)
        and not is_exit(found.other, PREEMPTION_TIMER)
        and found.entry.vmcs[GUEST_PREEMPTION_TIMER] == 0
    )


def timer_wakes_what_is_due(found: Difference) -> bool:
    """The TPR exit is due in HLT, or its check, and the VMX-preemption timer comes: L2 was asleep."""
    rows = found.entry.forbidden_by()
    if found.bare == (VMFAIL, VMFAIL_CONTROLS) and rows:
        asleep = field(found.other, "activity") == HLT and is_exit(found.other, PREEMPTION_TIMER)
        return asleep and all(row.rule in PROCESSOR_CHECKS for row in rows)
    return (
        is_exit(found.bare, TPR_BELOW_THRESHOLD)
        and is_exit(found.other, PREEMPTION_TIMER)
        and found.fields() == ("reason",)
        and field(found.bare, "activity") == HLT
    )


def smi_ends_hlt(found: Difference) -> bool:
    """An SMI has come in HLT, and behind it L2 is active, and goes on to what ends the scenario."""
    if found.bare[:1] == (SMM_ENTRY,) and is_exit(found.other, VMCALL_EXIT):
        return True
    fields = set(found.fields())
    blocked = field(found.other, "interruptibility") & ~field(found.bare, "interruptibility")
    return (
        {"activity"} < fields <= {"interruptibility", "activity"}
        and field(found.bare, "activity") == HLT
        and field(found.other, "activity") == ACTIVE
        and blocked == BLOCKING_BY_NMI
    )
