"""The steps of a scenario: one table from which text form, byte form, generators and machines derive.

A step is four small integers ``(op, a, b, c)``: 8, 8, 16 and 32 bits wide. The table says which operands an
operation has, in which of the three places, and which values they take; ``canonical`` maps every quadruple
to the one that stands for it, so that every record decodes.
"""

from typing import Final, NamedTuple

from nvmx_core.arch.controls import CONTROLS
from nvmx_core.arch.events import TYPE_NAMES
from nvmx_core.arch.fields import FIELD_BY_NAME
from nvmx_core.arch.instructions import INSTRUCTIONS, POP_FLAGS, SOFT_INTERRUPT, WRITE_TPR
from nvmx_core.guests.memory import GATE_NAMES, PAGE_NAMES

Step = tuple[int, int, int, int]

# -- moments at which an outside or L0 step takes effect --------------------------------------------------
NOW: Final = 0
AT_ENTRY: Final = 1
IN_DELIVERY: Final = 2
IN_EMULATION: Final = 3
MOMENTS: Final = ("now", "at-entry", "in-delivery", "in-emulation")

# -- how L1 enters: the manners it leaves out (bits of guests.l1), and which instruction it uses -----------
FORCE_LAUNCH: Final = 1 << 6
FORCE_RESUME: Final = 1 << 7
MANNERS: Final = (
    "no-reinject", "no-repair", "no-advance", "no-eoi", "no-iret", "no-adjust",
    "force-launch", "force-resume",
)  # fmt: skip

PAGE_STATES: Final = ("present", "absent", "misconfigured")
PAGE_PRESENT: Final = 0
PAGE_ABSENT: Final = 1
PAGE_MISCONFIGURED: Final = 2
ON_OFF: Final = ("off", "on")
# The order is part of the byte form: append only.
WRITABLE_FIELDS: Final = (
    "PIN_BASED",
    "CPU_BASED",
    "SECONDARY",
    "EXIT_CONTROLS",
    "ENTRY_CONTROLS",
    "TPR_THRESHOLD",
    "POSTED_INTR_NV",
    "POSTED_INTR_DESC_ADDR",
    "ENTRY_INTR_INFO",
    "ENTRY_ERROR_CODE",
    "ENTRY_INSTRUCTION_LEN",
    "HOST_RIP",
    "GUEST_CR0",
    "GUEST_RFLAGS",
    "GUEST_SS_DPL",
    "GUEST_INTERRUPTIBILITY",
    "GUEST_ACTIVITY",
    "GUEST_PENDING_DBG",
    "VMCS_LINK_POINTER",
    "ENTRY_MSR_LOAD_BAD",
    "GUEST_RIP",
    "GUEST_RSP",
    "GUEST_PREEMPTION_TIMER",
    "GUEST_INTR_STATUS",
    "EXCEPTION_BITMAP",
    "PF_ERROR_MASK",
    "PF_ERROR_MATCH",
    "EOI_EXIT_BITMAP",
)
WRITABLE_PLACES: Final = tuple(FIELD_BY_NAME[name].place for name in WRITABLE_FIELDS)
VMWRITE_BITS_MAX: Final = 48
"""The widest value that a vmwrite step holds; wider fields get zeros above it."""
VMWRITE_MAX: Final = tuple(
    (1 << min(FIELD_BY_NAME[name].width, VMWRITE_BITS_MAX)) - 1 for name in WRITABLE_FIELDS
)
"""The largest value of each of the writable fields: VMWRITE ignores what is above (SDM: VMWRITE)."""

L1: Final = "L1"
L2: Final = "L2"
OUTSIDE: Final = "outside"
L0: Final = "L0"


class Operand(NamedTuple):
    """One operand: its name, the place ("a", "b", "c"), and the names or the number of its values.

    ``names`` empty: a number below ``limit``, printed in decimal if ``decimal``, else in hexadecimal.
    """

    name: str
    place: str
    limit: int
    names: tuple[str, ...] = ()
    decimal: bool = False
    flags: bool = False


