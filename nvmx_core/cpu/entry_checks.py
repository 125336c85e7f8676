"""The checks of VM entry, in the order of the manual.

A check is one small function a rule (``event_checks``, ``control_checks``, ``guest_checks``): it looks at
the VMCS and the capabilities and says whether it holds. The functions here call them in order and name
the rule of the first that does not. Checks of the injected event are asked only when there is one.

The classes of failure (E0): a control check fails -> VMfailValid 7, a host-state check -> VMfailValid 8, a
guest-state check -> VM exit 33 with a qualification, the MSR-load list -> VM exit 34.

Source: SDM, "Checks on VMX Controls and Host-State Area", "Checking and Loading Guest State".
"""

from typing import Final

from nvmx_core.arch.capabilities import Capabilities
from nvmx_core.arch.events import VALID
from nvmx_core.arch.fields import (
    CONTROL_FIELDS,
    ENTRY_INTR_INFO,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_RIP,
    TPR_THRESHOLD,
    Vmcs,
)
from nvmx_core.cpu.control_checks import (
    controls_are_offered,
    entry_to_smm_only_from_smm,
    host_rip_is_canonical,
    nmi_window_needs_virtual_nmis,
    posted_interrupts_are_set_up,
    saving_the_timer_needs_the_timer,
    tpr_threshold_is_a_class,
    tpr_threshold_is_not_above_vtpr,
    virtual_interrupts_need_interrupt_exiting,
    virtual_nmis_need_nmi_exiting,
)
from nvmx_core.cpu.event_checks import (
    error_code_fits_16_bits,
    error_code_is_delivered_iff_the_vector_has_one,
    event_reserved_bits_are_clear,
    event_type_is_supported,
    exception_vector_is_below_32,
    nmi_has_vector_2,
    other_event_has_vector_0,
    soft_event_has_a_length,
)
from nvmx_core.cpu.guest_checks import (
    activity_state_is_supported,
    cr0_is_allowed,
    event_is_allowed_in_the_activity_state,
    hlt_needs_cpl_0,
    interrupt_injection_is_open,
    interrupt_shadow_needs_active,
    interruptibility_is_consistent,
    link_pointer_is_none,
    nmi_injection_is_not_under_mov_ss,
    nmi_injection_is_not_under_sti,
    pending_debug_reserved_bits_are_clear,
    privilege_fits_the_mode,
    rflags_are_well_formed,
    single_step_is_pending_iff_tf,
    virtual_nmi_injection_is_open,
)

PASSED: Final = ""

VMFAIL_CONTROLS: Final = 7
VMFAIL_HOST_STATE: Final = 8

QUALIFICATION_NMI_UNDER_STI: Final = 3
QUALIFICATION_LINK_POINTER: Final = 4

Verdict = tuple[int, str]
"""A VM-instruction error (controls) or a qualification (guest state), and the rule that failed."""

PASS: Final[Verdict] = (0, PASSED)


class EntryChecker:
    """The checks of one processor model.

    Controls that passed last are remembered: most entries come with the same ones.
    """

    def __init__(self, caps: Capabilities) -> None:
        self.caps: Final = caps
        self._passed_controls: Vmcs = []

    def judge_controls(self, vmcs: Vmcs, vtpr: int) -> Verdict:
        """The VM-instruction error of the checks on controls and host state, 0 when all hold."""
        caps = self.caps
        controls = vmcs[CONTROL_FIELDS]
        if controls != self._passed_controls:
            rule = _broken_control_rule(vmcs, caps)
            if rule:
                return VMFAIL_CONTROLS, rule
            self._passed_controls = controls
        if vmcs[TPR_THRESHOLD] and not tpr_threshold_is_not_above_vtpr(vmcs, vtpr):
            return VMFAIL_CONTROLS, "C6"
        if vmcs[ENTRY_INTR_INFO] & VALID:
            rule = _broken_event_rule(vmcs, caps)
            if rule:
                return VMFAIL_CONTROLS, rule
        if not host_rip_is_canonical(vmcs, caps):
            return VMFAIL_HOST_STATE, "E0"
        return PASS

    def judge_guest_state(self, vmcs: Vmcs) -> Verdict:
        """(qualification, failed rule) of the checks on the guest state, the rule "" when all hold."""
        caps = self.caps
        rule = _broken_register_rule(vmcs, caps)
        if rule:
            return 0, rule
        # What the rules between G1 and G10 forbid is a combination with one of these three.
        is_plain = not (
            vmcs[GUEST_ACTIVITY] | vmcs[GUEST_INTERRUPTIBILITY] | vmcs[GUEST_PENDING_DBG]
        )
        if not is_plain:
            rule = _broken_activity_rule(vmcs, caps)
            if rule:
                return 0, rule
        if vmcs[ENTRY_INTR_INFO] & VALID:
            qualification, rule = _judge_injection(vmcs, caps)
            if rule:
                return qualification, rule
        if not is_plain:
            rule = _broken_debug_rule(vmcs, caps)
            if rule:
                return 0, rule
        if not link_pointer_is_none(vmcs, caps):
            return QUALIFICATION_LINK_POINTER, "E0"
        return PASS


