"""VM-entry checks on the injected event (E1 to E8), and the classes of failure (E0)."""

import pytest

from nvmx_core.arch.events import (
    DB,
    ERROR_CODE_VALID,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    OTHER_EVENT,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    RESERVED_TYPE,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    UD,
    VALID,
)
from nvmx_core.arch.exits import CPUID_EXIT, INVALID_STATE, MSR_LOAD_FAIL
from nvmx_core.arch.fields import (
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    ENTRY_MSR_LOAD_BAD,
    EXIT_INFO_FIELDS,
    EXIT_INTR_INFO,
    EXIT_QUALIFICATION,
    EXIT_REASON,
    GUEST_ACTIVITY,
    GUEST_CR0,
    GUEST_RFLAGS,
    GUEST_RIP,
    HOST_RIP,
    IDT_VECTORING_INFO,
    LAUNCH_STATE,
    VMCS_LINK_POINTER,
    Vmcs,
)
from nvmx_core.cpu.entry_checks import PASS, VMFAIL_CONTROLS, VMFAIL_HOST_STATE
from nvmx_core.guests.manners import NO_IRET, NO_REPAIR
from nvmx_core.journal import EXIT, L1_NMI, SMM_ENTRY
from nvmx_core.scenario.steps import AT_ENTRY, FORCE_LAUNCH, FORCE_RESUME
from tests.support import (
    Play,
    control,
    enter,
    event,
    inject,
    interrupt,
    judge_controls,
    judge_guest,
    l1_mov_ss,
    nmi,
    play,
    run,
    smi,
    vmclear,
    vmptrld,
    vmwrite,
)

VMFAIL_INVALID = 0
VMFAIL_LAUNCH_NOT_CLEAR = 4
VMFAIL_RESUME_NOT_LAUNCHED = 5
VMFAIL_MOV_SS = 26

BAD_INJECTION = inject(RESERVED_TYPE, 0)
BAD_HOST_STATE = vmwrite(HOST_RIP, 1 << 47)
BAD_GUEST_STATE = vmwrite(GUEST_ACTIVITY, 7)
BAD_MSR_LIST = vmwrite(ENTRY_MSR_LOAD_BAD, 5)

VECTORS_WITH_ERROR_CODE = (8, 10, 11, 12, 13, 14, 17)


def injected(info: int, **fields: int) -> dict[int, int]:
    """The entry fields of an injection, for a direct look at the checks."""
    return {
        ENTRY_INTR_INFO: info,
        ENTRY_ERROR_CODE: fields.get("error", 0),
        ENTRY_INSTRUCTION_LEN: fields.get("length", 1),
    }


def fails(rule: str) -> tuple[int, str]:
    """VMfailValid 7 because of one rule."""
    return VMFAIL_CONTROLS, rule


# -- E0: failure classes in order ------------------------------------------------------------------


def test_e0_without_a_current_vmcs_an_entry_is_vmfailinvalid() -> None:
    assert play(vmclear(0), l1_mov_ss(), enter()).vmfails == [VMFAIL_INVALID]


def test_e0_mov_ss_blocking_of_l1_is_error_26_before_the_launch_state() -> None:
    assert play(l1_mov_ss(), enter(FORCE_RESUME)).vmfails == [VMFAIL_MOV_SS]


def test_e0_mov_ss_blocking_of_l1_lasts_one_instruction() -> None:
    seen = play(l1_mov_ss(), vmwrite(GUEST_RIP, 0x16010), enter())
    assert seen.vmfails == []


def test_e0_vmlaunch_of_a_launched_vmcs_is_error_4_before_the_controls() -> None:
    seen = play(enter(), run("cpuid"), BAD_INJECTION, enter(FORCE_LAUNCH))
    assert seen.vmfails == [VMFAIL_LAUNCH_NOT_CLEAR]


def test_e0_vmresume_of_a_clear_vmcs_is_error_5_before_the_controls() -> None:
    assert play(BAD_INJECTION, enter(FORCE_RESUME)).vmfails == [VMFAIL_RESUME_NOT_LAUNCHED]


def test_e0_vmclear_makes_the_vmcs_launchable_again() -> None:
    seen = play(enter(), run("cpuid"), vmclear(0), vmptrld(0), enter(FORCE_LAUNCH))
    assert seen.vmfails == []
    assert seen.in_l2


def test_e0_bad_controls_are_error_7() -> None:
    assert play(BAD_INJECTION, enter()).vmfails == [VMFAIL_CONTROLS]


