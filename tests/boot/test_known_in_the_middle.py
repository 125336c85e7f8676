"""What is listed of HLT, wait-for-SIPI, saves, SMIs and NMIs: a row matches what it is about, and no more."""

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.arch.controls import (
    CPU_INTR_WINDOW_EXITING,
    CPU_MONITOR_TRAP_FLAG,
    CPU_NMI_WINDOW_EXITING,
    PIN_NMI_EXITING,
    PIN_VIRTUAL_NMIS,
    SECONDARY_EPT,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    EXCEPTION_BITMAP,
    FIELD_COUNT,
    GUEST_ACTIVITY,
    GUEST_INTR_STATUS,
    GUEST_PENDING_DBG,
    GUEST_RFLAGS,
    PIN_BASED,
    SECONDARY,
)
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import HLT, PENDING_DBG_BS, RFLAGS_IF, RFLAGS_TF, WAIT_FOR_SIPI
from nvmx_core.guests.memory import handler_rip
from nvmx_core.journal import DELIVER, END, EXIT, L1_ENTRY, L1_NMI, RECORD_FIELDS, SMM_ENTRY, Record
from nvmx_fuzz.boot.divergences import listed
from nvmx_fuzz.boot.predicates_of_idle import sleeps_in_bochs, sleeps_though_due
from nvmx_fuzz.compare import Difference, Entry, Met

INT80, BP, MTF, IRQ, NMI_INFO, DB_INFO = (
    0x80000480, 0x80000603, 0x80000700, 0x80000040, 0x80000202, 0x80000301,
)  # fmt: skip
SIPI_EXIT, INIT_EXIT, TIMER_EXIT, MTF_EXIT, INTERRUPT_EXIT, NMI_WINDOW = 4, 3, 52, 37, 1, 8
TRIPLE_FAULT = 2
CODE = 0x16000


def record(kind: int, **fields: int) -> Record:
    names = RECORD_FIELDS[kind]
    known = {name.replace(" ", "_").replace("-", "_"): name for name in names}
    values = {known[name]: value for name, value in fields.items()}
    return (kind, *(values.get(name, 0) for name in names))


def exit_of(reason: int, **fields: int) -> Record:
    return record(EXIT, reason=reason, rip=CODE, **fields)


def entry(secondary: int = SECONDARY_EPT, **fields: int) -> Entry:
    vmcs = [0] * FIELD_COUNT
    vmcs[SECONDARY] = secondary
    places = {
        "activity": GUEST_ACTIVITY, "pending": GUEST_PENDING_DBG, "pin": PIN_BASED, "cpu": CPU_BASED,
        "rflags": GUEST_RFLAGS, "exceptions": EXCEPTION_BITMAP, "status": GUEST_INTR_STATUS,
    }  # fmt: skip
    for name, value in fields.items():
        vmcs[places[name]] = value
    return Entry(vmcs=tuple(vmcs))


def name_of(
    bare: Record, other: Record, of: Entry, injected: int = 0, before: tuple[Record, ...] = ()
) -> str:
    history = (*before, (L1_ENTRY, injected, 0, 0))
    row = listed("kvm", Difference(bare, other, of, history))
    return row.name if row else ""


def test_an_interrupt_out_of_wait_for_sipi() -> None:
    of = entry(activity=WAIT_FOR_SIPI)
    other = exit_of(INTERRUPT_EXIT, activity=WAIT_FOR_SIPI)
    name = "wait-for-SIPI does not block"
    assert name_of(exit_of(SIPI_EXIT, activity=WAIT_FOR_SIPI), other, of) == name
    assert name_of(record(END, activity=WAIT_FOR_SIPI), other, of) == name
    assert name_of(record(END), exit_of(INTERRUPT_EXIT), entry()) == ""


def test_an_init_behind_wait_for_sipi() -> None:
    late = entry()._replace(met=Met(late_init=True))
    vmcall = exit_of(18)
    assert name_of(exit_of(INIT_EXIT), vmcall, late) == "INIT lost in wait-for-SIPI"
    assert name_of(exit_of(INIT_EXIT), exit_of(TRIPLE_FAULT), late) == ""
    assert name_of(exit_of(INIT_EXIT), vmcall, entry()) == ""


