"""The image on machines that really boot: `pytest -m boot`, a few minutes, no part of the normal run."""

import re
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.bugs.versions import l0_class
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.boot.divergences import LISTED
from nvmx_fuzz.boot.emulator import emulator
from nvmx_fuzz.boot.iso import MissingToolError
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine
from nvmx_fuzz.boot.moved import fit_booting
from nvmx_fuzz.boot.predicted import journal_on_bare, journal_under, on_fresh_machine
from nvmx_fuzz.boot.rows import Listed
from nvmx_fuzz.boot.trace import trace_of
from nvmx_fuzz.codec import encode
from nvmx_fuzz.corpus_files import files_of
from nvmx_fuzz.outcomes import NOT_REALISABLE, SAME
from nvmx_fuzz.scenario_files import load
from tests.boot.support import scenario

pytestmark = [pytest.mark.boot, pytest.mark.usefixtures("has_bochs")]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def has_bochs() -> None:
    try:
        emulator()
    except MissingToolError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("name", "least"), [("bochs-boot", 240), ("kvm-bochs", 290)])
def test_the_corpus_shows_what_is_listed_only(name: str, least: int) -> None:
    machine = BootingMachine(BOOTING[name])
    files = files_of([str(ROOT / "corpus")])
    contents = [encode(load(file).scenario) for file in files]
    outcomes = list(machine.compare(contents))
    unlisted = [
        f"{file}: {outcome.reason or outcome.difference}"
        for file, content, outcome in zip(files, contents, outcomes, strict=True)
        if outcome.verdict not in (SAME, NOT_REALISABLE) and not machine.known(content, outcome)
    ]
    assert unlisted == []
    assert sum(outcome.verdict == SAME for outcome in outcomes) >= least


@pytest.mark.parametrize("name", ["bochs-boot", "kvm-bochs"])
def test_each_known_difference_shows_in_its_scenario(name: str) -> None:
    machine = BootingMachine(BOOTING[name])
    rows = [
        row
        for row in LISTED
        if name in row.machines and (row.since <= machine.kernel < row.until or not row.finding)
    ]
    contents = [encode(scenario_of(row)) for row in rows]
    outcomes = list(machine.compare(contents))
    shown = {
        row.name: machine.known(content, outcome) or outcome.verdict
        for row, content, outcome in zip(rows, contents, outcomes, strict=True)
    }
    wrong = {
        row: known
        for row, known in shown.items()
        if known != row and not (row.startswith("res") and known == f"KVM: {row.partition(':')[0]}")
    }
    assert wrong == {}


IN_THE_MIDDLE = (
    "corpus/nested_events/interrupt-while-l0-repairs-stack-page.scn",
    # The processor is saved in a delivery, restored into that of a new machine, and an interrupt comes.
    (
        "L0 save-restore in-delivery / outside interrupt 0x51 in-delivery / "
        "L1 inject external-interrupt 0x40 / L1 enter"
    ),
    "L0 save-restore in-delivery / L1 inject hardware-exception #GP error=0x18 / L1 enter",
    # L0 loses its pages before a second entry.
    (
        "L1 enter / L2 cpuid / L0 drop-page stack / outside interrupt 0x51 in-delivery / "
        "L1 inject external-interrupt 0x40 / L1 enter"
    ),
    # An entry is cancelled; NMIs come in a delivery, and one while L2 runs.
    "L0 cancel-entry / outside interrupt 0x51 in-delivery / L1 inject external-interrupt 0x40 / L1 enter",
    "outside nmi in-delivery / outside nmi in-delivery / L1 inject external-interrupt 0x40 / L1 enter",
    "L1 enter / L2 ud2 / outside nmi",
    # L2 sleeps, and something comes for L1.
    "L1 enter / L2 hlt / outside init",
)


def test_what_l0_and_others_do_in_the_middle_of_a_delivery() -> None:
    """The same as on `bare`, and as on our L0 with the bugs of that version."""
    machine = BootingMachine(BOOTING["kvm-bochs"])
    scenarios = [read(text) for text in IN_THE_MIDDLE]
    outcomes = machine.compare([encode(each) for each in scenarios])
    for each, outcome in zip(scenarios, outcomes, strict=True):
        assert outcome.verdict == SAME, (each, outcome)
        fitted = fit_booting(each, machine.capabilities)
        fresh = on_fresh_machine(fitted, acts=True)
        bare = journal_on_bare(fitted, has_rf=False)
        assert journal_under(fresh, l0_class(machine.version), has_rf=False) == bare


def test_smis_come_in_a_delivery_and_others_in_smm() -> None:
    """Where they came is the same, and what comes of the rest."""
    machine = BootingMachine(BOOTING["kvm-bochs"])
    in_delivery = "outside smi in-delivery / L1 inject external-interrupt 0x40 / L1 enter"
    texts = (in_delivery, f"{in_delivery} / outside interrupt 0x51 / outside rsm")
    contents = [encode(read(text)) for text in texts]
    assert [outcome.verdict for outcome in machine.compare(contents)] == [SAME, SAME]


def test_the_interrupt_comes_while_the_real_kernel_repairs_the_stack_page() -> None:
    """The trace: a repair that fails, the interrupt, the injection again with an immediate exit, exit 1."""
    lines = iter(trace_of(read(IN_THE_MIDDLE[0])).splitlines())
    wanted = (
        r"kvm_nested_vmexit: .*EPT_VIOLATION .*info2 0x0000000080000040",
        r"kvm_page_fault: .*address 0x00000000000147fc",
        r"kvm_userspace_exit: reason error \(14\)",
        r"kvm_apic_accept_irq: .*vec 81 ",
        r"kvm_inj_virq: IRQ 0x40 \[reinjected\]",
        r"kvm_entry: .*rip 0x16000\[immediate exit\]",
        r"kvm_nested_vmexit_inject: reason: EXTERNAL_INTERRUPT .*ext_inf2: 0x0000000000000000",
    )
    for pattern in wanted:
        assert any(re.search(pattern, line) for line in lines), pattern


def read(text: str) -> Scenario:
    if text.startswith("corpus/"):
        return load(str(ROOT / text)).scenario
    return scenario(text.replace(" / ", "\n") + "\n")


def scenario_of(row: Listed) -> Scenario:
    return read(row.scenario)