def test_e0_bad_host_state_is_error_8() -> None:
    assert play(BAD_HOST_STATE, enter()).vmfails == [VMFAIL_HOST_STATE]


def test_e0_bad_controls_come_before_bad_guest_state() -> None:
    seen = play(BAD_GUEST_STATE, BAD_INJECTION, enter())
    assert seen.vmfails == [VMFAIL_CONTROLS]
    assert seen.exits == []


def test_e0_bad_host_state_comes_before_bad_guest_state() -> None:
    assert play(BAD_GUEST_STATE, BAD_HOST_STATE, enter()).vmfails == [VMFAIL_HOST_STATE]


def test_e0_bad_guest_state_is_exit_33_with_the_failed_entry_bit() -> None:
    seen = play(BAD_GUEST_STATE, enter())
    assert seen.exit.reason == INVALID_STATE
    assert seen.exit.failed_entry
    assert seen.exit.qualification == 0
    assert seen.vmfails == []


def test_e0_bad_msr_list_is_exit_34_with_the_number_of_the_entry() -> None:
    seen = play(BAD_MSR_LIST, enter())
    assert seen.exit.reason == MSR_LOAD_FAIL
    assert seen.exit.failed_entry
    assert seen.exit.qualification == 5


def test_e0_bad_guest_state_comes_before_a_bad_msr_list() -> None:
    assert play(BAD_GUEST_STATE, BAD_MSR_LIST, enter()).exit.reason == INVALID_STATE


def test_e0_bad_link_pointer_is_exit_33_with_qualification_4() -> None:
    seen = play(vmwrite(VMCS_LINK_POINTER, 0), enter())
    assert seen.exit.reason == INVALID_STATE
    assert seen.exit.qualification == 4


def test_e0_real_mode_without_unrestricted_guest_is_bad_guest_state() -> None:
    assert judge_guest({GUEST_CR0: 0}, off="l1-ept") == (0, "E0")
    assert judge_guest({GUEST_CR0: 0}) == PASS


def test_e0_a_control_that_the_processor_does_not_offer_is_error_7() -> None:
    offered = play(control("monitor-trap-flag"), enter())
    refused = play(control("monitor-trap-flag"), enter(), off="mtf-offered")
    assert offered.vmfails == []
    assert refused.vmfails == [VMFAIL_CONTROLS]


# -- E0: what a failure leaves untouched -----------------------------------------------------------


def after_an_exit_then(*moves: tuple[int, int, int, int]) -> tuple[Vmcs, Play]:
    """The VMCS as a CPUID exit leaves it, and a run that goes on with *moves* after that exit."""
    before = play(enter(), run("cpuid")).vmcs
    return before[:], play(enter(), run("cpuid"), *moves)


@pytest.mark.parametrize(
    "moves",
    [(BAD_INJECTION,), (BAD_HOST_STATE,), (l1_mov_ss(),)],
    ids=["controls", "host-state", "mov-ss"],
)
def test_e0_vmfail_changes_no_exit_field(moves: tuple[tuple[int, int, int, int], ...]) -> None:
    before, seen = after_an_exit_then(*moves, enter())
    assert len(seen.vmfails) == 1
    assert seen.vmcs[EXIT_INFO_FIELDS] == before[EXIT_INFO_FIELDS]
    assert seen.reasons == [CPUID_EXIT]


def test_e0_vmfail_loads_nothing_of_the_guest() -> None:
    seen = play(BAD_INJECTION, enter(), run("nop"))
    assert not seen.in_l2
    assert seen.retired == 0
    assert seen.machine.skipped == 1


def test_e0_vmfail_leaves_the_launch_state() -> None:
    assert play(BAD_INJECTION, enter()).vmcs[LAUNCH_STATE] == 0


def test_e0_vmfail_leaves_the_injection_valid() -> None:
    assert play(BAD_INJECTION, enter()).vmcs[ENTRY_INTR_INFO] & VALID


def test_e0_failed_entry_writes_only_reason_and_qualification() -> None:
    before, seen = after_an_exit_then(vmwrite(VMCS_LINK_POINTER, 0), enter())
    expected = before[:]
    expected[EXIT_REASON] = INVALID_STATE | 1 << 31
    expected[EXIT_QUALIFICATION] = 4
    assert seen.vmcs[EXIT_INFO_FIELDS] == expected[EXIT_INFO_FIELDS]


