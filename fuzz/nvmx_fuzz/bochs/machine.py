"""A realised scenario on the Bochs CPU, and its log as the journal that the machine ``bare`` would write."""

from typing import Final, NamedTuple

from nvmx_core.arch.events import PF, VECTOR_MASK
from nvmx_core.arch.exits import APIC_ACCESS, BASIC_REASON_MASK, EPT_VIOLATION, EXCEPTION_NMI
from nvmx_core.arch.fields import (
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    EXIT_INSTRUCTION_LEN,
    EXIT_INTR_ERROR_CODE,
    EXIT_INTR_INFO,
    EXIT_QUALIFICATION,
    EXIT_REASON,
    FIELD_COUNT,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_INTR_STATUS,
    GUEST_LINEAR_ADDRESS,
    GUEST_PENDING_DBG,
    GUEST_PHYSICAL_ADDRESS,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_DPL,
    IDT_VECTORING_ERROR_CODE,
    IDT_VECTORING_INFO,
    PIN_BASED,
    POISON,
    Vmcs,
)
from nvmx_core.arch.state import RFLAGS_RF
from nvmx_core.guests.l1 import L1
from nvmx_core.guests.memory import PAGE_BASE, PAGE_COUNT, PAGE_SHIFT, L2Memory
from nvmx_core.journal import (
    DELIVER,
    END,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    L1_NMI,
    L1_SPURIOUS_EVENT,
    RETIRE,
    SMM_ENTRY,
    SMM_RETURN,
    VMFAIL,
    Record,
)
from nvmx_core.machines.modes import MODE_L1, MODE_L2, MODE_SMM
from nvmx_fuzz.bochs.session import RawRecord, Session
from nvmx_fuzz.realise.realiser import Realised
from nvmx_fuzz.realise.script import encode

# Kinds of the helper's log that are not kinds of a journal, and why a run stopped.
LOG_STOP: Final = 33
LOG_SEEN: Final = 34
FINISHED: Final = 0
STOP_REASONS: Final = (
    "the schedule is done",
    "L2 rests where the model is elsewhere",
    "L2 stands at another instruction",
    "an exit where the model has none",
    "a VMfail where the model has none",
    "L1 has ended",
    "too many steps",
)

_EXIT_PLACES: Final = (
    EXIT_REASON, EXIT_QUALIFICATION, EXIT_INTR_INFO, EXIT_INTR_ERROR_CODE, IDT_VECTORING_INFO,
    IDT_VECTORING_ERROR_CODE, EXIT_INSTRUCTION_LEN, GUEST_LINEAR_ADDRESS, GUEST_PHYSICAL_ADDRESS, GUEST_RIP,
    GUEST_RSP, GUEST_RFLAGS, GUEST_SS_DPL, GUEST_INTERRUPTIBILITY, GUEST_ACTIVITY, GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER, GUEST_INTR_STATUS, ENTRY_INTR_INFO, ENTRY_ERROR_CODE, ENTRY_INSTRUCTION_LEN,
)  # fmt: skip
_ADVANCED_EPT_INFORMATION: Final = 0xE00
_DR6_CONDITIONS: Final = 0xE00F
_MODES: Final = (MODE_L1, MODE_L2, MODE_SMM, MODE_SMM)
"""Where a run stopped: in L1, in L2, in SMM entered from L1, in SMM entered from L2."""
_ROOT: Final = (0, 2)
_MASK_NMI: Final = 1 << 0
_PENDING_SMI: Final = 1 << 1
_PENDING_INIT: Final = 1 << 2


class BochsRun(NamedTuple):
    """The journal of a run, and why it stopped (an index into ``STOP_REASONS``)."""

    journal: list[Record]
    stop: int


def run_realised(session: Session, realised: Realised) -> BochsRun:
    """Run a realised scenario from a clean machine."""
    log = session.run(encode(realised.script), realised.schedule)
    return Journal(realised).read(log)