def test_a_closed_nmi_window_that_ends_hlt() -> None:
    asleep, runs = record(END, activity=HLT), exit_of(18)
    asked = entry(activity=HLT, cpu=CPU_NMI_WINDOW_EXITING)
    assert name_of(asleep, runs, asked) == "NMI window ends HLT"
    assert name_of(asleep, runs, entry(activity=HLT)) == ""


def test_what_bochs_does_not_look_for_in_hlt() -> None:
    window = CPU_INTR_WINDOW_EXITING
    assert sleeps_in_bochs(entry(activity=HLT, cpu=window, rflags=RFLAGS_IF))
    assert not sleeps_in_bochs(entry(activity=HLT, cpu=window))
    assert not sleeps_in_bochs(entry(cpu=window, rflags=RFLAGS_IF))
    assert sleeps_in_bochs(entry(SECONDARY_VIRTUAL_INTR_DELIVERY, activity=HLT, status=0x61))
    assert not sleeps_in_bochs(entry(activity=HLT, status=0x61))


def test_what_kvm_does_not_look_for_in_hlt() -> None:
    assert sleeps_though_due(entry(activity=HLT, pending=PENDING_DBG_BS))
    assert not sleeps_though_due(entry(pending=PENDING_DBG_BS))
    steps = entry(rflags=RFLAGS_TF)._replace(met=Met(executed=1 << INSTRUCTION_INDEX["hlt"]))
    assert sleeps_though_due(steps)
    assert not sleeps_though_due(entry()._replace(met=steps.met))


def test_a_trap_that_mov_ss_holds() -> None:
    name = "single step saved by an exit"
    lost = exit_of(0, IDT_vectoring_info=INT80)
    bare = exit_of(0, IDT_vectoring_info=INT80, pending_debug_exceptions=PENDING_DBG_BS)
    behind = entry()._replace(met=Met(executed=1 << INSTRUCTION_INDEX["pop-ss"]))
    for of, expected in ((behind, name), (entry(), "")):
        row = listed("bochs-boot", Difference(bare, lost, of))
        assert (row.name if row else "") == expected


def test_pending_debug_exceptions_that_an_exit_keeps() -> None:
    bare = exit_of(TIMER_EXIT, activity=HLT)
    kept = exit_of(TIMER_EXIT, activity=HLT, pending_debug_exceptions=1)
    of = entry(activity=HLT, pending=1)
    assert name_of(bare, kept, of) == "pending debug exceptions kept"
    assert name_of(bare, kept, entry(activity=HLT, pending=2)) == ""
    active = exit_of(TIMER_EXIT)
    assert name_of(active, exit_of(TIMER_EXIT, pending_debug_exceptions=1), entry(pending=1)) == ""


@pytest.mark.parametrize("injected", [INT80, BP])
def test_a_soft_event_that_a_save_loses(injected: int) -> None:
    saved = entry()._replace(met=Met(saved_at=CODE))
    bare, other = record(DELIVER, vector=injected & 0xFF, return_rip=CODE + 2), exit_of(18)
    assert name_of(bare, other, saved, injected) == "res11: soft event lost by a save"
    assert name_of(bare, exit_of(TRIPLE_FAULT), saved, injected) == ""
    assert (
        name_of(bare, record(DELIVER, vector=bare[1], return_rip=CODE + 9), saved, injected) == ""
    )
    assert name_of(bare, other, entry(), injected) == ""
    assert name_of(bare, other, saved, IRQ) == ""


def test_a_frame_of_another_event_where_a_save_has_lost_the_soft_one() -> None:
    saved = entry()._replace(met=Met(saved_at=CODE))
    bare = record(DELIVER, vector=0x80, return_rip=CODE + 2)
    of_fault = record(DELIVER, vector=0x80, return_rip=CODE + 9)
    for vector, name in ((13, "res11: soft event lost by a save"), (0x80, "")):
        stands = record(END, rip=handler_rip(vector))
        found = Difference(
            bare, of_fault, saved, ((L1_ENTRY, INT80, 0, 0),), (record(SMM_ENTRY), stands)
        )
        row = listed("kvm", found)
        assert (row.name if row else "") == name


