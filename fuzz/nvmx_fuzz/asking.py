"""Testcases of the targets that ask another question than `replaying.py`: asked again, for a person.

Those targets hold our own code against itself, so whatever one of them finds is our own bug.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from nvmx_fuzz import OUR_OWN_BUG
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.entry_checks import Disagreement, check_entry, prepared_text
from nvmx_fuzz.scenario_files import TEXT_SUFFIX, parse, read_testcase
from nvmx_fuzz.scenario_text import TextError, read_and_write
from nvmx_fuzz.targets import TARGET_BY_NAME, Target, target_in_name
from nvmx_fuzz.trace.target import TraceError, examine
from nvmx_fuzz.wording import counted, printable

OK: Final = 0


@dataclass(frozen=True)
class Answer:
    """What a target says of a testcase.

    Attributes:
        name: of the file.
        target: of the table.
        outcome: what the testcase came to, "" when something is wrong.
        error: what is wrong, or None.
    """

    name: str
    target: Target
    outcome: str
    error: Exception | None = None

    @property
    def verdict(self) -> str:
        """One word for what came of it, as that of a scenario."""
        return "our own bug" if self.error else "ok"

    @property
    def status(self) -> int:
        """The exit status that this calls for."""
        return OUR_OWN_BUG if self.error else OK

    @property
    def report(self) -> str:
        """What is wrong, in printable lines: an answer in its words, another exception as a traceback."""
        if self.error is None:
            return ""
        if isinstance(self.error, _QUESTIONS[self.target.name].no):
            text = "\n".join([str(self.error), *getattr(self.error, "__notes__", ())])
        else:
            text = "".join(traceback.format_exception(self.error))
        return "\n".join(map(printable, text.rstrip().split("\n")))

    def to_json(self) -> dict[str, Any]:
        """What there is to know."""
        return {
            "file": self.name,
            "target": self.target.name,
            "verdict": self.verdict,
            "outcome": self.outcome,
            "model_error": self.report,
        }


def own_target(name: str, target_name: str | None = None) -> Target | None:
    """The target to ask of the file *name*; None where that is the question of `replaying.py`.

    *target_name* is what a person says; without it the name of the file decides.
    """
    target = TARGET_BY_NAME[target_name] if target_name else target_in_name(name)
    return target if target and target.name in _QUESTIONS else None


def ask(target: Target, name: str) -> Answer:
    """Ask the question of *target* of a file, or of standard input (``-``); raises BadFile."""
    content = read_testcase(name)
    if target.form == "bytes" and Path(name).suffix == TEXT_SUFFIX:
        content = encode(parse(name, content).scenario)
    try:
        return Answer(name, target, _QUESTIONS[target.name].ask(content))
    except Exception as error:  # noqa: BLE001 - whatever it is, the target would end with it
        return Answer(name, target, "", error)


class _Question(NamedTuple):
    """``ask`` says what an input comes to, or raises ``no``, or what must not be raised."""

    ask: Callable[[bytes], str]
    no: type[Exception]


def _ask_entry(data: bytes) -> str:
    scenario = decode(data)
    try:
        return f"all readings say {check_entry(scenario)}"
    except Exception as error:
        error.add_note(prepared_text(scenario))
        raise


def _ask_text(data: bytes) -> str:
    file = read_and_write(data)
    if file is None:
        return "refused in one line"
    return f"{counted(len(file.scenario.steps), 'step')} read and written"


def _ask_trace(data: bytes) -> str:
    outcome = examine(data)
    if outcome.refused_line:
        return f"refused at line {outcome.refused_line}"
    check = outcome.check
    return f"{counted(check.events, 'event')}, {counted(check.findings_count, 'finding')}"


_QUESTIONS: Final[dict[str, _Question]] = {
    "fuzz_entry_checks": _Question(_ask_entry, Disagreement),
    "fuzz_scenario_text": _Question(_ask_text, TextError),
    "fuzz_trace_reader": _Question(_ask_trace, TraceError),
}