class Journal:
    """Reads the log of one run; what only the model defines (entries, counted frames) it takes from there."""

    def __init__(self, realised: Realised) -> None:
        self._entries: Final = [record for record in realised.journal if record[0] == L1_ENTRY]
        self._pins: Final = realised.pins
        self._stacks: Final = realised.stacks
        self._records: list[Record] = []
        self._l1: Final = L1([0] * FIELD_COUNT, L2Memory(), self._records)
        self._exits = 0
        self._entered = 0

    def read(self, log: list[RawRecord]) -> BochsRun:
        """The journal of a log."""
        stop: RawRecord = ()
        l2_state: tuple[int, int, int, int] = (0, 0, 0, 0)
        for raw in _in_order(log):
            if stop:
                if raw[0] == EXIT:
                    l2_state = (raw[10], raw[12] & ~RFLAGS_RF, raw[15], raw[14])
            elif raw[0] == LOG_STOP:
                stop = raw
            else:
                self._append(raw)
        self._records.append(_end(stop, l2_state))
        return BochsRun(self._records, stop[1])

    def _append(self, raw: RawRecord) -> None:
        kind = raw[0]
        if kind == EXIT:
            self._exit(raw[1:])
        elif kind == VMFAIL:
            self._records.append((VMFAIL, raw[1]))
        elif kind == L1_ENTRY:
            index = min(self._entered, len(self._entries) - 1)
            self._records.append(self._entries[index])
            self._entered += 1
        elif kind == L1_INTERRUPT:
            self._records.append((L1_INTERRUPT, raw[1]))
        elif kind == L1_NMI:
            self._records.append((L1_NMI,))
        elif kind == DELIVER:
            self._records.append(_deliver(raw[1:]))
        elif kind == RETIRE:
            self._records.append((RETIRE, raw[1]))
        elif kind in (SMM_ENTRY, SMM_RETURN):
            self._records.append(raw)
        else:
            self._records.append((L1_SPURIOUS_EVENT, *raw[1:]))

    def _exit(self, values: RawRecord) -> None:
        vmcs = self._l1.vmcs
        for place, value in zip(_EXIT_PLACES, values, strict=False):
            vmcs[place] = value
        vmcs[GUEST_SS_DPL] = vmcs[GUEST_SS_DPL] >> 5 & 3
        if self._exits < len(self._stacks):
            real, model = self._stacks[self._exits]
            if vmcs[GUEST_RSP] == real:
                vmcs[GUEST_RSP] = model
            vmcs[PIN_BASED] = self._pins[self._exits]
        self._exits += 1
        _simplify(vmcs)
        cr2, dr6 = values[len(_EXIT_PLACES) :]
        self._l1.observe_exit(_page_only(cr2), dr6 & _DR6_CONDITIONS)


def _in_order(log: list[RawRecord]) -> list[RawRecord]:
    """The log with each exit and VMfail at its time, not at that at which L1 had read all of it.

    What arrives in L1 at once comes while L1 still reads.
    """
    ordered: list[RawRecord] = []
    place = -1
    for raw in log:
        if raw[0] == LOG_SEEN:
            place = len(ordered)
        elif raw[0] in (EXIT, VMFAIL) and place >= 0:
            ordered.insert(place, raw)
            place = -1
        else:
            ordered.append(raw)
    return ordered


def _simplify(vmcs: Vmcs) -> None:
    """Leave out what the model does not have: offsets in pages, the rights of an EPT entry."""
    reason = vmcs[EXIT_REASON] & BASIC_REASON_MASK
    if reason == EXCEPTION_NMI and vmcs[EXIT_INTR_INFO] & VECTOR_MASK == PF:
        vmcs[EXIT_QUALIFICATION] = _page_only(vmcs[EXIT_QUALIFICATION])
    elif reason == EPT_VIOLATION:
        vmcs[EXIT_QUALIFICATION] &= ~_ADVANCED_EPT_INFORMATION
    elif reason == APIC_ACCESS:
        vmcs[EXIT_QUALIFICATION] &= ~0xFFF
    vmcs[GUEST_LINEAR_ADDRESS] = _page_only(vmcs[GUEST_LINEAR_ADDRESS])
    vmcs[GUEST_PHYSICAL_ADDRESS] = _page_only(vmcs[GUEST_PHYSICAL_ADDRESS])


def _page_only(address: int) -> int:
    """An address in one of L2's pages as the model has it: the model knows pages only."""
    return address & ~0xFFF if 0 <= address - PAGE_BASE < PAGE_COUNT << PAGE_SHIFT else address


def _deliver(values: RawRecord) -> Record:
    vector, error_code, rip, rflags, cr2, dr6 = values[:6]
    shown = POISON if error_code == (1 << 64) - 1 else error_code
    return (DELIVER, vector, shown, rip, rflags, _page_only(cr2), dr6 & _DR6_CONDITIONS)


def _end(stop: RawRecord, l2_state: tuple[int, int, int, int]) -> Record:
    _kind, _why, place, pending, mask, _position, _rip, *apic = stop
    irr = sum(word << 64 * index for index, word in enumerate(apic[:4]))
    isr = sum(word << 64 * index for index, word in enumerate(apic[4:]))
    return (
        END,
        _MODES[place],
        irr,
        isr,
        pending & _MASK_NMI,
        mask & _MASK_NMI if place in _ROOT else 0,
        1 if pending & _PENDING_INIT else 0,
        1 if pending & _PENDING_SMI else 0,
        *l2_state,
    )
