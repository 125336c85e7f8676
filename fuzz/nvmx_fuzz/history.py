"""How a campaign went over time: ``progress.jsonl`` in its output folder, a line of JSON a sample.

A line is appended with one write, so whoever is killed leaves whole lines; should the machine go down, the
last one may be torn, and is left out by the reader and taken away by the next campaign into the folder.
Lines come every second at first and at most a minute apart later, so that a month has a few ten thousand.
Each campaign into the folder adds a line ``start``, its samples, and, unless it is killed, a line ``end``.
Times are seconds of fuzzing: no clock of the machine is in the file.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any, Final

from nvmx_core.l0.reach import REACH_NAMES
from nvmx_fuzz.files import IS_A_LINK, BadFile, about, read_file, require_regular
from nvmx_fuzz.rule_rows import RULE_ROWS
from nvmx_fuzz.status import Status
from nvmx_fuzz.transitions import TransitionCount
from nvmx_fuzz.version import revision

HISTORY_VERSION: Final = 1
FILE_NAME: Final = "progress.jsonl"

GAP_MIN: Final = 1.0
GAP_MAX: Final = 60.0
_GAP_SHARE: Final = 0.01
_LAST_LOOK_SECONDS: Final = 2.0
_SIZE_MAX: Final = 1 << 30
_TAIL: Final = 1 << 16

NUMBERS: Final = (
    "seconds", "executions", "steps", "skipped", "violating", "coverage", "features", "corpus",
    "transitions", "findings", "model_errors",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """The numbers of one moment; ``seconds`` since the first campaign into the folder began.

    All count one campaign alone, but for ``corpus``, ``transitions`` and ``findings``, which tell what is
    in the folder.
    """

    seconds: float
    numbers: dict[str, float]
    reach: tuple[int, ...]
    fired: tuple[int, ...]


@dataclass(slots=True)
class Session:
    """One campaign: what its line ``start`` says, its samples, and why it ended, "" if that is not told."""

    start: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)
    ended: str = ""


class HistoryWriter:
    """Appends the samples of a campaign."""

    def __init__(self, folder: Path, l0_name: str, *corpora: Path) -> None:
        """Go on with the file in *folder*; raises BadFile. *corpora* are the folders of kept inputs."""
        self._path: Final = folder / FILE_NAME
        self._transitions: Final = TransitionCount(l0_name, *corpora)
        self._next = 0.0
        self._started = False
        with about(self._path):
            _drop_torn_line(self._path)

    def look(self, status: Status) -> None:
        """Write a sample when it is time; raises BadFile."""
        if not status.mode or status.seconds < self._next:
            return
        if not self._started:
            self._started = True
            self._append({"start": _start(status)})
        self._transitions.look()
        self._append(self._sample(status))
        gap = min(max(GAP_MIN, status.seconds * _GAP_SHARE), GAP_MAX)
        self._next = status.seconds + gap

    def end(self, status: Status) -> None:
        """Write the last sample and why it is the last; raises BadFile."""
        self._next = 0.0
        self._transitions.look(_LAST_LOOK_SECONDS)
        self.look(status)
        if self._started:
            self._append({"end": status.ended})

    def _sample(self, status: Status) -> dict[str, Any]:
        progress, coverage = status.progress, status.coverage()
        return {
            "seconds": round(status.seconds, 2),
            "executions": progress.executions,
            "steps": progress.steps,
            "skipped": progress.skipped,
            "violating": progress.violating,
            "coverage": coverage.counters,
            "features": coverage.features,
            "corpus": coverage.corpus,
            "transitions": self._transitions.count,
            "findings": len(status.findings),
            "model_errors": len(status.model_errors.seen),
            "reach": status.reach(),
            "fired": progress.fired(len(RULE_ROWS)),
        }

    def _append(self, record: dict[str, Any]) -> None:
        line = f"{json.dumps(record, separators=(',', ':'))}\n".encode()
        with about(self._path):
            descriptor = os.open(
                self._path,
                os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o666,
            )
            try:
                written = os.write(descriptor, line)
            finally:
                os.close(descriptor)
        if written < len(line):
            raise BadFile(self._path, "no space left on device")


def _start(status: Status) -> dict[str, Any]:
    plan = status.plan
    return {
        "version": HISTORY_VERSION,
        "revision": revision(),
        "l0": plan.l0,
        "seed": plan.seed,
        "core": plan.core,
        "feedback": status.mode,
        "command": plan.command,
        "jobs": plan.jobs,
        "reach": list(REACH_NAMES),
        "rules": [[row.oracle, row.rule] for row in RULE_ROWS],
    }


def _drop_torn_line(path: Path) -> None:
    """Cut off what comes after the last end of a line; raises BadFile for what is no file of ours."""
    if path.is_symlink():
        raise BadFile(path, IS_A_LINK)
    if not path.exists():
        return
    require_regular(path, path.stat())
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        place = size
        while place:
            begin = max(place - _TAIL, 0)
            file.seek(begin)
            found = file.read(place - begin).rfind(b"\n")
            if found >= 0:
                place = begin + found + 1
                break
            place = begin
        if place < size:
            file.truncate(place)


# -- reading -----------------------------------------------------------------------------------------


def read_history(path: Path) -> list[Session]:
    """All campaigns into a folder, of which there is at least one; raises BadFile with the line."""
    lines = read_file(str(path), _SIZE_MAX, "no history of campaigns").split(b"\n")
    sessions: list[Session] = []
    offset = 0.0
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last end of line is torn
        record = _record(path, number, line)
        if "start" in record:
            if sessions and sessions[-1].samples:
                offset = sessions[-1].samples[-1].seconds
            sessions.append(Session(_checked_start(path, number, record["start"])))
        elif not sessions:
            raise BadFile(path, "the first line must be a start", number)
        elif "end" in record:
            sessions[-1].ended = str(record["end"])
        else:
            sample = _checked_sample(path, number, record, sessions[-1].start, offset)
            sessions[-1].samples.append(sample)
    if not sessions:
        raise BadFile(path, "has no whole line, so there is nothing to report yet")
    return sessions


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise BadFile(path, "is not a line of JSON", number) from None
    if not isinstance(record, dict):
        raise BadFile(path, "is not an object of JSON", number)
    return record


def _checked_start(path: Path, number: int, start: Any) -> dict[str, Any]:
    if not isinstance(start, dict) or start.get("version") != HISTORY_VERSION:
        raise BadFile(path, f"is not a start of version {HISTORY_VERSION}", number)
    words = ("revision", "l0", "core", "feedback", "command")
    is_good = all(isinstance(start.get(name), str) for name in words)
    is_good = is_good and isinstance(start.get("seed"), int)
    is_good = is_good and isinstance(start.get("jobs", 1), int)
    is_good = is_good and _is_list_of(start.get("reach"), str)
    is_good = is_good and _is_list_of(start.get("rules"), list)
    is_good = is_good and all(len(row) == 2 and _is_list_of(row, str) for row in start["rules"])
    if not is_good:
        raise BadFile(path, "is not a whole start", number)
    return start


def _checked_sample(
    path: Path, number: int, record: dict[str, Any], start: dict[str, Any], offset: float
) -> Sample:
    numbers = {name: record.get(name) for name in NUMBERS}
    lists = record.get("reach"), record.get("fired")
    is_good = all(_is_number(value) for value in numbers.values())
    for counts, names in zip(lists, (start["reach"], start["rules"]), strict=True):
        is_good = is_good and isinstance(counts, list) and len(counts) == len(names)
        is_good = is_good and all(_is_number(count) for count in counts or ())
    if not is_good:
        raise BadFile(path, "is not a whole sample", number)
    return Sample(
        offset + record["seconds"], record, tuple(record["reach"]), tuple(record["fired"])
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value) and value >= 0


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def rates(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """(seconds, executions a second) between neighbouring samples of one campaign.

    Samples that follow each other at once, as the last one may, say nothing about a rate; of a campaign too
    short for any other it is the mean.
    """
    found = [
        (later.seconds, (later.numbers["executions"] - before.numbers["executions"]) / passed)
        for before, later in pairwise(samples)
        if (passed := later.seconds - before.seconds) >= GAP_MIN / 2
    ]
    if found or not samples or not samples[-1].numbers["seconds"]:
        return found
    end, passed = samples[-1].seconds, samples[-1].numbers["seconds"]
    mean = samples[-1].numbers["executions"] / passed
    return [(end - passed, mean), (end, mean)]
