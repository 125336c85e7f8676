"""The text form of a scenario: ``.scn``, for people, git and review.

::

    # what this situation is, and the rule: X3
    version 1
    config l1-ept=off exceptions=#PF,#GP
    L1       inject external-interrupt 0x40
    L0       drop-page stack
    outside  interrupt 0x51 in-delivery
    L1       enter
      expect exit EXTERNAL_INTERRUPT idt-vectoring=invalid rip=handler:0x40

One line is one step, and every step has one canonical line; both follow from the table of
operations. ``config`` names what differs from the default. A comment starts with ``#`` at the start
of a line, or with ``# `` after a blank: ``#PF`` is a value. ``expect`` lines belong to the step
above them (``expect end`` to the end of the run) and are explained in ``expect.py``.

Whatever the text, ``parse_scenario`` gives a scenario or raises ScenarioError.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from nvmx_core.journal import END, Record
from nvmx_core.scenario.config import (
    CHOSEN_EXCEPTIONS,
    DEFAULT_FLAGS,
    FLAG_BIT,
    FLAGS,
    PF_FILTERS,
)
from nvmx_core.scenario.expect import (
    Expectation,
    format_expectation,
    mismatches,
    parse_expectation,
)
from nvmx_core.scenario.step_text import format_step, parse_step
from nvmx_core.scenario.steps import Scenario, Step
from nvmx_core.scenario.words import (
    ScenarioError,
    WordError,
    is_number,
    quoted,
    read_name,
    read_names,
    read_number,
    show_exception,
    show_names,
    unknown,
)

VERSION: Final = 1
STEPS_MAX: Final = 256
"""A longer scenario is refused in text and cut off in bytes."""

_ON_OFF: Final[dict[str, int]] = {"off": 0, "on": 1}
_LINE_WIDTH: Final = 100
_EXCEPTION_NAMES: Final = tuple(show_exception(vector) for vector in CHOSEN_EXCEPTIONS)
_PF_FILTER_NAMES: Final = ("none", "writes", "reads", "never")
_CONFIG_WORDS: Final = (*FLAG_BIT, "exceptions", "l0-exceptions", "pf-filter")

assert len(_PF_FILTER_NAMES) == len(PF_FILTERS)


class ScenarioFile(NamedTuple):
    """A parsed file: ``expects`` are (step, expectation) in order, ``comments`` the leading lines.

    The step of an ``expect end`` is the number of steps. A comment is kept without its ``#``.
    """

    scenario: Scenario
    expects: tuple[tuple[int, Expectation], ...]
    comments: tuple[str, ...]


# -- whole files -----------------------------------------------------------------------------------


class _Parser:
    """What the lines so far have said."""

    def __init__(self) -> None:
        self.version_seen: bool = False
        self.comments: list[str] = []
        self.configured: dict[str, int] = {}
        self.steps: list[Step] = []
        self.expects: list[tuple[int, Expectation]] = []
        self.end_expected: bool = False

    def line(self, number: int, text: str) -> None:
        """Take one line; raises WordError."""
        stripped = text.strip()
        if stripped.startswith("#") and not self.version_seen:
            self.comments.append(stripped[1:].removeprefix(" "))
        words = _without_comment(stripped).split()
        if not words:
            return
        if not self.version_seen:
            _parse_version(words)
            self.version_seen = True
        elif words[0] == "expect":
            self._expect(parse_expectation(number, words[1:]))
        elif words[0] == "config":
            self._configure(words[1:])
        else:
            self._step(words)

    def _configure(self, words: Sequence[str]) -> None:
        if self.steps:
            raise WordError("config must stand before the first step")
        for word in words:
            name, value = _parse_config(word)
            if name in self.configured:
                raise WordError(f"{name} is given twice")
            self.configured[name] = value

    def _step(self, words: Sequence[str]) -> None:
        if len(self.steps) == STEPS_MAX:
            raise WordError(f"a scenario has at most {STEPS_MAX} steps")
        if self.end_expected:
            raise WordError("no step may follow 'expect end'")
        self.steps.append(parse_step(words))

    def _expect(self, expectation: Expectation) -> None:
        if expectation.kind == END:
            self.end_expected = True
            self.expects.append((len(self.steps), expectation))
        elif not self.steps:
            raise WordError("expect needs a step above it")
        elif self.end_expected:
            raise WordError("only 'expect end' may follow 'expect end'")
        else:
            self.expects.append((len(self.steps) - 1, expectation))

    def config(self) -> tuple[int, int, int, int]:
        """The packed configuration."""
        flags = DEFAULT_FLAGS
        for name, bit in FLAG_BIT.items():
            if name in self.configured:
                flags = flags | bit if self.configured[name] else flags & ~bit
        return (
            flags,
            self.configured.get("exceptions", 0),
            self.configured.get("l0-exceptions", 0),
            self.configured.get("pf-filter", 0),
        )


def parse_scenario(text: str) -> ScenarioFile:
    """The scenario that a text describes; any other text raises ScenarioError, and nothing else."""
    parser = _Parser()
    number = 0
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        try:
            parser.line(number, line)
        except WordError as error:
            raise ScenarioError(number, str(error)) from None
    if not parser.version_seen:
        raise ScenarioError(number, f"the file is empty; it must start with 'version {VERSION}'")
    return ScenarioFile(
        Scenario(parser.config(), tuple(parser.steps)),
        tuple(parser.expects),
        tuple(parser.comments),
    )


def format_scenario(scenario: Scenario, comments: Sequence[str] = ()) -> str:
    """The canonical text of a canonical scenario, *comments* before it."""
    return format_file(ScenarioFile(scenario, (), tuple(comments)))


def format_file(file: ScenarioFile) -> str:
    """The canonical text of a parsed file, with its leading comments and its expectations."""
    lines = [
        f"# {line}".rstrip() for comment in file.comments for line in comment.split("\n") or [""]
    ]
    lines.append(f"version {VERSION}")
    lines += _format_config(file.scenario.config)
    expects: dict[int, list[str]] = {}
    for step, expectation in file.expects:
        expects.setdefault(step, []).append(f"  expect {format_expectation(expectation)}")
    for index, step_ in enumerate(file.scenario.steps):
        lines.append(format_step(step_))
        lines += expects.get(index, [])
    lines += expects.get(len(file.scenario.steps), [])
    return "\n".join(lines) + "\n"


def check_expectations(
    file: ScenarioFile, journal: Sequence[Record], step_starts: Sequence[int]
) -> list[str]:
    """What a run did not show of a file's expectations, one sentence each; empty if it did.

    *step_starts* is that of the machine that wrote *journal*: where the records of each step begin,
    and at last those of the end.
    """
    by_step: dict[int, list[Expectation]] = {}
    for step, expectation in file.expects:
        by_step.setdefault(step, []).append(expectation)
    found: list[str] = []
    steps = file.scenario.steps
    for step, expectations in by_step.items():
        if step >= len(step_starts):
            found.append(f"line {expectations[0].line}: the run stopped before step {step + 1}")
            continue
        stop = step_starts[step + 1] if step + 1 < len(step_starts) else len(journal)
        place = f"{format_step(steps[step], compact=True)}: " if step < len(steps) else ""
        for sentence in mismatches(expectations, journal[step_starts[step] : stop]):
            line, colon, rest = sentence.partition(": ")
            found.append(f"{line}{colon}{place}{rest}")
    return found


def _without_comment(line: str) -> str:
    """The line up to a ``#`` at its start, or up to a ``#`` between blanks."""
    if line.startswith("#"):
        return ""
    position = line.find("#")
    while position >= 0:
        after = line[position + 1 : position + 2]
        if line[position - 1].isspace() and (not after or after.isspace()):
            return line[:position]
        position = line.find("#", position + 1)
    return line


