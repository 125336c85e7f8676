"""`nvmx-fuzz minimize`: the smallest scenario that still breaks the same rule in the same situation."""

import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import click

from nvmx_core.arch.rules import RULES
from nvmx_core.bugs.versions import l0_class
from nvmx_core.oracle.judge import INVARIANTS, violations_of
from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.cli_options import complete_path, l0_option
from nvmx_fuzz.files import STANDARD_INPUT, BadFile, read_small_file, write_whole
from nvmx_fuzz.minimise import minimise, size_of
from nvmx_fuzz.scenario_files import load, load_content
from nvmx_fuzz.wording import counted


@click.command("minimize")
@click.argument("file", metavar="FILE", shell_complete=complete_path)
@l0_option("The L0 that FILE violates a rule of.")
@click.option("--rule", metavar="ID", help="Keep this rule broken (default: the first that is).")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Where the result goes (default: FILE with .min.scn).")  # fmt: skip
def command(file: str, l0_name: str, rule: str | None, out: Path | None) -> int:
    """Reduce FILE, a scenario of either form, and keep oracle, rule and situation of what it violates.

    The result is written whenever it gets smaller; what is there from a run that was cut off is gone on from.
    Anything else that is there is refused.
    """
    _require_rule(rule)
    scenario = load(file).scenario
    l0 = l0_class(l0_name)
    target = out or _beside(file)

    chosen = [found for found in violations_of(scenario, l0) if rule in (None, found.rule)]
    if not chosen:
        raise BadFile(file, f"violates nothing on {l0_name}" + (f" of rule {rule}" if rule else ""))
    key = chosen[0].key()

    def holds(candidate: Scenario) -> bool:
        return any(found.key() == key for found in violations_of(candidate, l0))

    comments = (chosen[0].sentence, f"key: {key}", f"found in L0 {l0_name}, minimised")

    def keep(smaller: Scenario) -> None:
        write_whole(target, format_scenario(smaller, comments).encode())
        click.echo(f"{counted(len(smaller.steps), 'step')}: {target}", err=True)

    start = scenario
    earlier = _earlier(target, file, comments[1:], holds) if os.path.lexists(target) else None
    if earlier is not None and size_of(earlier) <= size_of(scenario):
        start = earlier
    else:
        keep(start)
    small = minimise(start, holds, keep)
    click.echo(
        f"{target}: {counted(len(scenario.steps), 'step')} became {len(small.steps)}  [{key}]"
    )
    return 0


def _require_rule(rule: str | None) -> None:
    if rule is not None and rule not in RULES and rule not in INVARIANTS:
        near = get_close_matches(rule.upper(), [*RULES, *INVARIANTS], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise click.UsageError(f"there is no rule {rule!r}{hint}", click.get_current_context())


def _earlier(
    target: Path, file: str, marks: tuple[str, ...], holds: Callable[[Scenario], bool]
) -> Scenario:
    """What an earlier run left in *target*, told by its comments.

    Raises:
        BadFile: something else is there, *file* itself included; it is not ours to replace.
    """
    refusal = "holds something else, and is left alone; name another file by --out"
    if file != STANDARD_INPUT and target.exists() and target.samefile(file):
        raise BadFile(target, refusal)
    content = read_small_file(str(target))
    try:
        found = load_content(str(target), content).text
    except BadFile:
        raise BadFile(target, refusal) from None
    if found is None or found.expects or not set(marks) <= set(found.comments):
        raise BadFile(target, refusal)
    if not holds(found.scenario):
        raise BadFile(target, refusal)
    return found.scenario


def _beside(file: str) -> Path:
    if file == "-":
        raise click.UsageError("--out is needed with standard input", click.get_current_context())
    path = Path(file)
    return path.with_name(f"{path.stem}.min.scn")
