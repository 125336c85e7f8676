"""Arguments that several subcommands share."""

from collections.abc import Callable
from typing import Any

import click

FIXED = "fixed"
"""The L0 that keeps every rule; the name is that of `nvmx_core.bugs.catalogue.FIXED`."""


def _known_l0(ctx: click.Context, _option: click.Parameter, name: str) -> str:
    from nvmx_fuzz.nested_events import unknown_l0  # noqa: PLC0415 - imports the model

    problem = unknown_l0(name)
    if problem:
        raise click.UsageError(problem, ctx)
    return name


def l0_option(text: str) -> Callable[[Any], Any]:
    """The option `--l0`, checked against the catalogue."""
    return click.option(
        "--l0",
        "l0_name",
        default=FIXED,
        show_default=True,
        metavar="NAME",
        callback=_known_l0,
        help=text,
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
