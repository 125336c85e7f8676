"""Which of the known findings a kernel has: `scripts/kvm --findings`, in one boot.

Each finding of docs/KVM-FINDINGS.md, and each divergence of the catalogue that a real kernel has confirmed,
has a scenario that shows it. Where a fix has gone in, the kernel shows what the processor does.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import click

from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz import module_command
from nvmx_fuzz.boot.divergences import ANY_KERNEL, LISTED, is_on
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine
from nvmx_fuzz.boot.residuals import CONFIRMED, RESIDUALS
from nvmx_fuzz.codec import encode
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.outcomes import SAME, Outcome, UnavailableError
from nvmx_fuzz.scenario_files import load

_WITH_L0: Final = ("kvm", "kvm-bochs")


class Known(NamedTuple):
    """A finding: its number, what it is called in the tables, and a scenario that shows it."""

    number: str
    name: str
    scenario: Scenario


def known_findings(kernel: tuple[int, int] = ANY_KERNEL) -> list[Known]:
    """Those of a kernel of that version, F1 first, behind them those of the catalogue."""
    rows = [row for row in LISTED if row.finding and is_on(row, row.machines[-1], kernel)]
    rows.sort(key=lambda row: int(row.finding.removeprefix("F")))
    confirmed = [residual for residual in RESIDUALS if residual.verdict == CONFIRMED]
    return [
        *(Known(row.finding, row.name, _scenario(row.scenario)) for row in rows),
        *(Known(each.name, each.about, _scenario(each.shown_by)) for each in confirmed),
    ]


def _scenario(text: str) -> Scenario:
    """The scenario of a row: a file of the corpus, or its steps."""
    if text.startswith("corpus/"):
        return load(str(ROOT / text)).scenario
    return parse_scenario("version 1\n" + text.replace(" / ", "\n") + "\n").scenario


def shown(machine: BootingMachine) -> Iterator[tuple[Known, str]]:
    """What the machine shows for each of them: "yes", "no", or what it shows instead."""
    findings = known_findings()
    contents = [encode(known.scenario) for known in findings]
    for known, content, outcome in zip(findings, contents, machine.compare(contents), strict=True):
        yield known, _shown(known, machine.known(content, outcome), outcome)


def _shown(known: Known, name: str, outcome: Outcome) -> str:
    if outcome.verdict == SAME:
        return "no"
    is_it = name == known.name or known.number in name.removeprefix("KVM: ").split(", ")
    if is_it or name.startswith(f"{known.number}:"):
        return "yes"
    return f"shows something else: {name or outcome.reason or 'not known'}"


@click.command()
@click.option("--machine", "name", type=click.Choice(_WITH_L0), default="kvm-bochs", show_default=True,
              help="The machine to ask.")  # fmt: skip
def main(name: str) -> int:
    """Say which of the known findings the KVM of a machine has."""
    machine = BootingMachine(BOOTING[name])
    try:
        found = list(shown(machine))
        click.echo(machine.label)
    except UnavailableError as error:
        raise click.ClickException(str(error)) from None
    for known, answer in found:
        click.echo(f"  {known.number:6} {known.name:42} {answer}")
    return 0


def run() -> int:
    """The command for a shell: one line for what went wrong."""
    return module_command.run(main, "scripts/kvm --findings")


if __name__ == "__main__":
    raise SystemExit(run())