def test_a_single_step_that_l1_intercepts() -> None:
    intercepts = entry(exceptions=1 << 1)
    name = "intercepted debug exception lost"
    for reason in (MTF_EXIT, INIT_EXIT):
        bare = exit_of(reason, pending_debug_exceptions=0x4000)
        assert name_of(bare, exit_of(reason), intercepts) == name
        assert name_of(bare, exit_of(reason), entry()) == ""
        assert name_of(exit_of(reason), bare, intercepts) == ""
    vmcall = exit_of(18, pending_debug_exceptions=0x4000)
    assert name_of(vmcall, exit_of(18), intercepts) == ""


def test_an_exit_with_the_event_in_flight_is_never_a_lost_one() -> None:
    """The bug that the project is named after: no row may hide it, saved or not."""
    saved = entry()._replace(met=Met(saved_at=CODE))
    bare = record(DELIVER, vector=0x80, return_rip=CODE + 2)
    violation = exit_of(INTERRUPT_EXIT, IDT_vectoring_info=INT80)
    assert name_of(bare, violation, saved, INT80) == ""


def test_a_debug_exception_that_an_init_loses() -> None:
    bare = exit_of(INIT_EXIT, pending_debug_exceptions=0x1001)
    lost = exit_of(INIT_EXIT, pending_debug_exceptions=1)
    of = entry(pending=0x1001)
    assert name_of(bare, lost, of) == "debug exception before INIT"
    assert name_of(bare, exit_of(0, interruption_info=DB_INFO), of) == "debug exception before INIT"
    assert name_of(bare, exit_of(INIT_EXIT), of) == ""
    assert name_of(bare, record(DELIVER, vector=1, return_rip=CODE), of) == ""


def test_an_mtf_exit_before_an_init() -> None:
    of = entry(cpu=CPU_MONITOR_TRAP_FLAG)
    assert name_of(exit_of(INIT_EXIT), exit_of(MTF_EXIT), of, IRQ) == "MTF exit before INIT"
    assert name_of(exit_of(INIT_EXIT), exit_of(18), entry(), IRQ) == ""


def test_an_injected_mtf_exit_that_is_lost() -> None:
    name = "res3b: injected MTF exit lost"
    assert name_of(exit_of(MTF_EXIT), exit_of(18), entry(), MTF) == name
    assert name_of(exit_of(MTF_EXIT), exit_of(18), entry(), IRQ) == ""
    assert name_of(exit_of(MTF_EXIT), exit_of(TRIPLE_FAULT), entry(), MTF) == ""


def test_rsm_under_the_monitor_trap_flag() -> None:
    of = entry(cpu=CPU_MONITOR_TRAP_FLAG)._replace(met=Met(smi_at=CODE))
    bare, early = record(EXIT, reason=MTF_EXIT, rip=CODE + 1), exit_of(MTF_EXIT)
    assert name_of(bare, early, of) == "RSM is an instruction of L2"
    assert name_of(bare, record(EXIT, reason=MTF_EXIT, rip=CODE + 9), of) == ""
    assert name_of(bare, early, entry(cpu=CPU_MONITOR_TRAP_FLAG)) == ""


def test_nmi_blocking_that_l1_does_not_see() -> None:
    blocked = (exit_of(INTERRUPT_EXIT, interruptibility=8), (L1_ENTRY, 0, 0, 0))
    name = "NMI blocking stays in L2"
    assert name_of(record(END), (L1_NMI,), entry(), before=blocked) == name
    virtual = entry(pin=PIN_NMI_EXITING | PIN_VIRTUAL_NMIS)
    assert name_of(record(END), (L1_NMI,), virtual, before=blocked) == ""
    assert name_of(record(END), (L1_NMI,), entry()) == ""


