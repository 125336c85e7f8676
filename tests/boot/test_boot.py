"""The image on machines that really boot: `pytest -m boot`, about two minutes, no part of the normal run."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.boot.divergences import LISTED, Listed
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine
from nvmx_fuzz.codec import encode
from nvmx_fuzz.corpus_files import files_of
from nvmx_fuzz.outcomes import NOT_REALISABLE, SAME
from nvmx_fuzz.scenario_files import load
from tests.boot.support import scenario

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(not shutil.which("bochs"), reason="bochs is not installed (scripts/kvm)"),
]

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "least"), [("bochs-boot", 240), ("kvm-bochs", 230)])
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
    rows = [row for row in LISTED if name in row.machines]
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


def scenario_of(row: Listed) -> Scenario:
    if row.scenario.startswith("corpus/"):
        return load(str(ROOT / row.scenario)).scenario
    return scenario(row.scenario.replace(" / ", "\n") + "\n")
