"""One record in words: of the journal (what L1 and L2 saw) and of L0's log (what L0 did in secret).

The words are those of KVM's source and trace points. A record of an unknown kind still gets a line.
"""

from collections.abc import Callable, Iterable
from typing import Final

from nvmx_core.arch.events import VALID, VECTOR_NAMES
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    FAILED_ENTRY,
    PREEMPTION_TIMER,
)
from nvmx_core.arch.fields import POISON
from nvmx_core.journal import (
    DELIVER,
    END,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    L1_NMI,
    L1_SPURIOUS_EVENT,
    L1_UNEXPECTED_VECTORING,
    RECORD_FIELDS,
    RECORD_NAMES,
    RETIRE,
    SMM_ENTRY,
    SMM_RETURN,
    VM_DEAD,
    VMFAIL,
    Record,
)
from nvmx_core.l0 import log as l0_log
from nvmx_core.l0.log import L0Record
from nvmx_core.scenario import steps
from nvmx_fuzz.decode_words import (
    activity_word,
    address_word,
    error_word,
    event_word,
    has_field,
    hexadecimal,
    page_word,
    reason_word,
    record_field,
    record_word,
    vector_word,
    vectors_word,
    waiting_word,
)

# -- the journal -----------------------------------------------------------------------------------

_SEEN_BY: Final[dict[int, str]] = {DELIVER: "L2", RETIRE: "L2", SMM_RETURN: "outside"}

# Fields of an exit that are shown although nobody asked for them, when they say something.
_TELLING: Final = (
    "qualification",
    "interruption info",
    "interruption error code",
    "IDT-vectoring info",
    "IDT-vectoring error code",
    "activity",
    "interruptibility",
    "pending debug exceptions",
)


def seen_by(record: Record) -> str:
    """Who the line of this record names: L1, L2, or outside for the end of SMM."""
    return _SEEN_BY.get(record[0], "L1")


def record_text(record: Record, wanted: Iterable[str] = ()) -> str:
    """A journal record as a short sentence; fields in *wanted* are named in any case."""
    wanted = tuple(wanted)
    kind = record[0]
    if kind == EXIT:
        return _exit_text(record, wanted)
    if kind == END:
        return _end_text(record)
    text = _TEXTS[kind](record) if kind in _TEXTS else RECORD_NAMES.get(kind, f"record {kind}")
    more = [name for name in wanted if has_field(record, name) and name not in _NAMED.get(kind, ())]
    return ", ".join((text, *field_texts(record, more)))


def field_texts(record: Record, names: Iterable[str]) -> list[str]:
    """``name value`` for each of these fields of a record."""
    return [
        f"{name.removesuffix(' info')} {record_word(record, name)}"
        for name in names
        if has_field(record, name)
    ]


def _exit_text(record: Record, wanted: tuple[str, ...]) -> str:
    """The exit with RIP, what it says about events, and the wanted fields."""
    failed = record_field(record, "reason") & FAILED_ENTRY
    shown = set(wanted) - {"reason", "rip"}
    if not failed:
        shown |= {name for name in _TELLING if record_field(record, name) not in (0, POISON)}
    names = [name for name in RECORD_FIELDS[EXIT] if name in shown]
    head = f"exit {record_word(record, 'reason')} at {record_word(record, 'rip')}"
    return ", ".join((head, *field_texts(record, names)))


def _end_text(record: Record) -> str:
    mode = record_word(record, "mode")
    text = f"{mode} runs"
    if mode == "L2":
        activity = record_field(record, "activity")
        place = record_word(record, "rip")
        text = f"L2 runs at {place}" if not activity else f"L2 sleeps ({activity_word(activity)})"
    elif mode == "dead":
        text = "the virtual machine is dead"
    waiting = [
        f"{name} {vectors_word(record_field(record, field))}"
        for name, field in (("interrupt", "irr"), ("in service", "isr"))
        if record_field(record, field)
    ]
    waiting += [
        name.removesuffix(" latched").upper()
        for name in ("nmi latched", "init latched", "smi latched")
        if record_field(record, name)
    ]
    return f"{text}; still pending for L1: {', '.join(waiting)}" if waiting else text