def _broken_control_rule(vmcs: Vmcs, caps: Capabilities) -> str:
    if not controls_are_offered(vmcs, caps):
        return "E0"
    if not virtual_nmis_need_nmi_exiting(vmcs, caps):
        return "C1"
    if not nmi_window_needs_virtual_nmis(vmcs, caps):
        return "C2"
    if not virtual_interrupts_need_interrupt_exiting(vmcs, caps):
        return "C3"
    if not posted_interrupts_are_set_up(vmcs, caps):
        return "C4"
    if not tpr_threshold_is_a_class(vmcs, caps):
        return "C6"
    if not saving_the_timer_needs_the_timer(vmcs, caps):
        return "C5"
    return PASSED if entry_to_smm_only_from_smm(vmcs, caps) else "G12"


def _broken_event_rule(vmcs: Vmcs, caps: Capabilities) -> str:
    if not event_type_is_supported(vmcs, caps):
        return "E1"
    if not nmi_has_vector_2(vmcs, caps):
        return "E2"
    if not exception_vector_is_below_32(vmcs, caps):
        return "E3"
    if not other_event_has_vector_0(vmcs, caps):
        return "E4"
    if not error_code_is_delivered_iff_the_vector_has_one(vmcs, caps):
        return "E5"
    if not event_reserved_bits_are_clear(vmcs, caps):
        return "E6"
    if not error_code_fits_16_bits(vmcs, caps):
        return "E7"
    return PASSED if soft_event_has_a_length(vmcs, caps) else "E8"


def _broken_register_rule(vmcs: Vmcs, caps: Capabilities) -> str:
    if vmcs[GUEST_RIP] >> 32:
        return "E0"  # outside IA-32e mode
    if not cr0_is_allowed(vmcs, caps):
        return "E0"
    if not privilege_fits_the_mode(vmcs, caps):
        return "E0"
    return PASSED if rflags_are_well_formed(vmcs, caps) else "G11"


def _broken_activity_rule(vmcs: Vmcs, caps: Capabilities) -> str:
    if not activity_state_is_supported(vmcs, caps):
        return "G1"
    if not hlt_needs_cpl_0(vmcs, caps):
        return "G2"
    if not interrupt_shadow_needs_active(vmcs, caps):
        return "G3"
    return PASSED if interruptibility_is_consistent(vmcs, caps) else "G5"


def _judge_injection(vmcs: Vmcs, caps: Capabilities) -> Verdict:
    if not event_is_allowed_in_the_activity_state(vmcs, caps):
        return 0, "G4"
    if not interrupt_injection_is_open(vmcs, caps):
        return 0, "G6"
    if not nmi_injection_is_not_under_mov_ss(vmcs, caps):
        return 0, "G7"
    if not nmi_injection_is_not_under_sti(vmcs, caps):
        return QUALIFICATION_NMI_UNDER_STI, "G7"
    return PASS if virtual_nmi_injection_is_open(vmcs, caps) else (0, "G8")


def _broken_debug_rule(vmcs: Vmcs, caps: Capabilities) -> str:
    if not pending_debug_reserved_bits_are_clear(vmcs, caps):
        return "G10"
    return PASSED if single_step_is_pending_iff_tf(vmcs, caps) else "G9"
