"""What is really due, judged from the plain state of a vCPU by functions that no L0 can override.

The immediate-exit oracle compares L0's decisions with these. They share the plain predicates of ``Vcpu`` with
L0, never an override of them, and nothing with the nested-event check.
"""

from nvmx_core.arch.events import is_vectoring
from nvmx_core.arch.fields import ENTRY_INTR_INFO, GUEST_INTERRUPTIBILITY
from nvmx_core.arch.state import ACTIVE, BLOCKING_BY_NMI, HLT, WAIT_FOR_SIPI
from nvmx_core.l0.log import (
    WAITS_FAULT,
    WAITS_FOR_L2,
    WAITS_INIT,
    WAITS_INTERRUPT,
    WAITS_MTF,
    WAITS_NMI,
    WAITS_SMI,
    WAITS_TIMER,
    WAITS_TRAP,
    WAITS_TRIPLE_FAULT,
)
from nvmx_core.l0.vcpu import Vcpu


def waiting_events(vcpu: Vcpu) -> int:
    """What could be taken at an instruction boundary of L2 right now, as a mask of WAITS_ bits.

    Blocked events do not count: an interrupt for L2 with IF = 0, an NMI under blocking, anything but a
    SIPI in wait-for-SIPI.
    """
    if vcpu.mp_state == WAIT_FOR_SIPI:
        return 0
    waiting = 0
    if vcpu.smi_pending:
        waiting |= WAITS_SMI
    if vcpu.init_pending:
        waiting |= WAITS_INIT
    if vcpu.mtf_pending and vcpu.mp_state <= HLT:
        waiting |= WAITS_MTF
    if vcpu.timer_expired:
        waiting |= WAITS_TIMER
    if vcpu.vmexit_pending:
        waiting |= WAITS_TRAP if vcpu.vmexit_trap else WAITS_FAULT
    if vcpu.request_triple_fault:
        waiting |= WAITS_TRIPLE_FAULT
    if vcpu.nmi_pending and not _nmi_blocked_after_entry(vcpu):
        waiting |= WAITS_NMI if Vcpu.l1_wants_nmis(vcpu) else WAITS_FOR_L2
    if vcpu.apic.irr and vcpu.mp_state <= HLT and vcpu.apic.deliverable() >= 0:
        if Vcpu.l1_wants_interrupts(vcpu):
            waiting |= WAITS_INTERRUPT
        elif Vcpu.interrupts_open(vcpu):
            waiting |= WAITS_FOR_L2
    return waiting


def _nmi_blocked_after_entry(vcpu: Vcpu) -> bool:
    """NMI blocking at the first boundary: the injection of an event ends every interrupt shadow (O4)."""
    if Vcpu.l1_wants_nmis(vcpu) or not is_vectoring(vcpu.vmcs02[ENTRY_INTR_INFO]):
        return Vcpu.nmi_blocked(vcpu)
    return vcpu.vmcs02[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_NMI != 0


def overdue_events(vcpu: Vcpu) -> int:
    """What L2 must not run past: the exits that are due while L2 is about to execute an instruction."""
    if not vcpu.guest_mode or vcpu.mp_state != ACTIVE:
        return 0
    return waiting_events(vcpu) & ~WAITS_FOR_L2
