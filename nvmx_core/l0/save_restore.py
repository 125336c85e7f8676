"""Save and restore of a vCPU by userspace, at any moment between two passes of the loop.

What is saved is what KVM's ioctls carry: the nested state (vmcs12 with L2's state in it, whether an accepted
entry is still to run, an MTF exit that is owed, the rest of the timer), the events (queues, in flight and
pending), the interrupt controller, registers. An event in the entry field that the processor has not seen is
first taken back into its queue, so that it is injected exactly once.

Source: Linux, vmx_get_nested_state, vmx_set_nested_state, kvm_vcpu_ioctl_x86_get_vcpu_events.
"""

from typing import NamedTuple

from nvmx_core.l0 import reach
from nvmx_core.l0.log import SAVE_RESTORE, L0Record
from nvmx_core.l0.run_loop import RunLoop


class SavedEvents(NamedTuple):
    """The queues, KVM_GET_VCPU_EVENTS."""

    exception_pending: bool
    exception_injected: bool
    exception_info: int
    exception_error_code: int
    exception_payload: int
    exception_length: int
    exception_trap: bool
    vmexit_pending: bool
    vmexit_info: int
    vmexit_error_code: int
    vmexit_payload: int
    vmexit_length: int
    vmexit_trap: bool
    nmi_injected: bool
    nmi_pending: bool
    interrupt_injected: bool
    interrupt_info: int
    interrupt_length: int
    mtf_injected: bool
    soft_event_holds_traps: bool
    smi_pending: bool
    init_pending: bool
    sipi_vector: int
    triple_fault: bool


class SavedNested(NamedTuple):
    """The nested state, KVM_GET_NESTED_STATE, and the processor state around it."""

    guest_mode: bool
    nested_run_pending: bool
    mtf_pending: bool
    timer: int
    timer_expired: bool
    physical_nmi_blocked: bool
    mp_state: int
    monitor_armed: bool
    in_smm: bool
    smm_guest_mode: bool
    l1_nmi_blocked: bool
    cr2: int
    dr6: int


class SavedApic(NamedTuple):
    """The interrupt controller, KVM_GET_LAPIC, with the ledger of the run."""

    irr: int
    isr: int
    userspace_vector: int
    accepted: list[int]
    acknowledged: list[int]


class SavedRun(NamedTuple):
    """What belongs to the run and not to the vCPU: the secret log, the reach counts, what is armed."""

    log: list[L0Record]
    reach: list[int]
    cancel_armed: bool
    alarmed: bool


class SavedVcpu(NamedTuple):
    """Everything that crosses from the old vCPU to the new one."""

    events: SavedEvents
    nested: SavedNested
    apic: SavedApic
    run: SavedRun


def save_vcpu(vcpu: RunLoop) -> SavedVcpu:
    """Read a vCPU out; L2's state is written into vmcs12, and the registers are taken from the processor."""
    vcpu.log.append((SAVE_RESTORE, len(vcpu.journal), 1 if vcpu.guest_mode else 0))
    if vcpu.guest_mode:
        vcpu.reach[reach.SAVE_RESTORE_IN_L2] += 1
        vcpu.take_back_injection()
        vcpu.sync_vmcs02_to_vmcs12()
        if vcpu.needs_reinjection():
            vcpu.reach[reach.SAVE_RESTORE_IN_FLIGHT] += 1
    saved = SavedVcpu(
        _save_events(vcpu),
        _save_nested(vcpu),
        SavedApic(
            vcpu.apic.irr,
            vcpu.apic.isr,
            vcpu.userspace_vector,
            vcpu.apic.accepted[:],
            vcpu.apic.acknowledged[:],
        ),
        SavedRun(vcpu.log, vcpu.reach, vcpu.cancel_armed, vcpu.alarmed),
    )
    vcpu.cpu.cr2 = 0
    vcpu.cpu.dr6 = 0
    return saved


def _save_events(vcpu: RunLoop) -> SavedEvents:
    return SavedEvents(
        exception_pending=vcpu.exception_pending,
        exception_injected=vcpu.exception_injected,
        exception_info=vcpu.exception_info,
        exception_error_code=vcpu.exception_error_code,
        exception_payload=vcpu.exception_payload,
        exception_length=vcpu.exception_length,
        exception_trap=vcpu.exception_trap,
        vmexit_pending=vcpu.vmexit_pending,
        vmexit_info=vcpu.vmexit_info,
        vmexit_error_code=vcpu.vmexit_error_code,
        vmexit_payload=vcpu.vmexit_payload,
        vmexit_length=vcpu.vmexit_length,
        vmexit_trap=vcpu.vmexit_trap,
        nmi_injected=vcpu.nmi_injected,
        nmi_pending=vcpu.nmi_pending,
        interrupt_injected=vcpu.interrupt_injected,
        interrupt_info=vcpu.interrupt_info,
        interrupt_length=vcpu.interrupt_length,
        mtf_injected=vcpu.mtf_injected,
        soft_event_holds_traps=vcpu.soft_event_holds_traps,
        smi_pending=vcpu.smi_pending,
        init_pending=vcpu.init_pending,
        sipi_vector=vcpu.sipi_vector,
        triple_fault=vcpu.request_triple_fault,
    )


