"""A seed from a trace, run before anybody gets it: on `bare`, L0 `fixed` and each bug of the catalogue."""

from typing import Any, Final, NamedTuple

from nvmx_core.arch.exits import BASIC_REASON_MASK
from nvmx_core.bugs.catalogue import CATALOGUE
from nvmx_core.journal import EXIT
from nvmx_core.scenario.text import format_file, parse_scenario
from nvmx_fuzz.files import STANDARD_INPUT, STANDARD_OUTPUT, BadFile
from nvmx_fuzz.replaying import Replay, replay
from nvmx_fuzz.scenario_files import Loaded
from nvmx_fuzz.trace.reader import NotATraceError
from nvmx_fuzz.trace.reasons import reason_name
from nvmx_fuzz.trace.seed import Seed, scenario_text
from nvmx_fuzz.trace.source import chunks_of, require_events
from nvmx_fuzz.trace.stretch import Stretches
from nvmx_fuzz.wording import counted

_FIXED: Final = "fixed"


class Made(NamedTuple):
    """The scenario and what its runs showed.

    Attributes:
        text: its canonical text, with an `expect` line for the exit that L1 sees, if `bare` shows that exit.
        seed: what it was made of.
        run: on `bare` and on L0 `fixed`.
        is_reproduced: L1 sees an exit with the reason that it has in the trace.
        bugs: the bugs of the catalogue that break a rule in it.
    """

    text: str
    seed: Seed
    run: Replay
    is_reproduced: bool
    bugs: tuple[str, ...]

    @property
    def status(self) -> int:
        """0, or what a replay on `fixed` calls for."""
        return self.run.status

    def remarks(self, output: str) -> list[str]:
        """What a person wants to know beside the scenario, a line each."""
        stretch = self.seed.stretch
        where = f"lines {stretch.first_line} to {stretch.last_line}, vCPU {stretch.vcpu}"
        lines = [
            f"{where}: {counted(len(self.run.scenario.steps), 'step')}, on fixed: {self.run.verdict}"
        ]
        lines += [f"not carried over: {remark}" for remark in self.seed.left_out]
        if self.seed.exit_reason >= 0:
            seen = "sees" if self.is_reproduced else "does not see"
            lines.append(f"on bare L1 {seen} exit {reason_name(self.seed.exit_reason)}")
        if self.bugs:
            lines.append(f"breaks a rule on: {', '.join(self.bugs)}")
        if output != STANDARD_OUTPUT and self.bugs:
            lines.append(f"next: nvmx-fuzz explain --l0 {self.bugs[0]} {output}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        stretch = self.seed.stretch
        return {
            "scenario": self.text,
            "first_line": stretch.first_line,
            "last_line": stretch.last_line,
            "vcpu": stretch.vcpu,
            "pid": stretch.pid,
            "not_carried_over": list(self.seed.left_out),
            "exit": reason_name(self.seed.exit_reason) if self.seed.exit_reason >= 0 else None,
            "exit_reproduced": self.is_reproduced,
            "verdict_on_fixed": self.run.verdict,
            "bugs": list(self.bugs),
        }


def make(name: str, at: int, vcpu: int | None) -> Made:
    """The seed of the stay in L2 around line *at* of a trace file, or around its first violation for 0.

    Raises:
        BadFile: the file is no trace, or has no such stay.
    """
    shown = "standard input" if name == STANDARD_INPUT else name
    try:
        stretches = Stretches.of_chunks(chunks_of(name), at, vcpu)
    except NotATraceError as error:
        raise BadFile(shown, "is no text of a trace", error.line) from None
    require_events(shown, stretches.check)
    seed = scenario_text(shown, stretches)
    return _run(seed)


def _run(seed: Seed) -> Made:
    plain = format_file(parse_scenario(seed.text))
    run = replay(_loaded(plain), _FIXED)
    step = _step_of_exit(run, seed.exit_reason)
    text = plain
    if step >= 0:
        text = _with_expectation(plain, step, reason_name(seed.exit_reason))
        run = replay(_loaded(text), _FIXED)
    bugs = tuple(bug.name for bug in CATALOGUE if replay(_loaded(plain), bug.name).violations)
    return Made(text, seed, run, step >= 0, bugs)


def _loaded(text: str) -> Loaded:
    parsed = parse_scenario(text)
    return Loaded("scenario", parsed.scenario, parsed)


def _step_of_exit(run: Replay, reason: int) -> int:
    """The last step in which L1 sees an exit with that reason on `bare`; -1 if none."""
    if not run.runs or reason < 0:
        return -1
    bare = run.runs[0]
    for step in reversed(range(len(run.scenario.steps))):
        for record in bare.records_of(step):
            if record[0] == EXIT and record[1] & BASIC_REASON_MASK == reason:
                return step
    return -1


def _with_expectation(text: str, step: int, exit_name: str) -> str:
    """The text with ``expect exit`` below a step."""
    lines = text.split("\n")
    actors = ("L1 ", "L2 ", "L0 ", "outside ")
    places = [number for number, line in enumerate(lines) if line.startswith(actors)]
    lines.insert(places[step] + 1, f"  expect exit {exit_name}")
    return format_file(parse_scenario("\n".join(lines)))
