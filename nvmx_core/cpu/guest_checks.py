"""VM-entry checks on the guest state that involve events, G1 to G12; each failure is VM exit 33.

Source: SDM, "Checks on Guest Non-Register State", "Checks on Guest RIP, RFLAGS, and SSP".
"""

from nvmx_core.arch.capabilities import Capabilities
from nvmx_core.arch.controls import PIN_VIRTUAL_NMIS, SECONDARY_UNRESTRICTED_GUEST
from nvmx_core.arch.events import (
    DB,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    MC,
    NMI,
    OTHER_EVENT,
    VECTOR_MASK,
)
from nvmx_core.arch.fields import (
    ENTRY_INTR_INFO,
    GUEST_ACTIVITY,
    GUEST_CR0,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_RFLAGS,
    GUEST_SS_DPL,
    PIN_BASED,
    SECONDARY,
    VMCS_LINK_POINTER,
    Vmcs,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_SMI,
    BLOCKING_BY_STI,
    CR0_PE,
    HLT,
    INTERRUPT_SHADOW,
    INTERRUPTIBILITY_RESERVED,
    LINK_POINTER_NONE,
    PENDING_DBG_BS,
    PENDING_DBG_RESERVED,
    RFLAGS_DEFINED,
    RFLAGS_FIXED,
    RFLAGS_IF,
    RFLAGS_TF,
    SHUTDOWN,
    WAIT_FOR_SIPI,
)
from nvmx_core.cpu.event_checks import injected_type


def cr0_is_allowed(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E0: real mode (CR0.PE = 0) needs unrestricted guest; other bits of CR0 are not modelled."""
    cr0 = vmcs[GUEST_CR0]
    if cr0 & ~CR0_PE:
        return False
    return cr0 != 0 or vmcs[SECONDARY] & SECONDARY_UNRESTRICTED_GUEST != 0


def privilege_fits_the_mode(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E0: SS.DPL is 0 or 3 in this model, and 0 in real mode."""
    dpl = vmcs[GUEST_SS_DPL]
    return dpl == 0 or (dpl == 3 and vmcs[GUEST_CR0] & CR0_PE != 0)


def activity_state_is_supported(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G1: the activity state exists and the processor supports it."""
    activity = vmcs[GUEST_ACTIVITY]
    if activity == HLT:
        return caps.hlt
    if activity == SHUTDOWN:
        return caps.shutdown
    if activity == WAIT_FOR_SIPI:
        return caps.wait_for_sipi
    return activity == ACTIVE


def hlt_needs_cpl_0(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G2: HLT needs SS.DPL = 0."""
    return vmcs[GUEST_ACTIVITY] != HLT or vmcs[GUEST_SS_DPL] == 0


def interrupt_shadow_needs_active(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G3: blocking by STI or by MOV SS needs the active state."""
    return not vmcs[GUEST_INTERRUPTIBILITY] & INTERRUPT_SHADOW or vmcs[GUEST_ACTIVITY] == ACTIVE


def event_is_allowed_in_the_activity_state(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G4: HLT takes interrupt, NMI, #DB, #MC, MTF; shutdown NMI, #MC; wait-for-SIPI nothing."""
    event_type = injected_type(vmcs)
    activity = vmcs[GUEST_ACTIVITY]
    if event_type < 0 or activity == ACTIVE:
        return True
    if activity == WAIT_FOR_SIPI:
        return False
    vector = vmcs[ENTRY_INTR_INFO] & VECTOR_MASK
    if event_type == NMI or (event_type == HARDWARE_EXCEPTION and vector == MC):
        return True
    if activity == SHUTDOWN:
        return False
    return event_type in (EXTERNAL_INTERRUPT, OTHER_EVENT) or (
        event_type == HARDWARE_EXCEPTION and vector == DB
    )


def interruptibility_is_consistent(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G5: reserved bits 0, not STI and MOV SS together, STI only with IF = 1, no SMI outside SMM."""
    blocking = vmcs[GUEST_INTERRUPTIBILITY]
    if blocking & (INTERRUPTIBILITY_RESERVED | BLOCKING_BY_SMI):
        return False
    if blocking & INTERRUPT_SHADOW == INTERRUPT_SHADOW:
        return False
    return not blocking & BLOCKING_BY_STI or vmcs[GUEST_RFLAGS] & RFLAGS_IF != 0


def interrupt_injection_is_open(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G6: an external interrupt needs IF = 1 and no blocking by STI or MOV SS."""
    return injected_type(vmcs) != EXTERNAL_INTERRUPT or (
        vmcs[GUEST_RFLAGS] & RFLAGS_IF != 0 and not vmcs[GUEST_INTERRUPTIBILITY] & INTERRUPT_SHADOW
    )


def nmi_injection_is_not_under_mov_ss(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G7, first half: no NMI under blocking by MOV SS."""
    return injected_type(vmcs) != NMI or not vmcs[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_MOV_SS


def nmi_injection_is_not_under_sti(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G7, second half: no NMI under blocking by STI, on the processors that care."""
    return (
        injected_type(vmcs) != NMI
        or not caps.sti_blocks_nmi
        or not vmcs[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_STI
    )


def virtual_nmi_injection_is_open(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G8: with virtual NMIs, no NMI under virtual-NMI blocking."""
    return (
        injected_type(vmcs) != NMI
        or not vmcs[PIN_BASED] & PIN_VIRTUAL_NMIS
        or not vmcs[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_NMI
    )


def single_step_is_pending_iff_tf(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G9: in an interrupt shadow or in HLT, the BS bit of the pending debug exceptions equals TF."""
    if not vmcs[GUEST_INTERRUPTIBILITY] & INTERRUPT_SHADOW and vmcs[GUEST_ACTIVITY] != HLT:
        return True
    single_step = vmcs[GUEST_PENDING_DBG] & PENDING_DBG_BS != 0
    return single_step == (vmcs[GUEST_RFLAGS] & RFLAGS_TF != 0)


def pending_debug_reserved_bits_are_clear(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G10: the reserved bits of the pending debug exceptions are 0."""
    return not vmcs[GUEST_PENDING_DBG] & PENDING_DBG_RESERVED


def rflags_are_well_formed(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G11: bit 1 of RFLAGS is 1, the reserved bits are 0; IF = 1 when an interrupt is injected is G6."""
    rflags = vmcs[GUEST_RFLAGS]
    return rflags & RFLAGS_FIXED != 0 and not rflags & ~RFLAGS_DEFINED


def link_pointer_is_none(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E0: without a shadow VMCS the link pointer is all ones."""
    return vmcs[VMCS_LINK_POINTER] == LINK_POINTER_NONE