def _save_nested(vcpu: RunLoop) -> SavedNested:
    return SavedNested(
        guest_mode=vcpu.guest_mode,
        nested_run_pending=vcpu.nested_run_pending,
        mtf_pending=vcpu.mtf_pending,
        timer=vcpu.timer,
        timer_expired=vcpu.timer_expired,
        physical_nmi_blocked=vcpu.physical_nmi_blocked,
        mp_state=vcpu.mp_state,
        monitor_armed=vcpu.monitor_armed,
        in_smm=vcpu.in_smm,
        smm_guest_mode=vcpu.smm_guest_mode,
        l1_nmi_blocked=vcpu.l1_nmi_blocked,
        cr2=vcpu.cpu.cr2,
        dr6=vcpu.cpu.dr6,
    )


def restore_vcpu(vcpu: RunLoop, saved: SavedVcpu) -> None:
    """Write a fresh vCPU; in guest mode vmcs02 is built anew from vmcs12, without an event in its field."""
    run = saved.run
    vcpu.log = run.log
    vcpu.reach = run.reach
    vcpu.cancel_armed = run.cancel_armed
    vcpu.alarmed = run.alarmed
    apic = saved.apic
    vcpu.apic.irr = apic.irr
    vcpu.apic.isr = apic.isr
    vcpu.userspace_vector = apic.userspace_vector
    vcpu.apic.accepted = apic.accepted
    vcpu.apic.acknowledged = apic.acknowledged
    _restore_nested(vcpu, saved.nested)
    _restore_events(vcpu, saved.events)
    vcpu.request_event = True
    vcpu.load_tables()


def _restore_nested(vcpu: RunLoop, nested: SavedNested) -> None:
    vcpu.cpu.cr2 = nested.cr2
    vcpu.cpu.dr6 = nested.dr6
    vcpu.in_smm = nested.in_smm
    vcpu.smm_guest_mode = nested.smm_guest_mode
    vcpu.l1_nmi_blocked = nested.l1_nmi_blocked
    vcpu.mp_state = nested.mp_state
    vcpu.monitor_armed = nested.monitor_armed
    vcpu.mtf_pending = nested.mtf_pending
    vcpu.timer = nested.timer
    vcpu.timer_expired = nested.timer_expired
    vcpu.vmcs12 = vcpu.l1.vmcs
    if nested.guest_mode:
        vcpu.guest_mode = True
        vcpu.prepare_vmcs02(False)
        vcpu.nested_run_pending = nested.nested_run_pending
    vcpu.physical_nmi_blocked = nested.physical_nmi_blocked


def _restore_events(vcpu: RunLoop, events: SavedEvents) -> None:
    vcpu.exception_pending = events.exception_pending
    vcpu.exception_injected = events.exception_injected
    vcpu.exception_info = events.exception_info
    vcpu.exception_error_code = events.exception_error_code
    vcpu.exception_payload = events.exception_payload
    vcpu.exception_length = events.exception_length
    vcpu.exception_trap = events.exception_trap
    vcpu.vmexit_pending = events.vmexit_pending
    vcpu.vmexit_info = events.vmexit_info
    vcpu.vmexit_error_code = events.vmexit_error_code
    vcpu.vmexit_payload = events.vmexit_payload
    vcpu.vmexit_length = events.vmexit_length
    vcpu.vmexit_trap = events.vmexit_trap
    vcpu.nmi_injected = events.nmi_injected
    vcpu.nmi_pending = events.nmi_pending
    vcpu.interrupt_injected = events.interrupt_injected
    vcpu.interrupt_info = events.interrupt_info
    vcpu.interrupt_length = events.interrupt_length
    vcpu.mtf_injected = events.mtf_injected
    vcpu.soft_event_holds_traps = events.soft_event_holds_traps
    vcpu.smi_pending = events.smi_pending
    vcpu.init_pending = events.init_pending
    vcpu.sipi_vector = events.sipi_vector
    vcpu.request_triple_fault = events.triple_fault
