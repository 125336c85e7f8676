"""The checks of VM entry, in the order of the manual.

A check is one small function a rule (``event_checks``, ``control_checks``, ``guest_checks``): it looks at
the VMCS and the capabilities and says whether it holds. The tables here name the rule of each; the two
``judge`` functions walk them and remember their verdicts, because the same controls
come back thousands of times in a campaign.

The classes of failure (E0): a control check fails -> VMfailValid 7, a host-state check -> VMfailValid 8, a
guest-state check -> VM exit 33 with a qualification, the MSR-load list -> VM exit 34.

Source: SDM, "Checks on VMX Controls and Host-State Area", "Checking and Loading Guest State".
"""

from collections.abc import Callable
from typing import Final

from nvmx_core.arch.capabilities import Capabilities
from nvmx_core.arch.fields import (
    CONTROL_CHECK_FIELDS,
    GUEST_CHECK_FIELDS,
    GUEST_RIP,
    PIN_BASED,
    SECONDARY,
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

Check = Callable[[Vmcs, Capabilities], bool]

PASSED: Final = ""

CONTROL_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("E0", controls_are_offered),
    ("C1", virtual_nmis_need_nmi_exiting),
    ("C2", nmi_window_needs_virtual_nmis),
    ("C3", virtual_interrupts_need_interrupt_exiting),
    ("C4", posted_interrupts_are_set_up),
    ("C6", tpr_threshold_is_a_class),
    ("C5", saving_the_timer_needs_the_timer),
    ("G12", entry_to_smm_only_from_smm),
    ("E1", event_type_is_supported),
    ("E2", nmi_has_vector_2),
    ("E3", exception_vector_is_below_32),
    ("E4", other_event_has_vector_0),
    ("E5", error_code_is_delivered_iff_the_vector_has_one),
    ("E6", event_reserved_bits_are_clear),
    ("E7", error_code_fits_16_bits),
    ("E8", soft_event_has_a_length),
)

HOST_CHECKS: Final[tuple[tuple[str, Check], ...]] = (("E0", host_rip_is_canonical),)

QUALIFICATION_NMI_UNDER_STI: Final = 3
QUALIFICATION_LINK_POINTER: Final = 4

GUEST_CHECKS: Final[tuple[tuple[str, Check, int], ...]] = (
    ("E0", cr0_is_allowed, 0),
    ("E0", privilege_fits_the_mode, 0),
    ("G11", rflags_are_well_formed, 0),
    ("G1", activity_state_is_supported, 0),
    ("G2", hlt_needs_cpl_0, 0),
    ("G3", interrupt_shadow_needs_active, 0),
    ("G4", event_is_allowed_in_the_activity_state, 0),
    ("G5", interruptibility_is_consistent, 0),
    ("G6", interrupt_injection_is_open, 0),
    ("G7", nmi_injection_is_not_under_mov_ss, 0),
    ("G7", nmi_injection_is_not_under_sti, QUALIFICATION_NMI_UNDER_STI),
    ("G8", virtual_nmi_injection_is_open, 0),
    ("G10", pending_debug_reserved_bits_are_clear, 0),
    ("G9", single_step_is_pending_iff_tf, 0),
    ("E0", link_pointer_is_none, QUALIFICATION_LINK_POINTER),
)

VMFAIL_CONTROLS: Final = 7
VMFAIL_HOST_STATE: Final = 8

Verdict = tuple[int, str]
"""A VM-instruction error (controls) or a qualification (guest state), and the rule that failed."""

PASS: Final[Verdict] = (0, PASSED)


_CHECKERS: Final[dict[Capabilities, "EntryChecker"]] = {}
_CONTROL_VERDICTS: Final[dict[tuple[int, ...], Verdict]] = {}
_GUEST_VERDICTS: Final[dict[tuple[int, ...], Verdict]] = {}


class EntryChecker:
    """The checks of one processor model, with a bounded memory of earlier verdicts.

    A verdict depends on nothing but the fields in the key, so remembering it cannot change a result.
    """

    MEMORY_LIMIT: Final = 1 << 13

    def __init__(self, caps: Capabilities) -> None:
        self.caps: Final = caps
        self._number: Final = len(_CHECKERS)
        # One memory for all checkers, so that its bound holds whatever the configurations are.
        self._controls: Final = _CONTROL_VERDICTS
        self._guest: Final = _GUEST_VERDICTS

    def judge_controls(self, vmcs: Vmcs, vtpr: int) -> Verdict:
        """The VM-instruction error of the checks on controls and host state, 0 when all hold."""
        key = (self._number, *vmcs[CONTROL_CHECK_FIELDS])
        verdict = self._controls.get(key)
        if verdict is None:
            if len(self._controls) >= self.MEMORY_LIMIT:
                self._controls.clear()
            verdict = self._controls[key] = self._walk_controls(vmcs)
        if vmcs[TPR_THRESHOLD] and not tpr_threshold_is_not_above_vtpr(vmcs, vtpr):
            return VMFAIL_CONTROLS, "C6"
        return verdict

    def _walk_controls(self, vmcs: Vmcs) -> Verdict:
        for rule, check in CONTROL_CHECKS:
            if not check(vmcs, self.caps):
                return VMFAIL_CONTROLS, rule
        for rule, check in HOST_CHECKS:
            if not check(vmcs, self.caps):
                return VMFAIL_HOST_STATE, rule
        return PASS

    def judge_guest_state(self, vmcs: Vmcs) -> Verdict:
        """(qualification, failed rule) of the checks on the guest state, the rule "" when all hold."""
        if vmcs[GUEST_RIP] >> 32:
            return 0, "E0"  # outside IA-32e mode; not in the key, because RIP is never the same
        key = (self._number, vmcs[PIN_BASED], vmcs[SECONDARY], *vmcs[GUEST_CHECK_FIELDS])
        verdict = self._guest.get(key)
        if verdict is None:
            if len(self._guest) >= self.MEMORY_LIMIT:
                self._guest.clear()
            verdict = self._guest[key] = self._walk_guest_state(vmcs)
        return verdict

    def _walk_guest_state(self, vmcs: Vmcs) -> Verdict:
        for rule, check, qualification in GUEST_CHECKS:
            if not check(vmcs, self.caps):
                return qualification, rule
        return PASS


def checker_for(caps: Capabilities) -> EntryChecker:
    """The one checker of a set of capabilities, so that its memory serves every run."""
    checker = _CHECKERS.get(caps)
    if checker is None:
        checker = _CHECKERS[caps] = EntryChecker(caps)
    return checker