def _deliver_text(record: Record) -> str:
    error_code = record_field(record, "error code")
    taken = vector_word(record[1])
    if error_code != POISON:  # so it is an exception
        taken = f"{VECTOR_NAMES.get(record[1], taken)}, error code {hexadecimal(error_code)}"
    return f"takes {taken}, return rip {address_word(record[3])}"


def _entry_text(record: Record) -> str:
    info = record[1]
    return f"injects {event_word(info)}" if info & VALID else "injects nothing"


_TEXTS: Final[dict[int, Callable[[Record], str]]] = {
    VMFAIL: lambda record: error_word(record[1]),
    L1_ENTRY: _entry_text,
    L1_INTERRUPT: lambda record: f"takes interrupt {record[1]:#x} through its own IDT",
    L1_NMI: lambda _record: "takes an NMI through its own IDT",
    L1_UNEXPECTED_VECTORING: lambda _record: "KVM in L1 warns: unexpected, valid vectoring info",
    L1_SPURIOUS_EVENT: lambda record: f"gets {event_word(record[1])}, which nobody sent to it",
    SMM_ENTRY: lambda record: "the SMM handler starts" + (" out of L2" if record[1] else ""),
    SMM_RETURN: lambda _record: "RSM: the SMM handler returns",
    VM_DEAD: lambda _record: "the virtual machine stops",
    DELIVER: _deliver_text,
    RETIRE: lambda record: f"retires, rip {address_word(record[1])}",
}
_NAMED: Final[dict[int, tuple[str, ...]]] = {
    VMFAIL: ("VM-instruction error",),
    L1_ENTRY: ("entry interruption info",),
    L1_INTERRUPT: ("vector",),
    L1_UNEXPECTED_VECTORING: ("reason", "IDT-vectoring info"),
    L1_SPURIOUS_EVENT: ("event",),
    DELIVER: ("vector", "error code", "return rip"),
    RETIRE: ("rip",),
}


# -- L0's log --------------------------------------------------------------------------------------

_ARRIVALS: Final[dict[int, Callable[[int], str]]] = {
    steps.INTERRUPT: lambda operand: f"interrupt {operand:#x} arrives for L1",
    steps.NMI: lambda _operand: "NMI arrives for L1",
    steps.SMI: lambda _operand: "SMI arrives for L1's processor",
    steps.INIT: lambda _operand: "INIT arrives for L1's processor",
    steps.SIPI: lambda operand: f"SIPI {operand:#x} arrives for L1's processor",
    steps.TIMER: lambda operand: f"{operand} ticks of L1's preemption timer pass",
}


def log_by(record: L0Record) -> str:
    """Who did what a log record tells: L0, or the world outside for an arrival."""
    return "outside" if record[0] == l0_log.ARRIVAL else "L0"


def log_text(record: L0Record, ept: bool = True) -> str:
    """A record of L0's log as a short sentence; *ept*: whether L0 uses EPT."""
    kind = record[0]
    if kind == l0_log.REPAIR:
        cause = "EPT violation" if ept else "#PF on the shadow tables"
        return f"repairs page {page_word(record[2])} ({cause}, hidden from L1)"
    if kind in _LOG_TEXTS:
        return _LOG_TEXTS[kind](record)
    return l0_log.LOG_NAMES[kind] if kind < len(l0_log.LOG_NAMES) else f"log record {kind}"


def is_plain_entry(record: L0Record) -> bool:
    """Whether nothing is to be said about a hardware entry but that it happens."""
    return not record[3] and not record[6] & ~l0_log.WAITS_FOR_L2


def entry_text(record: L0Record, named: int = 0) -> str:
    """A hardware entry: what is in the entry field, whether an immediate exit is requested.

    *named* is an event that the line before has named already.
    """
    info, immediate, waiting = record[2], record[3], record[6] & ~l0_log.WAITS_FOR_L2
    text = "enters L2"
    if info & VALID and info != named:
        text += f" injecting {event_word(info)}"
    if immediate:
        return f"{text}, with preemption timer 0 (immediate exit)"
    return f"{text}, no immediate exit; due: {waiting_word(waiting)}" if waiting else text


