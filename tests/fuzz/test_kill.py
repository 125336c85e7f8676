"""Commands that are killed lose nothing and leave nothing half-written; more: `scripts/soak --kill 200`."""

from pathlib import Path

import pytest

pytest.importorskip("atheris")

from nvmx_fuzz.codec import encode
from nvmx_fuzz.files import BadFile, content_name
from nvmx_fuzz.generate import random_bytes
from nvmx_fuzz.kill_test import VICTIMS, Victim, kill_at_random
from nvmx_fuzz.scenario_files import load

KILLS = 3


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)
def test_a_killed_command_loses_nothing(victim: Victim) -> None:
    outcome = kill_at_random(victim, KILLS, seed=1)
    assert outcome.problems == []
    assert outcome.trials >= KILLS


@pytest.mark.parametrize("length", [0, 1, 20])
def test_a_part_of_a_corpus_file_is_never_read_as_whole(tmp_path: Path, length: int) -> None:
    data = random_bytes(1)
    path = tmp_path / content_name(data)
    path.write_bytes(data)
    assert encode(load(str(path)).scenario) == data
    path.write_bytes(data[:length])
    with pytest.raises(BadFile, match="is not whole"):
        load(str(path))