class Operation(NamedTuple):
    """One kind of step: who acts, how the text form calls it, its operands in the order of the text."""

    actor: str
    name: str
    operands: tuple[Operand, ...]


def _named(name: str, place: str, names: tuple[str, ...]) -> Operand:
    return Operand(name, place, len(names), names)


_PAGE: Final = _named("page", "a", PAGE_NAMES)
_WHEN: Final = _named("when", "a", MOMENTS)
_VECTOR: Final = Operand("vector", "b", 256)

# The order is part of the byte form: append only (version 1 holds exactly these).
OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(L1, "enter", (Operand("manners", "a", 256, MANNERS, flags=True),)),
    Operation(
        L1,
        "inject",
        (
            _named("type", "a", TYPE_NAMES),
            _VECTOR,
            Operand("error", "c", 1 << 16),
            Operand("length", "c", 32, decimal=True),
        ),
    ),
    Operation(
        L1, "vmwrite", (_named("field", "a", WRITABLE_FIELDS), Operand("value", "c", 1 << VMWRITE_BITS_MAX))
    ),
    Operation(
        L1,
        "control",
        (
            _named("control", "a", tuple(control.name for control in CONTROLS)),
            _named("state", "b", ON_OFF),
        ),
    ),
    Operation(
        L1, "intercept", (Operand("exception", "a", 32, decimal=True), _named("state", "b", ON_OFF))
    ),
    Operation(L1, "ept", (_PAGE, _named("state", "b", PAGE_STATES))),
    Operation(L1, "eoi", ()),
    Operation(L1, "iret", ()),
    Operation(L1, "open-interrupts", ()),
    Operation(L1, "mov-ss", ()),
    Operation(L1, "vmptrld", (Operand("vmcs", "a", 2, decimal=True),)),
    Operation(L1, "vmclear", (Operand("vmcs", "a", 2, decimal=True),)),
    Operation(L1, "pml-log", (_named("state", "a", ("empty", "full")),)),
    Operation(L1, "apic-page", (_named("page", "a", (*PAGE_NAMES, "none")),)),
    Operation(L1, "virtual-interrupt", (_VECTOR,)),
    Operation(L1, "vtpr", (Operand("class", "a", 16, decimal=True),)),
    Operation(
        L2,
        "run",
        (
            _named("instruction", "a", tuple(entry.name for entry in INSTRUCTIONS)),
            Operand("operand", "b", 256),
        ),
    ),
    Operation(L2, "page", (_PAGE, _named("state", "b", PAGE_STATES[:2]))),
    Operation(L2, "gate", (_VECTOR, _named("kind", "a", GATE_NAMES))),
    Operation(OUTSIDE, "interrupt", (_VECTOR, _WHEN)),
    Operation(OUTSIDE, "nmi", (_WHEN,)),
    Operation(OUTSIDE, "smi", (_WHEN,)),
    Operation(OUTSIDE, "init", (_WHEN,)),
    Operation(OUTSIDE, "sipi", (_VECTOR, _WHEN)),
    Operation(OUTSIDE, "rsm", ()),
    Operation(OUTSIDE, "timer", (Operand("ticks", "b", 1 << 16, decimal=True), _WHEN)),
    Operation(OUTSIDE, "post-interrupt", (_VECTOR, _WHEN)),
    Operation(L0, "drop-page", (_PAGE,)),
    Operation(L0, "host-interrupt", ()),
    Operation(L0, "host-nmi", ()),
    Operation(L0, "cancel-entry", ()),
    Operation(L0, "save-restore", (_WHEN,)),
)  # fmt: skip

OPERATION_INDEX: Final[dict[str, int]] = {
    f"{operation.actor} {operation.name}": index for index, operation in enumerate(OPERATIONS)
}

