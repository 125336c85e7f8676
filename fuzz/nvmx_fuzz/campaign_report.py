"""The report of a campaign, from what is in its output folder alone: it may run, be over, or be killed.

What cannot be read or explained is listed in the report; only a folder without a readable history is
refused, for then nothing is known about it.
"""

import fcntl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Final, NamedTuple

from nvmx_core.arch.rules import RULES
from nvmx_fuzz.corpus_files import files_in
from nvmx_fuzz.explain import about as about_l0
from nvmx_fuzz.explain import explain
from nvmx_fuzz.files import BadFile, check_folder, read_small_file
from nvmx_fuzz.history import FILE_NAME, Sample, Session, rates, read_history
from nvmx_fuzz.nested_events import unknown_l0
from nvmx_fuzz.pages import ShownReport, page, shown
from nvmx_fuzz.plots import bars, curve
from nvmx_fuzz.rule_rows import RULE_ROWS
from nvmx_fuzz.scenario_files import TEXT_SUFFIX, load
from nvmx_fuzz.survey import Survey
from nvmx_fuzz.version import revision
from nvmx_fuzz.wording import command_on

PAGE: Final = "report.html"
"""The name of the page in the folder of its campaign."""

RUNS: Final = "runs"
KILLED: Final = "was killed"
_POINTS_MAX: Final = 400
"""More points on a curve than pixels help nobody."""


@dataclass(frozen=True, slots=True)
class ShownFinding:
    """A finding with its pictures; ``problem`` instead where it cannot be read or explained."""

    file: str
    replay: str
    shown: ShownReport | None = None
    problem: str = ""


class Count(NamedTuple):
    """A row of a table of counts."""

    name: str
    times: int


class RuleCount(NamedTuple):
    """How often a rule was put to the test, and how many inputs broke it."""

    oracle: str
    rule: str
    title: str
    checked: int
    fired: int


class Plot(NamedTuple):
    """A picture and its heading."""

    title: str
    svg: str


class SlowInput(NamedTuple):
    """A kept input that takes long; ``replay`` is the command that runs it."""

    milliseconds: float
    steps: int
    replay: str


class ReportMaker:
    """Makes the report of one folder, any number of times; what does not change is done once."""

    def __init__(self, folder: Path, survey_seconds: float = inf) -> None:
        """Report on the campaign in *folder*.

        Kept inputs are run for *survey_seconds* at most each time; the page tells how many are left.
        """
        self._survey_seconds: Final = survey_seconds
        self._folder: Final = folder
        self._survey: Final = Survey()
        self._explained: Final[dict[tuple[str, str, bytes], ShownFinding]] = {}

    def html(self, *, refresh: int = 0) -> str:
        """The page; one that is shown again asks for itself every *refresh* seconds.

        Raises BadFile for a folder that is none of a campaign, MissingLibraryError.
        """
        sessions = self._history()
        session = sessions[-1]
        l0_name = session.start["l0"]
        kept = self._folder / "seeds", self._folder / "corpus"
        self._survey.look(l0_name, *kept, seconds=self._survey_seconds)
        last = session.samples[-1] if session.samples else None
        return page(
            "report.html",
            folder=str(self._folder),
            refresh=refresh,
            start=session.start,
            l0_about=about_l0(l0_name),
            campaigns=len(sessions),
            state=self._state(session),
            last=last.numbers if last else None,
            total=totals(sessions),
            plots=plots(sessions),
            reach=reach_counts(session, last),
            rules=rule_counts(session, last),
            steps=bars("steps", self._survey.steps, "steps") if self._survey.steps else "",
            left=self._survey.left,
            slowest=list(self._slowest(l0_name)),
            findings=list(self._findings(l0_name)),
            model_errors=list(self._model_errors()),
            revision=revision(),
        )

    def _history(self) -> list[Session]:
        folder = self._folder
        check_folder(folder)
        path = folder / FILE_NAME
        if not path.exists():
            raise BadFile(folder, f"holds no campaign: there is no {FILE_NAME} in it")
        sessions = read_history(path)
        problem = unknown_l0(sessions[-1].start["l0"])
        if problem:
            raise BadFile(path, problem)
        return sessions

    def _state(self, session: Session) -> str:
        if session.ended:
            return session.ended
        return RUNS if is_running(self._folder) else KILLED

    def _findings(self, l0_name: str) -> Iterator[ShownFinding]:
        folder = self._folder / "findings"
        if not folder.is_dir():
            return
        for path in files_in(folder):
            if path.suffix == TEXT_SUFFIX:
                yield self._finding(l0_name, path)

    def _finding(self, l0_name: str, path: Path) -> ShownFinding:
        replay = _replay(l0_name, path)
        try:
            key = (l0_name, str(path), read_small_file(str(path)))
            if key not in self._explained:
                report = explain(
                    load(str(path)).scenario,
                    l0_name,
                    file=str(path.absolute()),
                    revision=revision(),
                )
                self._explained[key] = ShownFinding(str(path), replay, shown(report))
            return self._explained[key]
        except BadFile as error:
            return ShownFinding(str(path), replay, problem=str(error))
        except Exception as error:  # noqa: BLE001 - the other findings count
            problem = f"could not be explained: {error!r} (our own bug)"
            return ShownFinding(str(path), replay, problem=problem)

    def _model_errors(self) -> Iterator[str]:
        folder = self._folder / "model-errors"
        if folder.is_dir():
            yield from (str(path) for path in files_in(folder) if path.suffix == TEXT_SUFFIX)

    def _slowest(self, l0_name: str) -> Iterator[SlowInput]:
        for kept in self._survey.slowest():
            yield SlowInput(1000 * kept.seconds, kept.steps, _replay(l0_name, kept.path))


