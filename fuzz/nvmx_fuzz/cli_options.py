"""Arguments that several subcommands share."""

import math
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from nvmx_fuzz import L0_VARIABLE
from nvmx_fuzz.files import STANDARD_OUTPUT, write_output

FIXED = "fixed"
"""The L0 that keeps every rule; the name is that of `nvmx_core.bugs.versions.FIXED`."""


def _known_l0(ctx: click.Context, _option: click.Parameter, name: str) -> str:
    from nvmx_fuzz.nested_events import unknown_l0  # noqa: PLC0415 - imports the model

    problem = unknown_l0(name)
    if problem:
        raise click.UsageError(problem, ctx)
    return name


def known_l0s(ctx: click.Context, option: click.Parameter, names: str) -> list[str]:
    """A callback for an option that takes several L0s, with commas between them."""
    return [_known_l0(ctx, option, name) for name in names.split(",")]


def _complete_l0(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """Names that a shell offers; behind a comma those of one more bug."""
    from nvmx_core.bugs.versions import L0_BY_NAME  # noqa: PLC0415 - imports the model

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in L0_BY_NAME if name.startswith(last)]


def complete_path(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Files and folders, which the shell knows best."""
    return [CompletionItem(incomplete, type="file")]


def l0_option(text: str, *, is_checked: bool = True) -> Callable[[Any], Any]:
    """The option `--l0`, checked against the catalogue unless the caller does that later."""
    return click.option(
        "--l0",
        "l0_name",
        default=FIXED,
        envvar=L0_VARIABLE,
        show_default=True,
        show_envvar=True,
        metavar="NAME",
        callback=_known_l0 if is_checked else None,
        shell_complete=_complete_l0,
        help=text,
    )


violation_option = click.option(
    "--violation",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Take the Nth violation of the scenario.",
)

output_option = click.option(
    "-o",
    "--out",
    "output",
    default=STANDARD_OUTPUT,
    metavar="FILE",
    shell_complete=complete_path,
    help="Write there instead of standard output.",
)


def write_text(output: str, text: str) -> None:
    """Write what a command made to where `output_option` says; raises BadFile."""
    if output == STANDARD_OUTPUT:
        click.echo(text, nl=False)
    else:
        write_output(output, text.encode())


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Seconds(click.ParamType):  # type: ignore[type-arg] # generic in some releases only
    """A time that is longer than nothing and not endless."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number of seconds."""
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not 0 < seconds < math.inf:
            self.fail(f"{value!r} is not a time above 0", param, ctx)
        return seconds
