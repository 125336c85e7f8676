"""What is listed of Bochs 3.0 and KVM 6.1, and what the catalogue of bugs predicts."""

from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.arch.controls import PIN_NMI_EXITING
from nvmx_core.arch.fields import PIN_BASED
from nvmx_core.arch.rules import RULES
from nvmx_core.journal import DELIVER, EXIT, L1_ENTRY, RECORD_FIELDS, VMFAIL, Record
from nvmx_fuzz.boot import rows
from nvmx_fuzz.boot.batch import Answer, Batch
from nvmx_fuzz.boot.divergences import LISTED, SLEEPS, listed
from nvmx_fuzz.boot.emulator import Ended
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine, Kind, outcome_of
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.boot.predicted import bugs_that_sleep, journal_on_bare, predicting_bugs
from nvmx_fuzz.boot.rows import Listed
from nvmx_fuzz.codec import encode
from nvmx_fuzz.compare import Difference, Entry, Met, first_difference
from nvmx_fuzz.outcomes import INCIDENT, SAME
from nvmx_fuzz.realise.realiser import fit
from nvmx_fuzz.scenario_files import load
from tests.boot.support import KVM_ON_BOCHS, WITH_MONITOR, perfect_line, scenario

ROOT = Path(__file__).resolve().parents[2]


def exited(**fields: int) -> Record:
    record = [EXIT, *[0] * 23]
    for name, value in fields.items():
        record[1 + RECORD_FIELDS[EXIT].index(name.replace("_", " ").replace("IDT ", "IDT-"))] = (
            value
        )
    return tuple(record)


def difference(bare: Record, other: Record, injected: int = 0) -> Difference:
    return Difference(bare, other, Entry(), ((L1_ENTRY, injected, 0, 0),))


@pytest.mark.parametrize("row", LISTED, ids=lambda row: row.name)
def test_a_row_cites_rules_and_a_scenario_that_stands_alone(row: Listed) -> None:
    assert row.rules
    assert all(rule in RULES for rule in row.rules)
    assert set(row.machines) <= BOOTING.keys()
    if row.scenario.startswith("corpus/"):
        found = load(str(ROOT / row.scenario)).scenario
    else:
        found = scenario(row.scenario.replace(" / ", "\n") + "\n")
    stand_alone_moved(found, WITH_MONITOR if "bochs-boot" not in row.machines else KVM_ON_BOCHS)


def name_of(machine: str, found: Difference) -> str:
    row = listed(machine, found)
    return row.name if row else ""


def test_a_delivery_that_comes_too_early_is_not_known() -> None:
    for vector, rflags in ((1, 0x302), (6, 0x202)):
        found = difference(
            (DELIVER, vector, -1, 0x16001, rflags, 0, 0),
            (DELIVER, vector, -1, 0x16000, rflags, 0, 0),
        )
        assert all(name_of(machine, found) == "" for machine in BOOTING)


def test_an_interrupt_before_a_window_is_known_on_kvm() -> None:
    found = difference(exited(reason=7, rflags=0x202), exited(reason=1, rflags=0x202))
    assert name_of("kvm", found) == "interrupt before what ranks higher"
    assert name_of("bochs-boot", found) == ""


def test_an_interrupt_instead_of_an_injection_is_not() -> None:
    """This is the bug that the project is named after; no row may hide it."""
    injected = 0x80000040
    deliver = (DELIVER, 0x40, -1, 0x16000, 0x202, 0, 0)
    found = difference(
        deliver, exited(reason=1, IDT_vectoring_info=injected, rflags=0x202), injected
    )
    assert name_of("kvm", found) == name_of("kvm-bochs", found) == ""


def test_vectoring_information_with_an_interrupt_exit_is_not_known() -> None:
    found = difference(exited(reason=1), exited(reason=1, IDT_vectoring_info=0x80000040))
    assert all(name_of(machine, found) == "" for machine in BOOTING)


def test_the_catalogue_predicts_what_kvm_does_to_a_length() -> None:
    """res4, as Linux 6.1 showed it."""
    found = fit(load(str(ROOT / "corpus/bugs/res4.scn")).scenario, KVM_ON_BOCHS.flags())
    bare = journal_on_bare(found, has_rf=False)
    place = next(index for index, record in enumerate(bare) if record[0] == EXIT)
    shown = list(bare)
    length = 1 + RECORD_FIELDS[EXIT].index("entry instruction length")
    shown[place] = (*bare[place][:length], 2, *bare[place][length + 1 :])
    different = first_difference(bare, shown, ())
    assert different
    assert list(predicting_bugs(found, bare, different, has_rf=False, version="kvm-6.1")) == [
        "res4"
    ]
    other = different._replace(other=(VMFAIL, 7))
    assert list(predicting_bugs(found, bare, other, has_rf=False, version="kvm-6.1")) == []