def _replay(l0_name: str, path: Path) -> str:
    """The command that runs a file, from whatever directory it is pasted in."""
    return command_on("replay", l0_name, str(path.absolute()))


def is_running(folder: Path) -> bool:
    """Whether a campaign holds the lock of its folder."""
    try:
        with (folder / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


# -- numbers -----------------------------------------------------------------------------------------


def totals(sessions: list[Session]) -> dict[str, float]:
    """Seconds and executions of all campaigns into the folder."""
    lasts = [session.samples[-1] for session in sessions if session.samples]
    return {
        "seconds": lasts[-1].seconds if lasts else 0.0,
        "executions": sum(last.numbers["executions"] for last in lasts),
    }


def reach_counts(session: Session, last: Sample | None) -> list[Count]:
    """How often each situation was reached."""
    counts = last.reach if last else (0,) * len(session.start["reach"])
    return [Count(name, int(n)) for name, n in zip(session.start["reach"], counts, strict=True)]


def rule_counts(session: Session, last: Sample | None) -> list[RuleCount]:
    """How often each rule of an oracle was put to the test, and how many inputs broke it."""
    if last is None:
        return []
    reached = dict(zip(session.start["reach"], last.reach, strict=True))
    rules = [tuple(row) for row in session.start["rules"]]
    fired = dict(zip(rules, last.fired, strict=True))
    return [
        RuleCount(
            row.oracle,
            row.rule,
            RULES[row.rule].title,
            int(sum(reached.get(name, 0) for name in row.situations))
            if row.situations
            else int(last.numbers["executions"]),
            int(fired.get((row.oracle, row.rule), 0)),
        )
        for row in RULE_ROWS
    ]


def plots(sessions: list[Session]) -> list[Plot]:
    """The curves over time; none before there are two samples."""
    if all(len(session.samples) < 2 for session in sessions):
        return []
    values: tuple[tuple[str, Callable[[Sample], float]], ...] = (
        ("coverage", lambda sample: sample.numbers["coverage"]),
        ("transitions", lambda sample: sample.numbers["transitions"]),
        ("inputs kept", lambda sample: sample.numbers["corpus"]),
        ("situations reached", lambda sample: sum(1 for count in sample.reach if count)),
        ("findings", lambda sample: sample.numbers["findings"]),
    )
    drawn = [
        Plot(
            title,
            curve(
                title,
                [[(s.seconds, value(s)) for s in thinned(part.samples)] for part in sessions],
            ),
        )
        for title, value in values
        if title != "coverage" or any(s.numbers["coverage"] for p in sessions for s in p.samples)
    ]
    speed = [rates(thinned(part.samples)) for part in sessions]
    drawn.insert(3, Plot("executions/s", curve("executions/s", speed, is_rate=True)))
    return drawn


def thinned(samples: list[Sample]) -> list[Sample]:
    """At most _POINTS_MAX samples, evenly spread over time, the first and the last among them."""
    if len(samples) <= _POINTS_MAX:
        return samples
    first, last = samples[0].seconds, samples[-1].seconds
    width = (last - first) / (_POINTS_MAX - 1) or 1.0
    kept = [
        later
        for before, later in pairwise(samples)
        if int((later.seconds - first) / width) > int((before.seconds - first) / width)
    ]
    return [samples[0], *kept[:-1], samples[-1]]
