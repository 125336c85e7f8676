"""Typical steps: what generators and mutators draw from, and what the libFuzzer dictionary holds.

Most of the 2^64 records stand for steps that change nothing or that end a scenario at once. The
palette lists the values that decide something in event handling: the vectors at the edges of the
classes, the pages that a delivery touches, the fields whose bits VM entry checks. What it leaves
out is reached by mutation of single bits, never by generation.

Steps come in two phases. ``PREPARE`` is what is done right before L1 enters L2: write the event,
set the stage, tie arrivals to the entry or to the delivery. ``DURING`` is what happens once L2
runs: its instructions, arrivals now. Within a phase the palette maps an operation to its records; a
record that stands there several times is drawn more often.
"""

from collections.abc import Iterable
from itertools import product
from typing import Final

from nvmx_core.arch.controls import (
    CONTROL_INDEX,
    CONTROLS,
    CPU_SECONDARY_CONTROLS,
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_VIRTUAL_NMIS,
)
from nvmx_core.arch.events import (
    ERROR_CODE_VALID,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_INFO,
    OTHER_EVENT,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_SHIFT,
    VALID,
)
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.guests.memory import (
    CODE,
    DATA,
    GATE_NAMES,
    GDT,
    HANDLER,
    IDT_HIGH,
    IDT_LOW,
    PAGE_COUNT,
    STACK,
    TSS,
)
from nvmx_core.scenario import steps as s
from nvmx_core.scenario.config import NOTIFICATION_VECTOR
from nvmx_core.scenario.step_text import format_step
from nvmx_core.scenario.steps import Step, canonical
from nvmx_fuzz.codec import HEADER_SIZE, decode, encode_step

Palette = dict[int, tuple[bytes, ...]]

INTERRUPT_VECTORS: Final = (0x40, 0x51, 0x20, 0x80, 0xEF, 0xFF, NOTIFICATION_VECTOR, 0x10, 0x48)
EXCEPTIONS: Final = (0, 1, 3, 4, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18)
DELIVERY_PAGES: Final = (IDT_LOW, IDT_HIGH, STACK, STACK, GDT, TSS)
PAGES: Final = (*DELIVERY_PAGES, STACK, CODE, HANDLER, DATA)
EMULATED: Final = ("hlt", "rdpmc", "out", "wbinvd", "in")

assert set(PAGES) == set(range(PAGE_COUNT))


def _records(op: int, values: Iterable[tuple[int, int, int]]) -> tuple[bytes, ...]:
    """The canonical records of one operation with these operands (a, b, c)."""
    return tuple(encode_step(canonical(op, a, b, c)) for a, b, c in values)


def _placed(op: int, a_values: Iterable[int], b_values: Iterable[int] = (0,)) -> tuple[bytes, ...]:
    return _records(op, [(a, b, 0) for a, b in product(a_values, b_values)])


def _injections() -> tuple[bytes, ...]:
    """Every event type with vectors that suit it, and a few that VM entry refuses (E1 to E8)."""
    found = [(EXTERNAL_INTERRUPT, vector, 0) for vector in INTERRUPT_VECTORS]
    found += [(NMI, 2, 0)] * 4
    found += [(HARDWARE_EXCEPTION, vector, 0) for vector in EXCEPTIONS]
    found += [(HARDWARE_EXCEPTION, 14, error) for error in (2, 4, 0x10)]
    found += [(SOFTWARE_INTERRUPT, vector, 2 << 16) for vector in (0x80, 0x40, 0x0D, 0x0E)]
    found += [(SOFTWARE_EXCEPTION, vector, 1 << 16) for vector in (3, 4)]
    found += [(PRIVILEGED_SOFTWARE_EXCEPTION, 1, 1 << 16)] * 2
    found += [(OTHER_EVENT, 0, 0)] * 2
    found += [(OTHER_EVENT, 1, 0), (NMI, 3, 0), (HARDWARE_EXCEPTION, 0x20, 0), (1, 0, 0)]
    found += [(SOFTWARE_INTERRUPT, 0x80, 0), (SOFTWARE_EXCEPTION, 3, 0), (6, 3, 16 << 16)]
    return _records(s.INJECT, found)


