"""Stops of our monitor: which page L2 touches first at a moment, and what is not made."""

import re

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.arch.exits import INIT_SIGNAL, SIPI_SIGNAL
from nvmx_core.guests.memory import CODE, DATA, HANDLER, IDT_HIGH, IDT_LOW, STACK, page_address
from nvmx_core.journal import EXIT, RECORD_FIELDS, SMM_ENTRY
from nvmx_core.scenario.steps import INIT, INTERRUPT, NMI, SIPI, SMI
from nvmx_fuzz.boot import linux, stops
from nvmx_fuzz.boot.moved import fit_booting
from nvmx_fuzz.boot.predicted import journal_on_bare, predicting_bugs
from nvmx_fuzz.boot.program import SELF_INTERRUPT, STOP
from nvmx_fuzz.boot.reading import journal_of, visible
from nvmx_fuzz.boot.standalone import Standalone
from nvmx_fuzz.boot.stopping import READS_LOW_PAGE, stand_alone
from nvmx_fuzz.compare import first_difference
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.l1_program import ENTER, STORE_BYTES
from nvmx_fuzz.realise.vmcs import NotRealisableError
from tests.boot.support import WITH_MONITOR, perfect_line, scenario, standing

AN_INTERRUPT = stops.message(INTERRUPT, 0x51)
AN_NMI = stops.message(NMI, 0)


def with_monitor(text: str) -> Standalone:
    return standing(text, WITH_MONITOR)


def stops_of(text: str) -> list[tuple[int, int, int]]:
    """The stops of a scenario, in order: place, where, what."""
    script = with_monitor(text).realised.script
    return [(place, where, what) for op, place, where, what in script if op == STOP]


def at_page(page: int, what: int) -> tuple[int, int, int]:
    return stops.AT_PAGE, page_address(page), what


# -- arrivals in a delivery ------------------------------------------------------------------------


@pytest.mark.parametrize(("vector", "page"), [(0x40, IDT_HIGH), (0x1F, IDT_LOW)])
def test_an_arrival_in_a_delivery_comes_when_the_gate_is_read(vector: int, page: int) -> None:
    text = (
        f"outside interrupt 0x51 in-delivery\nL1 inject external-interrupt {vector:#x}\nL1 enter\n"
    )
    assert stops_of(text) == [at_page(page, AN_INTERRUPT)]
    assert SELF_INTERRUPT not in [op for op, *_ in with_monitor(text).realised.script]


def test_it_comes_when_the_stack_is_written_if_l0_has_dropped_the_stack() -> None:
    text = (
        "L0 drop-page stack\noutside interrupt 0x51 in-delivery\n"
        "L1 inject external-interrupt 0x40\nL1 enter\n"
    )
    assert stops_of(text) == [at_page(STACK, AN_INTERRUPT)]


def test_what_comes_in_one_delivery_comes_at_one_stop() -> None:
    text = (
        "outside nmi in-delivery\noutside interrupt 0x51 in-delivery\n"
        "L1 inject external-interrupt 0x40\nL1 enter\n"
    )
    assert stops_of(text) == [at_page(IDT_HIGH, AN_NMI), (stops.ALSO, 0, AN_INTERRUPT)]


def test_a_stop_stands_before_the_entry_that_it_belongs_to() -> None:
    text = (
        "L1 enter\nL2 cpuid\noutside nmi in-delivery\nL1 inject external-interrupt 0x40\nL1 enter\n"
    )
    kinds = [op for op, *_ in with_monitor(text).realised.script if op in (STOP, ENTER)]
    assert kinds == [ENTER, STOP, ENTER]


def test_a_gate_that_l2_has_not_mapped_is_no_place_to_stop() -> None:
    text = (
        "L2 page idt-high absent\noutside nmi in-delivery\n"
        "L1 inject external-interrupt 0x40\nL1 enter\n"
    )
    with pytest.raises(NotRealisableError, match="nmi-in-delivery"):
        stand_alone(scenario(text), WITH_MONITOR)


def test_a_second_delivery_through_the_same_page_is_no_place_to_stop() -> None:
    text = (
        "L1 inject external-interrupt 0x40\nL1 enter\n"
        "outside nmi in-delivery\nL2 int 0x41\nL2 nop\nL2 cpuid\n"
    )
    with pytest.raises(NotRealisableError, match="nmi-in-delivery"):
        stand_alone(scenario(text), WITH_MONITOR)


