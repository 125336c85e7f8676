"""What the fuzz target `fuzz_scenario_text.py` does with an input: it is read as the text form.

This module imports the model, so import it inside `feedback.instrument`.
"""

from typing import Final

from nvmx_core.scenario.text import STEPS_MAX, ScenarioFile, format_file, parse_scenario
from nvmx_core.scenario.words import ScenarioError
from nvmx_fuzz.artifacts import replay_note
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.scenario_files import parse

MESSAGE_LENGTH_MAX: Final = 400
"""A refusal is one line that a person reads."""


class TextError(Exception):
    """The text form does not keep what it promises."""


def check_text(data: bytes, artifact_prefix: str = "") -> None:
    """Read an input as a libFuzzer target does; raises TextError, or what the parser must not raise."""
    try:
        read_and_write(data)
    except Exception as error:
        error.add_note(replay_note("fuzz_scenario_text", data, artifact_prefix))
        raise


def read_and_write(data: bytes) -> ScenarioFile | None:
    """The file that *data* is, or None when it is refused as it should be.

    Bytes that are not UTF-8 have to be refused too; what they become with signs put in their place is read.

    Raises:
        TextError: a refusal is no good line, or something is lost on the way.
    """
    try:
        parse("input", data)
    except BadFile as refused:
        _require_good_line(refused.message, refused.line, data.count(b"\n") + 1)
    text = data.decode("utf-8", "replace")
    try:
        file = parse_scenario(text)
    except ScenarioError as refused:
        _require_good_line(refused.message, refused.line, text.count("\n") + 1)
        return None
    _require_faithful(file)
    return file


def _require_good_line(message: str, line: int, lines: int) -> None:
    if not 1 <= line <= lines:
        raise TextError(f"refused at line {line} of {lines}: {message!r}")
    if not message or not message.isprintable() or len(message) > MESSAGE_LENGTH_MAX:
        raise TextError(f"refused, but not in one line for people: {message!r}")


def _require_faithful(file: ScenarioFile) -> None:
    """Writing and reading again change nothing but the numbers of lines."""
    written = format_file(file)
    try:
        again = parse_scenario(written)
    except ScenarioError as refused:
        raise TextError(f"its canonical text is refused: {refused}\n{written}") from None
    if _content(again) != _content(file):
        raise TextError(f"its canonical text means something else:\n{written}")
    if format_file(again) != written:
        raise TextError(f"its canonical text is not canonical:\n{written}")
    if len(file.scenario.steps) > STEPS_MAX:
        raise TextError(f"it has {len(file.scenario.steps)} steps")
    if decode(encode(file.scenario)) != file.scenario:
        raise TextError(f"its bytes mean something else:\n{written}")


def _content(file: ScenarioFile) -> tuple[object, ...]:
    expects = [(step, expectation._replace(line=0)) for step, expectation in file.expects]
    return file.scenario, expects, file.comments
