"""Mutators: always valid, always within the limit, deterministic, and strong enough."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmx_core.scenario.step_text import format_step, parse_step
from nvmx_core.scenario.steps import CANCEL_ENTRY, DROP_PAGE, ENTER, OPERATIONS
from nvmx_fuzz.codec import (
    HEADER_SIZE,
    SIZE_MAX,
    canonical_bytes,
    decode,
    encode,
    encode_step,
)
from nvmx_fuzz.generate import (
    SWARMS,
    noise,
    random_bytes,
    random_scenario,
    shake_header,
    swarm,
    vary_header,
)
from nvmx_fuzz.mutate import _SPLIT, Mutator, crossover, mutate
from nvmx_fuzz.mutations import ANY, _meet, leave_before_entries
from nvmx_fuzz.palette import ARRIVALS
from nvmx_fuzz.strategies import scenarios

SEEDS = st.integers(0, 2**32 - 1)
LIMITS = st.integers(1, SIZE_MAX + 100)


@given(st.binary(max_size=300), LIMITS, SEEDS)
def test_a_mutant_is_within_the_limit_and_decodes(data: bytes, size_max: int, seed: int) -> None:
    mutant = mutate(data, size_max, seed)
    assert 0 < len(mutant) <= size_max
    decode(mutant)
    assert mutant == mutate(data, size_max, seed)


@given(st.binary(max_size=300), st.binary(max_size=300), LIMITS, SEEDS)
def test_a_child_is_within_the_limit_and_decodes(
    left: bytes, right: bytes, size_max: int, seed: int
) -> None:
    child = crossover(left, right, size_max, seed)
    assert 0 < len(child) <= size_max
    decode(child)
    assert child == crossover(left, right, size_max, seed)


@given(scenarios().map(encode), SEEDS)
def test_a_mutant_of_canonical_bytes_is_canonical(data: bytes, seed: int) -> None:
    mutant = mutate(data, SIZE_MAX, seed)
    assert mutant == canonical_bytes(mutant)


@given(scenarios().map(encode), scenarios().map(encode), SEEDS)
def test_a_child_of_canonical_bytes_has_only_steps_of_its_parents(
    left: bytes, right: bytes, seed: int
) -> None:
    child = crossover(left, right, SIZE_MAX, seed)
    assert child == canonical_bytes(child)
    assert set(decode(child).steps) <= {*decode(left).steps, *decode(right).steps}


@pytest.mark.parametrize("start", [b"", b"\n", b"\x01", bytes(8), bytes(15)])
def test_a_scenario_grows_from_an_empty_corpus(start: bytes) -> None:
    for seed in range(50):
        steps = decode(mutate(start, SIZE_MAX, seed)).steps
        assert ENTER in {step[0] for step in steps}


def opened_by(seed: int) -> bytes:
    data = random_bytes(seed)
    steps = list(_SPLIT[(len(data) - HEADER_SIZE) // 8](data, HEADER_SIZE))
    leave_before_entries(steps)
    return data[:HEADER_SIZE] + b"".join(steps)


def test_a_campaign_opens_with_scenarios_of_the_generator_in_which_l1_comes_to_act() -> None:
    mutator = Mutator(opening=3)
    data = random_bytes(1)
    opened = [mutator.mutate(data, SIZE_MAX, 7), mutator.crossover(data, data, SIZE_MAX, 8)]
    opened.append(mutator.mutate(data, 40, 9))
    assert opened == [opened_by(7), opened_by(8), opened_by(9)[:40]]
    assert mutator.mutate(data, SIZE_MAX, 10) == mutate(data, SIZE_MAX, 10)
    assert mutator.crossover(data, opened[0], SIZE_MAX, 10) == crossover(
        data, opened[0], SIZE_MAX, 10
    )


def test_l2_exits_before_everything_that_l1_prepares() -> None:
    texts = ["L1 inject nmi", "L1 enter", "L2 nop", "outside nmi at-entry", "L1 enter", "L1 enter"]
    steps = [encode_step(parse_step(text.split())) for text in texts]
    leave_before_entries(steps)
    shown = [format_step(step, compact=True) for step in decode(bytes(8) + b"".join(steps)).steps]
    assert shown == [*texts[:3], "L2 vmcall", *texts[3:5], "L2 vmcall", texts[5]]


def test_what_meets_an_entry_or_an_arrival_stands_before_it() -> None:
    """SIPI of one moment meets whatever may come at the same moment; an entry also what L0 alone notices."""
    operations: set[int] = set()
    for text, moments in (("outside sipi 0x10 in-emulation", {3}), ("L1 enter", {0, 1, 2})):
        operations.clear()
        for seed in range(400):
            steps = [encode_step(parse_step(text.split()))]
            _meet(steps, noise(seed), swarm(0))
            first, second = steps
            assert second == encode_step(parse_step(text.split()))
            assert first[0] in (DROP_PAGE, CANCEL_ENTRY) or first[1] in moments
            operations.add(first[0])
        assert operations >= ARRIVALS
    assert operations >= {DROP_PAGE, CANCEL_ENTRY}


def test_a_future_version_is_not_passed_on() -> None:
    data = b"\x85" + bytes(23)
    assert all(mutate(data, SIZE_MAX, seed)[0] == 1 for seed in range(50))


def test_chains_of_mutations_reach_every_operation_and_stay_short() -> None:
    seen: set[int] = set()
    data = b""
    for seed in range(3000):
        data = mutate(data, SIZE_MAX, seed)
        steps = decode(data).steps
        seen |= {step[0] for step in steps}
        assert len(steps) <= 60
    assert seen == set(range(len(OPERATIONS)))


def test_most_mutants_differ_from_their_parent() -> None:
    data = random_bytes(1)
    same = sum(mutate(data, SIZE_MAX, seed) == data for seed in range(1000))
    assert same < 100


@pytest.mark.parametrize("mutation", sorted(set(ANY), key=str), ids=lambda f: f.__name__)
def test_a_single_mutation_works_on_one_step_and_on_many(mutation: object) -> None:
    assert callable(mutation)
    for seed in range(200):
        data = random_bytes(seed)
        many = list(_SPLIT[(len(data) - HEADER_SIZE) // 8](data, HEADER_SIZE))
        for steps in (many, many[:1]):
            mutation(steps, noise(seed), swarm(seed))
            joined = data[:HEADER_SIZE] + b"".join(steps)
            assert joined == canonical_bytes(joined)


def test_random_scenarios_are_short_and_a_quarter_of_their_steps_enter() -> None:
    drawn = [random_scenario(seed) for seed in range(500)]
    steps = [step for scenario in drawn for step in scenario.steps]
    assert 12 <= len(steps) / len(drawn) <= 20
    assert 0.2 <= sum(step[0] == ENTER for step in steps) / len(steps) <= 0.33
    assert all(encode(scenario) == random_bytes(seed) for seed, scenario in enumerate(drawn))


def test_swarms_differ_and_each_leaves_something_out() -> None:
    bags = [swarm(index) for index in range(SWARMS)]
    assert len(set(bags)) == SWARMS
    everything = {records[0][0] for records in (*bags[0].prepare, *bags[0].during)}
    assert everything == set(range(1, len(OPERATIONS)))
    for bag in bags[1:]:
        assert {records[0][0] for records in (*bag.prepare, *bag.during)} < everything


@given(scenarios(max_steps=0).map(encode), SEEDS)
def test_a_varied_header_is_canonical(header: bytes, seed: int) -> None:
    for vary in (vary_header, shake_header):
        varied = vary(header, noise(seed))
        assert varied == canonical_bytes(varied)


def test_mutants_do_not_depend_on_the_hash_seed() -> None:
    script = (
        "from nvmx_fuzz.mutate import mutate, crossover\n"
        "data = b''\n"
        "for seed in range(300):\n"
        "    data = crossover(mutate(data, 2056, seed), data, 2056, seed)\n"
        "print(data.hex())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
