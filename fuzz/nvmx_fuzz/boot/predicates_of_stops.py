"""What is known of differences that show only where something happens in the middle (``stops.py``)."""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_MONITOR_TRAP_FLAG,
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_VIRTUAL_NMIS,
    SECONDARY_EPT,
)
from nvmx_core.arch.events import BP, DB, DF, HARDWARE_EXCEPTION, NMI, OF, PF, VALID
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
    EXCEPTION_BITMAP,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_RIP,
    PIN_BASED,
    SECONDARY,
)
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import (
    BLOCKING_BY_NMI,
    INTERRUPT_SHADOW,
    PENDING_DBG_BS,
    PENDING_DBG_ENABLED_BP,
    RFLAGS_TF,
)
from nvmx_core.guests.memory import handler_rip
from nvmx_core.journal import (
    DELIVER,
    END,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    L1_NMI,
    SMM_ENTRY,
    Record,
)
from nvmx_core.scenario.steps import LOWEST_VECTOR
from nvmx_fuzz.bochs.predicates import field, is_exit
from nvmx_fuzz.boot.predicates import INT1, NMI_VECTOR, SOFT_TYPES
from nvmx_fuzz.boot.reading_differences import (
    event_of,
    first_of_the_entry,
    goes_on,
    handler_of,
    injects_mtf,
)
from nvmx_fuzz.compare import Difference

_WITHOUT_NMI: Final = ((END,), (L1_ENTRY,), (L1_INTERRUPT,), (SMM_ENTRY,))
"""Records that stand where an NMI might have been taken."""
_EMULATED: Final = 1 << INSTRUCTION_INDEX["in"] | 1 << INSTRUCTION_INDEX["out"]


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
    """An exit has found an event that L2 kept closed; where it is open again it does not come."""
    if not found.entry.met.late_event:
        return False
    pin = found.entry.vmcs[PIN_BASED]
    if is_exit(found.bare, EXTERNAL_INTERRUPT_EXIT):  # that of L1 which asks for exits now
        return is_exit(found.other, VMCALL_EXIT) and bool(pin & PIN_EXT_INTR_EXITING)
    if found.bare[:1] == (END,) and found.fields() == ("nmi latched",):
        return field(found.bare, "nmi latched") > field(found.other, "nmi latched")
    if found.bare[:1] == (L1_NMI,):
        return found.other[:1] in ((L1_ENTRY,), (END,), (L1_INTERRUPT,))
    if found.bare[:1] == (DELIVER,) and not found.injected & VALID:
        may_have = not pin & PIN_EXT_INTR_EXITING and found.bare[1] >= LOWEST_VECTOR
        return may_have and (found.other[:1] == (END,) or is_exit(found.other, VMCALL_EXIT))
    return False


def second_nmi_is_kept(found: Difference) -> bool:
    """An NMI has come while one was pending, and the other machine shows one more than the model."""
    return (
        found.entry.met.second_nmi
        and _shows_nmi(found.other)
        and not _shows_nmi(found.bare)
        and found.bare[:1] in _WITHOUT_NMI
    )


def nmi_blocking_stays_in_l2(found: Difference) -> bool:
    """L2 runs without virtual NMIs, an exit leaves NMIs blocked, and L1 takes one on the other machine."""
    exits = [record for record in found.history if record[0] == EXIT]
    return (
        not found.entry.vmcs[PIN_BASED] & PIN_VIRTUAL_NMIS
        and bool(exits)
        and bool(field(exits[-1], "interruptibility") & BLOCKING_BY_NMI)
        and not _shows_nmi(exits[-1])
        and found.other[:1] == (L1_NMI,)
        and found.bare[:1] in _WITHOUT_NMI
    )


def _shows_nmi(record: Record) -> bool:
    """Whether a record has an NMI: taken by L1 or L2, exiting, or pending at the end."""
    kind, _vector = event_of(field(record, "interruption info"))
    exits = is_exit(record, EXCEPTION_NMI) and kind == NMI
    taken = record[:1] == (L1_NMI,) or record[:2] == (DELIVER, NMI_VECTOR)
    return exits or taken or (record[:1] == (END,) and field(record, "nmi latched") != 0)


def ended_timer_lost_by_a_save(found: Difference) -> bool:
    """The VMX-preemption timer has ended, a userspace saves and restores, and L2 goes on instead."""
    return (
        found.entry.met.saved_at >= 0
        and is_exit(found.bare, PREEMPTION_TIMER)
        and not is_exit(found.other, PREEMPTION_TIMER)
        and goes_on(found.other)
        and found.entry.vmcs[GUEST_PREEMPTION_TIMER] == 0
    )


def pdptes_lost_by_a_restore(found: Difference) -> bool:
    """L2 runs without EPT of L1's, a userspace restores it, and the fetch faults where it stands.

    In the delivery of an event it is the gate that cannot be read.
    """
    met = found.entry.met
    if met.saved_at < 0 or found.entry.vmcs[SECONDARY] & SECONDARY_EPT:
        return False
    kind, vector = event_of(field(found.other, "interruption info"))
    can_be = field(found.other, "qualification") >> 12 == field(found.other, "rip") >> 12
    can_be |= field(found.other, "IDT-vectoring info") & VALID != 0
    faults = is_exit(found.other, EXCEPTION_NMI) and kind == HARDWARE_EXCEPTION
    faults &= vector == DF or (vector == PF and can_be)
    dies = is_exit(found.other, TRIPLE_FAULT)
    places = (met.saved_at, met.saved_at + (met.executed >> INT1 & 1))  # behind INT1, with F8
    return (faults or dies) and field(found.other, "rip") in places


