"""`nvmx-fuzz replay`: run scenarios again and say what they violate."""

import json
import os
import pdb  # noqa: T100 - for --pdb
import shlex
import shutil
from typing import Any, NamedTuple

import click

from nvmx_fuzz import BAD_INPUT, L0_VARIABLE
from nvmx_fuzz.asking import Answer, ask, own_target
from nvmx_fuzz.at_step import MACHINES, NESTED, step_lines
from nvmx_fuzz.cli_options import FIXED, complete_path, json_option, l0_option
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.journal_view import journal_lines, journals_json
from nvmx_fuzz.replaying import Replay, replay
from nvmx_fuzz.scenario_files import load_content, read_testcase
from nvmx_fuzz.targets import TARGET_BY_NAME, Target
from nvmx_fuzz.wording import as_argument, as_testcase, counted, printable


class _Wanted(NamedTuple):
    """What a person wants to see, as in the options of `command`."""

    l0_name: str
    journal: bool
    step: int | None
    machine: str
    debugs: bool
    as_json: bool


@click.command("replay")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=complete_path)
@l0_option("The L0 that the machine nested runs.")
@click.option("--journal", is_flag=True, help="Show what L1 and L2 saw on both machines.")
@click.option("--at-step", "step", type=click.IntRange(1), metavar="N",
              help="Show what step N does and the state behind it.")  # fmt: skip
@click.option("--machine", type=click.Choice(MACHINES), default=NESTED, show_default=True,
              help="Whose step --at-step shows.")  # fmt: skip
@click.option("--pdb", "debugs", is_flag=True,
              help="Stop in the core where the first rule is violated.")  # fmt: skip
@click.option("--target", "target_name", type=click.Choice(tuple(TARGET_BY_NAME)), metavar="NAME",
              help="Ask what this fuzz target asks (default: as the name of FILE tells).")  # fmt: skip
@json_option
def command(
    files: tuple[str, ...],
    l0_name: str,
    journal: bool,
    step: int | None,
    machine: str,
    debugs: bool,
    target_name: str | None,
    as_json: bool,
) -> int:
    """Run each FILE on both machines, ask every oracle, and check its `expect` lines.

    A FILE is a scenario as text (.scn) or as bytes, such as a crash file of libFuzzer; - is standard input.
    A testcase of fuzz_entry_checks, fuzz_scenario_text or fuzz_trace_reader is asked what its target asks.
    ClusterFuzz puts the name of the target into that of the file; where it is missing --target says it.
    """
    if as_json and (debugs or step is not None):
        raise click.UsageError("--json shows no single step", click.get_current_context())
    wanted = _Wanted(l0_name, journal, step, machine, debugs, as_json)
    status = 0
    results: list[dict[str, Any]] = []
    for name in files:
        try:
            target = own_target(name, target_name)
            came, result = _ask(target, name, wanted) if target else _replay(name, wanted)
        except BadFile as error:
            click.echo(f"nvmx-fuzz: {error}", err=True)
            results.append({"file": name, "verdict": "bad file", "message": str(error)})
            status = max(status, BAD_INPUT)
            continue
        status = max(status, came)
        results.append(result)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    return status


def _replay(name: str, wanted: _Wanted) -> tuple[int, dict[str, Any]]:
    """Replay a scenario; the exit status and what there is to know as JSON. Raises BadFile."""
    loaded = load_content(name, read_testcase(name))  # what --target calls a scenario is one
    replayed = replay(loaded, wanted.l0_name)
    if not wanted.as_json:
        show(replayed)
        if wanted.journal:
            for line in journal_lines(replayed, shutil.get_terminal_size((160, 0)).columns):
                click.echo(line)
        if wanted.step is not None:
            _show_step(replayed, wanted.step, wanted.machine)
    if wanted.debugs and replayed.violations:
        _debug(replayed)
    journals = {"journals": journals_json(replayed)} if wanted.journal else {}
    return replayed.status, replayed.to_json() | journals


def _ask(target: Target, name: str, wanted: _Wanted) -> tuple[int, dict[str, Any]]:
    """The same for a testcase of a target that asks something else."""
    if wanted.journal or wanted.step is not None:
        hint = "; as a scenario: --target fuzz_nested_events" if target.form == "bytes" else ""
        raise BadFile(name, f"{target.name} shows no steps{hint}")
    answer = ask(target, name)
    if not wanted.as_json:
        show_answer(answer)
    if wanted.debugs and answer.error:
        pdb.post_mortem(answer.error.__traceback__)
    return answer.status, answer.to_json()


def show_answer(answer: Answer) -> None:
    """Print what a target says, and the next command where something is wrong."""
    outcome = f": {answer.outcome}" if answer.outcome else ""
    click.echo(f"{printable(answer.name)}: {answer.verdict} for {answer.target.name}{outcome}")
    if answer.error:
        click.echo(f"  {answer.target.asks}  No:")
        click.echo(answer.report)
        click.echo(f"  next: {as_testcase(answer.target.name, answer.name)} --pdb")


def show(replayed: Replay) -> None:
    """Print the verdict, what it rests on, and the next command where something is wrong."""
    steps = counted(len(replayed.scenario.steps), "step")
    if replayed.runs and replayed.runs[-1].skipped:
        steps += f", {replayed.runs[-1].skipped} could not apply"
    expectations = (
        f", {counted(replayed.expectations, 'expectation')}" if replayed.expectations else ""
    )
    click.echo(
        f"{printable(replayed.name)}: {replayed.verdict} on {replayed.l0} ({steps}{expectations})"
    )
    for violation in replayed.violations:
        click.echo(f"  step {violation.step + 1}: {violation.sentence}  [{violation.key()}]")
    for machine, sentence in replayed.broken:
        click.echo(f"  {machine}: {sentence}")
    if replayed.model_error:
        click.echo("OUR OWN BUG: the model contradicts itself")
        click.echo(replayed.model_error.rstrip())
    if replayed.status:
        click.echo(f"  next: {next_command(replayed)}")


def _show_step(replayed: Replay, step: int, machine: str) -> None:
    steps = len(replayed.scenario.steps)
    if step > steps + 1:
        raise BadFile(replayed.name, f"has {counted(steps, 'step')}; {steps + 1} is the end")
    for line in step_lines(replayed.scenario, replayed.l0, step, machine):
        click.echo(line)


def _debug(replayed: Replay) -> None:
    from nvmx_fuzz.stop_at import stop_at  # noqa: PLC0415 - for --pdb only

    violation = replayed.violations[0]
    click.echo(f"stopping behind the record of {violation.key()}; u goes to the caller, q ends")
    if not stop_at(replayed.scenario, replayed.l0, violation):
        click.echo("no single record stands for it: nothing to stop at")


def next_command(replayed: Replay) -> str:
    """What a person would type now."""
    is_default = replayed.l0 == FIXED and not os.environ.get(L0_VARIABLE)
    l0 = "" if is_default else f" --l0 {replayed.l0}"
    what = "explain" if replayed.violations else "replay --journal"
    return f"nvmx-fuzz {what}{l0} {shlex.quote(as_argument(replayed.name))}"