def test_a_second_nmi_is_known_where_one_has_come_only() -> None:
    once = entry(pin=PIN_NMI_EXITING | PIN_VIRTUAL_NMIS)
    twice = once._replace(met=Met(second_nmi=True))
    assert name_of(record(END), (L1_NMI,), twice) == "second NMI is kept"
    assert name_of(record(END), (L1_NMI,), once) == ""
    assert name_of((L1_NMI,), record(END), twice) == ""
    assert name_of(exit_of(48), (L1_NMI,), twice) == ""


def test_a_shadow_that_an_smi_ends() -> None:
    met = entry()._replace(met=Met(smi_at=CODE, smi_shadow=True))
    bare, other = record(END, interruptibility=9), record(END, interruptibility=8)
    assert name_of(bare, other, met) == "shadow lost by an SMI"
    assert name_of(bare, other, entry()._replace(met=Met(smi_at=CODE))) == ""
    assert name_of(bare, record(END), met) == ""


def test_a_trap_before_an_smi() -> None:
    steps = entry(rflags=RFLAGS_TF)
    bare, trapped = (SMM_ENTRY, 1, CODE + 2), (SMM_ENTRY, 1, handler_rip(1))
    assert name_of(bare, trapped, steps) == "trap before SMI"
    assert name_of(bare, (SMM_ENTRY, 0, 0), steps) == "trap before SMI"
    assert name_of(bare, (SMM_ENTRY, 1, handler_rip(6)), steps) == ""
    assert name_of(bare, (SMM_ENTRY, 0, 0), entry()) == ""


def test_pdptes_are_lost_without_ept_only() -> None:
    saved = Entry(vmcs=entry(secondary=0).vmcs, met=Met(saved_at=CODE))
    dies = exit_of(TRIPLE_FAULT)
    assert name_of(record(END), dies, saved) == "PDPTEs lost by a restore"
    assert name_of(record(END), dies, saved._replace(met=Met())) == ""
    assert name_of(record(END), dies, entry()._replace(met=Met(saved_at=CODE))) == ""


def test_an_nmi_before_its_window() -> None:
    nmi = exit_of(0, interruption_info=NMI_INFO)
    assert name_of(exit_of(NMI_WINDOW), nmi, entry(), IRQ) == "interrupt before what ranks higher"
    assert name_of(exit_of(18), nmi, entry(), IRQ) == ""


def test_events_that_are_late_were_pending_at_an_exit() -> None:
    late = entry(pin=PIN_NMI_EXITING)._replace(met=Met(late_event=True))
    bare = record(DELIVER, vector=0x51, return_rip=CODE)
    assert name_of(bare, exit_of(18), late) == "event of L2 is late"
    assert name_of(bare, exit_of(18), late._replace(met=Met())) == ""
    assert name_of(bare, exit_of(TRIPLE_FAULT), late) == ""


def test_a_finding_is_known_on_the_kernels_that_have_it() -> None:
    late = entry(pin=PIN_NMI_EXITING)._replace(met=Met(late_event=True))
    bare = record(DELIVER, vector=0x51, return_rip=CODE)
    found = Difference(bare, exit_of(18), late, ((L1_ENTRY, 0, 0, 0),))
    assert listed("kvm", found, (6, 12)) is not None
    assert listed("kvm", found, (7, 2)) is None


def test_a_failed_entry_that_opens_nmis() -> None:
    failed = 33 | 1 << 31
    bare, other = exit_of(failed, interruptibility=0xA), exit_of(failed, interruptibility=2)
    assert name_of(bare, other, entry(), 0x80000200) == "failed entry opens NMIs"
    assert name_of(bare, other, entry(), IRQ) == ""


def test_other_events_before_an_interrupt_are_no_matter_of_rank() -> None:
    interrupt = exit_of(INTERRUPT_EXIT)
    for vector in (1, 2, 14):
        assert name_of(record(DELIVER, vector=vector, return_rip=CODE), interrupt, entry()) == ""
    in_flight = exit_of(INTERRUPT_EXIT, IDT_vectoring_info=DB_INFO)
    assert name_of(exit_of(NMI_WINDOW), in_flight, entry()) == ""
