"""`nvmx-fuzz compare`: the machine `bare` against a processor that others wrote."""

import json
import math
import sys
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import click

from nvmx_fuzz.cli_options import Seconds, complete_path, json_option
from nvmx_fuzz.codec import encode
from nvmx_fuzz.compare_minimise import Minimised, minimise_into
from nvmx_fuzz.compare_report import lines, to_json
from nvmx_fuzz.comparing import Comparison, live
from nvmx_fuzz.corpus_files import files_of
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.machines import MACHINES, guess_for, open_machine
from nvmx_fuzz.outcomes import Comparer, MissingError, UnavailableError
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.seeds import seed_folder

_IN_PROCESS = "bochs"


@click.command("compare")
@click.argument("files", nargs=-1, metavar="[FILE|DIR]...", shell_complete=complete_path)
@click.option("--machine", "chosen", type=click.Choice(MACHINES), show_default="bochs",
              help="The machine that `bare` is compared with; with --serial: the one that ran the image, "
              "so that its known differences are named.")  # fmt: skip
@click.option("--time", "seconds", type=Seconds(), metavar="S",
              help="Compare new scenarios too, for S seconds; the files are their seeds.")  # fmt: skip
@click.option("--count", "number", type=click.IntRange(1, sys.maxsize), metavar="N",
              help="The same, for N scenarios.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Where the new scenarios begin.")  # fmt: skip
@click.option("--minimize", "folder", type=click.Path(path_type=Path), metavar="DIR",
              help="Make the scenario of each unlisted difference smaller, on the machine itself, and "
              "write it to DIR.")  # fmt: skip
@click.option("--known", "with_known", is_flag=True,
              help="With --minimize: do so for the listed differences too.")  # fmt: skip
@click.option("--serial", metavar="TEXT",
              help="Run nothing: TEXT is what an exported image of FILEs printed elsewhere.")  # fmt: skip
@click.option("--where-possible", is_flag=True,
              help="Where the machine is not installed say so, and succeed.")  # fmt: skip
@json_option
def command(
    files: tuple[str, ...],
    chosen: str | None,
    seconds: float | None,
    number: int | None,
    seed: int,
    folder: Path | None,
    with_known: bool,
    serial: str | None,
    where_possible: bool,
    as_json: bool,
) -> int:
    """Run scenarios on `bare` and as machine code on another processor, and report where they differ.

    Every kind of difference is shown once, by its smallest scenario, unless docs/FIDELITY.md or docs/KVM.md
    lists it. bochs runs in this process; bochs-boot boots an image on the full Bochs; kvm boots it below this
    host's KVM, kvm-bochs below a stock Linux KVM inside Bochs.
    Without FILE the seeds of the project are compared. --minimize tries many smaller scenarios at once, where
    each run costs a boot, and goes on from what is in DIR already.
    """
    _require_sense(serial, bool(seconds or number), folder, with_known)
    machine = "serial" if serial else chosen or _IN_PROCESS
    contents = [encode(load(name).scenario) for name in _names(files)]
    if not contents:
        raise click.UsageError("no scenario to compare", click.get_current_context())
    try:
        worker = _of_serial_text(serial, chosen) if serial else open_machine(machine)
        work = Work(contents, seconds, number, seed, folder, with_known)
        comparison, took, minimised = _compared(worker, machine, work)
    except UnavailableError as error:
        if where_possible and isinstance(error, MissingError):
            click.echo(f"nothing compared: {error}")
            return 0
        raise click.ClickException(str(error)) from None
    if as_json:
        report = to_json(comparison, machine, took)
        if minimised:
            report["minimised"] = minimised.to_json()
        click.echo(json.dumps(report, indent=2))
    else:
        for line in (*lines(comparison, machine, took), *(minimised.lines() if minimised else ())):
            click.echo(line)
    if comparison.findings:
        return 1
    if not comparison.compared:
        raise click.ClickException("nothing was compared: no scenario can be realised")
    return 0


def _of_serial_text(name: str, machine: str | None) -> Comparer:
    if machine == _IN_PROCESS:
        raise click.UsageError(
            f"--machine {machine} boots no image, so --serial is not of it",
            click.get_current_context(),
        )
    from nvmx_fuzz.boot.serial import SerialText  # noqa: PLC0415 - loads the assembler

    return SerialText(name, machine or "")


def _require_sense(
    serial: str | None, has_new: bool, folder: Path | None, with_known: bool
) -> None:
    context = click.get_current_context()
    if serial and has_new:
        raise click.UsageError("--serial has no new scenarios to compare", context)
    if serial and folder:
        raise click.UsageError("--serial cannot run what --minimize would ask", context)
    if with_known and not folder:
        raise click.UsageError("--known goes with --minimize", context)


class Work(NamedTuple):
    """What to compare: scenarios, and new ones for a time or up to a number; where smaller ones go."""

    contents: list[bytes]
    seconds: float | None
    number: int | None
    seed: int
    folder: Path | None
    with_known: bool


def _compared(
    worker: Comparer, machine: str, work: Work
) -> tuple[Comparison, float, Minimised | None]:
    """The comparison, how many seconds new scenarios took, and what was made smaller.

    Raises: UnavailableError, BadFile.
    """
    comparison = Comparison(worker)
    minimised = None
    try:
        comparison.add(work.contents)
        took = 0.0
        if work.seconds or work.number:
            new = islice(live(work.contents, work.seed), work.number)
            took = comparison.add_live(new, work.seconds or math.inf)
        if work.folder:
            starts = {
                kind: shown
                for kind, shown in comparison.shown.items()
                if work.with_known or not kind.known
            }
            minimised = minimise_into(
                work.folder, worker, machine, starts, guess_for(machine, worker)
            )
            comparison.replace(minimised.smallest())
    finally:
        worker.close()
    return comparison, took, minimised


def _names(files: tuple[str, ...]) -> list[str]:
    folder = seed_folder()
    sources = files or ((str(folder),) if folder else ())
    names: list[str] = []
    for source in sources:
        found = files_of([source])
        if not found:
            raise BadFile(source, "holds no scenario")
        names += found
    return names
