"""`nvmx-fuzz compare`: the machine `bare` against a processor that others wrote."""

import json
from importlib.util import find_spec
from typing import Any

import click

from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.bochs.helper import BochsUnavailableError
from nvmx_fuzz.bochs.worker import Worker
from nvmx_fuzz.cli_options import Seconds, json_option
from nvmx_fuzz.codec import encode
from nvmx_fuzz.comparing import Comparison, compare_for, live
from nvmx_fuzz.corpus_files import files_of
from nvmx_fuzz.files import MissingLibraryError
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.seeds import seed_folder
from nvmx_fuzz.wording import counted

MACHINES = ("bochs",)


@click.command("compare")
@click.argument("files", nargs=-1, metavar="FILE|DIR...")
@click.option("--machine", type=click.Choice(MACHINES), default="bochs", show_default=True,
              help="The machine that `bare` is compared with.")  # fmt: skip
@click.option("--time", "seconds", type=Seconds(), metavar="S",
              help="Compare new scenarios too, for S seconds; the files are their seeds.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Where the new scenarios begin.")  # fmt: skip
@json_option
def command(
    files: tuple[str, ...], machine: str, seconds: float | None, seed: int, as_json: bool
) -> int:
    """Run scenarios on `bare` and as machine code on another processor, and report where they differ.

    Every kind of difference is shown once, by its smallest scenario, unless docs/FIDELITY.md lists it.
    Without FILE the seeds of the project are compared.
    """
    if find_spec("keystone") is None:
        raise MissingLibraryError("keystone-engine", "bochs")
    contents = [encode(load(name).scenario) for name in _names(files)]
    if not contents:
        raise click.UsageError("no scenario to compare", click.get_current_context())
    try:
        worker = Worker()
    except BochsUnavailableError as error:
        raise click.ClickException(str(error)) from None
    try:
        comparison = Comparison(worker)
        comparison.add(contents)
        took = 0.0
        if seconds:
            took = compare_for(comparison, live(contents, seed), seconds, lambda: None)
    finally:
        worker.close()
    if as_json:
        click.echo(json.dumps(_to_json(comparison, machine, took), indent=2))
    else:
        _show(comparison, machine, took)
    return 1 if comparison.findings else 0


def _names(files: tuple[str, ...]) -> list[str]:
    folder = seed_folder()
    return files_of(files or ((str(folder),) if folder else ()))


def _to_json(comparison: Comparison, machine: str, took: float) -> dict[str, Any]:
    return {
        "machine": machine,
        "verdicts": dict(sorted(comparison.verdicts.items())),
        "not_realisable": dict(comparison.reasons.most_common()),
        "divergences": dict(comparison.divergences.most_common()),
        "seconds": round(took, 1),
        "findings": [finding.to_json(machine) for finding in comparison.findings.values()],
    }


def _show(comparison: Comparison, machine: str, took: float) -> None:
    verdicts = ", ".join(f"{number} {name}" for name, number in sorted(comparison.verdicts.items()))
    rate = f" in {took:.0f} s" if took else ""
    click.echo(
        f"bare and {machine}: {counted(comparison.compared, 'scenario')} compared{rate} ({verdicts})"
    )
    for name, number in comparison.divergences.most_common():
        click.echo(f"  known {number:6}  {name}")
    for name, number in comparison.reasons.most_common():
        click.echo(f"  cannot {number:5}  {name}")
    for finding in comparison.findings.values():
        click.echo(f"\nDIFFERENCE {finding.key}")
        difference = finding.outcome.difference
        if difference:
            for line in difference.lines(machine):
                click.echo(f"  {line}")
            click.echo(f"  rules  {', '.join(difference.rules())}")
        else:
            click.echo(f"  {finding.outcome.reason}")
        for line in format_scenario(finding.scenario).splitlines():
            click.echo(f"    {line}")
