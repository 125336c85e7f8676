"""A predicate takes in what its divergence is, and nothing beside it.

Most of the pairs that it must not take are what a wrong model would show.
"""

import pytest

from nvmx_core.arch.controls import SECONDARY_VIRTUAL_INTR_DELIVERY
from nvmx_core.arch.exits import (
    CPUID_EXIT,
    EPT_VIOLATION,
    FAILED_ENTRY,
    INVALID_STATE,
    MSR_LOAD_FAIL,
    MWAIT_EXIT,
    TRIPLE_FAULT,
    XSETBV_EXIT,
)
from nvmx_core.arch.fields import FIELD_BY_NAME, SECONDARY
from nvmx_core.arch.state import RFLAGS_RF
from nvmx_core.journal import DELIVER, EXIT, RECORD_FIELDS, RETIRE, VMFAIL, Record
from nvmx_core.scenario.config import STI_BLOCKS_NMI, Config
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.bochs.predicates import (
    Predicate,
    entry_to_smm,
    failed_entry_information,
    held_conditions_with_int1,
    monitor_disarmed,
    nmi_under_sti,
    old_conditions_in_dr6,
    order_of_guest_checks,
    posted_without_virtual_interrupts,
    unchecked,
    virtual_interrupt_not_reported,
    xsetbv_outside_cpl_0,
)
from nvmx_fuzz.compare import Difference, Entry

INTERRUPT_40 = 0x80000040
NMI = 0x80000202
DB = 0x80000301
MC = 0x80000312
UD = 0x80000306
GP = 0x80000B0D
BP = 0x80000603
INT1 = 0x80000501
ENTERED = (RETIRE, 0x1000)
REFUSED = (VMFAIL, 7)


def an_exit(reason: int, **values: int) -> Record:
    """An exit record; its fields by their names with _ for blanks and hyphens."""
    names = [name.replace(" ", "_").replace("-", "_") for name in RECORD_FIELDS[EXIT]]
    assert values.keys() <= set(names)
    return (EXIT, reason, *(values.get(name, 0) for name in names[1:]))


def entry(rule: str, config: str = "", **fields: int) -> Entry:
    """An entry with a configuration and other values in fields of the VMCS."""
    text = f"version 1\nconfig {config}\n" if config else "version 1\n"
    flags, *others = parse_scenario(text).scenario.config
    made = Config(flags | STI_BLOCKS_NMI, *others)
    vmcs = list(made.initial_vmcs)
    for name, value in fields.items():
        vmcs[FIELD_BY_NAME[name].place] = value
    return Entry(rule, tuple(vmcs), 0, made.caps)


def failure(
    of: Entry, qualification: int = 0, reason: int = INVALID_STATE, **values: int
) -> Record:
    """The exit of an entry that fails, with the information that the VMCS held."""
    held = of.exit_of_failure(reason | FAILED_ENTRY, qualification)
    record = list(an_exit(0, **values))
    record[1:10] = held
    return tuple(record)


def rewritten(record: Record, **values: int) -> Record:
    """The same as Bochs shows it: no event, and other values."""
    names = [name.replace(" ", "_").replace("-", "_") for name in RECORD_FIELDS[EXIT]]
    changed = list(record)
    for name, value in {"interruption_info": 0, "IDT_vectoring_info": 0, **values}.items():
        changed[1 + names.index(name)] = value
    return tuple(changed)


# -- checks of the guest state that Bochs lacks -------------------------------------------------------------

BROKEN = (
    entry("G4", GUEST_ACTIVITY=1, ENTRY_INTR_INFO=UD),
    entry("G4", GUEST_ACTIVITY=2, ENTRY_INTR_INFO=0x80000012),
    entry("G8", GUEST_INTERRUPTIBILITY=8, ENTRY_INTR_INFO=NMI),
    entry("G9", GUEST_RFLAGS=0x302, GUEST_INTERRUPTIBILITY=1),
    entry("G10", GUEST_PENDING_DBG=1 << 33),
)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda of: of.rule)
def test_an_entry_that_bochs_does_not_check(broken: Entry) -> None:
    for theirs in (ENTERED, an_exit(CPUID_EXIT), (DELIVER, 6, 0, 0, 0, 0, 0)):
        assert unchecked(broken.rule)(Difference(failure(broken), theirs, broken))