ENTER: Final = OPERATION_INDEX["L1 enter"]
INJECT: Final = OPERATION_INDEX["L1 inject"]
VMWRITE: Final = OPERATION_INDEX["L1 vmwrite"]
CONTROL: Final = OPERATION_INDEX["L1 control"]
INTERCEPT: Final = OPERATION_INDEX["L1 intercept"]
EPT_PAGE: Final = OPERATION_INDEX["L1 ept"]
L1_EOI: Final = OPERATION_INDEX["L1 eoi"]
L1_IRET: Final = OPERATION_INDEX["L1 iret"]
OPEN_INTERRUPTS: Final = OPERATION_INDEX["L1 open-interrupts"]
L1_MOV_SS: Final = OPERATION_INDEX["L1 mov-ss"]
VMPTRLD: Final = OPERATION_INDEX["L1 vmptrld"]
VMCLEAR: Final = OPERATION_INDEX["L1 vmclear"]
PML_LOG: Final = OPERATION_INDEX["L1 pml-log"]
APIC_PAGE: Final = OPERATION_INDEX["L1 apic-page"]
VIRTUAL_INTERRUPT: Final = OPERATION_INDEX["L1 virtual-interrupt"]
VTPR: Final = OPERATION_INDEX["L1 vtpr"]
RUN: Final = OPERATION_INDEX["L2 run"]
L2_PAGE: Final = OPERATION_INDEX["L2 page"]
L2_GATE: Final = OPERATION_INDEX["L2 gate"]
INTERRUPT: Final = OPERATION_INDEX["outside interrupt"]
NMI: Final = OPERATION_INDEX["outside nmi"]
SMI: Final = OPERATION_INDEX["outside smi"]
INIT: Final = OPERATION_INDEX["outside init"]
SIPI: Final = OPERATION_INDEX["outside sipi"]
RSM: Final = OPERATION_INDEX["outside rsm"]
TIMER: Final = OPERATION_INDEX["outside timer"]
POST_INTERRUPT: Final = OPERATION_INDEX["outside post-interrupt"]
DROP_PAGE: Final = OPERATION_INDEX["L0 drop-page"]
HOST_INTERRUPT: Final = OPERATION_INDEX["L0 host-interrupt"]
HOST_NMI: Final = OPERATION_INDEX["L0 host-nmi"]
CANCEL_ENTRY: Final = OPERATION_INDEX["L0 cancel-entry"]
SAVE_RESTORE: Final = OPERATION_INDEX["L0 save-restore"]

LOWEST_VECTOR: Final = 16
"""The APIC does not accept vectors below 16; arrivals move them up by 16."""


def inject_error_code(c: int) -> int:
    """The error code of an inject step."""
    return c & 0xFFFF


def inject_length(c: int) -> int:
    """The instruction length of an inject step."""
    return c >> 16 & 31


def vmwrite_value(b: int, c: int) -> int:
    """The value of a vmwrite step: 48 bits, the upper 16 in *b*."""
    return b << 32 | c


def canonical(op: int, a: int, b: int, c: int) -> Step:
    """The step that a raw record stands for: operation and operands brought into their ranges."""
    op %= len(OPERATIONS)
    if op == INJECT:
        return op, a & 7, b & 0xFF, c & 0x1FFFFF
    if op == VMWRITE:
        a %= len(WRITABLE_FIELDS)
        value = vmwrite_value(b, c) & VMWRITE_MAX[a]
        return op, a, value >> 32, value & 0xFFFFFFFF
    if op == RUN:
        a %= len(INSTRUCTIONS)
        takes_operand = INSTRUCTIONS[a].action in (SOFT_INTERRUPT, POP_FLAGS, WRITE_TPR)
        return op, a, b & 0xFF if takes_operand else 0, 0
    out_a = out_b = 0
    for operand in OPERATIONS[op].operands:
        if operand.place == "a":
            out_a = a % operand.limit
        else:
            out_b = b % operand.limit
    return op, out_a, out_b, 0


class Scenario(NamedTuple):
    """A packed configuration ``(flags, exceptions, l0_exceptions, pf_filter)`` and the steps."""

    config: tuple[int, int, int, int]
    steps: tuple[Step, ...]
