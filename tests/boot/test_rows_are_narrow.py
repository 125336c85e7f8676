"""What a row must not excuse, though it looks like what the row is about."""

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.arch.controls import (
    CPU_MONITOR_TRAP_FLAG,
    CPU_NMI_WINDOW_EXITING,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
)
from nvmx_core.arch.exits import (
    EPT_MISCONFIG,
    EXCEPTION_NMI,
    FAILED_ENTRY,
    INIT_SIGNAL,
    INVALID_STATE,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    TRIPLE_FAULT,
    VMCALL_EXIT,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    FIELD_COUNT,
    GUEST_ACTIVITY,
    GUEST_INTR_STATUS,
    SECONDARY,
)
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    HLT,
)
from nvmx_core.journal import DELIVER, EXIT, L1_ENTRY, RECORD_FIELDS, SMM_ENTRY, Record
from nvmx_fuzz.bochs import divergences as of_every_bochs
from nvmx_fuzz.boot.divergences import listed
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.compare import Difference, Entry, Met
from tests.boot.support import WITH_MONITOR, scenario

CODE, IDT = 0x16000, 0x10000
INT1, MTF, OF, IRQ, NMI_INFO, DB_INFO, PF_INFO = (
    0x80000501, 0x80000700, 0x80000304, 0x80000040, 0x80000202, 0x80000301, 0x80000B0E,
)  # fmt: skip
KERNELS = [(6, 1), (6, 12), (7, 2)]


def record(kind: int, **fields: int) -> Record:
    names = [name.replace(" ", "_").replace("-", "_") for name in RECORD_FIELDS[kind]]
    return (kind, *(fields.get(name, 0) for name in names))


def exit_of(reason: int, **fields: int) -> Record:
    return record(EXIT, **{"reason": reason, "rip": CODE, **fields})


def entry(saved_at: int = -1, **fields: int) -> Entry:
    vmcs = [0] * FIELD_COUNT
    vmcs[GUEST_ACTIVITY], vmcs[CPU_BASED] = fields.get("activity", 0), fields.get("cpu", 0)
    return Entry(vmcs=tuple(vmcs), met=Met(saved_at=saved_at))


def entry_of(steps: str) -> Entry:
    """The entry that L1 makes behind these steps, with its whole VMCS."""
    realised = stand_alone_moved(scenario(f"{steps}L1 enter\n"), WITH_MONITOR).realised
    return realised.entries[-1]


def name_of(
    bare: Record,
    other: Record,
    of: Entry,
    injected: int = 0,
    *,
    before: tuple[Record, ...] = (),
    kernel: tuple[int, int] = (6, 1),
    machine: str = "kvm",
) -> str:
    history = (*before, (L1_ENTRY, injected, 0, 0))
    row = listed(machine, Difference(bare, other, of, history), kernel)
    return row.name if row else ""


# -- out of HLT ------------------------------------------------------------------------------------