def test_an_activity_state_of_its_own() -> None:
    for broken in BROKEN[:2]:
        found = Difference(failure(broken), ENTERED, broken)
        into_hlt, into_shutdown = (unchecked("G4", activity)(found) for activity in (1, 2))
        assert into_hlt != into_shutdown


@pytest.mark.parametrize(
    "allowed",
    [
        pytest.param(entry("G4", GUEST_ACTIVITY=1, ENTRY_INTR_INFO=NMI), id="NMI into HLT"),
        pytest.param(entry("G4", GUEST_ACTIVITY=1, ENTRY_INTR_INFO=MC), id="#MC into HLT"),
        pytest.param(entry("G4", GUEST_ACTIVITY=1, ENTRY_INTR_INFO=DB), id="#DB into HLT"),
        pytest.param(
            entry("G4", GUEST_ACTIVITY=1, ENTRY_INTR_INFO=INTERRUPT_40), id="interrupt into HLT"
        ),
        pytest.param(entry("G4", GUEST_ACTIVITY=2, ENTRY_INTR_INFO=MC), id="#MC into shutdown"),
        pytest.param(
            entry("G8", "virtual-nmis=off", GUEST_INTERRUPTIBILITY=8, ENTRY_INTR_INFO=NMI),
            id="NMI without virtual NMIs",
        ),
        pytest.param(entry("G9", GUEST_RFLAGS=0x302), id="TF without a shadow"),
        pytest.param(
            entry("G9", GUEST_RFLAGS=0x302, GUEST_PENDING_DBG=0x4000, GUEST_INTERRUPTIBILITY=1),
            id="BS, TF",
        ),
        pytest.param(entry("G10", GUEST_PENDING_DBG=0x1000), id="bit 12"),
    ],
)
def test_a_model_that_refuses_what_is_allowed(allowed: Entry) -> None:
    assert not unchecked(allowed.rule)(Difference(failure(allowed), ENTERED, allowed))


@pytest.mark.parametrize(
    "checked",
    [
        pytest.param(entry("G4", GUEST_ACTIVITY=2, ENTRY_INTR_INFO=UD), id="#UD into shutdown"),
        pytest.param(entry("G10", GUEST_PENDING_DBG=1 << 33 | 1 << 5), id="low reserved bits"),
        pytest.param(
            entry("G8", GUEST_INTERRUPTIBILITY=8, ENTRY_INTR_INFO=NMI, GUEST_RFLAGS=0x8002),
            id="another check that fails too",
        ),
    ],
)
def test_an_entry_that_bochs_checks(checked: Entry) -> None:
    assert not unchecked(checked.rule)(Difference(failure(checked), ENTERED, checked))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda of: of.rule)
def test_a_bochs_that_does_not_enter(broken: Entry) -> None:
    matches, ours = unchecked(broken.rule), failure(broken)
    for theirs in ((), (VMFAIL, 8), an_exit(INVALID_STATE), an_exit(MSR_LOAD_FAIL)):
        assert not matches(Difference(ours, theirs, broken))
    assert not matches(Difference(failure(broken, 4), ENTERED, broken))
    assert not matches(Difference(ENTERED, ours, broken))


def test_an_entry_that_bochs_does_not_check_may_fail_to_load_msrs() -> None:
    broken = entry("G10", GUEST_PENDING_DBG=1 << 33, ENTRY_MSR_LOAD_BAD=1)
    assert unchecked("G10")(Difference(failure(broken), an_exit(MSR_LOAD_FAIL), broken))


# -- what a failed entry leaves -----------------------------------------------------------------------------

HELD = entry(
    "G1", GUEST_ACTIVITY=4, EXIT_INTR_INFO=GP, EXIT_INTR_ERROR_CODE=8, IDT_VECTORING_INFO=BP
)