# -- arrivals at a boundary, at the entry, in L1 ---------------------------------------------------


def test_an_arrival_at_a_boundary_comes_with_the_first_fetch_from_a_page() -> None:
    assert stops_of("L1 enter\noutside nmi\n") == [at_page(CODE, AN_NMI)]
    text = "L1 enter\nL2 nop\nL2 ud2\noutside nmi\n"
    assert stops_of(text) == [at_page(HANDLER, AN_NMI)]


def test_where_l2_exits_it_finds_an_instruction_that_reads_a_page() -> None:
    text = "L1 enter\nL2 nop\noutside nmi\n"
    assert stops_of(text) == [(stops.AT_PAGE, layout.LOW_PAGE, AN_NMI)]
    code = {op[1]: op[2] for op in with_monitor(text).realised.script if op[0] == STORE_BYTES}
    where = page_address(CODE) + 1
    assert bytes(code[where + offset] for offset in range(5)) == READS_LOW_PAGE


def test_an_arrival_without_effect_comes_with_the_data_that_l2_reads_next() -> None:
    text = (
        "config virtual-nmis=off\nL1 vmwrite GUEST_INTERRUPTIBILITY 0x8\nL1 enter\n"
        "L2 nop\noutside nmi\nL2 load\nL2 cpuid\n"
    )
    script = stand_alone(scenario(text), WITH_MONITOR).realised.script
    assert (STOP, *at_page(DATA, AN_NMI)) in script


def test_l2_that_sleeps_is_waited_for() -> None:
    assert stops_of("L1 enter\nL2 hlt\noutside interrupt 0x51\n") == [
        (stops.ASLEEP, 0, AN_INTERRUPT)
    ]


def test_an_arrival_while_l0_emulates_comes_with_the_port() -> None:
    found = stops_of("L1 enter\noutside interrupt 0x51 in-emulation\nL2 out\n")
    assert found == [(stops.AT_PORT, stops.PORT, AN_INTERRUPT)]


def test_an_init_in_l1_is_sent_at_once() -> None:
    assert stops_of("outside init\nL1 enter\n") == [(stops.NOW, 0, stops.message(INIT, 0))]


def test_an_nmi_at_the_entry_comes_in_the_delivery_of_what_l1_injects() -> None:
    text = "outside nmi at-entry\nL1 inject external-interrupt 0x40\nL1 enter\n"
    assert stops_of(text) == [at_page(IDT_HIGH, AN_NMI)]


def test_an_nmi_at_the_entry_is_not_made_in_its_own_delivery() -> None:
    text = (
        "config nmi-exiting=off virtual-nmis=off external-interrupt-exiting=off\n"
        "outside nmi at-entry\noutside interrupt 0x51 at-entry\nL1 enter\n"
    )
    with pytest.raises(NotRealisableError, match="nmi-at-entry"):
        with_monitor(text)


# -- steps of L0 -----------------------------------------------------------------------------------


def test_l0_drops_its_pages_at_a_later_entry_only() -> None:
    assert stops_of("L0 drop-page stack\nL1 enter\nL2 cpuid\n") == []
    text = "L1 enter\nL2 cpuid\nL0 drop-page stack\nL0 drop-page code\nL1 enter\nL2 cpuid\n"
    assert stops_of(text) == [(stops.NOW, 0, stops.DROP_ALL)]


def test_the_processor_is_saved_in_a_delivery_and_in_l1() -> None:
    text = "L0 save-restore in-delivery\nL1 inject external-interrupt 0x40\nL1 enter\n"
    assert stops_of(text) == [at_page(IDT_HIGH, stops.SAVE)]
    assert stops_of("L0 save-restore\nL1 enter\nL2 cpuid\n") == [(stops.NOW, 0, stops.SAVE)]


def test_steps_of_an_entry_are_made_at_its_first_stop() -> None:
    text = "L0 cancel-entry\nL0 save-restore at-entry\nL1 enter\nL2 cpuid\n"
    assert stops_of(text) == [at_page(CODE, stops.CANCEL), (stops.ALSO, 0, stops.SAVE)]


# -- SMIs ------------------------------------------------------------------------------------------