# Field -> values near the border between what enters and what does not.
_WRITES: Final[dict[str, tuple[int, ...]]] = {
    "GUEST_ACTIVITY": (0, 1, 1, 2, 3, 4),
    "GUEST_INTERRUPTIBILITY": (0, 1, 2, 3, 4, 8, 8, 9, 10, 16),
    "GUEST_PENDING_DBG": (0, 1 << 14, 1 << 12, 1 << 12 | 1, 1, 1 << 16),
    "GUEST_RFLAGS": (0x2, 0x202, 0x102, 0x302, 0x802, 0x10202, 0x0),
    "GUEST_SS_DPL": (0, 3, 3),
    "GUEST_CR0": (0, 1),
    "GUEST_PREEMPTION_TIMER": (0, 0, 1, 5, 100),
    "GUEST_RIP": (0x16000, 0x16010),
    "GUEST_INTR_STATUS": (0x40, 0x51, 0x4040),
    "TPR_THRESHOLD": (0, 1, 5, 0x10),
    "ENTRY_INTR_INFO": (
        0,
        NMI_INFO,
        VALID | 0x40,
        VALID | HARDWARE_EXCEPTION << TYPE_SHIFT | 14,
        VALID | HARDWARE_EXCEPTION << TYPE_SHIFT | ERROR_CODE_VALID | 6,
        VALID | 1 << 12 | 0x40,
        VALID | ERROR_CODE_VALID | 0x40,
    ),
    "ENTRY_ERROR_CODE": (0, 2, 0x8000, 0x10000),
    "ENTRY_INSTRUCTION_LEN": (0, 1, 2, 15, 16),
    "ENTRY_MSR_LOAD_BAD": (0, 1),
    "ENTRY_CONTROLS": (0, 1 << 10),
    "EXCEPTION_BITMAP": (0, 1 << 14, 1 << 13, 1 << 8, 1 << 14 | 1 << 13, 0xFFFFFFFF),
    "PF_ERROR_MASK": (0, 2, 1),
    "PF_ERROR_MATCH": (0, 2, 1),
    "EOI_EXIT_BITMAP": (0, (1 << 48) - 1),
    "PIN_BASED": (
        0,
        PIN_EXT_INTR_EXITING,
        PIN_EXT_INTR_EXITING | PIN_NMI_EXITING,
        PIN_EXT_INTR_EXITING | PIN_NMI_EXITING | PIN_VIRTUAL_NMIS,
        PIN_VIRTUAL_NMIS,
    ),
    "CPU_BASED": (CPU_SECONDARY_CONTROLS,),
    "VMCS_LINK_POINTER": (0,),
}


_FAVOURITE_WRITES: Final = (
    "GUEST_ACTIVITY", "GUEST_INTERRUPTIBILITY", "GUEST_PREEMPTION_TIMER", "TPR_THRESHOLD",
)  # fmt: skip


def _field_writes() -> tuple[bytes, ...]:
    return _records(
        s.VMWRITE,
        [
            (s.WRITABLE_FIELDS.index(name), value >> 32, value & 0xFFFFFFFF)
            for name, values in _WRITES.items()
            for value in values * (3 if name in _FAVOURITE_WRITES else 1)
        ],
    )


def _controls() -> tuple[bytes, ...]:
    """Every control on and off; on more often, and most often those that open a window or trap."""
    favourites = (
        "interrupt-window-exiting", "nmi-window-exiting", "monitor-trap-flag", "preemption-timer",
        "external-interrupt-exiting", "nmi-exiting", "acknowledge-interrupt-on-exit", "pml",
        "virtualize-apic-accesses", "hlt-exiting",
    )  # fmt: skip
    every = range(len(CONTROLS))
    on = (*every, *(CONTROL_INDEX[name] for name in favourites * 2))
    return _placed(s.CONTROL, on, (1,)) + _placed(s.CONTROL, every, (0,))


def _instructions() -> tuple[bytes, ...]:
    """Every instruction; those that raise, shadow, halt or touch memory more often."""
    favourites = (
        "nop", "nop", "nop", "hlt", "hlt", "int3", "int1", "ud2", "gp", "div0", "sti", "cli",
        "iret", "iret", "mov-ss", "load", "store", "vmcall", "cpuid", "rdpmc", "out", "wbinvd",
        "apic-eoi",
    )  # fmt: skip
    plain = [*INSTRUCTION_INDEX.values(), *(INSTRUCTION_INDEX[name] for name in favourites)]
    chosen = [(index, 0, 0) for index in plain]
    chosen += [(INSTRUCTION_INDEX["int"], vector, 0) for vector in (0x80, 0x40, 3, 0x0D, 0x0E)]
    chosen += [(INSTRUCTION_INDEX["popf"], flags, 0) for flags in (0, 1, 1, 2, 3, 4, 5)]
    chosen += [(INSTRUCTION_INDEX["mov-cr8"], tpr, 0) for tpr in (0, 4, 5, 15)]
    return _records(s.RUN, chosen)