def soft_event_lost_by_a_save(found: Difference) -> bool:
    """A userspace saves while a soft event that L1 injects is in flight, or #BP or #OF, and it is gone.

    L2 goes on where it was entered; what it executes there may be an INT3, of which the frame says so, or
    end in a fault further on: a frame does not tell its vector, but in whose handler L2 stands then does.
    """
    kind, vector = event_of(found.injected)
    is_soft = kind in SOFT_TYPES or (kind == HARDWARE_EXCEPTION and vector in (BP, OF))
    in_flight = field(found.other, "IDT-vectoring info")
    came = found.other[:2] == (DELIVER, vector) and found.other[:1] == found.bare[:1]
    if came and "return rip" not in found.fields():
        return False
    if came and kind != HARDWARE_EXCEPTION:
        is_elsewhere = 0 <= _handler_in_which_l2_stands(found.behind) != vector
        if found.other[3] != found.entry.vmcs[GUEST_RIP] and not is_elsewhere:
            return False
    return (
        found.entry.met.saved_at >= 0
        and bool(found.injected & VALID)
        and is_soft
        and first_of_the_entry(found)
        and found.bare[:1] in ((DELIVER,), (EXIT,))
        and not is_exit(found.bare, INVALID_STATE)
        and goes_on(found.other)
        and not (in_flight & VALID and event_of(in_flight) == (kind, vector))
    )


def _handler_in_which_l2_stands(behind: tuple[Record, ...]) -> int:
    """By its vector, at the next exit or the end, if L2 has taken nothing until then; -1 for none."""
    first = next((record for record in behind if record[0] != SMM_ENTRY), ())
    return handler_of(first) if first[:1] in ((END,), (EXIT,)) else -1


def mtf_exit_before_init(found: Difference) -> bool:
    """An INIT comes with an injection and the monitor trap flag, or an injected MTF exit, which is first."""
    owed = bool(found.entry.vmcs[CPU_BASED] & CPU_MONITOR_TRAP_FLAG)
    return (
        is_exit(found.bare, INIT_SIGNAL)
        and is_exit(found.other, MONITOR_TRAP_FLAG)
        and (owed or injects_mtf(found))
        and found.fields() == ("reason",)
    )


def debug_exception_before_init(found: Difference) -> bool:
    """With an INIT a #DB is pending: it exits first, or loses the bit that makes it pending.

    Pending at the entry, or behind an instruction that L0 emulates, which L2 takes the #DB of then.
    """
    name = "pending debug exceptions"
    pending = field(found.bare, name)
    if not is_exit(found.bare, INIT_SIGNAL) or not pending:
        return False
    if field(found.bare, "interruptibility") & INTERRUPT_SHADOW:
        return False
    if found.other[:2] == (DELIVER, DB):
        return pending == PENDING_DBG_BS and bool(found.entry.met.executed & _EMULATED)
    if is_exit(found.other, EXCEPTION_NMI):
        info = field(found.other, "interruption info")
        return event_of(info) == (HARDWARE_EXCEPTION, DB) and first_of_the_entry(found)
    left = field(found.other, name)  # the conditions, which tell of no enabled breakpoint any more
    return found.fields() == (name,) and left != 0 and pending & ~left == PENDING_DBG_ENABLED_BP


def intercepted_debug_lost(found: Difference) -> bool:
    """The single step of an instruction that KVM emulates, which L1 intercepts, is not in another exit."""
    name = "pending debug exceptions"
    return (
        is_exit(found.bare, MONITOR_TRAP_FLAG, INIT_SIGNAL)
        and found.fields() == (name,)
        and field(found.bare, name) == PENDING_DBG_BS
        and field(found.other, name) == 0
        and bool(found.entry.vmcs[EXCEPTION_BITMAP] >> DB & 1)
        and not field(found.bare, "interruptibility") & INTERRUPT_SHADOW
    )


def shadow_lost_by_an_smi(found: Difference) -> bool:
    """An SMI has come under a shadow of STI or MOV SS, which is gone behind it."""
    name = "interruptibility"
    met = found.entry.met
    if not met.smi_shadow:
        return False
    if found.fields() == (name,):
        lost = field(found.bare, name) & ~field(found.other, name)
        return bool(lost & INTERRUPT_SHADOW) and not lost & ~INTERRUPT_SHADOW
    if is_exit(found.other, NMI_WINDOW, INTERRUPT_WINDOW):  # open behind it
        return field(found.other, "rip") == met.smi_at
    early = found.fields() == ("return rip",) and found.bare[:1] == (DELIVER,)
    return early and field(found.other, "return rip") == met.smi_at


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
    saved_at = found.entry.met.saved_at
    is_one = found.bare[:1] == (SMM_ENTRY,) and found.fields() == ("rip",)
    return is_one and saved_at >= 0 and field(found.other, "rip") == saved_at


def rsm_is_an_instruction_of_l2(found: Difference) -> bool:
    """With the monitor trap flag L2 exits right behind RSM, before the next instruction."""
    met = found.entry.met
    return (
        met.smi_at >= 0
        and is_exit(found.other, MONITOR_TRAP_FLAG)
        and bool(found.entry.vmcs[CPU_BASED] & CPU_MONITOR_TRAP_FLAG)
        and field(found.other, "rip") == met.smi_at
        and not field(found.other, "IDT-vectoring info") & VALID
    )


def injected_mtf_lost(found: Difference) -> bool:
    """L1 injects an MTF exit, and L2 goes on instead."""
    return (
        injects_mtf(found)
        and first_of_the_entry(found)
        and is_exit(found.bare, MONITOR_TRAP_FLAG)
        and not is_exit(found.other, MONITOR_TRAP_FLAG)
        and goes_on(found.other)
    )
