"""`nvmx-fuzz run`: a campaign on this terminal."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click

from nvmx_fuzz import FEEDBACK_VARIABLE
from nvmx_fuzz.cli_options import FIXED, Seconds, json_option, l0_option
from nvmx_fuzz.core_choice import CHOICES, NoCompiledCoreError, agree
from nvmx_fuzz.files import BadFile, MissingLibraryError, write_whole
from nvmx_fuzz.launcher import JOBS_MAX, FuzzingProcess, Plan, output_folder
from nvmx_fuzz.seeds import seed_folder

if TYPE_CHECKING:
    from nvmx_fuzz.campaign import Signals
    from nvmx_fuzz.status import Reporter

_FEEDBACK: Final = ("auto", "fast", "branches", "stock", "states")
_SEED_BITS: Final = 31


@click.command("run")
@l0_option("The L0 that is judged.", is_checked=False)
@click.option("--time", "seconds", type=Seconds(), metavar="SECONDS",
              help="Stop after that long (default: run until stopped).")  # fmt: skip
@click.option("--runs", type=click.IntRange(1), metavar="N",
              help="Stop after so many executions, those of all jobs together.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, JOBS_MAX), default=1, metavar="N",
              help="Fuzz in so many processes that share the corpus (default: 1). With more than one a seed"
                   " does not repeat a campaign, for they look at each other's inputs.")  # fmt: skip
@click.option("--corpus", type=click.Path(path_type=Path), metavar="DIR",
              help="Start from these scenarios, text or bytes (default: our own seeds).")  # fmt: skip
@click.option("--no-seeds", is_flag=True, help="Start from nothing.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Where everything goes, and from where it goes on (default: out/NAME).")  # fmt: skip
@click.option("--seed", type=click.IntRange(1, (1 << _SEED_BITS) - 1), metavar="N",
              help="Seed of the randomness (default: a new one). With one job it repeats a campaign"
                   " from an empty folder, for as many runs.")  # fmt: skip
@click.option("--feedback", type=click.Choice(_FEEDBACK), default=None,
              help="How branches are counted (default: $NVMX_FEEDBACK, or the best).")  # fmt: skip
@click.option("--core", type=click.Choice(CHOICES), default=None,
              help="The build of the model (default: $NVMX_CORE, or the fastest).")  # fmt: skip
@click.option("--watch", is_flag=True,
              help="Keep OUT/report.html fresh, and serve it on 127.0.0.1.")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), metavar="N",
              help="The port of --watch (default: one that is free).")  # fmt: skip
@json_option
@click.option("--plain", is_flag=True, help="Plain lines, also on a terminal.")
def command(
    l0_name: str,
    seconds: float | None,
    runs: int | None,
    jobs: int,
    corpus: Path | None,
    no_seeds: bool,
    out: Path | None,
    seed: int | None,
    feedback: str | None,
    core: str | None,
    watch: bool,
    port: int | None,
    as_json: bool,
    plain: bool,
) -> int:
    """Fuzz the model: any L0 must look like bare metal to L1 and L2.

    Goes on after a finding; equal findings are kept once, as the smallest scenario. Ctrl-C stops
    and shows the summary; nothing is lost, however it ends.
    """
    if corpus is not None and no_seeds:
        raise click.UsageError("--corpus and --no-seeds exclude each other")
    if port is not None and not watch:
        raise click.UsageError("--port is for --watch")
    if find_spec("atheris") is None:
        raise click.ClickException(
            "atheris is not installed, so nothing can be fuzzed; try: scripts/fuzz"
        )
    for library in ("jinja2", "matplotlib") if watch else ():
        if find_spec(library) is None:
            raise MissingLibraryError(library)
    plan = _plan(
        l0_name, seconds or 0, runs or 0, jobs, corpus, no_seeds, out, seed, feedback, core
    )
    watched_port = (port or 0) if watch else None
    return _campaign(plan, sys.stderr if as_json else sys.stdout, as_json, plain, watched_port)


def _plan(
    l0_name: str,
    seconds: float,
    runs: int,
    jobs: int,
    corpus: Path | None,
    no_seeds: bool,
    out: Path | None,
    seed: int | None,
    feedback: str | None,
    core: str | None,
) -> Plan:
    chosen_seed = seed or int.from_bytes(os.urandom(4), "little") >> 1 or 1
    mode = feedback or os.environ.get(FEEDBACK_VARIABLE) or "auto"
    if mode not in _FEEDBACK:
        raise click.UsageError(f"NVMX_FEEDBACK is {mode!r}, but must be one of {_FEEDBACK}")
    try:
        chosen_core, mode = agree(core, mode, l0_name)
    except (NoCompiledCoreError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    words = ["nvmx-fuzz", "run", "--l0", l0_name, "--seed", str(chosen_seed)]
    for option, value in (
        ("--time", f"{seconds:g}" if seconds else ""),
        ("--runs", str(runs) if runs else ""),
        ("--jobs", str(jobs) if jobs > 1 else ""),
        ("--corpus", str(corpus or "")),
        ("--out", str(out or "")),
        ("--feedback", feedback or ""),
        ("--core", core or ""),
    ):
        words += [option, value] if value else []
    words += ["--no-seeds"] if no_seeds else []
    return Plan(
        l0=l0_name,
        core=chosen_core,
        seconds=seconds,
        runs=runs,
        seeds=None if no_seeds else corpus or seed_folder(),
        out=out or Path("out") / l0_name,
        seed=chosen_seed,
        feedback=mode,
        command=shlex.join(words),
        jobs=min(jobs, runs or jobs),
    )


def _campaign(
    plan: Plan, stream: IO[str], as_json: bool, plain: bool, watched_port: int | None
) -> int:
    seeds = None
    if plan.seeds is not None and plan.seeds != seed_folder():
        # Somebody else's: they are read before anything is made, and ours while the processes start.
        from nvmx_fuzz.corpus_files import read_seeds  # noqa: PLC0415 - imports the model

        seeds = read_seeds(plan.seeds)
    if plan.l0 != FIXED:
        _require_l0(plan.l0)
    with ExitStack() as stack:
        stack.enter_context(output_folder(plan))
        click.echo(f"seed {plan.seed}: {plan.command}", file=stream)
        processes: list[FuzzingProcess] = []
        for number in range(plan.jobs):
            processes.append(FuzzingProcess(plan, number))
            stack.callback(processes[-1].kill)
        # The fuzzing processes load their copies of the model while we load ours.
        from nvmx_fuzz.campaign import Campaign, Signals  # noqa: PLC0415
        from nvmx_fuzz.summary import exit_status, summarise, summary_text  # noqa: PLC0415

        signals = Signals()
        stack.enter_context(signals.listening())
        if watched_port is not None:
            stack.enter_context(_watched(plan.out, watched_port, stream, signals))
        campaign = Campaign(plan, processes, signals, seeds)
        reporter = _reporter(stream, plain or as_json)
        stack.callback(reporter.close)
        problem: BadFile | OSError | None = None
        try:
            campaign.run(reporter)
            reporter.close()
        except (BadFile, OSError) as error:  # an OSError is about our output, not about a file
            problem = error
        summary = summarise(campaign.status)
        as_text = json.dumps(summary, indent=2)
        if not isinstance(problem, BadFile):
            write_whole(plan.out / "summary.json", f"{as_text}\n".encode())
        if not isinstance(problem, OSError):
            click.echo(as_text if as_json else f"\n{summary_text(summary)}", nl=as_json)
            for finding in campaign.status.findings.unwritten:
                click.echo(f"not written: {finding.scn}\n{finding.text}", file=stream)
        if problem is not None:
            raise problem
        return exit_status(summary)


def _require_l0(name: str) -> None:
    """Raise UsageError if there is no such L0."""
    from nvmx_fuzz.nested_events import unknown_l0  # noqa: PLC0415 - imports the model

    refusal = unknown_l0(name)
    if refusal:
        raise click.UsageError(refusal, click.get_current_context())


@contextmanager
def _watched(out: Path, port: int, stream: IO[str], signals: "Signals") -> Iterator[None]:
    """Serve the report of the campaign in *out*; raises BadFile, MissingLibraryError."""
    from nvmx_fuzz.watch import Watch  # noqa: PLC0415 - needs the extra "report"

    watch = Watch(out, port)
    watch.start()
    click.echo(f"watch {watch.url}", file=stream)
    try:
        yield
    finally:
        asked_to_stop = signals.count
        watch.close(lambda: signals.count == asked_to_stop)
        if watch.problem:
            click.echo(f"report: {watch.problem}", file=stream)


def _reporter(stream: IO[str], plain: bool) -> "Reporter":
    """A panel where someone can see it; lines in logs."""
    dumb = os.environ.get("TERM", "dumb") == "dumb" or os.environ.get("CI")
    if plain or dumb or not stream.isatty():
        from nvmx_fuzz.status import PlainReporter  # noqa: PLC0415 - imports the model

        return PlainReporter(stream)
    from rich.console import Console  # noqa: PLC0415 - needed on terminals only

    from nvmx_fuzz.panel import LiveReporter  # noqa: PLC0415

    return LiveReporter(Console())
