"""How often a real KVM shows what `bare` does, and what our L0 of its version does.

`scripts/kvm --agreement FILE|DIR…` runs scenarios, without any it reads the database of a campaign. Journals
are compared whole, by their checksums. Our L0 of a version has all bugs of the catalogue that were in it at
once, on a machine that has mapped no page of L2 yet.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

from nvmx_core.bugs.versions import l0_class
from nvmx_core.l0.kvm import Kvm
from nvmx_fuzz import module_command
from nvmx_fuzz.boot.journal_base import JournalBase, require_database
from nvmx_fuzz.boot.kept import campaign_database
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine
from nvmx_fuzz.boot.moved import fit_booting
from nvmx_fuzz.boot.predicted import journal_on_bare, journal_under, on_fresh_machines
from nvmx_fuzz.boot.reading import checksum
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.corpus_files import files_of
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.outcomes import INCIDENT, NOT_REALISABLE, UnavailableError
from nvmx_fuzz.scenario_files import load

BOTH, BARE, OURS, NEITHER = "both", "bare only", "our L0 only", "neither"
Shown = tuple[str, bytes, str, int]
"""A group, a scenario of it, the verdict, and the checksum of the journal."""


def counted(machine: BootingMachine, shown: Iterable[Shown]) -> dict[str, Counter[str]]:
    """For each group how often the machine agrees with whom; what did not run is counted by its verdict."""
    l0 = l0_class(machine.version)
    found: dict[str, Counter[str]] = {}
    for group, content, verdict, journal in shown:
        counts = found.setdefault(group, Counter())
        if verdict in (INCIDENT, NOT_REALISABLE):
            counts[verdict] += 1
        else:
            counts[_agrees(machine, content, journal, l0)] += 1
    return found


def _agrees(machine: BootingMachine, content: bytes, journal: int, l0: type[Kvm]) -> str:
    has_rf = machine.capabilities.saves_rf
    scenario = fit_booting(decode(content), machine.capabilities)
    with_bare = checksum(journal_on_bare(scenario, has_rf)) == journal
    theirs = [journal_under(each, l0, has_rf) for each in on_fresh_machines(scenario)]
    with_ours = any(each is not None and checksum(each) == journal for each in theirs)
    if with_bare:
        return BOTH if with_ours else BARE
    return OURS if with_ours else NEITHER


def lines(found: dict[str, Counter[str]]) -> Iterator[str]:
    """The table for a person."""
    columns: Final = (BOTH, BARE, OURS, NEITHER, INCIDENT, NOT_REALISABLE)
    yield f"{'':16}" + "".join(f"{name:>16}" for name in columns)
    for group, counts in found.items():
        yield f"{group:16}" + "".join(f"{counts[name]:16,}" for name in columns)


@click.command()
@click.argument("paths", nargs=-1)
@click.option("--machine", "name", type=click.Choice(("kvm", "kvm-bochs")), default="kvm-bochs",
              show_default=True, help="The machine.")  # fmt: skip
@click.option("--database", type=click.Path(path_type=Path), metavar="FILE",
              help="Of a campaign; that of the machine if not given.")  # fmt: skip
def main(paths: tuple[str, ...], name: str, database: Path | None) -> int:
    """Say how far the KVM of a machine agrees with `bare` and with our L0 of its version.

    PATHS are run now, one group for each folder; without any it is what a campaign has run.
    """
    machine = BootingMachine(BOOTING[name])
    try:
        shown = _run(machine, paths) if paths else _of_campaign(machine, database)
        for line in lines(counted(machine, shown)):
            click.echo(line)
    except (BadFile, UnavailableError) as error:
        raise click.ClickException(str(error)) from None
    return 0


def _run(machine: BootingMachine, paths: tuple[str, ...]) -> Iterator[Shown]:
    files = files_of(list(paths))
    contents = [encode(load(file).scenario) for file in files]
    for file, content, outcome in zip(files, contents, machine.compare(contents), strict=True):
        yield Path(file).parent.name, content, outcome.verdict, outcome.journal


def _of_campaign(machine: BootingMachine, database: Path | None) -> Iterator[Shown]:
    path = database or campaign_database(machine.label)
    require_database(path)
    base = JournalBase(path, machine.label)
    for content, verdict, journal in base.journals():
        yield "campaign", content, verdict, journal


def run() -> int:
    """The command for a shell: one line for what went wrong."""
    return module_command.run(main, "scripts/kvm --agreement")


if __name__ == "__main__":
    raise SystemExit(run())
