"""What KVM would print of a run of our own L0: its log, event by event, as a `Trace`.

L0's log has a record for each of KVM's trace points that matter here. What the log does not hold
(addresses, the interruption information of exits that L0 keeps to itself) gets a value that a processor
can have.
"""

from nvmx_core.arch.events import (
    EXTERNAL_INTERRUPT,
    NMI,
    SOFTWARE_INTERRUPT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    VECTOR_NAMES,
)
from nvmx_core.arch.exits import EPT_VIOLATION, EXCEPTION_NMI, FAILED_ENTRY
from nvmx_core.arch.fields import POISON
from nvmx_core.journal import EXIT, L1_INTERRUPT, SMM_RETURN, Record
from nvmx_core.l0 import log
from nvmx_core.machines.nested import Nested
from nvmx_core.scenario import steps
from nvmx_fuzz.trace.reasons import reason_name
from tests.trace.writer import Trace

_HOST_NMI = 0x80000202
_PAGE_FAULT = 0x80000B0E
_FETCH, _WRITE = 0x184, 0x182


def trace_of(nested: Nested) -> Trace:
    """The trace of a machine that has run."""
    trace = Trace().entry()
    journal = nested.journal
    told = 0
    for position, record in enumerate(nested.vcpu.log):
        while told < record[1]:
            _tell_l1(trace, journal[told], nested)
            told += 1
        following = nested.vcpu.log[position + 1 :]
        _tell(trace, record, following, journal, nested.config.in_kernel_apic)
    return trace


def _tell_l1(trace: Trace, record: Record, nested: Nested) -> None:
    if record[0] == L1_INTERRUPT and nested.config.in_kernel_apic:
        trace.interrupt(record[1]).entry(rip=0x2000, event=VALID | record[1]).exit("VMREAD")
    elif record[0] == SMM_RETURN:
        trace.other("kvm_smm_transition: vcpu 0: leaving SMM, smbase 0x30000")
        if nested.vcpu.smm_guest_mode:
            trace.add("nested_entry", event=0x80000040)  # what vmcs12 still holds


def _tell(
    trace: Trace,
    record: tuple[int, ...],
    following: list[tuple[int, ...]],
    journal: list[Record],
    has_apic: bool,
) -> None:
    kind = record[0]
    if kind == log.NESTED_ENTRY:
        trace.nested_entry(record[2])
    elif kind == log.HARDWARE_ENTRY:
        trace.entry(event=record[2], immediate=bool(record[3]))
    elif kind == log.HIDDEN_EXIT:
        _tell_exit(trace, record[2], record[3], following, journal)
    elif kind == log.NESTED_EXIT:
        _tell_reflected(trace, record, journal)
    elif kind in (log.REINJECT, log.INJECT):
        _tell_injection(trace, record[2], is_again=kind == log.REINJECT)
    elif kind == log.ARRIVAL and record[2] == steps.INTERRUPT and has_apic:
        vector = record[3] if record[3] >= steps.LOWEST_VECTOR else record[3] + 16
        trace.arrival(vector)
    elif kind in (log.SAVE_RESTORE, log.USERSPACE):
        trace.other("kvm_userspace_exit: reason KVM_EXIT_INTR (10)")
    elif kind == log.LEAVE_FOR_SMM:
        trace.other("kvm_smm_transition: vcpu 0: entering SMM, smbase 0x30000").entry(rip=0x8000)
        trace.exit("IO_INSTRUCTION")


def _tell_exit(
    trace: Trace,
    reason: int,
    vectoring: int,
    following: list[tuple[int, ...]],
    journal: list[Record],
) -> None:
    interruption = 0
    if reason == EXCEPTION_NMI:
        shown = _interruption_of(following[0], journal) if following else 0
        interruption = shown or (_PAGE_FAULT if vectoring else _HOST_NMI)
    qualification = (_WRITE if vectoring else _FETCH) if reason == EPT_VIOLATION else 0
    trace.l2_exit(reason_name(reason), vectoring, interruption, qualification)


def _interruption_of(record: tuple[int, ...], journal: list[Record]) -> int:
    """The interruption information of a nested exit for an exception."""
    if record[0] != log.NESTED_EXIT or record[2] != EXCEPTION_NMI or record[1] >= len(journal):
        return 0
    shown = journal[record[1]]
    return shown[3] if shown[0] == EXIT and shown[3] != POISON else 0


def _tell_reflected(trace: Trace, record: tuple[int, ...], journal: list[Record]) -> None:
    reason = record[2]
    shown = journal[record[1]] if record[1] < len(journal) else (0,)
    interruption = shown[3] if shown[0] == EXIT and shown[3] != POISON else 0
    name = reason_name(reason & 0xFFFF)
    if reason & FAILED_ENTRY:
        name += " FAILED_VMENTRY"
    trace.reflected(name, record[3], interruption).entry(rip=0x2000).exit("VMREAD")


def _tell_injection(trace: Trace, info: int, is_again: bool) -> None:
    event_type = (info & TYPE_MASK) >> TYPE_SHIFT
    vector = info & VECTOR_MASK
    if event_type in (EXTERNAL_INTERRUPT, SOFTWARE_INTERRUPT):
        trace.interrupt(vector, soft=event_type == SOFTWARE_INTERRUPT, again=is_again)
    elif event_type != NMI and vector in VECTOR_NAMES and event_type != 5 and event_type != 7:
        trace.exception(VECTOR_NAMES[vector].removeprefix("#"), again=is_again)
