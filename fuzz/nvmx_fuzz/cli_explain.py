"""`nvmx-fuzz explain`: the report about a violation."""

import json
import shutil
import sys
import traceback
from collections.abc import Callable
from typing import Final

import click

from nvmx_fuzz.cli_options import (
    complete_path,
    json_option,
    l0_option,
    output_option,
    violation_option,
    write_text,
)
from nvmx_fuzz.explain import explain, render_rich, render_text, to_json
from nvmx_fuzz.explain_report import Report
from nvmx_fuzz.files import STANDARD_OUTPUT
from nvmx_fuzz.scenario_files import Loaded, load
from nvmx_fuzz.version import revision

_WIDTH = 110


@click.command("explain")
@click.argument("file", shell_complete=complete_path)
@l0_option("The L0 that is judged.")
@violation_option
@click.option(
    "--format",
    "form",
    type=click.Choice(("text", "svg", "html")),
    default="text",
    show_default=True,
    help="svg: the sequence diagram; html: a page with all of it.",
)
@output_option
@json_option
def command(file: str, l0_name: str, violation: int, form: str, output: str, as_json: bool) -> int:
    """Explain what the scenario in FILE violates, step by step; - is standard input.

    Without a violation the report tells what happens, and the exit status is 0.
    """
    if as_json and form != "text":
        raise click.UsageError("--json and --format exclude each other")
    report = report_of(load(file), l0_name, violation)
    if as_json:
        write_text(output, json.dumps(to_json(report), indent=2) + "\n")
    elif form == "text" and output == STANDARD_OUTPUT:
        _show(report)
    else:
        write_text(output, _FORMS[form](report))
    return 0 if report.finding is None else 1


def report_of(loaded: Loaded, l0_name: str, violation: int) -> Report:
    """Explain the violation of that number, from 1; ends the command where that cannot be done."""
    try:
        return explain(
            loaded.scenario, l0_name, violation - 1, file=loaded.name, revision=revision()
        )
    except IndexError:
        raise click.UsageError(
            f"{loaded.name} has fewer than {violation} violations", click.get_current_context()
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever the model raises is our own bug
        click.echo("OUR OWN BUG: the model contradicts itself", err=True)
        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
        raise click.exceptions.Exit(3) from None


def _svg(report: Report) -> str:
    from nvmx_fuzz.pages import explanation_svg  # noqa: PLC0415 - needs the extra "report"

    return explanation_svg(report)


def _html(report: Report) -> str:
    from nvmx_fuzz.pages import explanation_html  # noqa: PLC0415 - needs the extra "report"

    return explanation_html(report)


_FORMS: Final[dict[str, Callable[[Report], str]]] = {
    "text": render_text,
    "svg": _svg,
    "html": _html,
}


def _show(report: Report) -> None:
    """In colours on a terminal, as plain text elsewhere."""
    width = shutil.get_terminal_size((_WIDTH, 0)).columns
    if not sys.stdout.isatty():
        click.echo(render_text(report, width), nl=False)
        return
    from rich.console import Console  # noqa: PLC0415 - needed on terminals only

    Console(width=width).print(render_rich(report, width), end="")
