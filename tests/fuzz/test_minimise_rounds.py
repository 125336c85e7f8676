"""Minimising in rounds, on a machine that does not boot: what is asked, what is kept, what it costs."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nvmx_core.journal import EXIT, RECORD_FIELDS
from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAG_BIT
from nvmx_core.scenario.steps import ENTER, INJECT, INTERRUPT, RUN, Scenario
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.compare import Difference, Entry
from nvmx_fuzz.compare_minimise import file_name, minimise_into
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.minimise import size_of
from nvmx_fuzz.minimise_rounds import Change, Rounds, changes, kind_of
from nvmx_fuzz.outcomes import DIFFERENT, INCIDENT, SAME, Kind, Outcome, Shown

LONG = """\
version 1
config exceptions=#PF,#UD hlt-exiting=on
L1       control pause-exiting on
outside  interrupt 0x51
L1       inject external-interrupt 0x47
L1       enter
L2       nop
L2       cpuid
L1       enter
L2       nop
L2       hlt
L1       intercept 6 on
"""
INJECTED, ARRIVED = Kind("", "injected"), Kind("row", "arrived")


def scenario_of(text: str) -> Scenario:
    return parse_scenario(text).scenario


class Machine:
    """Shows what a function says of a scenario: the key of an incident, or "" for none."""

    restarts = 0
    shrink_runs = 0
    batch_size = 1000

    def __init__(self, shows: Callable[[Scenario], str]) -> None:
        self._shows = shows
        self.batches: list[list[Scenario]] = []

    def compare(self, scenarios: Sequence[bytes]) -> Iterator[Outcome]:
        self.batches.append([decode(content) for content in scenarios])
        for scenario in self.batches[-1]:
            key = self._shows(scenario)
            yield Outcome(INCIDENT, key) if key else Outcome(SAME)

    def known(self, content: bytes, outcome: Outcome) -> str:
        assert decode(content)
        return "row" if outcome.reason == "arrived" else ""

    def memory(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing runs."""


def injects(scenario: Scenario) -> bool:
    """An injection in front of an entry."""
    ops = [step[0] for step in scenario.steps]
    return INJECT in ops and ENTER in ops[ops.index(INJECT) :]


def shows(scenario: Scenario) -> str:
    if injects(scenario):
        return "injected"
    ops = [step[0] for step in scenario.steps]
    return "arrived" if INTERRUPT in ops and RUN in ops else ""


def started(machine: Machine, *texts: str) -> dict[Kind, Shown]:
    found: dict[Kind, Shown] = {}
    for text in texts:
        scenario = scenario_of(text)
        outcome = next(machine.compare([encode(scenario)]))
        kind = kind_of(machine, encode(scenario), outcome)
        assert kind is not None
        found[kind] = Shown(scenario, outcome)
    machine.batches.clear()
    return found


def test_it_becomes_what_no_single_change_makes_smaller() -> None:
    machine = Machine(shows)
    (best,) = Rounds(machine, started(machine, LONG)).run().values()
    assert [step[0] for step in best.scenario.steps] == [INJECT, ENTER]
    assert best.scenario.config == (DEFAULT_FLAGS, 0, 0, 0)
    assert best.scenario.steps[0] == (INJECT, 0, 0, 0)
    for change in changes(best.scenario):
        smaller = change.applied(best.scenario)
        assert size_of(smaller) >= size_of(best.scenario) or shows(smaller) != "injected"


def test_kinds_are_kept_apart_and_share_the_rounds() -> None:
    other = "version 1\noutside interrupt 0x99\nL1 enter\nL1 control pause-exiting on\nL2 cpuid\n"
    alone = Machine(shows)
    Rounds(alone, started(alone, LONG)).run()
    both = Machine(shows)
    best = Rounds(both, started(both, LONG, other)).run()
    assert [step[0] for step in best[INJECTED].scenario.steps] == [INJECT, ENTER]
    assert [step[0] for step in best[ARRIVED].scenario.steps] == [INTERRUPT, RUN]
    assert len(both.batches) <= len(alone.batches) + 1


def test_changes_that_succeed_alone_are_tried_together() -> None:
    """Twenty operands that do not matter cost a few boots, not twenty."""
    steps = "".join(f"L1 inject software-interrupt 0x{n + 33:x} length=2\n" for n in range(20))
    machine = Machine(lambda scenario: "injected" if len(scenario.steps) == 20 else "")
    rounds = Rounds(machine, started(machine, f"version 1\n{steps}"))
    (best,) = rounds.run().values()
    assert len(machine.batches) == rounds.rounds <= 12
    assert len(best.scenario.steps) == 20