def information(ours: Record, theirs: Record, of: Entry = HELD) -> bool:
    return failed_entry_information(Difference(ours, theirs, of))


def test_a_failed_entry_of_bochs_rewrites_information() -> None:
    ours = failure(HELD)
    assert information(ours, rewritten(ours, interruption_error_code=0))
    assert information(ours, rewritten(ours, rflags=RFLAGS_RF))


def test_a_failed_entry_rewrites_nothing_else() -> None:
    ours = failure(HELD)
    assert not information(ours, ours)
    assert not information(ours, rewritten(ours, interruption_info=NMI))
    assert not information(ours, rewritten(ours, qualification=4))
    assert not information(ours, rewritten(ours, rflags=1))
    assert not information(ours, rewritten(ours, cr2=1))
    assert not information(rewritten(ours), ours)
    assert not information(rewritten(ours, interruption_info=NMI), rewritten(ours))


NMI_UNDER_STI = entry("G7", GUEST_RFLAGS=0x202, ENTRY_INTR_INFO=NMI, GUEST_INTERRUPTIBILITY=1)
NMI_UNDER_MOV_SS = entry("G7", GUEST_INTERRUPTIBILITY=2, ENTRY_INTR_INFO=NMI)


def test_the_qualification_of_an_nmi_under_sti() -> None:
    theirs = failure(NMI_UNDER_STI)
    assert nmi_under_sti(Difference(failure(NMI_UNDER_STI, 3), theirs, NMI_UNDER_STI))
    assert not nmi_under_sti(Difference(failure(NMI_UNDER_STI, 5), theirs, NMI_UNDER_STI))
    assert not nmi_under_sti(Difference(theirs, failure(NMI_UNDER_STI, 3), NMI_UNDER_STI))
    ours, theirs = failure(NMI_UNDER_MOV_SS, 3), failure(NMI_UNDER_MOV_SS)
    assert not nmi_under_sti(Difference(ours, theirs, NMI_UNDER_MOV_SS))


def test_of_two_checks_that_fail_either_is_reported() -> None:
    two = entry("G5", GUEST_INTERRUPTIBILITY=3, VMCS_LINK_POINTER=0)
    assert order_of_guest_checks(Difference(failure(two), failure(two, 4), two))
    assert order_of_guest_checks(Difference(failure(two, 4), failure(two), two))
    both = entry(
        "G7", GUEST_RFLAGS=0x202, GUEST_INTERRUPTIBILITY=1, ENTRY_INTR_INFO=NMI, VMCS_LINK_POINTER=0
    )
    assert order_of_guest_checks(Difference(failure(both, 3), failure(both, 4), both))
    assert not order_of_guest_checks(Difference(failure(both, 5), failure(both, 4), both))
    assert not order_of_guest_checks(Difference(failure(both, 3), failure(both), both))
    for one in (
        entry("G5", GUEST_INTERRUPTIBILITY=3),
        entry("E0", VMCS_LINK_POINTER=0),
    ):
        assert not order_of_guest_checks(Difference(failure(one), failure(one, 4), one))
        assert not order_of_guest_checks(Difference(failure(one, 4), failure(one), one))


# -- controls -----------------------------------------------------------------------------------------------

POSTED = entry("C4", "acknowledge-interrupt-on-exit=on", PIN_BASED=0xA9)
TO_SMM = entry("G12", ENTRY_CONTROLS=1 << 10)


@pytest.mark.parametrize("theirs", [ENTERED, an_exit(CPUID_EXIT), an_exit(INVALID_STATE)])
def test_posted_interrupts_enter_without_virtual_ones(theirs: Record) -> None:
    assert posted_without_virtual_interrupts(Difference(REFUSED, theirs, POSTED))