def test_the_catalogue_predicts_where_l2_sleeps() -> None:
    name = "corpus/entry_checks/g2-activity-1-dpl-not-0.scn"
    found = fit(load(str(ROOT / name)).scenario, KVM_ON_BOCHS.flags())
    assert list(bugs_that_sleep(found, has_rf=False, version="kvm-6.1")) == ["res8"]


def machine_that(kind: Kind, answers: dict[int, str]) -> BootingMachine:
    """A machine whose monitor says this of its scenarios."""

    def start(_image: bytes) -> Ended:
        said = "".join(f"%{number:x} {reason}\n" for number, reason in answers.items())
        return Ended(said, "")

    started = BootingMachine(kind._replace(batch=lambda: Batch(start)))
    started.__dict__["capabilities"] = KVM_ON_BOCHS
    return started


def test_an_l2_that_may_sleep_is_no_news_and_one_that_may_not_is() -> None:
    texts = (
        "config single-step=on\nL1 vmwrite GUEST_ACTIVITY 0x1\nL1 enter\n",
        "L1 enter\nL2 cpuid\n",
    )
    contents = [encode(scenario(text)) for text in texts]
    machine = machine_that(BOOTING["kvm-bochs"], {0: "hangs", 1: "hangs"})
    outcomes = list(machine.compare(contents))
    assert [outcome.verdict for outcome in outcomes] == [INCIDENT, INCIDENT]
    assert machine.known(contents[0], outcomes[0]) == SLEEPS
    assert machine.known(contents[1], outcomes[1]) == ""


def test_a_scenario_that_was_not_made_as_asked_is_an_incident() -> None:
    expected = stand_alone_moved(scenario("L1 enter\nL2 cpuid\n"), WITH_MONITOR)
    line = perfect_line(expected)
    assert outcome_of(expected, Answer(line), has_rf=False).verdict == SAME
    missed = outcome_of(expected, Answer(line, "misses a stop"), has_rf=False)
    assert (missed.verdict, missed.reason) == (INCIDENT, "misses a stop")


def test_a_lost_timer_is_known_where_the_processor_was_saved_only() -> None:
    bare, other = exited(reason=52), exited(reason=18)
    entry = Entry(met=Met(saved_at=0x16000))
    saved = Difference(bare, other, entry, ((L1_ENTRY, 0, 0, 0),))
    assert name_of("kvm", saved) == "ended timer lost by a save"
    assert name_of("kvm", saved._replace(entry=Entry())) == ""


def test_an_nmi_that_exits_is_known_where_l2_has_nmis_blocked_only() -> None:
    nmi, blocked = 0x80000202, 8
    vmcs = list(Entry().vmcs)
    vmcs[PIN_BASED] = PIN_NMI_EXITING
    entry = Entry(vmcs=tuple(vmcs))
    bare = exited(reason=10, interruptibility=blocked)
    other = exited(reason=0, interruption_info=nmi, interruptibility=blocked)
    found = Difference(bare, other, entry, ((L1_ENTRY, 0, 0, 0),))
    assert name_of("kvm", found) == "NMI exits though NMIs are blocked"
    opened = exited(reason=0, interruption_info=nmi)
    assert name_of("kvm", found._replace(bare=exited(reason=10), other=opened)) == ""
    assert name_of("kvm", found._replace(entry=Entry())) == ""


def test_a_triple_fault_is_news() -> None:
    content = encode(scenario("L1 vmwrite GUEST_ACTIVITY 0x1\nL1 inject nmi\nL1 enter\nL2 cpuid\n"))
    machine = machine_that(BOOTING["kvm"], {0: "triple-faults"})
    (outcome,) = machine.compare([content])
    assert machine.known(content, outcome) == ""


def test_what_is_not_realisable_does_not_boot() -> None:
    machine = machine_that(BOOTING["kvm"], {})
    (outcome,) = machine.compare([encode(scenario("outside smi\n"))])
    assert (outcome.verdict, outcome.reason) == ("not realisable", "smi-while-l1-runs")


def test_names_of_machines_are_those_of_the_command_line() -> None:
    from nvmx_fuzz.machines import MACHINES

    assert set(MACHINES) == {"bochs", *BOOTING}
    assert set(rows.EVERYWHERE) == set(BOOTING)
