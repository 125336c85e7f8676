"""A campaign on a real machine: `scripts/kvm --campaign`.

The fuzzer draws scenarios as `nvmx-fuzz compare --time` does. Those come first that show something of the
model that none before has shown; what has run already, or cannot stand alone, is left out. A batch is one
boot; after each the database (``journal_base.py``) has all of it, so that the campaign can be stopped at
any time and goes on where it was.
"""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import click

from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz import module_command
from nvmx_fuzz.boot.journal_base import JournalBase, Kind, Row, require_database
from nvmx_fuzz.boot.kept import campaign_database
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine
from nvmx_fuzz.boot.predictions import lines, predictions
from nvmx_fuzz.cli_options import Seconds
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.comparing import live
from nvmx_fuzz.corpus_features import Feature, FeatureMeter
from nvmx_fuzz.corpus_files import files_of
from nvmx_fuzz.files import BadFile, make_folder, write_whole
from nvmx_fuzz.outcomes import (
    DIFFERENT,
    INCIDENT,
    NOT_REALISABLE,
    SAME,
    MissingError,
    UnavailableError,
    key_of,
)
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.seeds import seed_folder
from nvmx_fuzz.wording import counted

DRAWN: Final = 4
"""So many scenarios are looked at for one that runs."""


class Choice(NamedTuple):
    """A batch: what runs, what it shows of the model, how many could not stand alone, and where to go on."""

    contents: list[bytes]
    features: set[Feature]
    refused: int
    next_number: int


class Chooser:
    """Chooses the batches of a campaign."""

    def __init__(self, base: JournalBase, machine: BootingMachine, seeds: list[bytes]) -> None:
        self._base: Final = base
        self._machine: Final = machine
        self._seeds: Final = seeds
        self._meter: Final = FeatureMeter()
        self._known: Final = base.features()

    def batch(self, size: int) -> Choice:
        """The next *size* scenarios: first those that show something new."""
        number, refused = self._base.next_number, 0
        new: list[bytes] = []
        others: list[bytes] = []
        seen: set[bytes] = set()
        features: set[Feature] = set()
        for content in self._stream(number):
            if len(new) + len(others) >= DRAWN * size or len(new) >= size:
                break
            number += 1
            content = encode(decode(content))  # noqa: PLW2901 - the one form that stands for it
            if content in seen or self._base.has(content):
                continue
            seen.add(content)
            if not self._machine.can_run(content):
                refused += 1
                continue
            shown = self._meter.measure("", decode(content)).features
            if shown <= self._known:
                others.append(content)
            else:
                new.append(content)
                features |= shown - self._known
                self._known.update(shown)
        return Choice([*new, *others][:size], features, refused, number)

    def _stream(self, number: int) -> Iterator[bytes]:
        """The seeds, and behind them the stream of new scenarios."""
        yield from self._seeds[number:]
        yield from live(self._seeds, max(number - len(self._seeds), 0))


def run_batch(base: JournalBase, machine: BootingMachine, choice: Choice) -> float:
    """Run a batch and write it down; the seconds it took."""
    boots = machine.boots
    started = time.monotonic()
    rows = _rows(machine, choice.contents)
    took = time.monotonic() - started
    base.add_batch(
        rows, choice.features, choice.refused, took, machine.boots - boots, choice.next_number
    )
    return took


def _rows(machine: BootingMachine, contents: list[bytes]) -> list[Row]:
    rows = []
    for content, outcome in zip(contents, machine.compare(contents), strict=True):
        known = machine.known(content, outcome) if outcome.verdict in (DIFFERENT, INCIDENT) else ""
        key = key_of(outcome) if outcome.difference else ""
        shown = "\n".join(outcome.difference.lines("real")) if outcome.difference else ""
        rows.append(
            Row(content, outcome.verdict, key, known, outcome.reason, shown, outcome.journal)
        )
    return rows


def run_again(base: JournalBase, machine: BootingMachine) -> None:
    """Run once more what was different or an incident: the table may name it otherwise now, or not at all."""
    contents = base.all_that_differ()
    if contents:
        base.replace_batch(_rows(machine, contents))


def report(base: JournalBase) -> Iterator[str]:
    """The campaign so far, for a person."""
    batches = base.batches()
    scenarios, seconds = sum(batch[0] for batch in batches), sum(batch[1] for batch in batches)
    rate = f", {scenarios / seconds:.1f} a second with all boots" if seconds else ""
    yield f"{counted(scenarios, 'scenario')}, batches: {len(batches)}{rate}"
    for kind in base.kinds():
        if kind.verdict == SAME:
            yield f"  same     {kind.number:7,}"
        else:
            yield f"  {_word(kind):8} {kind.number:7,}  {kind.name}"


