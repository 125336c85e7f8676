"""`nvmx-fuzz minimize`: the smallest scenario that still breaks the same rule in the same situation."""

from pathlib import Path

import click

from nvmx_core.bugs.versions import l0_class
from nvmx_core.oracle.judge import violations_of
from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.cli_options import l0_option
from nvmx_fuzz.files import BadFile, write_whole
from nvmx_fuzz.minimise import minimise, size_of
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.wording import counted


@click.command("minimize")
@click.argument("file", metavar="FILE")
@l0_option("The L0 that FILE violates a rule of.")
@click.option("--rule", metavar="ID", help="Keep this rule broken (default: the first that is).")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Where the result goes (default: FILE with .min.scn).")  # fmt: skip
def command(file: str, l0_name: str, rule: str | None, out: Path | None) -> int:
    """Reduce FILE, a scenario of either form, and keep oracle, rule and situation of what it violates.

    The result is written whenever it gets smaller; what is there from a run that was cut off is gone on from.
    """
    scenario = load(file).scenario
    l0 = l0_class(l0_name)
    target = out or _beside(file)

    chosen = [found for found in violations_of(scenario, l0) if rule in (None, found.rule)]
    if not chosen:
        raise BadFile(file, f"violates nothing on {l0_name}" + (f" of rule {rule}" if rule else ""))
    key = chosen[0].key()

    def holds(candidate: Scenario) -> bool:
        return any(found.key() == key for found in violations_of(candidate, l0))

    def keep(smaller: Scenario) -> None:
        comments = (chosen[0].sentence, f"key: {key}", f"found in L0 {l0_name}, minimised")
        write_whole(target, format_scenario(smaller, comments).encode())
        click.echo(f"{counted(len(smaller.steps), 'step')}: {target}", err=True)

    start = scenario
    if target.exists():
        earlier = load(str(target)).scenario
        if size_of(earlier) < size_of(scenario) and holds(earlier):
            start = earlier
    keep(start)
    small = minimise(start, holds, keep)
    click.echo(
        f"{target}: {counted(len(scenario.steps), 'step')} became {len(small.steps)}  [{key}]"
    )
    return 0


def _beside(file: str) -> Path:
    if file == "-":
        raise click.UsageError("--out is needed with standard input", click.get_current_context())
    path = Path(file)
    return path.with_name(f"{path.stem}.min.scn")
