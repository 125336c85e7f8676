"""`progress.jsonl`: what a campaign writes is read back, whenever the campaign was killed."""

import json
from pathlib import Path
from typing import Any

import pytest

from nvmx_core.l0.reach import REACH_NAMES
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.history import NUMBERS, HistoryWriter, Sample, rates, read_history
from nvmx_fuzz.rule_rows import RULE_ROWS

START: dict[str, Any] = {
    "version": 1,
    "revision": "0.1.0",
    "l0": "bug1",
    "seed": 1,
    "core": "python",
    "feedback": "fast",
    "command": "nvmx-fuzz run",
    "reach": list(REACH_NAMES),
    "rules": [[row.oracle, row.rule] for row in RULE_ROWS],
}


def sample(seconds: float, executions: int = 0, **more: Any) -> dict[str, Any]:
    """A line of the file, all numbers 0 but those given."""
    numbers: dict[str, Any] = dict.fromkeys(NUMBERS, 0)
    numbers |= {"seconds": seconds, "executions": executions}
    return numbers | {"reach": [0] * len(REACH_NAMES), "fired": [0] * len(RULE_ROWS)} | more


def written(folder: Path, *records: object, end: str = "\n") -> Path:
    path = folder / "progress.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records) + end)
    return path


def test_campaigns_into_one_folder_follow_each_other_in_time(tmp_path: Path) -> None:
    first = ({"start": START}, sample(0), sample(5, 100), {"end": "time is up"})
    second = ({"start": START | {"seed": 2}}, sample(0), sample(3, 50))
    sessions = read_history(written(tmp_path, *first, *second))
    assert [session.start["seed"] for session in sessions] == [1, 2]
    assert [session.ended for session in sessions] == ["time is up", ""]
    assert [[s.seconds for s in session.samples] for session in sessions] == [[0, 5], [5, 8]]


def test_a_torn_last_line_is_left_out_and_cut_off_by_the_next_campaign(tmp_path: Path) -> None:
    whole = written(tmp_path, {"start": START}, sample(0)).read_bytes()
    path = written(tmp_path, {"start": START}, sample(0), {"seconds": 3}, end="")
    assert len(read_history(path)[0].samples) == 1
    HistoryWriter(tmp_path, "bug1")
    assert path.read_bytes() == whole


def test_a_file_with_nothing_but_a_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b"x" * 200_000)
    with pytest.raises(BadFile, match="has no whole line"):
        read_history(path)
    HistoryWriter(tmp_path, "bug1")
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not a line of JSON"),
        ("[" * 100_000, "is not a line of JSON"),
        ("\x00\xff", "is not a line of JSON"),
        ("[]", "is not an object of JSON"),
        ('{"start": 1}', "is not a start of version 1"),
        (json.dumps({"start": START | {"version": 2}}), "is not a start of version 1"),
        (json.dumps({"start": START | {"l0": 7}}), "is not a whole start"),
        (json.dumps({"start": START | {"rules": [["X1"]]}}), "is not a whole start"),
        (json.dumps(sample(1, reach=[1])), "is not a whole sample"),
        (json.dumps(sample(1, fired="no")), "is not a whole sample"),
        (json.dumps(sample(1, corpus=None)), "is not a whole sample"),
        (json.dumps(sample(float("nan"))), "is not a whole sample"),
        (json.dumps(sample(-1)), "is not a whole sample"),
        ("{}", "is not a whole sample"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, {"start": START}, sample(0))
    path.write_text(path.read_text() + line + "\n" + json.dumps(sample(1)) + "\n")
    with pytest.raises(BadFile) as refused:
        read_history(path)
    assert (refused.value.message, refused.value.line) == (message, 3)


def test_a_history_begins_with_a_start(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=":1: the first line must be a start"):
        read_history(written(tmp_path, sample(0)))


def test_rates_are_of_neighbouring_samples_that_are_apart() -> None:
    def at(seconds: float, executions: int) -> Sample:
        return Sample(seconds, sample(seconds, executions), (), ())

    samples = [at(0, 0), at(1, 100), at(3, 700), at(3.01, 700)]
    assert rates(samples) == [(1, 100), (3, 300)]


def test_the_rate_of_a_campaign_too_short_for_two_samples_is_its_mean() -> None:
    first = sample(0.1, 10)
    last = Sample(100.25, sample(0.25, 500), (), ())
    assert rates([Sample(100.1, first, (), ()), last]) == [(100, 2000), (100.25, 2000)]
    assert rates([last]) == [(100, 2000), (100.25, 2000)]
    assert rates([]) == rates([Sample(0, sample(0), (), ())]) == []


def test_each_rule_of_each_oracle_has_its_row_once() -> None:
    assert len({(row.oracle, row.rule) for row in RULE_ROWS}) == len(RULE_ROWS)
