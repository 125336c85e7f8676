"""The count of transitions that the kept inputs show, which the watching process keeps."""

from pathlib import Path

import pytest

from nvmx_core.bugs.versions import UnknownL0Error
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.reach import REACH_COUNT
from nvmx_core.machines.nested import Nested
from nvmx_core.scenario.config import config_for
from nvmx_fuzz.codec import encode
from nvmx_fuzz.generate import random_scenario
from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback
from nvmx_fuzz.transitions import TransitionCount

ENDLESS = 1e9


def marked(seed: int) -> set[int]:
    """The counters that libFuzzer would see of one scenario."""
    scenario = random_scenario(seed)
    nested = Nested(config_for(scenario.config), Kvm)
    nested.run(scenario)
    buffer = bytearray(COUNTERS)
    StateFeedback(buffer).record(nested.vcpu.reach, nested.vcpu.log)
    return {place for place in range(REACH_COUNT, COUNTERS) if buffer[place]}


def test_counts_what_the_feedback_marks_each_once(tmp_path: Path) -> None:
    count = TransitionCount("fixed", tmp_path, tmp_path / "not there yet")
    assert count.look(ENDLESS)
    assert count.count == 0
    expected: set[int] = set()
    for seed in range(20):
        (tmp_path / f"{seed}").write_bytes(encode(random_scenario(seed)))
        expected |= marked(seed)
        assert count.look(ENDLESS)
        assert count.count == len(expected) > 0


def test_what_one_look_leaves_the_next_takes(tmp_path: Path) -> None:
    for seed in range(20):
        (tmp_path / f"{seed}").write_bytes(encode(random_scenario(seed)))
    count = TransitionCount("fixed", tmp_path)
    assert not count.look(-1)
    assert count.count == 0
    assert count.look(ENDLESS)
    assert count.count > 0


def test_whatever_lies_in_the_folder_is_counted_or_left(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "garbage").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nothing")
    count = TransitionCount("fixed", tmp_path)
    assert count.look(ENDLESS)


def test_an_unknown_l0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownL0Error):
        TransitionCount("bug999", tmp_path)


def test_names_of_files_that_were_replaced_are_forgotten(tmp_path: Path) -> None:
    """libFuzzer replaces an input by a smaller one for as long as it runs."""
    count = TransitionCount("fixed", tmp_path)
    for seed in range(5):
        path = tmp_path / f"{seed}"
        path.write_bytes(encode(random_scenario(seed)))
        assert count.look(ENDLESS)
        assert count.files == 1
        path.unlink()
    assert count.look(ENDLESS)
    assert count.files == 0
