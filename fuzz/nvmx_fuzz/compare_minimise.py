"""`compare --minimize`: the smallest scenario of each kind of difference, confirmed on the machine.

The file of a kind has the same name in every run, so that a run that was cut off is gone on from. What was
not written for that kind is refused.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.files import BadFile, make_folder, read_small_file, write_whole
from nvmx_fuzz.minimise import size_of
from nvmx_fuzz.minimise_rounds import Rounds
from nvmx_fuzz.outcomes import Comparer, Kind, Shown
from nvmx_fuzz.scenario_files import load_content
from nvmx_fuzz.wording import counted

_SLUG_MAX: Final = 60

Guess = Callable[[Kind, Shown], Scenario | None]
"""A smaller scenario that a model predicts to show the same; None where it predicts nothing."""


class Minimised(NamedTuple):
    """Each kind with its steps before, its smallest scenario and its file; rounds and scenarios asked."""

    rows: list[tuple[Kind, int, Shown, Path]]
    rounds: int
    asked: int

    def smallest(self) -> dict[Kind, Shown]:
        """The smallest scenario of each kind."""
        return {kind: shown for kind, _, shown, _ in self.rows}

    def lines(self) -> list[str]:
        """The same for a person."""
        if not self.rows:
            return ["nothing to minimise"]
        cost = f"{counted(self.rounds, 'round')}, {counted(self.asked, 'scenario')} asked"
        found = [f"minimised {counted(len(self.rows), 'kind')} in {cost}"]
        for kind, before, shown, path in self.rows:
            steps = f"{counted(before, 'step')} became {len(shown.scenario.steps)}"
            found.append(f"  {steps}  {kind.known or 'unlisted'}  [{kind.key}]  {path}")
        return found

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        kinds = [
            {
                "known": kind.known, "key": kind.key, "steps_before": before,
                "steps": len(shown.scenario.steps), "file": str(path),
                "scenario": format_scenario(shown.scenario),
            }
            for kind, before, shown, path in self.rows
        ]  # fmt: skip
        return {"rounds": self.rounds, "asked": self.asked, "kinds": kinds}


def minimise_into(
    folder: Path,
    machine: Comparer,
    name: str,
    starts: dict[Kind, Shown],
    guess: Guess = lambda _kind, _shown: None,
) -> Minimised:
    """Minimise each kind, and write its scenario whenever it gets smaller; *name* is the machine's.

    Raises: BadFile, UnavailableError.
    """
    make_folder(folder)
    files = {kind: folder / file_name(kind) for kind in starts}
    guesses = []
    for kind, path in files.items():
        earlier = _earlier(path, _marks(kind, name)) if path.exists() else None
        predicted = guess(kind, starts[kind])
        guesses += [one for one in (earlier, predicted) if one is not None]

    def keep(kind: Kind, shown: Shown) -> None:
        text = format_scenario(shown.scenario, _marks(kind, name))
        write_whole(files[kind], text.encode())

    rounds = Rounds(machine, starts, keep)
    for kind, shown in starts.items():
        if not files[kind].exists():
            keep(kind, shown)
    best = rounds.run(sorted(guesses, key=size_of))
    for kind, shown in best.items():
        keep(kind, shown)  # what an earlier run left may not show it any more
    rows = [(kind, len(starts[kind].scenario.steps), best[kind], files[kind]) for kind in starts]
    return Minimised(rows, rounds.rounds, rounds.asked)


def file_name(kind: Kind) -> str:
    """The file of a kind, the same in every run."""
    words = f"{kind.known.removeprefix('KVM: ') or 'unlisted'} {kind.key}".lower()
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:_SLUG_MAX].rstrip("-")
    return f"{slug}-{hashlib.sha256(repr(tuple(kind)).encode()).hexdigest()[:8]}.scn"


def _marks(kind: Kind, name: str) -> tuple[str, ...]:
    return (f"{kind.known or 'unlisted'}: {kind.key}", f"shown by {name}, minimised")


def _earlier(path: Path, marks: tuple[str, ...]) -> Scenario:
    """What an earlier run left.

    Raises: BadFile: something else is there; it is not ours to replace.
    """
    refusal = BadFile(path, "holds something else, and is left alone; name another folder")
    try:
        found = load_content(str(path), read_small_file(str(path))).text
    except BadFile:
        raise refusal from None
    if found is None or found.expects or tuple(found.comments) != marks:
        raise refusal
    return found.scenario
