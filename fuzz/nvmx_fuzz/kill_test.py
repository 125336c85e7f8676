"""Kills commands at random moments and looks at what they leave: `scripts/soak --kill N`.

Each command runs on copies of the same folder until SIGKILL has met it N times, each at a moment drawn
between its start and its usual end. Afterwards every file that was there before must be there, unchanged (a
finding may have become a smaller one of the same key), and each file that a reader would take must be whole:
text that parses, bytes that are called after their content, lines of JSON that are complete. A part of a file
is no harm where every reader refuses it; these are counted. Now and then the command runs once more, and has
to bring what it would have brought without the kill.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.corpus_features import Feature, FeatureMeter, union
from nvmx_fuzz.corpus_files import files_in
from nvmx_fuzz.files import BadFile, content_name, is_draft, is_whole
from nvmx_fuzz.generate import random_bytes, random_scenario
from nvmx_fuzz.history import read_history
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.seeds import bug_scenario

_SOURCES: Final = 60
_THERE: Final = 20
_TRIALS_MAX: Final = 4
"""So many trials for each kill: one that has ended before it was killed tells nothing."""
_AGAIN: Final = 8
"""Every so manieth trial runs the command once more."""
_CLI: Final = (sys.executable, "-m", "nvmx_fuzz.cli")


@dataclass(frozen=True)
class Victim:
    """A command to kill: its arguments, how its folder is made, and what has to hold when it is done."""

    name: str
    arguments: tuple[str, ...]
    make: Callable[[Path], None]
    done: Callable[[Path], str]


@dataclass
class Outcome:
    """What the trials of one command came to; *problems* are sentences, and there should be none.

    *drafts* and *parts* are files that a kill left and that no reader takes: hidden drafts, and files that
    are not what they are called after.
    """

    name: str
    trials: int = 0
    killed: int = 0
    drafts: int = 0
    parts: int = 0
    problems: list[str] = field(default_factory=list)


# -- the commands ------------------------------------------------------------------------------------


def _write_bytes(folder: Path, seeds: Sequence[int]) -> None:
    folder.mkdir(parents=True)
    for seed in seeds:
        data = random_bytes(seed)
        (folder / content_name(data)).write_bytes(data)


def _make_corpora(folder: Path) -> None:
    _write_bytes(folder / "source", range(_SOURCES))
    _write_bytes(folder / "target", range(_SOURCES, _SOURCES + _THERE))


def _make_texts(folder: Path) -> None:
    (folder / "source").mkdir()
    (folder / "target").mkdir()
    for seed in range(_SOURCES):
        place = folder / ("source" if seed >= _THERE else "target")
        (place / f"seed-{seed}.scn").write_text(format_scenario(random_scenario(seed)))


def _make_campaign(folder: Path) -> None:
    subprocess.run(
        [*_CLI, *_RUN, "--runs", "1500"], cwd=folder, capture_output=True, check=False, timeout=300
    )


def _make_finding(folder: Path) -> None:
    found = bug_scenario("bug1")
    assert found is not None, "the catalogue has a scenario for it"
    scenario = load(str(found)).scenario
    # Steps that change nothing for what is found, so that there is much to take away.
    padded = scenario._replace(steps=scenario.steps + random_scenario(5).steps * 3)
    (folder / "large.scn").write_text(format_scenario(padded))


def _shows_all(folder: Path) -> str:
    meter = FeatureMeter()

    def features(*names: str) -> set[Feature]:
        paths = [path for name in names for path in files_in(folder / name)]
        return union([meter.measure(str(path), load(str(path)).scenario) for path in paths])

    lost = features("source") - features("target")
    return f"{len(lost)} features of the sources are lost" if lost else ""


def _all_added(folder: Path) -> str:
    there = {encode(load(str(path)).scenario) for path in files_in(folder / "target")}
    missing = [
        path.name
        for path in files_in(folder / "source")
        if encode(load(str(path)).scenario) not in there
    ]
    return f"not added: {', '.join(missing)}" if missing else ""


def _has_findings(folder: Path) -> str:
    summary = json.loads((folder / "out" / "summary.json").read_text())
    return "" if summary["findings"] else "the campaign found nothing"


def _is_small(folder: Path) -> str:
    small = len(load(str(folder / "small.scn")).scenario.steps)
    return "" if small <= 4 else f"the result has {small} steps"


_RUN: Final = (
    "run",
    "--l0",
    "bug3",
    "--no-seeds",
    "--seed",
    "1",
    "--out",
    "out",
    "--core",
    "python",
)
VICTIMS: Final = (
    Victim("run", (*_RUN, "--runs", "600"), _make_campaign, _has_findings),
    Victim("run --jobs 2", (*_RUN, "--runs", "600", "--jobs", "2"), _make_campaign, _has_findings),
    Victim("corpus merge", ("corpus", "merge", "source", "--to", "target"), _make_corpora, _shows_all),
    Victim("corpus minimize", ("corpus", "minimize", "source", "--to", "new"), _make_corpora,
           lambda _folder: ""),
    Victim("corpus add", ("corpus", "add", "--force", "--to", "target",
                          *(f"source/seed-{seed}.scn" for seed in range(_THERE, _SOURCES))),
           _make_texts, _all_added),
    Victim("minimize", ("minimize", "--l0", "bug1", "--out", "small.scn", "large.scn"), _make_finding,
           _is_small),
)  # fmt: skip


# -- a trial -----------------------------------------------------------------------------------------


def kill_at_random(victim: Victim, kills: int, seed: int) -> Outcome:
    """Kill one command *kills* times; the moments follow from *seed* and from how long it takes here."""
    draw = random.Random(seed)
    outcome = Outcome(victim.name)
    with tempfile.TemporaryDirectory(prefix="nvmx-kill-") as base:
        template = Path(base) / "template"
        template.mkdir()
        victim.make(template)
        whole = _copy(template, Path(base) / "whole")
        started = time.monotonic()
        subprocess.run([*_CLI, *victim.arguments], cwd=whole, capture_output=True, check=False)
        usual = time.monotonic() - started
        while outcome.killed < kills and outcome.trials < _TRIALS_MAX * kills:
            folder = _copy(template, Path(base) / f"{outcome.trials}")
            took = _trial(victim, folder, draw.uniform(0, usual), outcome)
            usual = (usual + took) / 2 if took else usual  # others use the machine as well
            shutil.rmtree(folder)
    return outcome


def _copy(template: Path, folder: Path) -> Path:
    shutil.copytree(template, folder)
    return folder


def _trial(victim: Victim, folder: Path, moment: float, outcome: Outcome) -> float:
    """One kill; returns how long the command took if it had ended before, else 0."""
    before = {path.relative_to(folder): path.read_bytes() for path in _all_files(folder)}
    started = time.monotonic()
    process = subprocess.Popen(
        [*_CLI, *victim.arguments], cwd=folder, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    took = 0.0 if process.poll() is None else time.monotonic() - started
    outcome.trials += 1
    outcome.killed += not took
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    problems = [*_lost(folder, before), *_torn(folder, outcome)]
    if outcome.trials % _AGAIN == 0:
        problems += _done_now(victim, folder)
    outcome.problems += [f"after {moment:.3f} s: {problem}" for problem in problems]
    return took


def _done_now(victim: Victim, folder: Path) -> list[str]:
    """What is not as it should be when the command has run once more."""
    again = subprocess.run(
        [*_CLI, *_again(victim, folder)], cwd=folder, capture_output=True, check=False, timeout=300
    )
    if again.returncode not in {0, 1}:
        return [f"the next one ends with {again.returncode}: {again.stderr.decode()[-300:]}"]
    what = victim.done(folder)
    return [what] if what else []


def _again(victim: Victim, folder: Path) -> tuple[str, ...]:
    """The same command; `corpus minimize` wants a folder of its own."""
    if victim.name == "corpus minimize" and (folder / "new").exists():
        shutil.rmtree(folder / "new")
    return victim.arguments


def _all_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _lost(folder: Path, before: dict[Path, bytes]) -> list[str]:
    """Files that were there and are not, or are another one."""
    problems = []
    for name, content in before.items():
        path = folder / name
        if name.parts[0] == "out" and name.parts[1] not in ("corpus", "findings"):
            continue  # of the last campaign alone
        if not path.exists():
            problems.append(f"{name} is gone")
        elif path.read_bytes() != content and "findings" not in name.parts:
            problems.append(f"{name} is another one")
    return problems


def _torn(folder: Path, outcome: Outcome) -> list[str]:
    """Files that a reader would take and that are not whole."""
    problems = []
    for path in _all_files(folder):
        name = path.relative_to(folder)
        if path.name.startswith("."):
            outcome.drafts += is_draft(path.name)
        elif not is_whole(path.name, path.read_bytes()):
            outcome.parts += 1
            problems += [f"{name} is a part, and is read"] if _is_read(path) else []
        elif path.name == "progress.jsonl" and path.read_bytes().count(b"\n"):
            read_history(path)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif not _is_as_written(path):
            problems.append(f"{name} is not whole")
    return problems


def _is_as_written(path: Path) -> bool:
    if path.suffix == ".bin":
        content = path.read_bytes()
        return encode(decode(content)) == content
    return path.suffix != ".scn" or _is_read(path)


def _is_read(path: Path) -> bool:
    try:
        load(str(path))
    except BadFile:
        return False
    return True
