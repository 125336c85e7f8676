"""One seed is one search: in any process, on any disk, whoever inserted the probes, and when."""

import os
from collections.abc import Callable
from functools import partialmethod
from itertools import count
from pathlib import Path
from types import CodeType
from typing import Any, cast

import pytest

pytest.importorskip("atheris")

import atheris

from nvmx_fuzz import instrumentation, worker
from nvmx_fuzz.codec import encode
from nvmx_fuzz.corpus_files import read_seeds, write_seeds
from nvmx_fuzz.generate import random_bytes
from nvmx_fuzz.scenario_files import load
from tests.campaigns import run_json

SEEDS = Path(__file__).resolve().parents[2] / "corpus" / "nested_events"

BRANCHES = """
def f(values):
    for value in values:
        if value & 1:
            yield 1 if value & 2 else 2
        elif value & 4:
            yield 3
"""


# -- probes ----------------------------------------------------------------------------------------


def as_ours(code: CodeType) -> CodeType:
    """With probes as the modes `fast` and `branches` have them."""
    return instrumentation._instrument_functions(code)[1]


def as_stock(code: CodeType) -> CodeType:
    """With probes as the mode `stock` has them."""
    numbers = count()
    with pytest.MonkeyPatch.context() as patch, instrumentation.numbered_in_order():
        patch.setattr(atheris, "_reserve_counter", lambda: next(numbers))
        patched: CodeType = atheris.patch_code(code, True)
    return patched


def address(instruction: Any, direction: int, places: "count[int]") -> int:
    """Where an instruction lies, when one comes after the other."""
    return direction * cast("int", vars(instruction).setdefault("place", next(places)))


@pytest.mark.parametrize("instrumented", [as_ours, as_stock])
def test_addresses_do_not_number_the_probes(
    instrumented: Callable[[CodeType], CodeType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """atheris hashes instructions by address; here they lie upwards, and then downwards."""
    found = []
    for direction in (1, -1):
        places = count(1)
        monkeypatch.setattr(
            atheris.instrument_bytecode.Instruction,
            "__hash__",
            partialmethod(address, direction, places),
        )
        found.append(instrumented(compile(BRANCHES, "branches.py", "exec")))
    assert found[0] == found[1]


def test_instrumentor_has_its_set_back() -> None:
    as_ours(compile(BRANCHES, "branches.py", "exec"))
    assert "set" not in vars(atheris.instrument_bytecode)


# -- seeds -----------------------------------------------------------------------------------------


def test_seeds_go_to_libfuzzer_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a path, with a comma"
    write_seeds({name: name.encode() for name in "dbeac"}, folder)
    listed = list("badce")
    monkeypatch.setattr("os.listdir", lambda _folder: listed)
    (argument,) = worker.seed_arguments(str(folder))
    inputs = Path(argument.removeprefix("-seed_inputs=@")).read_text().split(",")
    assert [Path(each).read_text() for each in inputs] == sorted(listed)


def test_no_seeds_are_no_argument(tmp_path: Path) -> None:
    assert worker.seed_arguments(str(tmp_path)) == []


def test_names_of_seeds_have_no_comma_and_no_seed_takes_the_place_of_another(
    tmp_path: Path,
) -> None:
    texts = sorted(SEEDS.rglob("*.scn"))[:3]
    (tmp_path / "a").mkdir()
    for name, text in zip(("a/b.scn", "a,b.scn", "a-b.scn"), texts, strict=True):
        (tmp_path / name).write_bytes(text.read_bytes())
    seeds = read_seeds(tmp_path)
    assert sorted(seeds.values()) == sorted(encode(load(str(text)).scenario) for text in texts)
    assert "a-b" in seeds
    assert not any("," in name for name in seeds)


# -- campaigns -------------------------------------------------------------------------------------


def kept(campaign: Path) -> dict[str, list[str]]:
    """The names of the files that a campaign kept: those of inputs are hashes of their content."""
    return {
        folder: sorted(os.listdir(campaign / folder)) for folder in ("corpus", "seeds", "findings")
    }


@pytest.mark.parametrize("start", ["nothing", "seeds"])
def test_equal_arguments_give_equal_campaigns(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each campaign inserts its probes itself, for it finds no cache, and has its own hash seed."""
    (tmp_path / "inputs").mkdir()
    for seed in range(40):
        (tmp_path / "inputs" / str(seed)).write_bytes(random_bytes(seed))
    begin = ("--no-seeds",) if start == "nothing" else ("--corpus", str(tmp_path / "inputs"))
    arguments = ("--l0", "bug3", *begin, "--runs", "1500", "--seed", "4", "--core", "python")
    places = (tmp_path / "one", tmp_path / "the other, with a longer name")
    summaries = []
    for number, place in enumerate(places):
        monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / f"cache {number}"))
        monkeypatch.setenv("PYTHONHASHSEED", str(number))
        summaries.append(run_json(place, *arguments)[1])
    for what in ("executions", "steps", "coverage", "features", "corpus", "reach"):
        assert summaries[0][what] == summaries[1][what], what
    one, other = map(kept, places)
    assert one == other
    assert len(one["seeds"]) == (0 if start == "nothing" else 40)
