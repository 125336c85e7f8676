"""The checks of VM entry, one small function a rule, in the order of the manual.

A check looks at the VMCS (and the capabilities) and says whether it holds. The tables at the end name the
rule of each; the two ``judge`` functions walk them and remember their verdicts, because the same controls
come back thousands of times in a campaign.

The classes of failure (E0): a control check fails -> VMfailValid 7, a host-state check -> VMfailValid 8, a
guest-state check -> VM exit 33 with a qualification, the MSR-load list -> VM exit 34.

Source: SDM, "Checks on VMX Controls and Host-State Area", "Checking and Loading Guest State".
"""

from collections.abc import Callable
from typing import Final

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
from nvmx_core.arch.events import (
    DB,
    ERROR_CODE_VALID,
    EXTERNAL_INTERRUPT,
    HARDWARE_EXCEPTION,
    INFO_RESERVED,
    MC,
    NMI,
    NMI_VECTOR,
    OTHER_EVENT,
    RESERVED_TYPE,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    VECTORS_WITH_ERROR_CODE,
)
from nvmx_core.arch.exits import is_soft
from nvmx_core.arch.fields import (
    CONTROL_CHECK_FIELDS,
    CPU_BASED,
    ENTRY_CONTROLS,
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    ENTRY_MSR_LOAD_BAD,
    EXIT_CONTROLS,
    GUEST_ACTIVITY,
    GUEST_CHECK_FIELDS,
    GUEST_CR0,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_RFLAGS,
    GUEST_SS_DPL,
    HOST_RIP,
    PIN_BASED,
    POSTED_INTR_DESC_ADDR,
    POSTED_INTR_NV,
    SECONDARY,
    TPR_THRESHOLD,
    VMCS_LINK_POINTER,
    Vmcs,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_SMI,
    BLOCKING_BY_STI,
    CANONICAL_LIMIT,
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

Check = Callable[[Vmcs, Capabilities], bool]

PASSED: Final = ""


def _event_type(vmcs: Vmcs) -> int:
    """The type of the event to inject, or -1 when nothing is injected."""
    info = vmcs[ENTRY_INTR_INFO]
    return (info & TYPE_MASK) >> TYPE_SHIFT if info & VALID else -1


# -- the injected event: VMfailValid 7 ------------------------------------------------------------------


def event_type_is_supported(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E1: type 1 is reserved; type 7 needs a processor with the monitor trap flag."""
    event_type = _event_type(vmcs)
    return event_type != RESERVED_TYPE and (event_type != OTHER_EVENT or caps.monitor_trap_flag)


def nmi_has_vector_2(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E2: an injected NMI has vector 2."""
    return _event_type(vmcs) != NMI or vmcs[ENTRY_INTR_INFO] & VECTOR_MASK == NMI_VECTOR


def exception_vector_is_below_32(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E3: an injected hardware exception has a vector of at most 31."""
    return _event_type(vmcs) != HARDWARE_EXCEPTION or vmcs[ENTRY_INTR_INFO] & VECTOR_MASK <= 31


def other_event_has_vector_0(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E4: type 7 has vector 0, the pending MTF exit."""
    return _event_type(vmcs) != OTHER_EVENT or vmcs[ENTRY_INTR_INFO] & VECTOR_MASK == 0


def error_code_is_delivered_iff_the_vector_has_one(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E5: bit 11 for exactly the vectors with an error code, in protected mode only."""
    event_type = _event_type(vmcs)
    if event_type < 0:
        return True
    info = vmcs[ENTRY_INTR_INFO]
    has_error_code = info & ERROR_CODE_VALID != 0
    unrestricted = vmcs[SECONDARY] & SECONDARY_UNRESTRICTED_GUEST
    protected = not unrestricted or vmcs[GUEST_CR0] & CR0_PE != 0
    if event_type != HARDWARE_EXCEPTION or not protected:
        return not has_error_code
    if caps.error_code_optional:
        return True
    return has_error_code == (VECTORS_WITH_ERROR_CODE >> (info & VECTOR_MASK) & 1 != 0)


def event_reserved_bits_are_clear(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E6: bits 30:12 of the entry interruption information are 0."""
    return _event_type(vmcs) < 0 or not vmcs[ENTRY_INTR_INFO] & INFO_RESERVED


def error_code_fits_16_bits(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E7: a delivered error code has no bit above 15."""
    return (
        _event_type(vmcs) < 0
        or not vmcs[ENTRY_INTR_INFO] & ERROR_CODE_VALID
        or not vmcs[ENTRY_ERROR_CODE] >> 16
    )


def soft_event_has_a_length(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E8: types 4, 5, 6 need an instruction length of 1 to 15, or 0 where the processor allows it."""
    if _event_type(vmcs) < 0 or not is_soft(vmcs[ENTRY_INTR_INFO]):
        return True
    length = vmcs[ENTRY_INSTRUCTION_LEN]
    return length <= 15 and (length > 0 or caps.zero_length_injection)


# -- consistency of the controls: VMfailValid 7 ---------------------------------------------------------


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
        or vmcs[TPR_THRESHOLD] & 0xF <= vtpr >> 4
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


# -- host state: VMfailValid 8 --------------------------------------------------------------------------


def host_rip_is_canonical(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E0: the host RIP is canonical, standing for the checks on the host-state area."""
    return vmcs[HOST_RIP] < CANONICAL_LIMIT


# -- guest state: VM exit 33 ----------------------------------------------------------------------------


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
    event_type = _event_type(vmcs)
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
    return _event_type(vmcs) != EXTERNAL_INTERRUPT or (
        vmcs[GUEST_RFLAGS] & RFLAGS_IF != 0 and not vmcs[GUEST_INTERRUPTIBILITY] & INTERRUPT_SHADOW
    )


def nmi_injection_is_not_under_mov_ss(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G7, first half: no NMI under blocking by MOV SS."""
    return _event_type(vmcs) != NMI or not vmcs[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_MOV_SS


def nmi_injection_is_not_under_sti(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G7, second half: no NMI under blocking by STI, on the processors that care."""
    return (
        _event_type(vmcs) != NMI
        or not caps.sti_blocks_nmi
        or not vmcs[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_STI
    )


def virtual_nmi_injection_is_open(vmcs: Vmcs, caps: Capabilities) -> bool:
    """G8: with virtual NMIs, no NMI under virtual-NMI blocking."""
    return (
        _event_type(vmcs) != NMI
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


class EntryChecker:
    """The checks of one processor model, with a bounded memory of earlier verdicts.

    A verdict depends on nothing but the fields in the key, so remembering it cannot change a result.
    """

    MEMORY_LIMIT: Final = 1 << 14

    def __init__(self, caps: Capabilities) -> None:
        self.caps: Final = caps
        self._controls: dict[tuple[int, ...], Verdict] = {}
        self._guest: dict[tuple[int, ...], Verdict] = {}

    def judge_controls(self, vmcs: Vmcs, vtpr: int) -> Verdict:
        """The VM-instruction error of the checks on controls and host state, 0 when all hold."""
        key = tuple(vmcs[CONTROL_CHECK_FIELDS])
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
        key = (vmcs[PIN_BASED], vmcs[SECONDARY], *vmcs[GUEST_CHECK_FIELDS])
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


def msr_load_failure(vmcs: Vmcs) -> int:
    """The number of the VM-entry MSR-load entry that fails, 0 for none."""
    return vmcs[ENTRY_MSR_LOAD_BAD]


_CHECKERS: Final[dict[Capabilities, EntryChecker]] = {}


def checker_for(caps: Capabilities) -> EntryChecker:
    """The one checker of a set of capabilities, so that its memory serves every run."""
    checker = _CHECKERS.get(caps)
    if checker is None:
        checker = _CHECKERS[caps] = EntryChecker(caps)
    return checker