def hardware_exit_text(record: L0Record, following: L0Record | None = None) -> str:
    """A hardware exit that L0 handles; *following* is the log's next record in the same step."""
    reason, vectoring = record[2], record[3]
    text = f"exit {reason_word(reason)}"
    if reason == PREEMPTION_TIMER:
        text += " (the immediate exit)"
    elif reason == EXTERNAL_INTERRUPT_EXIT:
        text += " (an interrupt of the host)"
    elif reason == EXCEPTION_NMI and (following is None or following[0] not in _OF_EXCEPTION):
        text += " (an NMI of the host)"
    if vectoring:
        text += f" in the delivery of {event_word(vectoring)}"
    return text


_OF_EXCEPTION: Final = (l0_log.QUEUE_EXCEPTION, l0_log.REPAIR, l0_log.NESTED_EXIT)
"""What follows the exit of an exception, but not that of a host's NMI."""


def nested_exit_text(record: L0Record, reflected: bool = False) -> str:
    """A nested exit; *reflected*: the hardware exit that came right before it."""
    name = reason_word(record[2])
    text = f"exit {name}, reflected to L1" if reflected else f"nested exit {name} to L1"
    return f"{text}, nested_run_pending still set" if record[4] else text


def _self_check_text(record: L0Record) -> str:
    code = record[2]
    checks = l0_log.SELF_CHECKS
    return f"WARN: {checks[code] if code < len(checks) else code}"


def _queue_text(record: L0Record) -> str:
    where = "as an exit for L1" if record[3] else "for L2"
    return f"queues {event_word(record[2])} {where}"


def _save_text(record: L0Record) -> str:
    mode = "in guest mode" if record[2] else "outside guest mode"
    return f"userspace saves and restores the vCPU {mode}"


def _posted_text(record: L0Record) -> str:
    return f"processes posted interrupts, highest vector {hexadecimal(record[-1])}"


_LOG_TEXTS: Final[dict[int, Callable[[L0Record], str]]] = {
    l0_log.HARDWARE_ENTRY: entry_text,
    l0_log.HIDDEN_EXIT: hardware_exit_text,
    l0_log.NESTED_EXIT: nested_exit_text,
    l0_log.NESTED_ENTRY: lambda _record: "accepts the entry, builds vmcs02",
    l0_log.REINJECT: lambda record: f"re-injects {event_word(record[2])}",
    l0_log.INJECT: lambda record: f"injects {event_word(record[2])}",
    l0_log.CANCEL: lambda record: (
        f"cancels the entry, {event_word(record[2])} goes back into its queue"
        if record[2] & VALID
        else "cancels the entry"
    ),
    l0_log.SAVE_RESTORE: _save_text,
    l0_log.QUEUE_EXCEPTION: _queue_text,
    l0_log.EMULATE: lambda record: f"emulates {reason_word(record[2])} (L1 does not intercept it)",
    l0_log.USERSPACE: lambda record: f"gets interrupt {record[2]:#x} from userspace's APIC",
    l0_log.ARRIVAL: lambda record: (
        _ARRIVALS[record[2]](record[3]) if record[2] in _ARRIVALS else "an event arrives"
    ),
    l0_log.RAN_PAST: lambda record: f"L2 goes on although this is due: {waiting_word(record[2])}",
    l0_log.SELF_CHECK: _self_check_text,
    l0_log.STUCK: lambda record: f"gives up: no progress in {record[2] - 1} round trips",
    l0_log.SLEEP: lambda record: f"L2 sleeps ({activity_word(record[2])})",
    l0_log.WAKE: lambda record: f"L2 wakes up ({activity_word(record[2])} ends)",
    l0_log.KICK: lambda _record: "kicks L2 out of the processor",
    l0_log.POSTED: _posted_text,
    l0_log.LEAVE_FOR_SMM: lambda _record: "leaves L2 for SMM, without an exit for L1",
}