def test_a_scenario_that_ends_in_smm_goes_on_to_the_rsm() -> None:
    text = "outside smi in-delivery\nL1 inject external-interrupt 0x40\nL1 enter\n"
    assert stops_of(text) == [at_page(IDT_HIGH, stops.message(SMI, 0))]
    assert len(fit_booting(scenario(text), WITH_MONITOR).steps) == 4


def test_what_comes_in_smm_comes_with_the_port_of_its_handler() -> None:
    text = (
        "outside smi in-delivery\nL1 inject external-interrupt 0x40\nL1 enter\n"
        "outside interrupt 0x51\noutside rsm\n"
    )
    assert stops_of(text)[1] == (stops.AT_PORT, stops.SMM_PORT, AN_INTERRUPT)


def test_an_smi_that_comes_elsewhere_is_a_difference() -> None:
    expected = with_monitor(
        "outside smi in-delivery\nL1 inject external-interrupt 0x40\nL1 enter\n"
    )
    ours = visible(expected.realised.journal)
    (place,) = [(record[1], record[2]) for record in ours if record[0] == SMM_ENTRY]
    line = perfect_line(expected)
    assert visible(journal_of(line, expected, [place])) == ours
    assert visible(journal_of(line, expected)) != ours
    assert visible(journal_of(line, expected, [(0, 0)])) != ours


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "op", "reason"),
    [
        ("L1 enter\nL2 hlt\n", INIT, INIT_SIGNAL),
        ("L1 vmwrite GUEST_ACTIVITY 0x3\nL1 enter\n", SIPI, SIPI_SIGNAL),
    ],
)
def test_l2_that_sleeps_at_the_end_is_brought_back(text: str, op: int, reason: int) -> None:
    assert stops_of(text) == [(stops.ASLEEP, 0, stops.message(op, 0))]
    assert with_monitor(text).last_exit == reason


# -- what others know of it ------------------------------------------------------------------------


def test_the_monitor_knows_the_same_places_and_actions() -> None:
    source = linux.MONITOR_SOURCES[1].read_text()
    (wheres,) = re.findall(r"enum place \{ (.*) \}", source)
    assert wheres.split(", ") == ["NOW", "AT_PAGE", "ASLEEP", "AT_PORT", "ALSO"]
    assert (stops.NOW, stops.AT_PAGE, stops.ASLEEP, stops.AT_PORT, stops.ALSO) == (0, 1, 2, 3, 4)
    (whats,) = re.findall(r"enum action \{ (.*) \}", source)
    assert whats.split(", ") == ["NOTHING", "MESSAGE", "SAVE_RESTORE", "CANCEL", "DROP_ALL"]
    actions = (stops.NOTHING, stops.MESSAGE, stops.SAVE, stops.CANCEL, stops.DROP_ALL)
    assert actions == (0, 1, 2, 3, 4)


def test_the_catalogue_predicts_what_a_save_loses() -> None:
    """res11, as Linux 6.1 showed it: the injected #BP is gone, the interrupt exits before it."""
    text = (
        "L0 save-restore in-delivery\noutside interrupt 0x51 in-delivery\n"
        "L1 inject software-exception #BP length=1\nL1 enter\n"
    )
    found = fit_booting(scenario(text), WITH_MONITOR)
    bare = journal_on_bare(found, has_rf=False)
    entered, _delivered, exited, ended = bare
    values = dict(zip(RECORD_FIELDS[EXIT], exited[1:], strict=True))
    values |= {"rip": page_address(CODE), "rsp": 0x14800, "rflags": 0x202}
    shown = [entered, (EXIT, *values.values()), ended]
    different = first_difference(bare, shown, ())
    assert different
    assert list(predicting_bugs(found, bare, different, has_rf=False, version="kvm-6.1")) == [
        "res11"
    ]


@pytest.mark.parametrize(
    "steps",
    ["outside nmi at-entry\nL1 inject nmi\nL1 enter\n", "L1 inject nmi\nL1 enter\noutside nmi\n"],
)
def test_an_event_of_l2_may_be_late_wherever_in_its_stay_it_came(steps: str) -> None:
    found = scenario(f"config nmi-exiting=off virtual-nmis=off\n{steps}")
    assert stand_alone(found, WITH_MONITOR).realised.entries[-1].met.late_event
    taken = scenario(f"config virtual-nmis=off\n{steps}")  # L1 has them exit
    assert not stand_alone(taken, WITH_MONITOR).realised.entries[-1].met.late_event
