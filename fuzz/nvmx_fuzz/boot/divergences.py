"""Where the machines that boot are known to disagree with the model: Bochs 2.7 and KVM 6.1.

What the catalogue of KVM's bugs predicts is not here (``predicted.py``), nor what every Bochs does
(``bochs/divergences.py``). `docs/KVM.md` is made from this table.
"""

from typing import Final, NamedTuple

from nvmx_core.arch.events import (
    DB,
    HARDWARE_EXCEPTION,
    NMI,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import (
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INTERRUPT_WINDOW,
    NMI_WINDOW,
)
from nvmx_core.arch.state import (
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    INTERRUPT_SHADOW,
    PENDING_DBG_BS,
    RFLAGS_IF,
    RFLAGS_TF,
)
from nvmx_core.journal import DELIVER, END
from nvmx_fuzz.bochs.predicates import Predicate, field, is_exit
from nvmx_fuzz.compare import Difference

BOCHS_WRONG: Final = "Bochs 2.7 is wrong"
KVM_WRONG: Final = "KVM is wrong"
BOTH_ALLOWED: Final = "both are allowed"

BOCHS: Final = ("bochs-boot", "kvm-bochs")
KVM: Final = ("kvm", "kvm-bochs")
_SOFT_TYPES: Final = (SOFTWARE_INTERRUPT, PRIVILEGED_SOFTWARE_EXCEPTION, SOFTWARE_EXCEPTION)

EVERYWHERE: Final = ("bochs-boot", "kvm", "kvm-bochs")


class Listed(NamedTuple):
    """One known disagreement: on which machines, its rules, who is right, why, and a scenario."""

    name: str
    machines: tuple[str, ...]
    rules: tuple[str, ...]
    verdict: str
    why: str
    scenario: str
    matches: Predicate


def _event_of(info: int) -> tuple[int, int]:
    return (info & TYPE_MASK) >> TYPE_SHIFT, info & VECTOR_MASK


def _is_debug_exception(found: Difference) -> bool:
    """Whether the other machine shows a #DB: delivered, as an exit, or in flight."""
    record = found.other
    if record[:1] == (DELIVER,):
        return record[1] == DB
    words = (field(record, "interruption info"), field(record, "IDT-vectoring info"))
    return any(word & VALID and _event_of(word) == (HARDWARE_EXCEPTION, DB) for word in words)


def step_before_the_instruction(found: Difference) -> bool:
    """L2 single-steps, and the other machine shows its #DB without the instruction."""
    steps = (field(found.bare, "rflags") | field(found.other, "rflags")) & RFLAGS_TF
    return bool(steps) and (_is_debug_exception(found) or found.fields() == ("rip",))


def single_step_of_an_exit(found: Difference) -> bool:
    """Only BS of the pending debug exceptions differs."""
    name = "pending debug exceptions"
    both = field(found.bare, name) ^ field(found.other, name)
    return found.fields() == (name,) and both == PENDING_DBG_BS


def shadow_of_a_fault(found: Difference) -> bool:
    """An exception exits out of the shadow of STI, and the other machine does not save the shadow."""
    name = "interruptibility"
    return (
        is_exit(found.bare, EXCEPTION_NMI)
        and found.fields() == (name,)
        and field(found.bare, name) ^ field(found.other, name) == BLOCKING_BY_STI
    )


def int1_behind_mov_ss(found: Difference) -> bool:
    """INT1 exits behind MOV SS: the conditions that MOV SS holds are reported, the shadow is gone."""
    info = field(found.bare, "interruption info")
    return (
        is_exit(found.bare, EXCEPTION_NMI)
        and _event_of(info) == (PRIVILEGED_SOFTWARE_EXCEPTION, DB)
        and bool(found.fields())
        and set(found.fields()) <= {"qualification", "interruptibility"}
    )


def closed_interrupt_does_not_exit(found: Difference) -> bool:
    """An interrupt that L2 keeps closed, by IF = 0 or a shadow, does not exit at the entry."""
    closed = not field(found.bare, "rflags") & RFLAGS_IF
    closed |= bool(field(found.bare, "interruptibility") & INTERRUPT_SHADOW)
    return (
        is_exit(found.bare, EXTERNAL_INTERRUPT_EXIT)
        and closed
        and not is_exit(found.other, EXTERNAL_INTERRUPT_EXIT)
    )


def window_out_of_hlt(found: Difference) -> bool:
    """A window exits out of HLT, and the other machine saves active."""
    return (
        is_exit(found.bare, NMI_WINDOW, INTERRUPT_WINDOW)
        and found.fields() == ("activity",)
        and field(found.bare, "activity") == HLT
    )


def trap_behind_injection(found: Difference) -> bool:
    """The trap that MOV SS holds is taken behind an injected soft event, on the other machine not."""
    return (
        found.bare[:2] == (DELIVER, DB)
        and found.other[:1] != (DELIVER,)
        and _event_of(found.injected)[0] in _SOFT_TYPES
    )


def wrong_vector_in_delivery(found: Difference) -> bool:
    """A virtual interrupt comes with another vector: L0 injects again what the exit reported."""
    return (
        found.bare[:1] == (DELIVER,)
        and found.fields() == ("vector",)
        and not found.injected & VALID
    )


def misconfiguration_qualified(found: Difference) -> bool:
    """Exit 49 with a qualification."""
    return is_exit(found.bare, EPT_MISCONFIG) and found.fields() == ("qualification",)


def nmi_blocking_of_a_delivery(found: Difference) -> bool:
    """An exit in the delivery of an NMI does not say that NMIs are blocked."""
    name = "interruptibility"
    vectoring = field(found.bare, "IDT-vectoring info")
    return (
        found.fields() == (name,)
        and bool(vectoring & VALID)
        and _event_of(vectoring)[0] == NMI
        and field(found.bare, name) & ~field(found.other, name) == BLOCKING_BY_NMI
    )


def unblocking_by_iret(found: Difference) -> bool:
    """A fault of IRET: NMIs blocked again, instead of bit 12 of the qualification."""
    return is_exit(found.bare, EPT_VIOLATION) and found.fields() == (
        "qualification",
        "interruptibility",
    )


def interrupt_before_higher_rank(found: Difference) -> bool:
    """A window or a virtual interrupt is due, and the other machine exits for an interrupt first."""
    higher = is_exit(found.bare, NMI_WINDOW, INTERRUPT_WINDOW) or found.bare[:1] == (DELIVER,)
    return higher and is_exit(found.other, EXTERNAL_INTERRUPT_EXIT) and not found.injected & VALID


def int1_dropped(found: Difference) -> bool:
    """INT1 was injected, and never comes."""
    return (
        _event_of(found.injected) == (PRIVILEGED_SOFTWARE_EXCEPTION, DB)
        and found.bare[:2] == (DELIVER, DB)
        and found.other[:1] == (END,)
    )


LISTED: Final[tuple[Listed, ...]] = (
    Listed(
        "single step before the instruction", ("kvm-bochs",), ("Y6", "X7"), BOCHS_WRONG,
        "A fault-like exit saves no single step of the instruction that has not completed (SDM: Saving "
        "Non-Register State). Bochs 2.7 saves BS with the EPT violation of the fetch; L0 repairs the page "
        "and enters again, and the #DB comes before the instruction.",
        "config single-step=on / L1 enter / L2 nop", step_before_the_instruction,
    ),
    Listed(
        "single step saved by an exit", BOCHS, ("Y6",), BOCHS_WRONG,
        "The same where L1 sees the exit; Bochs 2.7 also drops it where MOV SS holds it.",
        "corpus/lessons/trap-kept-for-reinjection.scn", single_step_of_an_exit,
    ),
    Listed(
        "shadow of a fault", BOCHS, ("B9",), BOCHS_WRONG,
        "The exit of a fault saves the blocking by STI that was in effect (SDM: Saving Non-Register "
        "State).",
        "corpus/nested_events/fault-in-sti-shadow-keeps-it.scn", shadow_of_a_fault,
    ),
    Listed(
        "INT1 behind MOV SS", BOCHS, ("B2", "Y6"), BOCHS_WRONG,
        "Bochs 2.7 adds the conditions that MOV SS holds, and drops the shadow (SDM: Basic VM-Exit "
        "Information).",
        "corpus/nested_events/int1-in-mov-ss-shadow-exits-without-pending-trap.scn", int1_behind_mov_ss,
    ),
    Listed(
        "closed interrupt does not exit", ("bochs-boot",), ("O11", "B3"), BOCHS_WRONG,
        "With external-interrupt exiting IF does not block (SDM: External-Interrupt Exiting); a shadow "
        "may.",
        "corpus/nested_events/interrupt-pending-at-entry-without-injection.scn",
        closed_interrupt_does_not_exit,
    ),
    Listed(
        "window out of HLT", EVERYWHERE, ("Y4",), f"{BOCHS_WRONG}; {KVM_WRONG}",
        "The activity state is saved as it was before the exit (SDM: Saving Non-Register State). Bochs "
        "2.7 saves active; KVM enters L2 as active when a window is asked for, and saves what it entered "
        "with (nested_vmx_run, sync_vmcs02_to_vmcs12).",
        "corpus/nested_events/nmi-window-wakes-halted-l2.scn", window_out_of_hlt,
    ),
    Listed(
        "trap behind a soft injection", EVERYWHERE, ("O6", "B2"), BOTH_ALLOWED,
        "For soft events behind MOV SS the manual leaves some of it to the processor; Bochs 2.7 drops "
        "every trap (SDM: Delivery of Pending Debug Exceptions after VM Entry).",
        "corpus/nested_events/soft-injection-under-mov-ss-keeps-debug-exception.scn", trap_behind_injection,
    ),
    Listed(
        "virtual interrupt with another vector", ("kvm-bochs",), ("X4",), BOCHS_WRONG,
        "Bochs reports the event before it when the delivery of a virtual interrupt exits "
        "(docs/FIDELITY.md); L0 repairs the page and injects that.",
        "corpus/nested_events/virtual-interrupt-delivered-at-entry.scn", wrong_vector_in_delivery,
    ),
    Listed(
        "qualification of an EPT misconfiguration", KVM, ("X1",), KVM_WRONG,
        "Exit 49 has no qualification, the field is cleared (SDM: Exit Qualification); KVM leaves that of "
        "the EPT violation it made the exit from (nested_ept_inject_page_fault).",
        "corpus/nested_events/ept12-misconfigured-in-delivery.scn", misconfiguration_qualified,
    ),
    Listed(
        "NMI blocking of an exit in a delivery", KVM, ("X10", "N3"), KVM_WRONG,
        "An NMI in delivery blocks NMIs, and the exit saves that (SDM: Information for VM Exits During "
        "Event Delivery; Saving Non-Register State). KVM opens them for its own injection before it hands "
        "the exit on (__vmx_complete_interrupts). A host that clears the bit before it injects again sees "
        "no difference.",
        "corpus/nested_events/ept12-then-l0-fault-in-nmi-delivery.scn", nmi_blocking_of_a_delivery,
    ),
    Listed(
        "res6: NMI unblocking due to IRET", KVM, ("X12", "N1"), KVM_WRONG,
        "The exit says it in bit 12 of the qualification, and NMIs are open (SDM: Information About NMI "
        "Unblocking Due to IRET). KVM blocks them again by itself (handle_ept_violation), and its walk of "
        "L1's tables forms a new qualification without the bit. A host that only keeps the blocking sees "
        "no difference.",
        "corpus/nested_events/iret-fault-in-ept12-reports-nmi-unblocking.scn", unblocking_by_iret,
    ),
    Listed(
        "interrupt before what ranks higher", KVM, ("P9", "P11", "P12"), KVM_WRONG,
        "An NMI window, an interrupt window and a virtual interrupt rank above an external interrupt "
        "(SDM: Other Causes of VM Exits; Virtual-Interrupt Delivery). KVM exits for the interrupt that it "
        "knows of before it lets the processor look for them (vmx_check_nested_events).",
        "corpus/nested_events/interrupt-window-before-pending-interrupt.scn", interrupt_before_higher_rank,
    ),
    Listed(
        "res3: INT1 dropped", KVM, ("X4", "X13"), KVM_WRONG,
        "An injected INT1 whose delivery L0 had to repair is not injected again "
        "(__vmx_complete_interrupts knows no type 5).",
        "corpus/nested_events/inject-int1-under-mov-ss-drops-debug-exception.scn", int1_dropped,
    ),
)  # fmt: skip

SLEEPS: Final = "L2 sleeps though something is due"
"""The name of an incident: the scenario enters HLT or wait-for-SIPI, and nothing comes back."""


def listed(machine: str, found: Difference) -> Listed | None:
    """The row that a difference on a machine is an instance of."""
    return next((row for row in LISTED if machine in row.machines and row.matches(found)), None)
