"""The machine `bochs` beside `bare`; skipped where the extra is not installed."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.bochs.helper import BochsUnavailableError, library_version
from nvmx_fuzz.codec import encode
from nvmx_fuzz.scenario_files import load

pytest.importorskip("keystone", reason="the extra bochs is not installed")
try:
    library_version()
except BochsUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

from nvmx_fuzz.bochs.divergences import DIVERGENCES, MENDS, Divergence, Mend, known
from nvmx_fuzz.bochs.worker import Worker
from nvmx_fuzz.generate import random_bytes
from nvmx_fuzz.outcomes import DIFFERENT, INCIDENT, NOT_REALISABLE, SAME, Outcome

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    started = Worker()
    yield started
    started.close()


def compare(worker: Worker, text: str) -> Outcome:
    return next(worker.compare([encode(parse_scenario(f"version 1\n{text}").scenario)]))


def test_an_injection_is_delivered_alike(worker: Worker) -> None:
    assert compare(worker, "L1 inject external-interrupt 0x40\nL1 enter\nL2 nop\n").verdict == SAME


def test_what_cannot_be_realised_is_refused_by_name(worker: Worker) -> None:
    outcome = compare(worker, "L1 enter\nL2 mov-cr8 0x1\n")
    assert (outcome.verdict, outcome.reason) == (NOT_REALISABLE, "mov-cr8-in-32-bit-code")


@pytest.mark.parametrize(
    "steps",
    [
        "L1 enter\noutside smi",
        "L1 enter\noutside smi\noutside nmi\noutside rsm",
        "L1 enter\nL2 hlt\noutside smi\noutside interrupt 0x51\noutside rsm",
        "L1 enter\nL2 mov-ss\noutside smi\noutside init\noutside rsm",
        "outside smi\noutside rsm\nL1 enter\nL2 cpuid",
        "outside smi at-entry\nL1 vmwrite ENTRY_MSR_LOAD_BAD 0x2\nL1 enter\noutside rsm\nL1 enter",
        "config single-step=on\nL1 enter\nL2 nop\noutside smi\noutside rsm",
    ],
)
def test_smis_come_and_go_alike(worker: Worker, steps: str) -> None:
    assert compare(worker, f"{steps}\n").verdict == SAME


REFUSED: dict[str, dict[str, int]] = {
    "bugs": {},
    "entry_checks": {
        "control-that-the-model-fixes": 3, "cr0-bits": 1, "privilege": 1, "real-mode": 4,
    },
    "lessons": {"real-mode": 1},
    "nested_events": {
        "apic-eoi-by-msr": 3, "cr0-bits": 2, "mov-cr8-in-32-bit-code": 3, "real-mode": 1,
        "post-interrupt-in-delivery": 1, "rip-outside-of-code": 1, "instruction-reads-gdt": 1,
    },
}  # fmt: skip
"""Which scenarios of the corpus are not realisable: how many for which reason."""


@pytest.mark.parametrize("folder", REFUSED)
def test_the_corpus_shows_listed_differences_only(worker: Worker, folder: str) -> None:
    """Every seed and every smallest scenario of a bug runs on Bochs too."""
    files = sorted((ROOT / "corpus" / folder).rglob("*.scn"))
    outcomes = list(worker.compare([encode(load(str(file)).scenario) for file in files]))
    refused: Counter[str] = Counter()
    for file, outcome in zip(files, outcomes, strict=True):
        if outcome.verdict == DIFFERENT:
            assert outcome.difference is not None
            assert known(outcome.difference), f"{file}: {outcome.difference.key()}"
        elif outcome.verdict == NOT_REALISABLE:
            refused[outcome.reason] += 1
        else:
            assert outcome.verdict == SAME, f"{file}: {outcome.reason}"
    assert refused == REFUSED[folder]


def test_two_processes_agree_with_each_other(worker: Worker) -> None:
    scenarios = [random_bytes(seed) for seed in range(300)]
    other = Worker()
    try:
        assert list(worker.compare(scenarios)) == list(other.compare(scenarios))
    finally:
        other.close()


def test_an_order_of_scenarios_leaves_no_trace(worker: Worker) -> None:
    scenarios = [random_bytes(seed) for seed in range(300, 500)]
    forward = list(worker.compare(scenarios))
    backward = list(worker.compare(scenarios[::-1]))[::-1]
    assert forward == backward


def of_the_table(scenario: str) -> bytes:
    if scenario.startswith("corpus/"):
        return encode(load(str(ROOT / scenario)).scenario)
    return encode(parse_scenario("version 1\n" + scenario.replace(" / ", "\n")).scenario)


@pytest.mark.parametrize("entry", DIVERGENCES, ids=lambda entry: entry.name)
def test_a_listed_difference_shows_in_its_scenario(worker: Worker, entry: Divergence) -> None:
    outcome = next(worker.compare([of_the_table(entry.scenario)]))
    assert outcome.difference is not None
    found = known(outcome.difference)
    assert found is not None
    assert found.name == entry.name


@pytest.mark.parametrize("entry", MENDS, ids=lambda entry: entry.what)
def test_a_mended_scenario_agrees(worker: Worker, entry: Mend) -> None:
    assert next(worker.compare([of_the_table(entry.scenario)])).verdict == SAME


def test_a_crash_is_an_incident_and_the_rest_goes_on() -> None:
    worker = Worker()
    scenarios = [random_bytes(seed) for seed in range(3000)]

    def crash() -> None:
        while worker._position.value < 5:
            pass
        worker._process.kill()

    try:
        killer = Thread(target=crash)
        killer.start()
        outcomes = list(worker.compare(scenarios))
        killer.join()
        expected = list(worker.compare(scenarios))
    finally:
        worker.close()
    lost = [index for index, outcome in enumerate(outcomes) if outcome.verdict == INCIDENT]
    assert len(lost) == 1
    assert "status -9" in outcomes[lost[0]].reason
    expected[lost[0]] = outcomes[lost[0]]
    assert outcomes == expected


def test_a_process_that_hangs_is_ended_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    scenarios = [random_bytes(seed) for seed in range(100)]
    try:
        monkeypatch.setattr(worker._connection, "poll", lambda _seconds: False)
        outcomes = list(worker.compare(scenarios))  # a new process has a new connection
        expected = list(worker.compare(scenarios))
    finally:
        worker.close()
    assert worker.restarts == 1
    lost = [index for index, outcome in enumerate(outcomes) if outcome.verdict == INCIDENT]
    assert len(lost) <= 1  # none, if it was ended before it had begun
    for index in lost:
        expected[index] = outcomes[index]
    assert outcomes == expected


def test_a_process_that_is_gone_is_replaced() -> None:
    worker = Worker()
    try:
        worker._process.kill()
        worker._process.join()
        assert next(worker.compare([random_bytes(0)])).verdict == SAME
    finally:
        worker.close()
    assert worker.restarts == 1