def _arrivals(moments: tuple[int, ...]) -> Palette:
    """Outside events at these moments."""
    return {
        s.INTERRUPT: _placed(s.INTERRUPT, moments, INTERRUPT_VECTORS),
        s.NMI: _placed(s.NMI, moments),
        s.SMI: _placed(s.SMI, moments),
        s.INIT: _placed(s.INIT, moments),
        s.SIPI: _placed(s.SIPI, moments, (0x10, 0x9F)),
        s.TIMER: _placed(s.TIMER, moments, (1, 5, 100, 1000)),
        s.POST_INTERRUPT: _placed(s.POST_INTERRUPT, moments, (0x40, 0x51, 0xEF)),
        s.SAVE_RESTORE: _placed(s.SAVE_RESTORE, moments),
    }


_PAGE_STATES: Final = (s.PAGE_ABSENT, s.PAGE_ABSENT, s.PAGE_ABSENT, s.PAGE_MISCONFIGURED, 0)

PREPARE: Final[Palette] = {
    s.INJECT: _injections(),
    s.VMWRITE: _field_writes(),
    s.CONTROL: _controls(),
    s.INTERCEPT: _placed(s.INTERCEPT, EXCEPTIONS, (1, 1, 0)),
    s.EPT_PAGE: _placed(s.EPT_PAGE, PAGES, _PAGE_STATES),
    s.L1_EOI: _placed(s.L1_EOI, (0,)),
    s.L1_IRET: _placed(s.L1_IRET, (0,)),
    s.OPEN_INTERRUPTS: _placed(s.OPEN_INTERRUPTS, (0,)),
    s.L1_MOV_SS: _placed(s.L1_MOV_SS, (0,)),
    s.VMPTRLD: _placed(s.VMPTRLD, (0, 1)),
    s.VMCLEAR: _placed(s.VMCLEAR, (0, 1)),
    s.PML_LOG: _placed(s.PML_LOG, (1, 1, 1, 0)),
    s.APIC_PAGE: _placed(s.APIC_PAGE, (*PAGES, PAGE_COUNT)),
    s.VIRTUAL_INTERRUPT: _placed(s.VIRTUAL_INTERRUPT, (0,), (0x40, 0x51, 0xEF)),
    s.VTPR: _placed(s.VTPR, (0, 4, 5, 15)),
    s.L2_PAGE: _placed(s.L2_PAGE, PAGES, (1, 1, 1, 0)),
    s.L2_GATE: _placed(s.L2_GATE, range(len(GATE_NAMES)), (0x40, 2, 3, 6, 8, 13, 14, 0x51, 0x80)),
    s.DROP_PAGE: _placed(s.DROP_PAGE, PAGES),
    s.CANCEL_ENTRY: _placed(s.CANCEL_ENTRY, (0,)),
    **_arrivals((s.AT_ENTRY, s.IN_DELIVERY, s.IN_DELIVERY)),
}

DURING: Final[Palette] = {
    s.RUN: _instructions(),
    s.RSM: _placed(s.RSM, (0,)),
    s.DROP_PAGE: _placed(s.DROP_PAGE, PAGES),
    s.L2_PAGE: _placed(s.L2_PAGE, PAGES, (1, 1, 1, 0)),
    s.HOST_INTERRUPT: _placed(s.HOST_INTERRUPT, (0,)),
    s.HOST_NMI: _placed(s.HOST_NMI, (0,)),
    **_arrivals((s.NOW, s.NOW, s.NOW, s.IN_DELIVERY, s.IN_EMULATION)),
}

ARRIVALS: Final = frozenset(_arrivals(()))

AT_MOMENT: Final = tuple(tuple(_arrivals((moment,)).values()) for moment in range(len(s.MOMENTS)))
"""For each moment what may happen then: the records of each operation."""

AROUND_ENTRY: Final = (
    *AT_MOMENT[s.AT_ENTRY],
    *AT_MOMENT[s.IN_DELIVERY],
    PREPARE[s.DROP_PAGE],
    PREPARE[s.CANCEL_ENTRY],
)
"""The same for an entry, with what L0 alone notices."""

_NO_REINJECT: Final = 1 << s.MANNERS.index("no-reinject")
_NO_REPAIR: Final = 1 << s.MANNERS.index("no-repair")

ENTER_RECORDS: Final = _placed(
    s.ENTER, [0] * 26 + [1 << bit for bit in range(8)] + [_NO_REINJECT | _NO_REPAIR]
)
"""L1 keeps its manners three times out of four."""

ALL: Final[Palette] = {
    op: PREPARE.get(op, ()) + DURING.get(op, ()) or ENTER_RECORDS for op in range(len(s.OPERATIONS))
}


def typical_steps() -> list[tuple[str, Step]]:
    """One (name, step) for each distinct record of the palette, in the order of the byte form."""
    found: list[tuple[str, Step]] = []
    for records in ALL.values():
        for record in sorted(set(records)):
            (step,) = decode(bytes(HEADER_SIZE) + record).steps
            found.append((format_step(step, compact=True), step))
    return found
