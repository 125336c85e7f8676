"""What L1 and L2 see in every scenario of the corpus, kept as digests: `python -m nvmx_fuzz.journals`.

Where the processor is wrong for both machines alike, comparing them shows nothing; a changed digest does. It
says only that something changed: whether that is right, the tests of the rules say. The command writes
`corpus/journals.txt` anew; the diff names the scenarios that a change of the model touches.
"""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

from nvmx_core.machines.bare import Bare
from nvmx_core.oracle.judge import Verdict, run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.files import write_whole
from nvmx_fuzz.scenario_files import TEXT_SUFFIX, load

CORPUS: Final = ROOT / "corpus"
JOURNALS: Final = CORPUS / "journals.txt"

_DIGITS: Final = 16


def scenario_paths() -> list[Path]:
    """Every scenario of the corpus."""
    return sorted(CORPUS.rglob(f"*{TEXT_SUFFIX}"))


def run(path: Path) -> Verdict:
    """The scenario in a file, on `fixed`."""
    scenario = load(str(path)).scenario
    return run_and_judge(scenario, config_for(scenario.config))


def digest(bare: Bare) -> str:
    """The digest of what a run on bare metal shows; `fixed` has to show the same."""
    return sha256(repr(bare.journal).encode()).hexdigest()[:_DIGITS]


def recorded() -> dict[str, str]:
    """The digests in the file, by path below the corpus."""
    lines = (line.split() for line in JOURNALS.read_text().splitlines())
    return {name: known for known, name in lines}


def main() -> int:
    """Write the file."""
    lines = [f"{digest(run(path).bare)}  {path.relative_to(CORPUS)}\n" for path in scenario_paths()]
    write_whole(JOURNALS, "".join(lines).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
