"""Runs a command of ours that is started as `python -m …`: bad input is one line, and exit status 2."""

import sys
from typing import Final

import click

from nvmx_fuzz import BAD_INPUT
from nvmx_fuzz.files import BadFile, file_and_reason
from nvmx_fuzz.wording import printable

INTERRUPTED: Final = 130


def run(command: click.Command, name: str) -> int:
    """Run *command*, which people call *name*, with the arguments of the process; returns the exit status."""
    try:
        return int(command.main(prog_name=name, standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        message = error.format_message()
    except (click.ClickException, BadFile) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        hint = f"; try: {name} --help" if isinstance(error, click.UsageError) else ""
        message = f"{name}: {printable(' '.join(text.split()).rstrip('.'))}{hint}"
    except click.Abort:
        return INTERRUPTED
    except OSError as error:
        message = f"{name}: {printable(file_and_reason(error))}"
    sys.stderr.write(f"{message}\n")
    return BAD_INPUT
