"""VM-entry checks on controls (C1 to C6, VMfailValid 7) and on the host state (VMfailValid 8).

Source: SDM, "Checks on VM-Execution Control Fields", "Checks on Host-State Area".
"""

from nvmx_core.arch.capabilities import Capabilities
from nvmx_core.arch.controls import (
    CPU_ALLOWED,
    CPU_MONITOR_TRAP_FLAG,
    CPU_NMI_WINDOW_EXITING,
    CPU_SECONDARY_CONTROLS,
    CPU_TPR_SHADOW,
    ENTRY_ALLOWED,
    ENTRY_TO_SMM,
    EXIT_ACK_INTR_ON_EXIT,
    EXIT_ALLOWED,
    EXIT_SAVE_PREEMPTION_TIMER,
    PIN_ALLOWED,
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_POSTED_INTR,
    PIN_PREEMPTION_TIMER,
    PIN_VIRTUAL_NMIS,
    SECONDARY_ALLOWED,
    SECONDARY_EPT,
    SECONDARY_PML,
    SECONDARY_UNRESTRICTED_GUEST,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
    SECONDARY_VIRTUALIZE_APIC_ACCESSES,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_CONTROLS,
    EXIT_CONTROLS,
    HOST_RIP,
    PIN_BASED,
    POSTED_INTR_DESC_ADDR,
    POSTED_INTR_NV,
    SECONDARY,
    TPR_THRESHOLD,
    Vmcs,
)
from nvmx_core.arch.state import CANONICAL_LIMIT
from nvmx_core.arch.virtual_apic import tpr_is_below_threshold


def virtual_nmis_need_nmi_exiting(vmcs: Vmcs, caps: Capabilities) -> bool:
    """C1: virtual NMIs need NMI exiting."""
    pin = vmcs[PIN_BASED]
    return not pin & PIN_VIRTUAL_NMIS or pin & PIN_NMI_EXITING != 0


def nmi_window_needs_virtual_nmis(vmcs: Vmcs, caps: Capabilities) -> bool:
    """C2: NMI-window exiting needs virtual NMIs."""
    return not vmcs[CPU_BASED] & CPU_NMI_WINDOW_EXITING or vmcs[PIN_BASED] & PIN_VIRTUAL_NMIS != 0


def virtual_interrupts_need_interrupt_exiting(vmcs: Vmcs, caps: Capabilities) -> bool:
    """C3: virtual-interrupt delivery needs external-interrupt exiting and the TPR shadow."""
    return not vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY or (
        vmcs[PIN_BASED] & PIN_EXT_INTR_EXITING != 0 and vmcs[CPU_BASED] & CPU_TPR_SHADOW != 0
    )


def posted_interrupts_are_set_up(vmcs: Vmcs, caps: Capabilities) -> bool:
    """C4: posted interrupts need virtual interrupts, ack-on-exit, a vector and an aligned descriptor."""
    return not vmcs[PIN_BASED] & PIN_POSTED_INTR or (
        vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY != 0
        and vmcs[EXIT_CONTROLS] & EXIT_ACK_INTR_ON_EXIT != 0
        and vmcs[POSTED_INTR_NV] <= 255
        and not vmcs[POSTED_INTR_DESC_ADDR] & 63
    )


def saving_the_timer_needs_the_timer(vmcs: Vmcs, caps: Capabilities) -> bool:
    """C5: save VMX-preemption-timer value needs activate VMX-preemption timer."""
    return (
        not vmcs[EXIT_CONTROLS] & EXIT_SAVE_PREEMPTION_TIMER
        or vmcs[PIN_BASED] & PIN_PREEMPTION_TIMER != 0
    )


def tpr_threshold_is_a_class(vmcs: Vmcs, caps: Capabilities) -> bool:
    """C6, first half: bits 31:4 of the TPR threshold are 0 (TPR shadow without virtual interrupts)."""
    return not _threshold_counts(vmcs) or not vmcs[TPR_THRESHOLD] >> 4


def _threshold_counts(vmcs: Vmcs) -> bool:
    return (
        vmcs[CPU_BASED] & CPU_TPR_SHADOW != 0
        and not vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY
    )


def tpr_threshold_is_not_above_vtpr(vmcs: Vmcs, vtpr: int) -> bool:
    """C6, second half: without APIC-access virtualization the threshold is at most VTPR[7:4].

    The only check that reads memory, the virtual-APIC page; hence a function of its own.
    """
    return (
        not _threshold_counts(vmcs)
        or vmcs[SECONDARY] & SECONDARY_VIRTUALIZE_APIC_ACCESSES != 0
        or not tpr_is_below_threshold(vtpr, vmcs[TPR_THRESHOLD])
    )


def controls_are_offered(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E0: every control has a setting that the capability MSRs allow.

    Secondary controls are always active. EPT is on exactly where the processor has it, unrestricted guest
    and page-modification logging need EPT.
    """
    cpu_allowed = CPU_ALLOWED
    if not caps.monitor_trap_flag:
        cpu_allowed &= ~CPU_MONITOR_TRAP_FLAG
    secondary = vmcs[SECONDARY]
    if caps.ept:
        secondary_fits = secondary & SECONDARY_EPT != 0 and not secondary & ~(
            SECONDARY_ALLOWED | SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST
        )
    else:
        secondary_fits = not secondary & ~(SECONDARY_ALLOWED & ~SECONDARY_PML)
    return (
        secondary_fits
        and not vmcs[PIN_BASED] & ~PIN_ALLOWED
        and vmcs[CPU_BASED] & CPU_SECONDARY_CONTROLS != 0
        and not vmcs[CPU_BASED] & ~cpu_allowed
        and not vmcs[EXIT_CONTROLS] & ~EXIT_ALLOWED
        and not vmcs[ENTRY_CONTROLS] & ~ENTRY_ALLOWED
    )


def entry_to_smm_only_from_smm(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G12: the entry-to-SMM control is 0 outside SMM."""
    return not vmcs[ENTRY_CONTROLS] & ENTRY_TO_SMM


def host_rip_is_canonical(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E0: the host RIP is canonical, standing for the checks on the host-state area."""
    return vmcs[HOST_RIP] < CANONICAL_LIMIT