@pytest.mark.parametrize(
    ("ours", "theirs", "of"),
    [
        pytest.param(
            REFUSED, ENTERED, entry("C4", PIN_BASED=0xA9), id="another need of C4 beside it"
        ),
        pytest.param(REFUSED, ENTERED, entry("C4"), id="nothing is wrong"),
        pytest.param(REFUSED, (VMFAIL, 8), POSTED, id="another error of Bochs"),
        pytest.param((VMFAIL, 8), ENTERED, POSTED, id="another error of the model"),
        pytest.param(REFUSED, (), POSTED, id="Bochs shows nothing"),
    ],
)
def test_other_refusals_are_no_posted_interrupts(ours: Record, theirs: Record, of: Entry) -> None:
    assert not posted_without_virtual_interrupts(Difference(ours, theirs, of))


def test_an_entry_to_smm_fails_later_on_bochs() -> None:
    theirs = failure(TO_SMM)
    assert entry_to_smm(Difference(REFUSED, theirs, TO_SMM))
    assert not entry_to_smm(Difference((VMFAIL, 8), theirs, TO_SMM))
    assert not entry_to_smm(Difference(REFUSED, (VMFAIL, 8), TO_SMM))
    assert not entry_to_smm(Difference(REFUSED, ENTERED, TO_SMM))
    assert not entry_to_smm(Difference(REFUSED, theirs, entry("G12")))


def test_checks_on_controls_that_bochs_lacks_come_together() -> None:
    host = entry("G12", ENTRY_CONTROLS=1 << 10, HOST_RIP=1 << 47)
    assert entry_to_smm(Difference(REFUSED, (VMFAIL, 8), host))
    assert not entry_to_smm(Difference(REFUSED, failure(host), host))
    asked = entry("C1", "nmi-exiting=off", PIN_BASED=0x20, ENTRY_CONTROLS=1 << 10)
    assert not entry_to_smm(Difference(REFUSED, failure(asked), asked))
    both = entry("C4", "acknowledge-interrupt-on-exit=on", PIN_BASED=0xA9, ENTRY_CONTROLS=1 << 10)
    assert entry_to_smm(Difference(REFUSED, failure(both), both))
    assert not posted_without_virtual_interrupts(Difference(REFUSED, ENTERED, both))


# -- instructions and deliveries ----------------------------------------------------------------------------

VIRTUAL = Entry("", tuple(SECONDARY_VIRTUAL_INTR_DELIVERY * (n == SECONDARY) for n in range(99)))


def in_delivery(vectoring: int, **values: int) -> Record:
    return an_exit(EPT_VIOLATION, IDT_vectoring_info=vectoring, **values)


def virtual(ours: Record, theirs: Record, of: Entry = VIRTUAL) -> bool:
    return virtual_interrupt_not_reported(Difference(ours, theirs, of))


def test_a_virtual_interrupt_that_is_not_reported() -> None:
    assert virtual(in_delivery(INTERRUPT_40), in_delivery(0))
    assert virtual(
        in_delivery(INTERRUPT_40), in_delivery(BP, instruction_length=1, rflags=RFLAGS_RF)
    )


def test_other_events_are_reported() -> None:
    injected = entry(
        "", "tpr-shadow=on virtual-interrupt-delivery=on", ENTRY_INTR_INFO=INTERRUPT_40
    )
    assert not virtual(in_delivery(INTERRUPT_40), in_delivery(0), entry(""))
    assert not virtual(in_delivery(INTERRUPT_40), in_delivery(0), injected)
    assert not virtual(in_delivery(BP), in_delivery(0))
    assert not virtual(in_delivery(0), in_delivery(INTERRUPT_40))


def test_a_virtual_interrupt_excuses_no_other_field() -> None:
    ours = in_delivery(INTERRUPT_40)
    assert not virtual(ours, in_delivery(INTERRUPT_40, instruction_length=2))
    assert not virtual(ours, in_delivery(INTERRUPT_40, rflags=RFLAGS_RF))
    assert not virtual(ours, in_delivery(0, rflags=1))
    assert not virtual(ours, in_delivery(0, cr2=1))


XSETBV = an_exit(XSETBV_EXIT, ss_dpl=3)


