"""The command line `nvmx-fuzz`: which subcommands there are, and what becomes of errors.

Each subcommand lives in its own `cli_*.py`, with its arguments beside its code, and is imported when
it is asked for: `--help` and the pure commands need no fuzzing engine.

Exit status: 0 nothing found, 1 a finding, 2 wrong usage or bad input, 3 our own bug.
"""

import importlib
import io
import os
import re
import signal
import sys
import traceback
from typing import Final, cast

import click
from click.shell_completion import CompletionItem

from nvmx_fuzz import BAD_INPUT, L0_VARIABLE, OUR_OWN_BUG
from nvmx_fuzz.core_choice import VARIABLE, NoCompiledCoreError, choose, needs_python
from nvmx_fuzz.files import BadFile, MissingLibraryError, file_and_reason
from nvmx_fuzz.wording import printable

PROGRAM: Final = "nvmx-fuzz"

_UNDECODED: Final = re.compile("[\ud800-\udfff]")
"""What Python makes of bytes that are no text."""

_NO_MEMORY: Final = "there is not enough memory"

# The name of a subcommand, its module, and one line about it: imported only when it is used.
_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "run": ("nvmx_fuzz.cli_run", "Fuzz until told to stop, and keep what is found."),
    "replay": ("nvmx_fuzz.cli_replay", "Run scenarios again and say what they violate."),
    "explain": ("nvmx_fuzz.cli_explain", "Explain what a scenario violates, and why."),
    "export": ("nvmx_fuzz.cli_export", "Write a scenario as a test, an example, or a report."),
    "corpus": ("nvmx_fuzz.cli_corpus", "Convert, check and collect scenarios."),
    "minimize": ("nvmx_fuzz.cli_minimize", "Make a scenario as small as its violation allows."),
    "compare": ("nvmx_fuzz.cli_compare", "Compare the model processor with another one."),
    "check-trace": ("nvmx_fuzz.cli_check_trace", "Check traces of a real KVM against the rules."),
    "bugs": ("nvmx_fuzz.cli_bugs", "Show the catalogue of known bugs, and hunt them."),
    "report": ("nvmx_fuzz.cli_report", "Make one HTML page about a campaign."),
    "doctor": ("nvmx_fuzz.cli_doctor", "Say what is installed here, and what is used."),
}


class _LazyGroup(click.Group):
    """A group whose subcommands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of a person's work."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, from its module."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        return cast("click.Command", importlib.import_module(module).command)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of subcommands, without importing them, and our own options."""
        names = [
            CompletionItem(name, help=summary)
            for name, (_, summary) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from nvmx_fuzz.version import revision  # noqa: PLC0415 - asks git

        click.echo(f"{PROGRAM} {revision()}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 nothing found, 1 a finding, 2 wrong usage or bad input, 3 our own bug.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show version and commit.",
)
def _nvmx_fuzz() -> None:
    """Differential fuzzing of nested VMX event injection on executable machine models."""


def _wants_python(argv: list[str] | None) -> bool:
    """Whether the Python build alone will do: for an L0 of several bugs, the debugger, other processors.

    The build is chosen before anything is imported.
    """
    words = [os.environ.get(L0_VARIABLE, ""), *(sys.argv[1:] if argv is None else argv)]
    is_unsaid = os.environ.get(VARIABLE) in (None, "", "auto")
    return is_unsaid and (
        "--pdb" in words
        or words[1:2] == ["compare"]
        or any(needs_python(word.removeprefix("--l0=")) for word in words)
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status and prints at most one line on bad input."""
    if not _has_streams():
        return _fail("standard output is closed")
    signal.signal(signal.SIGTERM, _interrupt)
    _prepare_streams()
    if not all(map(_is_usable, sys.argv[1:] if argv is None else argv)):
        return _fail("an argument is empty, or no text in UTF-8")
    try:
        choose("python" if _wants_python(argv) else None)
    except (NoCompiledCoreError, ValueError) as error:
        return _fail(str(error))
    try:
        status = _nvmx_fuzz.main(args=argv, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return BAD_INPUT
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else PROGRAM
        message = " ".join(error.format_message().split()).rstrip(".")
        if message[1:2].islower():
            message = f"{message[0].lower()}{message[1:]}"
        return _fail(f"{message}; try: {path} --help")
    except click.ClickException as error:
        return _fail(error.format_message())
    except (BadFile, MissingLibraryError) as error:
        return _fail(str(error))
    except MemoryError:
        return _fail(_NO_MEMORY)
    except ImportError as error:
        if "failed to map" not in str(error):
            raise
        return _fail(_NO_MEMORY)  # for a library
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted")
    except SystemExit as error:  # of click: 0 after a shell's completion, 1 when our reader is gone
        _abandon_output()
        return BAD_INPUT if error.code else 0
    except BrokenPipeError:
        _abandon_output()
        return BAD_INPUT
    except OSError as error:
        _abandon_output()
        return _fail(file_and_reason(error))
    except Exception:  # noqa: BLE001 - whatever it is, nobody who calls us must take it for a finding
        traceback.print_exc()
        return _fail("our own bug; please report the lines above", OUR_OWN_BUG)
    return status if isinstance(status, int) else 0


def _has_streams() -> bool:
    """Whether there is a standard output; a closed input or error stream is replaced by nothing.

    Left closed, its number would go to the next file opened, and what is meant for it there.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    return sys.stdout is not None


def _prepare_streams() -> None:
    """Names of files may have letters that the output has not; they become escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_usable(word: str) -> bool:
    """Whether an argument can be the name of something: it is text, and not empty."""
    return word != "" and "\0" not in word and not _UNDECODED.search(word)


def _interrupt(_signal: int, _frame: object) -> None:
    """A request to end, before there is anything to finish first."""
    raise KeyboardInterrupt


def _fail(message: str, status: int = BAD_INPUT) -> int:
    click.echo(f"{PROGRAM}: {printable(message)}", err=True)
    return status


def _abandon_output() -> None:
    """Whoever read our output is gone or full; keep Python from complaining again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