def out_of_hlt(reason: int, of: Entry, kernel: tuple[int, int], **fields: int) -> str:
    bare, other = exit_of(reason, activity=HLT, **fields), exit_of(reason, **fields)
    return name_of(bare, other, of, kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_window_makes_active_where_l1_has_asked_for_one(kernel: tuple[int, int]) -> None:
    asked = entry(activity=HLT, cpu=CPU_NMI_WINDOW_EXITING)
    assert out_of_hlt(NMI_WINDOW, asked, kernel) == "window makes active"


def test_an_injected_mtf_exit_makes_active_and_no_exit_behind_it() -> None:
    for reason, name in ((MONITOR_TRAP_FLAG, "window makes active"), (PREEMPTION_TIMER, "")):
        bare, other = exit_of(reason, activity=HLT), exit_of(reason)
        assert name_of(bare, other, entry(activity=HLT), MTF) == name
    assert out_of_hlt(MONITOR_TRAP_FLAG, entry(activity=HLT), (6, 1)) == ""


def test_hlt_with_a_single_step_is_accepted_unless_a_shadow_asks_for_it_too() -> None:
    """G9 asks for it in HLT and under a shadow; KVM enters as active, and leaves it to the processor."""
    bare = exit_of(FAILED_ENTRY | INVALID_STATE, activity=HLT)
    other = record(DELIVER, vector=13, return_rip=CODE)
    steps = "L1 vmwrite GUEST_ACTIVITY 0x1\nL1 inject hardware-exception #GP\n"
    stepping = f"config single-step=on\n{steps}"
    name = "res8: inactive state accepted"
    assert name_of(bare, other, entry_of(steps)) == name
    assert name_of(bare, other, entry_of(stepping)) == name
    shadow = f"{stepping}L1 vmwrite GUEST_INTERRUPTIBILITY 0x1\n"
    assert name_of(bare, other, entry_of(shadow)) == ""


def test_what_is_pending_makes_active_since_6_12() -> None:
    of = entry(activity=HLT)
    assert out_of_hlt(INIT_SIGNAL, of, (6, 1)) == ""
    assert out_of_hlt(INIT_SIGNAL, of, (6, 12)) == "what is pending makes active"
    assert out_of_hlt(INIT_SIGNAL, entry(), (6, 12)) == ""  # HLT is L2's own
    halted = entry()._replace(met=Met(executed=1 << INSTRUCTION_INDEX["hlt"]))
    assert out_of_hlt(MONITOR_TRAP_FLAG, halted, (6, 12)) == "what is pending makes active"
    assert out_of_hlt(MONITOR_TRAP_FLAG, halted, (6, 1)) == ""
    step = out_of_hlt(EXCEPTION_NMI, halted, (6, 12), interruption_info=DB_INFO)
    assert step == "what is pending makes active"
    assert out_of_hlt(MONITOR_TRAP_FLAG, entry(), (6, 12)) == ""


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_nmi_makes_active_and_another_exit_does_not(kernel: tuple[int, int]) -> None:
    name = "NMI makes active"
    assert out_of_hlt(EXCEPTION_NMI, entry(), kernel, interruption_info=NMI_INFO) == name
    assert out_of_hlt(PREEMPTION_TIMER, entry(), kernel) == ""


def test_an_smi_that_ends_hlt_lets_l2_run_to_what_brings_l1_back() -> None:
    of = entry()._replace(met=Met(smi_at=CODE, smi_activity=HLT))
    bare = exit_of(EXCEPTION_NMI, interruption_info=NMI_INFO, activity=HLT)
    assert name_of(bare, exit_of(VMCALL_EXIT), of) == "SMI ends HLT"
    assert name_of(bare, exit_of(PREEMPTION_TIMER), of) == ""
    assert name_of(bare, exit_of(VMCALL_EXIT), entry()) == ""


# -- failed entries --------------------------------------------------------------------------------


def test_a_failed_entry_is_the_processors_where_kvm_has_no_check() -> None:
    reason = INVALID_STATE | FAILED_ENTRY
    bare, other = exit_of(reason, activity=HLT), exit_of(reason)
    asleep = "L1 vmwrite GUEST_ACTIVITY 0x1\n"
    closed = entry_of(f"{asleep}L1 vmwrite GUEST_RFLAGS 0x2\nL1 inject external-interrupt 0x40\n")
    linked = entry_of(f"{asleep}L1 vmwrite VMCS_LINK_POINTER 0x0\n")
    assert name_of(bare, other, closed) == "failed entry saves the activity state"
    assert name_of(bare, other, linked) == ""
    assert name_of(bare, other, entry_of(asleep)) == ""


# -- injections ------------------------------------------------------------------------------------


def test_an_int1_that_is_dropped_leaves_l2_where_it_was() -> None:
    bare = record(DELIVER, vector=1, return_rip=CODE + 1, rflags=2)
    name = "res3: INT1 dropped"
    of = entry_of("L1 inject privileged-software-exception #DB length=1\n")
    assert name_of(bare, exit_of(VMCALL_EXIT), of, INT1) == name
    faults = record(DELIVER, vector=1, return_rip=CODE, rflags=2)
    assert name_of(bare, faults, of, INT1) == name
    came = record(DELIVER, vector=1, return_rip=CODE + 1, rflags=0x102)
    assert name_of(bare, came, of, INT1) == ""
    assert name_of(bare, record(SMM_ENTRY), of, INT1) == name
    assert name_of(bare, exit_of(TRIPLE_FAULT), of, INT1) == ""


@pytest.mark.parametrize(("behind", "name"), [(2, "res2: stale length"), (-1, ""), (0x100, "")])
def test_a_stale_length_is_one_of_an_instruction(behind: int, name: str) -> None:
    bare = record(DELIVER, vector=4, return_rip=CODE)
    other = record(DELIVER, vector=4, return_rip=CODE + behind)
    assert name_of(bare, other, entry(), OF) == name


def test_an_mtf_exit_before_init_needs_the_monitor_trap_flag() -> None:
    bare, other = exit_of(INIT_SIGNAL), exit_of(MONITOR_TRAP_FLAG)
    assert name_of(bare, other, entry(cpu=CPU_MONITOR_TRAP_FLAG), IRQ) == "MTF exit before INIT"
    assert name_of(bare, other, entry(), MTF) == "MTF exit before INIT"
    assert name_of(bare, other, entry(), IRQ) == ""


@pytest.mark.parametrize("shadow", [BLOCKING_BY_STI, BLOCKING_BY_MOV_SS])
def test_bochs_drops_the_shadow_of_an_injected_mtf_exit_and_nothing_else(shadow: int) -> None:
    def shown(bits: int, other_bits: int, injected: int = MTF, machine: str = "bochs-boot") -> str:
        bare = exit_of(MONITOR_TRAP_FLAG, interruptibility=bits)
        other = exit_of(MONITOR_TRAP_FLAG, interruptibility=other_bits)
        return name_of(bare, other, entry(), injected, machine=machine)

    name = "shadow lost by an injected MTF exit"
    assert shown(shadow, 0) == name
    assert shown(shadow | BLOCKING_BY_NMI, BLOCKING_BY_NMI) == name
    assert shown(shadow | BLOCKING_BY_NMI, 0) == shown(0, shadow) == ""
    assert shown(shadow, 0, IRQ) == ""
    assert shown(shadow, 0, machine="kvm-bochs") == name
    assert shown(shadow, 0, machine="kvm") == ""


# -- what Bochs does by itself, and L0 does not let it -----------------------------------------------


def test_what_can_show_below_an_l0_is_known_there() -> None:
    names = {row.name for row in of_every_bochs.DIVERGENCES if row.below_l0}
    assert "single step not pending" in names
    assert "failed entry rewrites exit information" not in names


def test_a_wrong_vector_with_an_error_code_shifts_the_frame() -> None:
    """Bochs; below it L0 injects another event for a virtual interrupt, here one that pushes a word more."""
    vmcs = list(entry().vmcs)
    vmcs[SECONDARY], vmcs[GUEST_INTR_STATUS] = SECONDARY_VIRTUAL_INTR_DELIVERY, 0x61
    of = Entry(vmcs=tuple(vmcs))
    bare = record(DELIVER, vector=6, return_rip=CODE, rflags=2)
    name = "virtual interrupt with another vector"
    for rflags, expected in ((0x10, name), (0x202, "")):
        other = record(DELIVER, vector=6, return_rip=CODE, rflags=rflags)
        assert name_of(bare, other, of, machine="kvm-bochs") == expected
        assert name_of(bare, other, of, machine="kvm") == ""


# -- others ----------------------------------------------------------------------------------------


def test_the_timer_of_an_earlier_entry_needs_one() -> None:
    bare, other = exit_of(PREEMPTION_TIMER), exit_of(PREEMPTION_TIMER, preemption_timer=0xFFFF0000)
    earlier = ((L1_ENTRY, 0, 0, 0), exit_of(VMCALL_EXIT))
    assert name_of(bare, other, entry(), before=earlier) == "timer of an earlier entry"
    assert name_of(bare, other, entry()) == ""


def test_a_restore_that_loses_pdptes_faults_with_the_fetch() -> None:
    saved = entry(saved_at=CODE)
    name, bare = "PDPTEs lost by a restore", exit_of(VMCALL_EXIT)
    fetch = exit_of(EXCEPTION_NMI, interruption_info=PF_INFO, qualification=CODE)
    assert name_of(bare, fetch, saved) == name
    across = exit_of(EXCEPTION_NMI, interruption_info=PF_INFO, qualification=CODE + 6)
    assert name_of(bare, across, saved) == name
    gate = exit_of(EXCEPTION_NMI, interruption_info=PF_INFO, qualification=IDT)
    assert name_of(bare, gate, saved) == ""
    in_delivery = exit_of(
        EXCEPTION_NMI, interruption_info=PF_INFO, qualification=IDT, IDT_vectoring_info=IRQ
    )
    assert name_of(bare, in_delivery, saved) == name
    assert name_of(bare, exit_of(TRIPLE_FAULT), saved) == name


def test_a_qualified_misconfiguration_has_no_other_shadow() -> None:
    bare = exit_of(EPT_MISCONFIG, interruptibility=BLOCKING_BY_NMI | BLOCKING_BY_STI)
    name = "qualification of an EPT misconfiguration"
    for left, expected in ((BLOCKING_BY_STI, name), (BLOCKING_BY_NMI, "")):
        other = exit_of(EPT_MISCONFIG, interruptibility=left, qualification=0x181)
        assert name_of(bare, other, entry()) == expected
