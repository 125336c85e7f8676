"""The names of the files that libFuzzer writes for findings."""

from collections.abc import Sequence

from nvmx_fuzz.files import content_name
from nvmx_fuzz.wording import as_testcase


def artifact_prefix_of(arguments: Sequence[str]) -> str:
    """The value of `-artifact_prefix`, or "": libFuzzer writes crashes to the working directory."""
    for argument in reversed(arguments):
        name, equals, value = argument.partition("=")
        if name == "-artifact_prefix" and equals:
            return value
    return ""


def crash_name(data: bytes, artifact_prefix: str = "") -> str:
    """The file that libFuzzer will write for an input on which the target fails."""
    return f"{artifact_prefix}crash-{content_name(data)}"


def replay_note(target: str, data: bytes, artifact_prefix: str = "") -> str:
    """What a target that asks its own question says of an input: how to ask that again."""
    return f"replay: {as_testcase(target, crash_name(data, artifact_prefix))}"
