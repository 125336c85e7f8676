"""What is known of differences that show only where something happens in the middle (``stops.py``)."""

from nvmx_core.arch.controls import (
    CPU_MONITOR_TRAP_FLAG,
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_VIRTUAL_NMIS,
    SECONDARY_EPT,
)
from nvmx_core.arch.events import BP, DB, DF, HARDWARE_EXCEPTION, NMI, OF, OTHER_EVENT, PF, VALID
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    INTERRUPT_WINDOW,
    INVALID_STATE,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    TRIPLE_FAULT,
    VMCALL_EXIT,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    GUEST_INTERRUPTIBILITY,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    PIN_BASED,
    SECONDARY,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_NMI,
    INTERRUPT_SHADOW,
    PENDING_DBG_ENABLED_BP,
    RFLAGS_TF,
)
from nvmx_core.guests.memory import handler_rip
from nvmx_core.journal import DELIVER, END, EXIT, L1_ENTRY, L1_NMI, SMM_ENTRY, Record
from nvmx_core.scenario.steps import LOWEST_VECTOR
from nvmx_fuzz.bochs.predicates import field, is_exit
from nvmx_fuzz.boot.predicates import NMI_VECTOR, SOFT_TYPES, event_of
from nvmx_fuzz.compare import Difference


def nmi_exits_though_blocked(found: Difference) -> bool:
    """An NMI exits out of an L2 that has NMIs blocked, with NMI exiting and without virtual NMIs."""
    name = "interruptibility"
    controls = found.entry.vmcs[PIN_BASED] & (PIN_NMI_EXITING | PIN_VIRTUAL_NMIS)
    kind, _vector = event_of(field(found.other, "interruption info"))
    return (
        controls == PIN_NMI_EXITING
        and is_exit(found.other, EXCEPTION_NMI)
        and kind == NMI
        and not is_exit(found.bare, EXCEPTION_NMI)
        and bool((field(found.other, name) | field(found.bare, name)) & BLOCKING_BY_NMI)
    )


def event_kept_by_l2_is_late(found: Difference) -> bool:
    """An NMI or interrupt that L2 may have, and keeps closed, does not come where it is open again."""
    if not found.entry.kept_event:
        return False
    pin = found.entry.vmcs[PIN_BASED]
    if is_exit(found.bare, EXTERNAL_INTERRUPT_EXIT):  # that of L1 which asks for exits now
        return is_exit(found.other, VMCALL_EXIT) and bool(pin & PIN_EXT_INTR_EXITING)
    if found.bare[:1] == (END,) and found.fields() == ("nmi latched",):
        late = field(found.bare, "nmi latched") > field(found.other, "nmi latched")
        return not pin & PIN_NMI_EXITING and late
    if found.bare[:1] == (DELIVER,) and not found.injected & VALID:
        may_have = not pin & PIN_EXT_INTR_EXITING and found.bare[1] >= LOWEST_VECTOR
        return may_have and found.other[:1] in ((EXIT,), (END,))
    return False


def second_nmi_is_kept(found: Difference) -> bool:
    """An NMI has come while one was pending, and the other machine shows one more than the model."""
    return found.entry.second_nmi and _shows_nmi(found.other) and not _shows_nmi(found.bare)


def nmi_blocking_stays_in_l2(found: Difference) -> bool:
    """L2 runs without virtual NMIs, an exit leaves NMIs blocked, and L1 takes one on the other machine."""
    exits = [record for record in found.history if record[0] == EXIT]
    return (
        not found.entry.vmcs[PIN_BASED] & PIN_VIRTUAL_NMIS
        and bool(exits)
        and bool(field(exits[-1], "interruptibility") & BLOCKING_BY_NMI)
        and found.other[:1] == (L1_NMI,) != found.bare[:1]
    )


def _shows_nmi(record: Record) -> bool:
    """Whether a record has an NMI: taken by L1 or L2, exiting, or pending at the end."""
    kind, _vector = event_of(field(record, "interruption info"))
    exits = is_exit(record, EXCEPTION_NMI) and kind == NMI
    taken = record[:1] == (L1_NMI,) or record[:2] == (DELIVER, NMI_VECTOR)
    return exits or taken or (record[:1] == (END,) and field(record, "nmi latched") != 0)


def ended_timer_lost_by_a_save(found: Difference) -> bool:
    """The VMX-preemption timer has ended, a userspace saves and restores, and no exit comes."""
    return (
        found.entry.was_saved
        and is_exit(found.bare, PREEMPTION_TIMER)
        and not is_exit(found.other, PREEMPTION_TIMER)
        and found.entry.vmcs[GUEST_PREEMPTION_TIMER] == 0
    )


