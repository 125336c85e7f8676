"""`nvmx-fuzz bugs`: the catalogue as a table, and how soon each bug is found."""

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nvmx_fuzz import hunt as hunting
from nvmx_fuzz.cli_options import Seconds, json_option
from nvmx_fuzz.core_choice import why_not_compiled
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.hunt import GUIDED, METHODS


@click.command("bugs")
@click.argument("names", nargs=-1)
@click.option("--hunt", is_flag=True, help="Search for each bug, from an empty corpus.")
@click.option("--runs", default=10, show_default=True, type=click.IntRange(1), metavar="N",
              help="Independent runs for each bug and method.")  # fmt: skip
@click.option("--seconds", default=120.0, show_default=True, type=Seconds(),
              help="CPU seconds after which a run gives up.")  # fmt: skip
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS),
              help="How to search; may be repeated (default: nvmx-fuzz).")  # fmt: skip
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), metavar="N",
              help="Runs at the same time.")  # fmt: skip
@click.option("--record", type=click.Path(path_type=Path), metavar="FILE",
              help="Keep each run here as a line of JSON, and go on from what is there.")  # fmt: skip
@json_option
def command(
    names: tuple[str, ...],
    hunt: bool,
    runs: int,
    seconds: float,
    methods: tuple[str, ...],
    jobs: int,
    record: Path | None,
    as_json: bool,
) -> None:
    """Show the catalogue of known bugs, all of them or those NAMES stand for (kvm-5.4, bug1,res2 ...)."""
    chosen = _chosen(names)
    _refuse_options_of_a_hunt(click.get_current_context(), hunt)
    if hunt and not chosen:
        raise click.UsageError(f"{','.join(names)} has no bug to hunt", click.get_current_context())
    if hunt:
        hunt_and_show(chosen, methods or (GUIDED,), runs, seconds, record, jobs, as_json)
    else:
        _show(chosen, bool(names), as_json)


def _refuse_options_of_a_hunt(context: click.Context, hunt: bool) -> None:
    """Without --hunt they would say nothing."""
    for name in () if hunt else ("runs", "seconds", "methods", "jobs", "record"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "method" if name == "methods" else name
            raise click.UsageError(f"--{option} goes with --hunt", context)


def _chosen(names: tuple[str, ...]) -> list[str]:
    from nvmx_core.bugs.catalogue import CATALOGUE  # noqa: PLC0415 - the model is slow to import
    from nvmx_core.bugs.versions import UnknownL0Error, bugs_of  # noqa: PLC0415
    from nvmx_fuzz.nested_events import why_unknown  # noqa: PLC0415

    if not names:
        return [bug.name for bug in CATALOGUE]
    try:
        return [bug.name for bug in bugs_of(",".join(names))]
    except UnknownL0Error as error:
        raise click.UsageError(why_unknown(error), click.get_current_context()) from None


def _show(chosen: list[str], only: bool, as_json: bool) -> None:
    from nvmx_core.bugs.catalogue import (  # noqa: PLC0415
        BUG_BY_NAME,
        UNEXPRESSED,
        shown_version,
    )
    from nvmx_core.bugs.versions import hidden_in  # noqa: PLC0415

    rows: list[dict[str, Any]] = []
    for name in chosen:
        bug = BUG_BY_NAME[name]
        scenario = smallest_known(name)
        rows.append(
            {
                "id": name,
                "subject": bug.subject,
                "commit": bug.commit,
                "introduced": shown_version(bug.introduced) or "3.1",
                "fixed in": shown_version(bug.fixed_in) or "not in 6.12",
                "rule": bug.rule,
                "scenario": scenario,
            }
        )
    left_out = [] if only else [entry._asdict() for entry in UNEXPRESSED]
    hidden = hidden_in(BUG_BY_NAME[name] for name in chosen) if only else []
    if as_json:
        pairs = [{"id": name, "by": hider} for name, hider in hidden]
        click.echo(json.dumps({"bugs": rows, "not expressed": left_out, "hidden": pairs}, indent=2))
        return
    from rich.console import Console  # noqa: PLC0415 - JSON needs no table
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("id", "fixed in", "rule", "commit", "subject, smallest known scenario", box=None,
                  pad_edge=False)  # fmt: skip
    for row in rows:
        text = Text(row["subject"])
        text.append("\n" + "; ".join(row["scenario"]), "dim")
        table.add_row(row["id"], row["fixed in"], row["rule"], row["commit"][:12], text)
    console = Console(highlight=False)
    console.print(table)
    for name, hider in hidden:
        console.print(f"{hider} takes away what {name} needs: nothing of it shows beside it")
    if left_out:
        console.print("\nKnown, and not expressed by the model:")
        for entry in left_out:
            console.print(f"  {entry['name']}: {entry['reason']}", soft_wrap=True)


def smallest_known(name: str) -> list[str]:
    """The steps and choices of `corpus/bugs/NAME.scn`, a line each; none without such a file."""
    from nvmx_core.scenario.text import format_scenario  # noqa: PLC0415
    from nvmx_fuzz.scenario_files import load  # noqa: PLC0415
    from nvmx_fuzz.seeds import bug_scenario  # noqa: PLC0415

    path = bug_scenario(name)
    if path is None:
        return []
    text = format_scenario(load(str(path)).scenario)
    return [" ".join(line.split()) for line in text.splitlines() if not line.startswith("version")]


def hunt_and_show(
    chosen: list[str],
    methods: tuple[str, ...],
    runs: int,
    seconds: float,
    record: Path | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Hunt, say of each run what came of it, and show the table."""
    for method in methods:
        if hunting.missing_for(method):
            raise click.UsageError(
                f"{method} is missing: pip install -e '.[report]'", click.get_current_context()
            )
    if record is not None and not record.parent.is_dir():
        raise BadFile(record, "its folder does not exist")
    done: list[hunting.Run] = []
    total = len(chosen) * len(methods) * runs
    for run in hunting.hunt(chosen, methods, runs, seconds, record, jobs):
        if not done:
            show_settings(methods)
        done.append(run)
        verdict = "found" if run.found else "not found"
        click.echo(
            f"[{len(done)}/{total}] {run.method} {run.bug} seed {run.seed}: {verdict} after"
            f" {run.executions:,} executions, {run.seconds:.2f} CPU s",
            err=True,
        )
    found = hunting.results(done)
    if as_json:
        click.echo(json.dumps([result._asdict() for result in found], indent=2))
        return
    click.echo(
        "bug     method       found   median executions       worst  median CPU s   worst  setting"
    )
    for result in found:
        click.echo(
            f"{result.bug:7} {result.method:11} {result.found:3}/{result.runs:<3}"
            f"{result.median_executions:19,.0f}{result.worst_executions:12,}"
            f"{result.median_seconds:14.2f}{result.worst_seconds:8.2f}  {result.setting}"
        )
    click.echo(f"revision: {', '.join(sorted({run.revision for run in done}))}")


def show_settings(methods: tuple[str, ...]) -> None:
    """Say what the methods run with; without a compiled core that is another search, and a slower one."""
    settings = ", ".join(f"{method} {hunting.setting_of(method)}" for method in methods)
    problem = why_not_compiled()
    click.echo(f"settings: {settings}{f' ({problem})' if problem else ''}", err=True)
