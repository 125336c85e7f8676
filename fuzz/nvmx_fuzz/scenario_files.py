"""Scenarios from files of either form, told apart by what is in them."""

import re
from pathlib import Path
from typing import Final, NamedTuple

from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import ScenarioFile, parse_scenario
from nvmx_core.scenario.words import ScenarioError
from nvmx_fuzz.codec import SIZE_MAX, CodecError, decode, require_version
from nvmx_fuzz.files import BadFile, is_whole, read_small_file
from nvmx_fuzz.targets import target_in_name

TEXT_SUFFIX: Final = ".scn"

_VERSION_LINE: Final = re.compile(r"^\s*version\b", re.MULTILINE)
_NOT_IN_TEXT: Final = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


class Loaded(NamedTuple):
    """A scenario and where it came from; *text* holds expectations and comments of the text form."""

    name: str
    scenario: Scenario
    text: ScenarioFile | None


def load(name: str) -> Loaded:
    """Read a scenario of either form; ``-`` is standard input. Raises BadFile.

    Any bytes are a scenario, so a testcase that is none can only be told by its name.
    """
    target = target_in_name(name)
    if target and target.form != "bytes":
        raise BadFile(name, f"is a testcase of {target.name}, no scenario; try: nvmx-fuzz replay")
    return load_content(name, read_testcase(name))


def read_testcase(name: str) -> bytes:
    """What a fuzzer wrote, or a person; ``-`` is standard input. Raises BadFile."""
    content = read_small_file(name)
    if not is_whole(Path(name).name, content):
        raise BadFile(name, "is not whole: it is called after another content")
    return content


def load_content(name: str, content: bytes) -> Loaded:
    """Take *content* as the scenario called *name*; raises BadFile."""
    if is_text(name, content):
        text = parse(name, content)
        return Loaded(name, text.scenario, text)
    if len(content) > SIZE_MAX:
        raise BadFile(name, f"has {len(content)} bytes, but a scenario has at most {SIZE_MAX}")
    try:
        require_version(content)
    except CodecError as error:
        raise BadFile(name, str(error)) from None
    return Loaded(name, decode(content), None)


def parse(name: str, content: bytes) -> ScenarioFile:
    """Take *content* as the text form; raises BadFile with the line."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadFile(name, f"is not text in UTF-8: byte {error.start}", line) from None
    try:
        return parse_scenario(text)
    except ScenarioError as error:
        raise BadFile(name, error.message, error.line) from None


def is_text(name: str, content: bytes) -> bool:
    """Whether this is meant as the text form.

    It is when the name says so; otherwise when it reads as text that begins with a comment, or that
    has a line ``version``. Bytes that a fuzzer made may begin with any letter.
    """
    if Path(name).suffix == TEXT_SUFFIX:
        return True
    try:
        text = content.decode("utf-8").removeprefix("\ufeff").lstrip()
    except UnicodeDecodeError:
        return False
    if not text or _NOT_IN_TEXT.search(text):
        return False
    return text.startswith("#") or _VERSION_LINE.search(text) is not None