def _parse_version(words: Sequence[str]) -> None:
    if words[0] != "version" or len(words) != 2 or not is_number(words[1]):
        raise WordError(
            f"the first line must be 'version {VERSION}', found {quoted(' '.join(words[:2]))}"
        )
    version = read_number(words[1], 1 << 256, "version")
    if version != VERSION:
        raise WordError(f"version {words[1]} was made by a newer nvmx-fuzz; this one reads 1")


# -- configuration ---------------------------------------------------------------------------------


def _parse_config(word: str) -> tuple[str, int]:
    name, _equals, value = word.partition("=")
    if name in FLAG_BIT:
        if value not in _ON_OFF:
            raise WordError(f"{name} is on or off, found {quoted(value)}")
        return name, _ON_OFF[value]
    if name in ("exceptions", "l0-exceptions"):
        return name, read_names(value, _EXCEPTION_NAMES, "choice of exception")
    if name != "pf-filter":
        raise unknown("configuration", name, _CONFIG_WORDS)
    if is_number(value):
        return name, read_number(value, len(_PF_FILTER_NAMES), name)
    return name, read_name(value, _PF_FILTER_NAMES, "page-fault filter")


def _format_config(config: tuple[int, int, int, int]) -> list[str]:
    flags, exceptions, l0_exceptions, pf_filter = config
    words = [
        f"{name}={'on' if flags & FLAG_BIT[name] else 'off'}"
        for name, _default in FLAGS
        if (flags ^ DEFAULT_FLAGS) & FLAG_BIT[name]
    ]
    for name, choice in (("exceptions", exceptions), ("l0-exceptions", l0_exceptions)):
        if choice:
            words.append(f"{name}={show_names(choice, _EXCEPTION_NAMES)}")
    if pf_filter:
        words.append(f"pf-filter={_PF_FILTER_NAMES[pf_filter]}")
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= _LINE_WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"config {word}")
    return lines
