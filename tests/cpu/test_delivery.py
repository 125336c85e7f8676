"""Delivery of events through L2's IDT (D1 to D6), double and triple faults (F1 to F5)."""

import pytest

from nvmx_core.arch.events import (
    BP,
    DB,
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_VECTOR,
    NP,
    OF,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TS,
    UD,
)
from nvmx_core.arch.exits import CPUID_EXIT, EPT_VIOLATION, EXCEPTION_NMI, TRIPLE_FAULT
from nvmx_core.arch.fields import ENTRY_INTR_INFO, GUEST_RFLAGS, POISON
from nvmx_core.arch.state import ACTIVE, RFLAGS_IF, RFLAGS_NT, RFLAGS_OF, RFLAGS_RF, RFLAGS_TF
from nvmx_core.guests.memory import (
    CODE_BASE,
    GATE_NOT_PRESENT,
    GATE_PRIVILEGED,
    IDT_HIGH,
    IDT_LOW,
    STACK,
    handler_rip,
    page_address,
)
from tests.support import (
    RFLAGS_START,
    absent,
    enter,
    ept,
    event,
    gate,
    inject,
    intercept,
    nmi,
    play,
    run,
    vmwrite,
)

NOT_PRESENT_ERROR = 2
"""Bit 1 of an error code: the index is one of the IDT."""
EXT = 1


def idt_error(vector: int, ext: int) -> int:
    """The error code of a fault about a gate."""
    return vector << 3 | NOT_PRESENT_ERROR | ext


# -- D ----


@pytest.mark.parametrize(
    ("event_type", "vector"),
    [(EXTERNAL_INTERRUPT, 0x40), (NMI, 2), (HARDWARE_EXCEPTION, UD), (SOFTWARE_EXCEPTION, BP)],
)
def test_d1_an_injected_event_is_never_intercepted(event_type: int, vector: int) -> None:
    moves = (intercept(UD), intercept(BP), inject(event_type, vector, length=1), enter())
    seen = play(*moves)
    assert seen.exits == []
    assert seen.vectors == [vector]


def test_d1_what_the_delivery_meets_is_intercepted() -> None:
    seen = play(intercept(NP), gate(UD, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, UD), enter())
    assert seen.exit.vector == NP


def test_d2_pushed_rflags_are_the_guests_as_loaded() -> None:
    flags = RFLAGS_START | RFLAGS_TF | RFLAGS_NT | RFLAGS_OF
    seen = play(vmwrite(GUEST_RFLAGS, flags), inject(NMI, 2), enter())
    assert seen.delivered[0].rflags == flags


@pytest.mark.parametrize("rf", [0, RFLAGS_RF])
def test_d2_rf_is_pushed_as_the_host_left_it(rf: int) -> None:
    flags = RFLAGS_START | rf
    seen = play(vmwrite(GUEST_RFLAGS, flags), inject(HARDWARE_EXCEPTION, UD), enter())
    assert seen.delivered[0].rflags == flags


@pytest.mark.parametrize(
    ("event_type", "vector"), [(EXTERNAL_INTERRUPT, 0x40), (NMI, 2), (SOFTWARE_INTERRUPT, 0x80)]
)
def test_d2_rf_is_pushed_for_every_type(event_type: int, vector: int) -> None:
    flags = RFLAGS_START | RFLAGS_RF
    seen = play(vmwrite(GUEST_RFLAGS, flags), inject(event_type, vector, length=2), enter())
    assert seen.delivered[0].rflags == flags


def test_d2_the_handler_starts_without_if_tf_nt_and_rf() -> None:
    flags = RFLAGS_START | RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_OF
    seen = play(vmwrite(GUEST_RFLAGS, flags), inject(NMI, 2), enter())
    assert seen.end.rflags & (RFLAGS_IF | RFLAGS_TF | RFLAGS_NT | RFLAGS_RF) == 0
    assert seen.end.rflags & RFLAGS_OF


def test_d2_a_natural_fault_pushes_rf_1() -> None:
    seen = play(enter(), run("ud2"))
    assert seen.delivered[0].rflags == RFLAGS_START | RFLAGS_RF


def test_d2_a_natural_trap_pushes_rf_0() -> None:
    seen = play(enter(), run("nop"), on="single-step")
    assert seen.vectors == [DB]
    assert seen.delivered[0].rflags & RFLAGS_RF == 0