def test_e0_failed_entry_shows_the_interruption_information_of_the_exit_before() -> None:
    seen = play(enter(), nmi(), BAD_GUEST_STATE, enter())
    first, failed = seen.exits
    assert failed.reason == INVALID_STATE
    assert failed.interruption == first.interruption == event(NMI, 2)


def test_e0_failed_entry_keeps_the_injection_valid() -> None:
    seen = play(inject(HARDWARE_EXCEPTION, UD), BAD_GUEST_STATE, enter())
    assert seen.exit.entry_info == event(HARDWARE_EXCEPTION, UD)
    assert seen.delivered == []


def test_e0_failed_entry_leaves_guest_state_and_launch_state() -> None:
    seen = play(BAD_MSR_LIST, vmwrite(GUEST_RIP, 0x1234), vmwrite(GUEST_RFLAGS, 0x102), enter())
    assert seen.exit.rip == 0x1234
    assert seen.exit.rflags == 0x102
    assert seen.vmcs[LAUNCH_STATE] == 0


def test_e0_failed_entry_leaves_nmi_blocking_as_before_the_entry() -> None:
    seen = play(enter(), nmi(), BAD_GUEST_STATE, enter(NO_IRET), nmi())
    assert seen.reasons[-1] == INVALID_STATE
    assert seen.end.nmi_blocked_in_l1 == 1
    assert seen.end.nmi_latched == 1
    assert L1_NMI not in seen.kinds


def test_e0_an_interrupt_at_a_failed_entry_stays_pending_for_l1() -> None:
    seen = play(BAD_GUEST_STATE, interrupt(0x40, AT_ENTRY), enter())
    assert seen.reasons == [INVALID_STATE]
    assert seen.end.irr == 1 << 0x40


def test_e0_an_smi_at_a_failed_entry_is_taken_in_root_operation_after_the_exit() -> None:
    seen = play(BAD_GUEST_STATE, smi(AT_ENTRY), enter())
    assert seen.kinds.index(EXIT) < seen.kinds.index(SMM_ENTRY)


def test_e0_the_next_good_entry_delivers_what_the_failed_one_kept() -> None:
    seen = play(
        inject(HARDWARE_EXCEPTION, UD),
        BAD_GUEST_STATE,
        enter(),
        vmwrite(GUEST_ACTIVITY, 0),
        enter(NO_REPAIR),
    )
    assert seen.vectors == [UD]


# -- E1 to E8 --------------------------------------------------------------------------------------


def test_e1_type_1_is_reserved() -> None:
    assert judge_controls(injected(event(RESERVED_TYPE, 0))) == fails("E1")


@pytest.mark.parametrize("event_type", [0, 2, 4, 5, 6])
def test_e1_the_other_types_pass(event_type: int) -> None:
    assert judge_controls(injected(event(event_type, 2))) == PASS


def test_e1_type_7_needs_a_processor_with_mtf() -> None:
    values = injected(event(OTHER_EVENT, 0))
    assert judge_controls(values) == PASS
    assert judge_controls(values, off="mtf-offered") == fails("E1")


def test_e1_to_e8_look_at_nothing_without_the_valid_bit() -> None:
    assert judge_controls(injected(0x7FFFFFFF, error=1 << 20, length=99)) == PASS


def test_e2_an_injected_nmi_has_vector_2() -> None:
    assert judge_controls(injected(event(NMI, 2))) == PASS
    assert judge_controls(injected(event(NMI, 3))) == fails("E2")


def test_e3_an_injected_exception_has_a_vector_up_to_31() -> None:
    assert judge_controls(injected(event(HARDWARE_EXCEPTION, 31))) == PASS
    assert judge_controls(injected(event(HARDWARE_EXCEPTION, 32))) == fails("E3")


@pytest.mark.parametrize(
    "event_type",
    [
        EXTERNAL_INTERRUPT,
        SOFTWARE_INTERRUPT,
        PRIVILEGED_SOFTWARE_EXCEPTION,
        SOFTWARE_EXCEPTION,
    ],
)
def test_e3_the_vector_of_other_types_is_not_looked_at(event_type: int) -> None:
    assert judge_controls(injected(event(event_type, 0xFF))) == PASS


def test_e4_type_7_has_vector_0() -> None:
    assert judge_controls(injected(event(OTHER_EVENT, 0))) == PASS
    assert judge_controls(injected(event(OTHER_EVENT, 1))) == fails("E4")