def pdptes_lost_by_a_restore(found: Difference) -> bool:
    """L2 runs without EPT of L1's, a userspace saves and restores it, and it cannot read its memory."""
    if not found.entry.was_saved or found.entry.vmcs[SECONDARY] & SECONDARY_EPT:
        return False
    _kind, vector = event_of(field(found.other, "interruption info"))
    faults = is_exit(found.other, EXCEPTION_NMI) and vector in (DF, PF)
    return faults or (is_exit(found.other, TRIPLE_FAULT) and found.bare != found.other)


def soft_event_lost_by_a_save(found: Difference) -> bool:
    """A userspace saves while a soft event that L1 injects is in flight, or #BP or #OF, and it is gone."""
    kind, vector = event_of(found.injected)
    is_soft = kind in SOFT_TYPES or (kind == HARDWARE_EXCEPTION and vector in (BP, OF))
    in_flight = field(found.other, "IDT-vectoring info")
    return (
        found.entry.was_saved
        and bool(found.injected & VALID)
        and is_soft
        and bool(found.history)
        and found.history[-1][0] == L1_ENTRY
        and found.bare[:1] in ((DELIVER,), (EXIT,))
        and not is_exit(found.bare, INVALID_STATE)
        and not (in_flight & VALID and event_of(in_flight) == (kind, vector))
    )


def mtf_exit_before_init(found: Difference) -> bool:
    """An INIT comes with an injection and the monitor trap flag, whose exit is first."""
    return (
        is_exit(found.bare, INIT_SIGNAL)
        and is_exit(found.other, MONITOR_TRAP_FLAG)
        and found.fields() == ("reason",)
    )


def debug_exception_before_init(found: Difference) -> bool:
    """With an INIT a #DB is pending: it comes first, or loses the bit that makes it pending."""
    name = "pending debug exceptions"
    if not is_exit(found.bare, INIT_SIGNAL) or not field(found.bare, name):
        return False
    if found.other[:2] == (DELIVER, DB):
        return True
    if is_exit(found.other, EXCEPTION_NMI):
        return event_of(field(found.other, "interruption info")) == (HARDWARE_EXCEPTION, DB)
    lost = field(found.bare, name) & ~field(found.other, name)
    return found.fields() == (name,) and lost == PENDING_DBG_ENABLED_BP


def shadow_lost_by_an_smi(found: Difference) -> bool:
    """An SMI has come under a shadow of STI or MOV SS, which is gone behind it."""
    name = "interruptibility"
    if not found.entry.met_smi:
        return False
    if found.fields() == (name,):
        lost = field(found.bare, name) & ~field(found.other, name)
        return bool(lost & INTERRUPT_SHADOW) and not lost & ~INTERRUPT_SHADOW
    if is_exit(found.other, NMI_WINDOW, INTERRUPT_WINDOW):  # open behind it
        return bool(found.entry.vmcs[GUEST_INTERRUPTIBILITY] & INTERRUPT_SHADOW)
    return found.bare[:1] == (DELIVER,) and found.fields() == ("return rip",)


def trap_before_smi(found: Difference) -> bool:
    """An SMI comes with a trap of single step, and finds L2 in the handler of the trap, or left for it."""
    if not found.bare[:1] == found.other[:1] == (SMM_ENTRY,):
        return False
    steps = found.entry.vmcs[GUEST_RFLAGS] & RFLAGS_TF
    left = field(found.bare, "in L2") and not field(found.other, "in L2")
    in_handler = found.fields() == ("rip",) and field(found.other, "rip") == handler_rip(DB)
    return in_handler or bool(steps and left)


def smi_before_what_a_save_repeats(found: Difference) -> bool:
    """An SMI comes in a delivery of L2's own, a userspace saves, and L2 executes the instruction again."""
    return found.entry.was_saved and found.bare[:1] == (SMM_ENTRY,) and found.fields() == ("rip",)


def rsm_is_an_instruction_of_l2(found: Difference) -> bool:
    """With the monitor trap flag L2 exits right behind RSM, before the next instruction."""
    return (
        found.entry.met_smi
        and is_exit(found.other, MONITOR_TRAP_FLAG)
        and bool(found.entry.vmcs[CPU_BASED] & CPU_MONITOR_TRAP_FLAG)
        and not found.injected & VALID
    )


def injected_mtf_lost(found: Difference) -> bool:
    """L1 injects an MTF exit, and there is none."""
    kind, _vector = event_of(found.injected)
    return (
        bool(found.injected & VALID)
        and kind == OTHER_EVENT
        and is_exit(found.bare, MONITOR_TRAP_FLAG)
        and not is_exit(found.other, MONITOR_TRAP_FLAG)
    )