@pytest.mark.parametrize("page", [IDT_HIGH, STACK])
def test_d3_injected_and_natural_int_n_meet_the_same(page: int) -> None:
    natural = play(ept(page), enter(), run("int", 0x80)).exit
    injected = play(ept(page), inject(SOFTWARE_INTERRUPT, 0x80, length=2), enter()).exit
    assert natural.reason == injected.reason == EPT_VIOLATION
    assert natural.vectoring == injected.vectoring
    assert natural.length == injected.length
    assert natural.rip == injected.rip
    assert natural.qualification == injected.qualification


def test_d4_a_delivered_fault_replaces_the_event() -> None:
    moves = (gate(0x40, GATE_NOT_PRESENT), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    seen = play(*moves, run("cpuid"))
    assert seen.vectors == [NP]
    assert seen.exit.reason == CPUID_EXIT
    assert seen.exit.vectoring == 0


def test_d4_the_fault_of_an_int_n_returns_to_the_int_n() -> None:
    seen = play(gate(0x80, GATE_NOT_PRESENT), enter(), run("int", 0x80))
    assert seen.vectors == [NP]
    assert seen.delivered[0].return_rip == CODE_BASE


def test_d4_an_injected_int_n_that_faults_returns_to_rip_as_loaded() -> None:
    inject_int = inject(SOFTWARE_INTERRUPT, 0x80, length=2)
    seen = play(gate(0x80, GATE_NOT_PRESENT), inject_int, enter())
    assert seen.delivered[0].return_rip == CODE_BASE


def test_d5_real_mode_pushes_no_error_code() -> None:
    seen = play(inject(HARDWARE_EXCEPTION, GP), enter(), on="real-mode")
    assert seen.delivered[0].error_code == POISON


def test_d5_an_exception_exit_in_real_mode_has_no_error_code() -> None:
    seen = play(intercept(GP), enter(), run("gp"), on="real-mode")
    assert seen.exit.interruption == event(HARDWARE_EXCEPTION, GP)
    assert seen.exit.error_code == POISON


def test_d5_real_mode_has_no_gates() -> None:
    seen = play(gate(0x40, GATE_NOT_PRESENT), inject(0, 0x40), enter(), on="real-mode")
    assert seen.vectors == [0x40]


def test_d6_an_exit_clears_only_the_valid_bit_of_the_injection() -> None:
    seen = play(inject(HARDWARE_EXCEPTION, GP, error=0x1234, length=7), enter(), run("cpuid"))
    assert seen.exit.entry_info == event(HARDWARE_EXCEPTION, GP, error_code=True) & ~(1 << 31)
    assert seen.exit.entry_error_code == 0x1234
    assert seen.exit.entry_length == 7


def test_d6_an_exit_during_the_injection_clears_it_too() -> None:
    seen = play(ept(STACK), inject(NMI, 2), enter())
    assert seen.exit.reason == EPT_VIOLATION
    assert seen.vmcs[ENTRY_INTR_INFO] == event(NMI, 2) & ~(1 << 31)


# -- the table of types ----


@pytest.mark.parametrize(
    ("event_type", "vector"), [(EXTERNAL_INTERRUPT, 0x40), (NMI, 2), (HARDWARE_EXCEPTION, UD)]
)
def test_d3_types_0_2_3_push_rip_as_loaded(event_type: int, vector: int) -> None:
    seen = play(inject(event_type, vector, length=5), enter())
    assert seen.delivered[0].return_rip == CODE_BASE


@pytest.mark.parametrize(
    ("event_type", "vector"),
    [(SOFTWARE_INTERRUPT, 0x80), (PRIVILEGED_SOFTWARE_EXCEPTION, DB), (SOFTWARE_EXCEPTION, BP)],
)
def test_d3_types_4_5_6_push_rip_plus_the_entry_length(event_type: int, vector: int) -> None:
    seen = play(inject(event_type, vector, length=5), enter())
    assert seen.delivered[0].return_rip == CODE_BASE + 5


def test_d3_an_injected_error_code_is_pushed() -> None:
    seen = play(inject(HARDWARE_EXCEPTION, GP, error=0xBEEF), enter())
    assert seen.delivered[0].error_code == 0xBEEF
    assert seen.end.rip == handler_rip(GP)


def test_d3_an_injected_page_fault_does_not_write_cr2() -> None:
    seen = play(inject(HARDWARE_EXCEPTION, PF), enter())
    assert seen.vectors == [PF]
    assert seen.delivered[0].cr2 == 0


def test_d3_an_injected_debug_exception_does_not_write_dr6() -> None:
    seen = play(inject(HARDWARE_EXCEPTION, DB), enter())
    assert seen.delivered[0].dr6 == 0


@pytest.mark.parametrize(
    ("event_type", "vector"), [(SOFTWARE_INTERRUPT, UD), (SOFTWARE_EXCEPTION, OF)]
)
def test_d3_types_4_and_6_check_the_privilege_of_the_gate(event_type: int, vector: int) -> None:
    moves = (gate(vector, GATE_PRIVILEGED), inject(event_type, vector, length=2), enter())
    seen = play(*moves, on="user-mode")
    assert seen.vectors == [GP]
    assert seen.delivered[0].error_code == idt_error(vector, ext=0)


@pytest.mark.parametrize(
    ("event_type", "vector"),
    [
        (EXTERNAL_INTERRUPT, 0x40),
        (NMI, NMI_VECTOR),
        (HARDWARE_EXCEPTION, UD),
        (PRIVILEGED_SOFTWARE_EXCEPTION, DB),
    ],
)
def test_d3_other_types_do_not_check_the_privilege_of_the_gate(
    event_type: int, vector: int
) -> None:
    moves = (gate(vector, GATE_PRIVILEGED), inject(event_type, vector, length=1), enter())
    assert play(*moves, on="user-mode").vectors == [vector]


@pytest.mark.parametrize(
    ("event_type", "vector", "ext"),
    [
        (EXTERNAL_INTERRUPT, 0x40, EXT),
        (NMI, NMI_VECTOR, EXT),
        (HARDWARE_EXCEPTION, UD, EXT),
        (SOFTWARE_INTERRUPT, 0x80, 0),
        (PRIVILEGED_SOFTWARE_EXCEPTION, DB, EXT),
        (SOFTWARE_EXCEPTION, BP, 0),
    ],
)
def test_d3_ext_bit_of_the_first_nested_fault(event_type: int, vector: int, ext: int) -> None:
    moves = (gate(vector, GATE_NOT_PRESENT), inject(event_type, vector, length=1), enter())
    seen = play(*moves)
    assert seen.vectors == [NP]
    assert seen.delivered[0].error_code == idt_error(vector, ext)


@pytest.mark.parametrize(
    ("instruction", "operand", "vector", "ext"),
    [("int", 0x80, 0x80, 0), ("int3", 0, BP, 0), ("int1", 0, DB, EXT), ("ud2", 0, UD, EXT)],
)
def test_d3_ext_bit_of_natural_events(
    instruction: str, operand: int, vector: int, ext: int
) -> None:
    seen = play(gate(vector, GATE_NOT_PRESENT), enter(), run(instruction, operand))
    assert seen.delivered[0].error_code == idt_error(vector, ext)


def test_d3_every_later_nested_fault_has_ext_1() -> None:
    gates = (gate(0x80, GATE_PRIVILEGED), gate(GP, GATE_NOT_PRESENT))
    seen = play(intercept(NP), *gates, enter(), run("int", 0x80), on="user-mode")
    assert seen.exit.vectoring == event(HARDWARE_EXCEPTION, GP, error_code=True)
    assert seen.exit.error_code == idt_error(GP, EXT)


def test_d3_a_page_fault_has_no_ext_bit() -> None:
    seen = play(absent(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert seen.vectors == [PF]
    assert seen.delivered[0].error_code == 0
    assert seen.delivered[0].cr2 == page_address(IDT_HIGH)


def test_d3_accesses_of_a_delivery_are_supervisor_accesses() -> None:
    moves = (intercept(PF), absent(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert play(*moves, on="user-mode").exit.error_code == 0


# -- F ----


@pytest.mark.parametrize("vector", [0, TS, NP, 12, GP])
def test_f1_an_injected_contributory_exception_merges(vector: int) -> None:
    seen = play(gate(vector, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, vector), enter())
    assert seen.vectors == [DF]


def test_f1_an_injected_page_fault_merges_with_a_contributory_fault() -> None:
    seen = play(gate(PF, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, PF), enter())
    assert seen.vectors == [DF]


def test_f1_an_injected_page_fault_merges_with_a_page_fault() -> None:
    moves = (intercept(DF), absent(STACK), inject(HARDWARE_EXCEPTION, PF), enter())
    assert play(*moves).exit.vector == DF


@pytest.mark.parametrize(
    ("event_type", "vector"),
    [
        (EXTERNAL_INTERRUPT, 0x40),
        (EXTERNAL_INTERRUPT, GP),
        (NMI, NMI_VECTOR),
        (HARDWARE_EXCEPTION, UD),
        (HARDWARE_EXCEPTION, DB),
        (SOFTWARE_INTERRUPT, GP),
        (SOFTWARE_INTERRUPT, PF),
        (PRIVILEGED_SOFTWARE_EXCEPTION, DB),
        (SOFTWARE_EXCEPTION, BP),
    ],
)
def test_f1_every_other_injected_event_is_benign(event_type: int, vector: int) -> None:
    moves = (gate(vector, GATE_NOT_PRESENT), inject(event_type, vector, length=1), enter())
    assert play(*moves).vectors == [NP]


def test_f1_an_injected_double_fault_has_its_class() -> None:
    seen = play(gate(DF, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, DF), enter())
    assert seen.exit.reason == TRIPLE_FAULT


def test_f2_a_fault_while_delivering_a_merged_double_fault_is_a_triple_fault() -> None:
    gates = (gate(GP, GATE_NOT_PRESENT), gate(DF, GATE_NOT_PRESENT))
    seen = play(*gates, enter(), run("gp"))
    assert seen.exit.reason == TRIPLE_FAULT
    assert seen.delivered == []


def test_f2_a_page_fault_while_delivering_a_double_fault_is_a_triple_fault() -> None:
    seen = play(absent(IDT_LOW), inject(HARDWARE_EXCEPTION, DF), enter())
    assert seen.exit.reason == TRIPLE_FAULT


def test_f2_the_interception_of_the_fault_is_decided_first() -> None:
    moves = (intercept(NP), gate(DF, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, DF), enter())
    assert play(*moves).exit.reason == EXCEPTION_NMI


def test_f2_the_page_fault_that_makes_the_triple_fault_has_written_cr2() -> None:
    """The decision of docs/SOURCES.md; the value after exit 2 is not for comparison."""
    seen = play(absent(IDT_LOW), inject(HARDWARE_EXCEPTION, DF), enter())
    assert seen.machine.cpu.cr2 == page_address(IDT_LOW)


def test_f3_an_intercepted_fault_while_delivering_a_double_fault() -> None:
    moves = (intercept(NP), gate(DF, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, DF), enter())
    seen = play(*moves)
    assert seen.exit.interruption == event(HARDWARE_EXCEPTION, NP, error_code=True)
    assert seen.exit.error_code == idt_error(DF, EXT)
    assert seen.exit.vectoring == event(HARDWARE_EXCEPTION, DF, error_code=True)
    assert seen.exit.vectoring_error_code == 0


def test_f3_the_same_for_a_merged_double_fault() -> None:
    moves = (intercept(PF), absent(STACK), gate(GP, GATE_NOT_PRESENT), enter(), run("gp"))
    seen = play(*moves)
    assert seen.exit.vector == PF
    assert seen.exit.vectoring == event(HARDWARE_EXCEPTION, DF, error_code=True)
    assert seen.exit.vectoring_error_code == 0


def test_f4_a_triple_fault_exits_under_any_controls() -> None:
    gates = (gate(GP, GATE_NOT_PRESENT), gate(DF, GATE_NOT_PRESENT))
    seen = play(*gates, enter(), run("nop"), run("gp"), off="nmi-exiting virtual-nmis")
    assert seen.exit.reason == TRIPLE_FAULT
    assert seen.exit.vectoring == 0
    assert seen.exit.interruption == 0
    assert seen.exit.rip == CODE_BASE + 1


def test_f4_a_triple_fault_is_no_shutdown() -> None:
    seen = play(gate(DF, GATE_NOT_PRESENT), inject(HARDWARE_EXCEPTION, DF), enter())
    assert seen.exit.activity == ACTIVE


def test_f5_a_merged_double_fault_pushes_error_code_0() -> None:
    seen = play(gate(GP, GATE_NOT_PRESENT), enter(), run("gp"))
    assert seen.vectors == [DF]
    assert seen.delivered[0].error_code == 0


def test_f5_a_merged_double_fault_exits_as_type_3_with_error_code_0() -> None:
    seen = play(intercept(DF), gate(GP, GATE_NOT_PRESENT), enter(), run("gp"))
    assert seen.exit.interruption == event(HARDWARE_EXCEPTION, DF, error_code=True)
    assert seen.exit.error_code == 0


def test_f5_cr2_is_written_by_the_page_fault_that_merges() -> None:
    """A #PF that becomes part of #DF was not intercepted, so it has happened (SOURCES: CR2)."""
    moves = (intercept(DF), absent(IDT_LOW), inject(HARDWARE_EXCEPTION, PF), enter())
    assert play(*moves).exit.cr2 == page_address(IDT_LOW)


def test_f2_a_natural_nmi_is_benign() -> None:
    moves = (gate(NMI_VECTOR, GATE_NOT_PRESENT), enter(), nmi())
    assert play(*moves, off="nmi-exiting virtual-nmis").vectors == [NP]
