"""The account of interrupts and NMIs on their way into L2: what L0's log says was injected has to arrive.

L0's own word that it injected an event is no proof. The first record behind it tells the end: the event is
delivered, or handed back as IDT-vectoring information, or an exception that its delivery can raise has
replaced it (D4, X2); SMM and the end of the run may find it in a queue or in the entry field still, and a
virtual machine that stopped takes it along. Nothing else drops an event in flight: an INIT exit (P5) waits
for the boundary behind the delivery.

Events that a hardware exit interrupted are followed in the same way. So a virtual interrupt is, from when
the processor has taken it out of VIRR and L0 gets it back; whether all that was posted or requested ever
reaches VIRR and is recognised there is told by TRANSPARENCY only. What L1 injected has its own account (V2,
see ``injections``).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from nvmx_core.arch.events import (
    EXTERNAL_INTERRUPT,
    NMI,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    info_text,
)
from nvmx_core.arch.fields import ENTRY_INTR_INFO, POISON
from nvmx_core.journal import END, L1_ENTRY, SMM_ENTRY, SMM_RETURN, VM_DEAD, Record
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.log import HIDDEN_EXIT, INJECT
from nvmx_core.l0.reach import (
    INTERRUPT_INJECTED_FOR_L2,
    NMI_INJECTED_FOR_L2,
    REPAIR_IN_DELIVERY,
)
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.injections import (
    CHANGED,
    LOST,
    REPEATED,
    Injection,
    can_be_replaced_by,
    judge_ending,
)

_WORDS: Final[dict[str, str]] = {
    LOST: "lost on its way into L2",
    CHANGED: "changed on its way into L2",
    REPEATED: "delivered to L2 twice",
}


class BrokenFlight(NamedTuple):
    """An event for L2 that did not arrive once: its rule, how, in which record, in a sentence."""

    rule: str
    situation: str
    position: int
    sentence: str


def broken_flights(nested: Nested) -> Iterator[BrokenFlight]:
    """Follow every interrupt and NMI that L0 injected or got back unfinished to its end."""
    reach = nested.vcpu.reach
    if not (
        reach[INTERRUPT_INJECTED_FOR_L2] or reach[NMI_INJECTED_FOR_L2] or reach[REPAIR_IN_DELIVERY]
    ):
        return
    for position, info in _flights(nested):
        situation, where = _judge(nested, info, position)
        if situation:
            is_nmi = info & TYPE_MASK == NMI << TYPE_SHIFT
            word = _WORDS[situation]
            yield BrokenFlight(
                "V8" if is_nmi else "V7",
                f"{'NMI' if is_nmi else 'interrupt'} {word}",
                where,
                f"the event that was to be delivered to L2 ({info_text(info)}) is {word}",
            )


def _flights(nested: Nested) -> Iterator[tuple[int, int]]:
    """(journal position, interruption word) of every such event, each once, in order."""
    journal = nested.journal
    last = (-1, 0)
    for record in nested.vcpu.log:
        if record[0] == INJECT:
            flight = (record[1], record[2])
        elif record[0] == HIDDEN_EXIT and record[3] & VALID:
            flight = (record[1], record[3])
        else:
            continue
        position, info = flight
        if flight == last or (info & TYPE_MASK) >> TYPE_SHIFT not in (EXTERNAL_INTERRUPT, NMI):
            continue
        before = journal[position - 1]
        if before[0] == L1_ENTRY and before[1] == info:
            continue
        last = flight
        yield flight


def _judge(nested: Nested, info: int, position: int) -> tuple[str, int]:
    """The situation, "" when the event ends as it may, and the position of the record that tells."""
    journal = nested.journal
    while journal[position][0] in (SMM_ENTRY, SMM_RETURN):
        position += 1
    ending: Record = journal[position]
    if ending[0] == VM_DEAD or (ending[0] == END and _is_held(nested.vcpu, info)):
        return "", position
    situation = judge_ending(
        Injection(info, POISON, 0), ending, journal[position + 1 : position + 2]
    )
    return situation, position + 1 if situation == REPEATED else position


def _is_held(vcpu: Kvm, info: int) -> bool:
    """Whether at the end of the run L0 holds the event, or an exception that has taken its place.

    The queues count only while the processor is not in L2: it has delivered what they name otherwise.
    """
    if vcpu.dead:
        return True
    if vcpu.cpu.non_root:
        return False
    is_nmi = info & TYPE_MASK == NMI << TYPE_SHIFT
    if vcpu.vmcs02[ENTRY_INTR_INFO] == info or (is_nmi and vcpu.nmi_injected):
        return True
    if vcpu.interrupt_injected and vcpu.interrupt_info == info:
        return True
    return (vcpu.exception_injected or vcpu.exception_pending) and can_be_replaced_by(
        info, vcpu.exception_info & VECTOR_MASK, vcpu.exception_error_code
    )