@pytest.mark.parametrize("vector", range(32))
def test_e5_bit_11_exactly_for_the_vectors_with_an_error_code(vector: int) -> None:
    has_one = vector in VECTORS_WITH_ERROR_CODE
    right = injected(event(HARDWARE_EXCEPTION, vector, has_one))
    wrong = injected(event(HARDWARE_EXCEPTION, vector, not has_one))
    assert judge_controls(right) == PASS
    assert judge_controls(wrong) == fails("E5")


@pytest.mark.parametrize("event_type", [0, 2, 4, 5, 6])
def test_e5_no_error_code_for_other_types(event_type: int) -> None:
    assert judge_controls(injected(event(event_type, 2, error_code=True))) == fails("E5")


def test_e5_no_error_code_in_real_mode() -> None:
    with_code = injected(event(HARDWARE_EXCEPTION, GP, error_code=True))
    without = injected(event(HARDWARE_EXCEPTION, GP))
    assert judge_controls(with_code, on="real-mode") == fails("E5")
    assert judge_controls(without, on="real-mode") == PASS


def test_e5_cr0_does_not_count_without_unrestricted_guest() -> None:
    with_code = injected(event(HARDWARE_EXCEPTION, GP, error_code=True))
    assert judge_controls({**with_code, GUEST_CR0: 0}, off="l1-ept") == PASS


@pytest.mark.parametrize("error_code", [False, True])
@pytest.mark.parametrize("vector", [DB, GP])
def test_e5_optional_error_code_frees_the_vector(vector: int, error_code: bool) -> None:
    values = injected(event(HARDWARE_EXCEPTION, vector, error_code))
    assert judge_controls(values, on="error-code-optional") == PASS


def test_e5_optional_error_code_frees_neither_other_types_nor_real_mode() -> None:
    nmi_with_code = injected(event(NMI, 2, error_code=True))
    exception = injected(event(HARDWARE_EXCEPTION, GP, error_code=True))
    assert judge_controls(nmi_with_code, on="error-code-optional") == fails("E5")
    assert judge_controls(exception, on="error-code-optional real-mode") == fails("E5")


@pytest.mark.parametrize("bit", range(12, 31))
def test_e6_bits_30_to_12_are_reserved(bit: int) -> None:
    assert judge_controls(injected(event(NMI, 2))) == PASS
    assert judge_controls(injected(event(NMI, 2) | 1 << bit)) == fails("E6")


@pytest.mark.parametrize("bit", range(16, 32))
def test_e7_a_delivered_error_code_has_16_bits(bit: int) -> None:
    info = event(HARDWARE_EXCEPTION, GP, error_code=True)
    assert judge_controls(injected(info, error=0xFFFF)) == PASS
    assert judge_controls(injected(info, error=1 << bit)) == fails("E7")


def test_e7_an_error_code_that_is_not_delivered_is_not_looked_at() -> None:
    assert judge_controls(injected(event(HARDWARE_EXCEPTION, UD), error=1 << 16)) == PASS


@pytest.mark.parametrize("event_type", [4, 5, 6])
def test_e8_soft_types_need_a_length_of_1_to_15(event_type: int) -> None:
    info = event(event_type, 3)
    assert judge_controls(injected(info, length=1)) == PASS
    assert judge_controls(injected(info, length=15)) == PASS
    assert judge_controls(injected(info, length=16)) == fails("E8")
    assert judge_controls(injected(info, length=0)) == fails("E8")


def test_e8_length_0_is_a_capability() -> None:
    values = injected(event(SOFTWARE_INTERRUPT, 0x80), length=0)
    assert judge_controls(values, on="zero-length-injection") == PASS


@pytest.mark.parametrize(("event_type", "vector"), [(0, 32), (2, 2), (3, UD), (7, 0)])
def test_e8_other_types_ignore_the_length(event_type: int, vector: int) -> None:
    assert judge_controls(injected(event(event_type, vector), length=16)) == PASS


def test_e1_to_e8_every_failure_is_vmfailvalid_7_on_the_machine() -> None:
    """The direct look at the checks above is what VMLAUNCH does."""
    info = event(HARDWARE_EXCEPTION, GP) & ~ERROR_CODE_VALID
    seen = play(vmwrite(ENTRY_INTR_INFO, info), enter())
    assert seen.vmfails == [VMFAIL_CONTROLS]
    assert seen.vmcs[EXIT_INTR_INFO] == 0
    assert seen.vmcs[IDT_VECTORING_INFO] == 0
