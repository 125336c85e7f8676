"""A long campaign, and what it holds on to: `scripts/soak`.

At equal numbers of executions the resident memory and the open files of the fuzzing process and of the one
that watches it are written down, with the executions a second of CPU time since the line before. What leaks
grows from line to line; what slows down shows in the last column.
"""

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import IO, Final, NamedTuple

import click

from nvmx_core.bugs.versions import FIXED
from nvmx_fuzz import module_command
from nvmx_fuzz.campaign import Campaign, Signals
from nvmx_fuzz.core_choice import agree
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.kill_test import VICTIMS, kill_at_random
from nvmx_fuzz.launcher import FuzzingProcess, Plan, output_folder
from nvmx_fuzz.seeds import seed_folder
from nvmx_fuzz.status import Status
from nvmx_fuzz.version import revision

RUNS: Final = 20_000_000
SAMPLES: Final = 20


class Sample(NamedTuple):
    """One moment; the process that fuzzes comes first, then the one that watches it."""

    executions: int
    seconds: float
    cpu_seconds: float
    inputs: int
    resident_kib: tuple[int, int]
    open_files: tuple[int, int]


class Soak:
    """Watches a campaign and writes a line of JSON at equal numbers of executions."""

    def __init__(self, runs: int, samples: int, stream: IO[str]) -> None:
        """Write *samples* lines over *runs* executions to *stream*."""
        self.pid = 0
        self.samples: Final[list[Sample]] = []
        # The last line comes a little before the end, for then the process is gone.
        self._every: Final = max(runs * 99 // 100 // samples, 1)
        self._stream: Final = stream

    def show(self, status: Status) -> None:
        """Write a line when it is time."""
        executions = status.progress.executions
        if executions and executions >= self._every * len(self.samples):
            self._sample(executions, status)

    def _sample(self, executions: int, status: Status) -> None:
        try:
            sample = Sample(
                executions,
                round(status.seconds, 1),
                cpu_seconds(self.pid),
                status.coverage().corpus,
                (resident_kib(self.pid), resident_kib(os.getpid())),
                (open_files(self.pid), open_files(os.getpid())),
            )
        except OSError:
            return  # the fuzzing process has just ended
        self.samples.append(sample)
        self._stream.write(f"{json.dumps(sample._asdict())}\n")
        self._stream.flush()

    def tell(self, line: str) -> None:
        """What happens is worth knowing here as well."""
        click.echo(line, err=True)

    def close(self) -> None:
        """There is nothing to undo."""


def resident_kib(pid: int) -> int:
    """The memory that a process has in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def open_files(pid: int) -> int:
    """How many files, pipes and sockets a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def soak(plan: Plan, samples: int, stream: IO[str]) -> tuple[Status, list[Sample]]:
    """Carry out *plan*, with one job; raises BadFile."""
    signals = Signals()
    watcher = Soak(plan.runs, samples, stream)
    with output_folder(plan), signals.listening():
        process = FuzzingProcess(plan)
        watcher.pid = process.pid
        campaign = Campaign(plan, [process], signals)
        campaign.run(watcher)
    return campaign.status, watcher.samples


def _kill(trials: int, seed: int, only: tuple[str, ...]) -> None:
    """Kill the commands and show what came of it; exit status 1 when something was lost."""
    problems = 0
    click.echo("command            trials  killed  drafts  parts  lost or torn")
    for victim in VICTIMS:
        if only and victim.name not in only:
            continue
        found = kill_at_random(victim, trials, seed)
        problems += len(found.problems)
        click.echo(
            f"{found.name:18} {found.trials:6}  {found.killed:6}  {found.drafts:6}  {found.parts:5}"
            f"  {len(found.problems):12}"
        )
        for problem in found.problems:
            click.echo(f"  {problem}")
    if problems:
        raise SystemExit(1)


def table(samples: list[Sample]) -> list[str]:
    """The samples as a table in Markdown; the first one has no rate."""
    lines = [
        "| executions | CPU s | kept | RSS fuzzing, MiB | RSS watching, MiB | open files | per CPU s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for before, now in pairwise([samples[0], *samples]):
        passed = now.cpu_seconds - before.cpu_seconds
        rate = f"{(now.executions - before.executions) / passed:,.0f}" if passed else ""
        fuzzing, watching = (kib / 1024 for kib in now.resident_kib)
        files = " + ".join(map(str, now.open_files))
        lines.append(
            f"| {now.executions:,} | {now.cpu_seconds:,.0f} | {now.inputs:,} | {fuzzing:.1f}"
            f" | {watching:.1f} | {files} | {rate} |"
        )
    return lines


@click.command("soak")
@click.option("--runs", default=RUNS, show_default=True, type=click.IntRange(1), metavar="N",
              help="Executions in all.")  # fmt: skip
@click.option("--samples", default=SAMPLES, show_default=True, type=click.IntRange(1), metavar="N",
              help="Lines of the table.")  # fmt: skip
@click.option("--out", default="out/soak", show_default=True, type=click.Path(path_type=Path),
              metavar="DIR", help="The output folder of the campaign, and soak.jsonl.")  # fmt: skip
@click.option("--seed", default=1, show_default=True, type=click.IntRange(1), metavar="N",
              help="Seed of the randomness.")  # fmt: skip
@click.option("--kill", "kills", default=0, metavar="N",
              help="Instead kill each command that writes at N random moments.")  # fmt: skip
@click.option("--only", multiple=True, metavar="COMMAND", help="With --kill: only this command.")
def main(runs: int, samples: int, out: Path, seed: int, kills: int, only: tuple[str, ...]) -> None:
    """Fuzz L0 `fixed` for long, and tell what memory, open files and speed did meanwhile."""
    if kills:
        _kill(kills, seed, only)
        return
    core, feedback = agree(None, "auto", FIXED)
    command = f"scripts/soak --runs {runs} --samples {samples} --out {out} --seed {seed}"
    plan = Plan(FIXED, core, 0, runs, seed_folder(), out, seed, feedback, command)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with (out / "soak.jsonl").open("w") as stream:
            status, found = soak(plan, samples, stream)
    except BadFile as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"{status.ended} after {status.seconds:,.0f} s: {status.progress.executions:,} executions,"
        f" {len(status.findings)} findings, {len(status.model_errors.seen)} errors of the model;"
        f" {core} core, {revision()}\n"
    )
    click.echo("\n".join(table(found)))


if __name__ == "__main__":
    sys.exit(module_command.run(main, "scripts/soak"))
