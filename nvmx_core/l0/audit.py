"""What is really due, judged from the plain state of a vCPU by functions that no L0 can override.

The oracles IMMEDIATE-EXIT and EVENT-RANK compare L0's decisions with these. They share the plain predicates
of ``Vcpu`` with L0, never an override of them, and nothing with the nested-event check.
"""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_INTR_WINDOW_EXITING,
    CPU_NMI_WINDOW_EXITING,
    WINDOW_CONTROLS,
)
from nvmx_core.arch.events import is_vectoring
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_INTR_INFO,
    GUEST_INTERRUPTIBILITY,
    GUEST_RFLAGS,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
    INTERRUPT_SHADOW,
    RFLAGS_IF,
    WAIT_FOR_SIPI,
)
from nvmx_core.l0.log import (
    WAITS_FAULT,
    WAITS_FOR_L2,
    WAITS_INIT,
    WAITS_INTERRUPT,
    WAITS_INTERRUPT_WINDOW,
    WAITS_MTF,
    WAITS_NMI,
    WAITS_NMI_WINDOW,
    WAITS_SMI,
    WAITS_TIMER,
    WAITS_TRAP,
    WAITS_TRIPLE_FAULT,
)
from nvmx_core.l0.vcpu import Vcpu

NO_RANK: Final = 99


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
        elif _interrupts_open_after_entry(vcpu):
            waiting |= WAITS_FOR_L2
    return waiting


def _nmi_blocked_after_entry(vcpu: Vcpu) -> bool:
    """NMI blocking at the first boundary: the injection of an event ends every interrupt shadow (O4)."""
    if Vcpu.l1_wants_nmis(vcpu) or not is_vectoring(vcpu.vmcs02[ENTRY_INTR_INFO]):
        return Vcpu.nmi_blocked(vcpu)
    return vcpu.vmcs02[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_NMI != 0


def _interrupts_open_after_entry(vcpu: Vcpu) -> bool:
    """Whether L2 takes interrupts at the first boundary, as far as shadows go (O4).

    L0 may put a shadow into vmcs02 for the sake of a debug trap that is held behind a soft event (O6).
    """
    if not is_vectoring(vcpu.vmcs02[ENTRY_INTR_INFO]):
        return Vcpu.interrupts_open(vcpu)
    return vcpu.vmcs02[GUEST_RFLAGS] & RFLAGS_IF != 0


def highest_rank(vcpu: Vcpu) -> int:
    """The rank, 4 to 12, of the highest event that is open at the boundary of L2; NO_RANK for none.

    An event counts whoever it is for (P16); events that are blocked, or held by L2's activity, do not.
    """
    if vcpu.mp_state == WAIT_FOR_SIPI:
        return NO_RANK
    if vcpu.smi_pending:
        return 4
    if vcpu.init_pending:
        return 5
    may_wake = vcpu.mp_state <= HLT
    if vcpu.mtf_pending and may_wake:
        return 6
    if (vcpu.vmexit_pending and vcpu.vmexit_trap) or (
        vcpu.exception_pending and vcpu.exception_trap
    ):
        return 7
    if vcpu.timer_expired:
        return 8
    windows = vcpu.vmcs12[CPU_BASED] & WINDOW_CONTROLS
    if windows & CPU_NMI_WINDOW_EXITING and _nmi_window_is_open(
        vcpu, vcpu.vmcs02[GUEST_INTERRUPTIBILITY]
    ):
        return 9
    if vcpu.nmi_pending and not Vcpu.nmi_blocked(vcpu):
        return 10
    if windows & CPU_INTR_WINDOW_EXITING and may_wake and Vcpu.interrupts_open(vcpu):
        return 11
    return 12 if may_wake and _has_open_interrupt(vcpu) else NO_RANK


def _nmi_window_is_open(vcpu: Vcpu, blocking: int) -> bool:
    """B6: neither virtual-NMI blocking nor an interrupt shadow that holds NMIs."""
    if blocking & (BLOCKING_BY_NMI | BLOCKING_BY_MOV_SS):
        return False
    return not (vcpu.config.caps.sti_blocks_nmi and blocking & BLOCKING_BY_STI)


def _has_open_interrupt(vcpu: Vcpu) -> bool:
    return Vcpu.has_interrupt(vcpu) and not Vcpu.interrupt_blocked(vcpu)


def overdue_events(vcpu: Vcpu) -> int:
    """What L2 must not run past: the exits that are due while L2 is about to execute an instruction.

    L1's windows count here and not in ``waiting_events``: an entry needs no immediate exit for them, because
    the processor itself leaves L2 when they open, if L0 has told it so (O10).
    """
    if not vcpu.guest_mode or vcpu.mp_state != ACTIVE:
        return 0
    overdue = waiting_events(vcpu) & ~WAITS_FOR_L2
    if vcpu.vmcs12[CPU_BASED] & WINDOW_CONTROLS:
        overdue |= _open_windows(vcpu)
    return overdue


def _open_windows(vcpu: Vcpu) -> int:
    """B5, B6: the windows that L1 asked for and that are open, by the state in the processor."""
    cpu = vcpu.cpu
    windows = vcpu.vmcs12[CPU_BASED]
    waiting = 0
    if windows & CPU_NMI_WINDOW_EXITING and _nmi_window_is_open(vcpu, cpu.blocking):
        waiting |= WAITS_NMI_WINDOW
    if (
        windows & CPU_INTR_WINDOW_EXITING
        and cpu.rflags & RFLAGS_IF
        and not cpu.blocking & INTERRUPT_SHADOW
    ):
        waiting |= WAITS_INTERRUPT_WINDOW
    return waiting