def test_it_is_monotone_and_deterministic_and_asks_nothing_twice() -> None:
    runs: list[list[Scenario]] = []
    for _ in range(2):
        machine = Machine(shows)
        start = started(machine, LONG)
        told: list[Scenario] = []
        Rounds(machine, start, lambda _kind, shown: told.append(shown.scenario)).run()  # noqa: B023
        asked = [encode(scenario) for batch in machine.batches for scenario in batch]
        assert len(asked) == len(set(asked))
        runs.append(told)
    first, second = runs
    assert first == second != []
    sizes = [size_of(scenario_of(LONG)), *map(size_of, first)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_guess_is_confirmed_first(is_right: bool) -> None:
    text = "L1 inject external-interrupt 0x0\nL1 enter\n" if is_right else "L1 enter\n"
    guess = scenario_of(f"version 1\n{text}")
    machine = Machine(shows)
    rounds = Rounds(machine, started(machine, LONG))
    (best,) = rounds.run([guess]).values()
    assert machine.batches[0] == [guess]
    assert [step[0] for step in best.scenario.steps] == [INJECT, ENTER]
    assert (rounds.rounds <= 3) == is_right


def test_a_change_of_everything_is_applied_at_once() -> None:
    scenario = scenario_of(LONG)
    change = Change(
        frozenset((0, 1)), ((2, (ENTER, 0, 0, 0)),), frozenset((0,)), FLAG_BIT["hlt-exiting"]
    )
    changed = change.applied(scenario)
    assert changed.config == (DEFAULT_FLAGS, 0, 0, 0)
    assert changed.steps == ((ENTER, 0, 0, 0), *scenario.steps[3:])


def test_the_kind_of_a_difference_is_its_key() -> None:
    record = (EXIT, *[0] * len(RECORD_FIELDS[EXIT]))
    difference = Difference(record, (), Entry())
    outcome = Outcome(DIFFERENT, "", difference)
    assert kind_of(Machine(shows), bytes(8), outcome) == Kind("", difference.key())
    assert kind_of(Machine(shows), bytes(8), Outcome(SAME)) is None


# -- the folder -----------------------------------------------------------------------------------------


def test_the_smallest_scenario_of_each_kind_is_written(tmp_path: Path) -> None:
    machine = Machine(shows)
    starts = started(machine, LONG)
    found = minimise_into(tmp_path / "new", machine, "toy", starts)
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == file_name(INJECTED)
    assert path.read_text() == (
        "# unlisted: injected\n# shown by toy, minimised\nversion 1\n"
        "L1       inject external-interrupt 0x0\nL1       enter\n"
    )
    assert found.lines()[1].split("  ")[1:3] == ["10 steps became 2", "unlisted"]
    assert found.to_json()["kinds"][0]["steps"] == 2
    assert found.smallest()[INJECTED].outcome.reason == "injected"


def test_a_run_that_was_cut_off_is_gone_on_from(tmp_path: Path) -> None:
    machine = Machine(shows)
    starts = started(machine, LONG)
    whole = minimise_into(tmp_path, machine, "toy", starts).rounds
    again = Machine(shows)
    found = minimise_into(tmp_path, again, "toy", starts)
    assert again.batches[0] == [found.smallest()[INJECTED].scenario]
    assert found.rounds < whole
    changed = Machine(lambda scenario: shows(scenario) if len(scenario.steps) > 4 else "")
    found = minimise_into(tmp_path, changed, "toy", starts)
    assert len(found.smallest()[INJECTED].scenario.steps) == 5
    assert len(scenario_of((tmp_path / file_name(INJECTED)).read_text()).steps) == 5


@pytest.mark.parametrize(
    "content",
    [
        "hello\n",
        "version 1\nL1 enter\n",
        "# unlisted: other\n# shown by toy, minimised\nversion 1\n",
    ],
)
def test_what_is_not_ours_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / file_name(INJECTED)
    path.write_text(content)
    machine = Machine(shows)
    with pytest.raises(BadFile, match="holds something else, and is left alone"):
        minimise_into(tmp_path, machine, "toy", started(machine, LONG))
    assert path.read_text() == content
    assert machine.batches == []


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(BadFile, match="is not a directory"):
        minimise_into(tmp_path / "taken", Machine(shows), "toy", {})


def test_nothing_to_minimise_is_said(tmp_path: Path) -> None:
    machine = Machine(shows)
    assert minimise_into(tmp_path, machine, "toy", {}).lines() == ["nothing to minimise"]
    assert machine.batches == []
