"""What a run shows, recorded for the corpus, random scenarios and the bugs: `python -m nvmx_fuzz.journals`.

What L1 and L2 see, what L0 logs, which situations were reached, and what the oracles say, as digests. Where
the processor is wrong for both machines alike, comparing them shows nothing; a changed digest does. It says
only that something changed: whether that is right, the tests of the rules say. The runs of the bugs
hold what `fixed` never shows: a complaint of L0 about itself, a virtual machine that is given up. The command
writes `tests/corpus/journals.txt` anew; the diff names the scenarios that a change of the model touches.
"""

import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

from nvmx_core.bugs.catalogue import CATALOGUE, Bug
from nvmx_core.oracle.judge import Verdict, run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.files import write_whole
from nvmx_fuzz.generate import random_scenario
from nvmx_fuzz.scenario_files import TEXT_SUFFIX, load

CORPUS: Final = ROOT / "corpus"
JOURNALS: Final = ROOT / "tests" / "corpus" / "journals.txt"

_BLOCKS: Final = 20
_BLOCK_SIZE: Final = 100
RANDOM: Final = _BLOCKS * _BLOCK_SIZE
"""So many random scenarios are recorded: the first ones of the generator."""
_DIGITS: Final = 16


def scenario_paths() -> list[Path]:
    """Every scenario of the corpus."""
    return sorted(CORPUS.rglob(f"*{TEXT_SUFFIX}"))


def run(scenario: Scenario) -> Verdict:
    """A scenario on both machines with `fixed`."""
    return run_and_judge(scenario, config_for(scenario.config))


def digest(*verdicts: Verdict) -> str:
    """The digest of what runs show."""
    shown = sha256()
    for bare, nested, violations in verdicts:
        keys = [violation.key() for violation in violations]
        vcpu = nested.vcpu
        shown.update(repr((bare.journal, nested.journal, vcpu.log, vcpu.reach, keys)).encode())
    return shown.hexdigest()[:_DIGITS]


def of_corpus() -> Iterator[tuple[str, Verdict]]:
    """Each scenario of the corpus by its path below it, and what came of it."""
    for path in scenario_paths():
        yield str(path.relative_to(CORPUS)), run(load(str(path)).scenario)


def of_generator() -> Iterator[tuple[str, list[Verdict]]]:
    """Blocks of random scenarios by their numbers, and what came of each scenario."""
    for block in range(_BLOCKS):
        first = block * _BLOCK_SIZE
        numbers = range(first, first + _BLOCK_SIZE)
        yield f"random/{numbers[0]}-{numbers[-1]}", [run(random_scenario(n)) for n in numbers]


def of_catalogue() -> Iterator[tuple[str, Bug, Verdict]]:
    """Each bug of the catalogue: a name for its run, the bug, and what its smallest scenario shows on it."""
    for bug in CATALOGUE:
        scenario = load(str(CORPUS / "bugs" / f"{bug.name}{TEXT_SUFFIX}")).scenario
        yield (
            f"catalogue/{bug.name}",
            bug,
            run_and_judge(scenario, config_for(scenario.config), bug.l0),
        )


def all_digests() -> dict[str, str]:
    """The digests of now, in the order of the file."""
    return (
        {name: digest(verdict) for name, verdict in of_corpus()}
        | {name: digest(*verdicts) for name, verdicts in of_generator()}
        | {name: digest(verdict) for name, _bug, verdict in of_catalogue()}
    )


def recorded() -> dict[str, str]:
    """The digests in the file, by path below the corpus, block, or bug."""
    lines = (line.split() for line in JOURNALS.read_text().splitlines())
    return {name: known for known, name in lines}


def main() -> int:
    """Write the file."""
    lines = [f"{known}  {name}\n" for name, known in all_digests().items()]
    write_whole(JOURNALS, "".join(lines).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