def _word(kind: Kind) -> str:
    """What a kind that differs counts as; refused: it had run once, and cannot be realised any more."""
    if kind.verdict == NOT_REALISABLE:
        return "refused"
    return "known" if kind.is_known else "UNLISTED"


def write_unlisted(base: JournalBase, folder: Path) -> list[Path]:
    """A file for each kind that nothing is known of, with the key as its comment."""
    make_folder(folder)
    for old in folder.glob("unlisted-*.scn"):
        old.unlink()
    paths = []
    for number, (key, content, shown) in enumerate(base.unlisted()):
        path = folder / f"unlisted-{number:03}.scn"
        comment = "".join(f"# {line}\n" for line in (key, *shown.splitlines()))
        write_whole(path, f"{comment}{format_scenario(decode(content))}".encode())
        paths.append(path)
    return paths


@click.command()
@click.option("--machine", "name", type=click.Choice(sorted(BOOTING)), default="kvm-bochs", show_default=True,
              help="The machine to run on.")  # fmt: skip
@click.option("--database", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to keep it; build/kvm/campaign-MACHINE-KERNEL.sqlite if not given.")  # fmt: skip
@click.option("--batch", "size", type=click.IntRange(1, 1000), default=500, show_default=True,
              help="Scenarios of one boot.")  # fmt: skip
@click.option("--batches", type=click.IntRange(min=0), metavar="N", help="Stop after N batches.")
@click.option("--time", "seconds", type=Seconds(), metavar="S",
              help="Stop with the batch that ends after S seconds.")  # fmt: skip
@click.option("--again", is_flag=True,
              help="First run again all that differed, and name it by the table of now.")  # fmt: skip
@click.option("--predictions", "only_predictions", is_flag=True,
              help="Run nothing; say which bugs of the catalogue were confirmed.")  # fmt: skip
@click.option("--report", "only_report", is_flag=True, help="Only say what the database holds.")
def main(
    name: str,
    database: Path | None,
    size: int,
    batches: int | None,
    seconds: float | None,
    again: bool,
    only_predictions: bool,
    only_report: bool,
) -> int:
    """Run scenarios that the fuzzer chooses on a real machine, and keep what became of them.

    It ends by itself with --batches or --time, and otherwise when it is interrupted; it goes on when it is
    started again. Exit status 1: something was different that nothing is known of.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background a shell has SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    machine = BootingMachine(BOOTING[name])
    try:
        reads = only_predictions or only_report
        path = database or _database_of(machine, reads=reads)
        if reads:
            require_database(path)
        base = JournalBase(path, "" if only_report else machine.label)
        if only_predictions:
            return _predictions(base, machine)
        if not only_report:
            if again:
                run_again(base, machine)
            _work(base, machine, Limits(size, batches, seconds))
    except (BadFile, UnavailableError) as error:
        raise click.ClickException(str(error)) from None
    for line in report(base):
        click.echo(line)
    found = write_unlisted(base, path.with_suffix("")) if base.unlisted() else []
    for one in found:
        click.echo(f"  {one}")
    base.close()
    return 1 if found else 0


def _database_of(machine: BootingMachine, *, reads: bool) -> Path:
    """Where its campaign is kept; for one who only *reads* no kernel is fetched. Raises: UnavailableError."""
    if reads and not machine.is_at_hand:
        raise MissingError(
            "no kernel has been fetched yet, so no campaign has run on it; give its --database"
        )
    return campaign_database(machine.label)


def _predictions(base: JournalBase, machine: BootingMachine) -> int:
    able = machine.capabilities
    for line in lines(predictions(base, able.flags(), machine.version, has_rf=able.saves_rf)):
        click.echo(line)
    return 0


class Limits(NamedTuple):
    """Scenarios of a batch; how many batches, and how long, at most."""

    size: int
    batches: int | None
    seconds: float | None


def _work(base: JournalBase, machine: BootingMachine, limits: Limits) -> None:
    folder = seed_folder()
    seeds = [encode(load(file).scenario) for file in files_of([str(folder)])] if folder else []
    chooser = Chooser(base, machine, seeds)
    started, done = time.monotonic(), 0
    try:
        while limits.batches is None or done < limits.batches:
            if limits.seconds is not None and time.monotonic() - started >= limits.seconds:
                break
            choice = chooser.batch(limits.size)
            took = run_batch(base, machine, choice)
            done += 1
            ran = len(choice.contents)
            rate = f"{ran / took:.1f} a second"
            click.echo(
                f"batch {len(base.batches())}: {counted(ran, 'scenario')} in {took:.0f} s, {rate}"
            )
    except KeyboardInterrupt:
        click.echo("interrupted; start it again to go on", err=True)


def run() -> int:
    """The command for a shell: one line for what went wrong."""
    return module_command.run(main, "scripts/kvm --campaign")


if __name__ == "__main__":
    raise SystemExit(run())
