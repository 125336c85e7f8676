"""Writes `corpus/bugs/<id>.scn` from a record of a hunt: `python -m nvmx_fuzz.bug_scenarios RECORD`.

For each bug the smallest of all that its runs found, after minimising each, and of the one that is known: it
breaks the rule that the catalogue names, and nothing on `fixed`. The files are found, not written by hand.
"""

import statistics
import sys
from pathlib import Path

import click

from nvmx_core.bugs.catalogue import BUG_BY_NAME, Bug
from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.judge import violations_of
from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz import hunt, module_command
from nvmx_fuzz.codec import decode
from nvmx_fuzz.files import BadFile, write_whole
from nvmx_fuzz.minimise import minimise, size_of
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.seeds import BUGS_FOLDER, bug_scenario


def rules_broken(scenario: Scenario, l0: type[Kvm]) -> dict[str, str]:
    """Rule and key of each violation."""
    return {violation.rule: violation.key() for violation in violations_of(scenario, l0)}


def smallest(bug: Bug, raw: list[Scenario]) -> tuple[Scenario, list[int]] | None:
    """The smallest scenario and the steps of all that were minimised; None when none breaks the rule."""
    found = []
    for scenario in raw:
        key = rules_broken(scenario, bug.l0).get(bug.rule)
        if key is None or rules_broken(scenario, Kvm):
            continue

        def holds(candidate: Scenario, key: str = key) -> bool:
            shows = key in rules_broken(candidate, bug.l0).values()
            return shows and not rules_broken(candidate, Kvm)

        found.append(minimise(scenario, holds))
    if not found:
        return None
    return min(found, key=size_of), [len(scenario.steps) for scenario in found]


def _still_good(bug: Bug) -> list[Scenario]:
    """The scenario that is known of a bug, if it still does what it is there for."""
    path = bug_scenario(bug.name)
    if path is None:
        return []
    known = load(str(path)).scenario
    is_good = bug.rule in rules_broken(known, bug.l0) and not rules_broken(known, Kvm)
    return [known] if is_good else []


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
def main(record: Path) -> None:
    """Write the files from RECORD, and say how small they became."""
    raw: dict[str, list[Scenario]] = {}
    try:
        for run in hunt.read(record):
            if run.found and run.method == hunt.GUIDED and run.bug in BUG_BY_NAME:
                raw.setdefault(run.bug, []).append(decode(bytes.fromhex(run.data)))
    except ValueError as error:
        raise BadFile(record, f"is no record of a hunt: {error}") from None
    BUGS_FOLDER.mkdir(exist_ok=True)
    all_steps: list[int] = []
    for name, scenarios in raw.items():
        bug = BUG_BY_NAME[name]
        result = smallest(bug, scenarios)
        if result is None:
            sys.stdout.write(f"{name}: none of {len(scenarios)} breaks {bug.rule}\n")
            continue
        scenario, steps = result
        all_steps += steps
        scenario = min([scenario, *_still_good(bug)], key=size_of)
        comments = (
            f"{name}: {bug.subject}",
            f"Rules: {bug.rule}",
            "Found by the fuzzer and minimised; written by python -m nvmx_fuzz.bug_scenarios",
        )
        write_whole(BUGS_FOLDER / f"{name}.scn", format_scenario(scenario, comments).encode())
        sys.stdout.write(f"{name}: {len(scenario.steps)} steps (of {sorted(steps)})\n")
        sys.stdout.flush()
    sys.stdout.write(
        f"{len(all_steps)} findings, minimised: {statistics.median(all_steps):g} steps in the median,"
        f" at most {max(all_steps)}\n"
        if all_steps
        else "no findings\n"
    )


if __name__ == "__main__":
    sys.exit(module_command.run(main, "bug_scenarios"))