@pytest.mark.parametrize(
    "ours",
    [
        (DELIVER, 13, 0, 0, 0, 0, 0),
        (DELIVER, 14, 0, 0, 0, 0, 0),
        an_exit(0, interruption_info=GP),
        an_exit(0, interruption_info=0x80000B08),
        in_delivery(GP),
        in_delivery(0x80000B08),
        an_exit(TRIPLE_FAULT),
    ],
)
def test_xsetbv_faults_before_it_exits(ours: Record) -> None:
    assert xsetbv_outside_cpl_0(Difference(ours, XSETBV, entry("")))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param((DELIVER, 6, 0, 0, 0, 0, 0), XSETBV, id="#UD"),
        pytest.param(an_exit(0, interruption_info=UD), XSETBV, id="#UD that exits"),
        pytest.param(in_delivery(UD), XSETBV, id="in the delivery of #UD"),
        pytest.param(ENTERED, XSETBV, id="no fault"),
        pytest.param((), XSETBV, id="nothing"),
        pytest.param(an_exit(0, interruption_info=GP), an_exit(XSETBV_EXIT), id="CPL 0"),
    ],
)
def test_xsetbv_excuses_nothing_else(ours: Record, theirs: Record) -> None:
    assert not xsetbv_outside_cpl_0(Difference(ours, theirs, entry("")))


def int1(qualification: int, interruptibility: int = 2, info: int = INT1) -> Record:
    return an_exit(
        0, qualification=qualification, interruption_info=info, interruptibility=interruptibility
    )


def test_int1_behind_mov_ss() -> None:
    def known(ours: Record, theirs: Record) -> bool:
        return held_conditions_with_int1(Difference(ours, theirs, entry("")))

    assert known(int1(0), int1(1))
    assert known(int1(0), int1(0x4001))
    assert not known(int1(1), int1(0))
    assert not known(int1(0), int1(0x2000))
    assert not known(int1(0, 0), int1(1, 0))
    assert not known(int1(0, info=BP), int1(1, info=BP))


def test_a_flush_disarms_the_monitor() -> None:
    armed, lost = an_exit(MWAIT_EXIT, qualification=1), an_exit(MWAIT_EXIT)
    flushed = Entry("", monitor_was_lost=True)
    assert monitor_disarmed(Difference(armed, lost, flushed))
    assert not monitor_disarmed(Difference(lost, armed, flushed))
    assert not monitor_disarmed(Difference(armed, lost, Entry("")))


def a_db(dr6: int) -> Record:
    return (DELIVER, 1, 0, 0, 0, 0, dr6)


def dr6(ours: int, theirs: int, before: int) -> bool:
    history = (a_db(before), ENTERED)
    return old_conditions_in_dr6(Difference(a_db(ours), a_db(theirs), Entry(""), history))


def test_old_conditions_in_dr6() -> None:
    assert dr6(0x4001, 0x4000, before=1)
    assert dr6(3, 1, before=2)
    assert not dr6(0x4000, 0x4001, before=1)
    assert not dr6(0x4001, 0x4000, before=2)
    assert not dr6(0x4001, 1, before=0x4001)
    one = Difference(a_db(1), a_db(0), Entry(""))
    assert not old_conditions_in_dr6(one)


PREDICATES: tuple[Predicate, ...] = (
    entry_to_smm, failed_entry_information, held_conditions_with_int1, monitor_disarmed, nmi_under_sti,
    old_conditions_in_dr6, order_of_guest_checks, posted_without_virtual_interrupts, unchecked("G4"),
    virtual_interrupt_not_reported, xsetbv_outside_cpl_0,
)  # fmt: skip


@pytest.mark.parametrize("ours", [(), ENTERED, REFUSED, an_exit(CPUID_EXIT)])
@pytest.mark.parametrize("theirs", [(), ENTERED, REFUSED, an_exit(CPUID_EXIT, cr2=1)])
def test_nothing_is_excused_without_its_reason(ours: Record, theirs: Record) -> None:
    for predicate in PREDICATES:
        assert not predicate(Difference(ours, theirs, Entry("")))
