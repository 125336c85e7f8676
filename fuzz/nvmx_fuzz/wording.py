"""Small words for people."""

import shlex


def counted(number: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def as_argument(path: str) -> str:
    """A path as an argument of a command, which does not look like an option."""
    return f"./{path}" if path.startswith("-") and path != "-" else path


def command_on(subcommand: str, l0_name: str, path: str) -> str:
    """What a person types to have *subcommand* look at a file under an L0, ready for a shell."""
    return f"nvmx-fuzz {subcommand} --l0 {shlex.quote(l0_name)} {shlex.quote(as_argument(path))}"


def as_testcase(target: str, path: str) -> str:
    """What a person types to have the question of *target* asked of a file, ready for a shell."""
    return f"nvmx-fuzz replay --target {target} {shlex.quote(as_argument(path))}"


def printable(text: str) -> str:
    """A text on one line: what cannot be printed becomes an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
