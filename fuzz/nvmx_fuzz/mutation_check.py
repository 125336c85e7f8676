"""Looks at the tree as it is, mutated or not: `python -m nvmx_fuzz.mutation_check INPUTS [OPTIONS]`.

Asked in turn, until one sees something wrong with `fixed`: the oracles on every scenario of the corpus and on
random ones, the `expect` lines of the corpus, the second reading of the entry checks, whether the oracles
still find every bug of the catalogue by its smallest scenario, and a campaign of 10 CPU seconds that starts
from the corpus (INPUTS is a list of files for libFuzzer). Runs that only show something else than is recorded
(`journals`) are told apart: nobody has judged that. The Bochs CPU is asked about the scenarios that changed,
and with --thorough such a mutant meets the campaign too. The last line of output says what was seen; exit
status 1: seen, 0: not. With --tests, what none of them sees is shown to the tests of the rules too, which
changes the line and not the status. With --reference=TREE, a tree without the mutant, what the campaign finds
counts only if the model of that tree does not show it too, and a mutant that a verdict calls equivalent meets
no campaign.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nvmx_fuzz import bench_settings
from nvmx_fuzz.cli_options import FIXED

SEED: Final = 1
CAMPAIGN_SECONDS: Final = 10.0
CHANGED: Final = "journals: "
"""How it begins what nobody has judged."""
_CORPUS_SECONDS_MAX: Final = 30
_RULE_TESTS: Final = (
    "tests/arch",
    "tests/cpu",
    "tests/guests",
    "tests/l0",
    "tests/oracle",
    "tests/bugs",
)
_REPLAY: Final = """
import sys
from nvmx_fuzz.codec import decode
from nvmx_core.oracle.judge import violations_of
sys.exit(1 if violations_of(decode(bytes.fromhex(sys.argv[1]))) else 0)
"""


def corpus_sees() -> str:
    """What the oracles, or else the recorded journals, say of the scenarios of the corpus."""
    from nvmx_fuzz import journals  # noqa: PLC0415 - a mutant may fail to import

    known = journals.recorded()
    changed = ""
    for name, verdict in journals.of_corpus():
        if verdict.violations:
            return f"oracles: {verdict.violations[0].rule} {name}"
        if not changed and journals.digest(verdict) != known[name]:
            changed = f"journals: {name}"
    return changed


def generator_sees() -> str:
    """The same of random scenarios."""
    from nvmx_fuzz import journals  # noqa: PLC0415

    known = journals.recorded()
    changed = ""
    for name, verdicts in journals.of_generator():
        for verdict in verdicts:
            if verdict.violations:
                return f"oracles: {verdict.violations[0].rule} {name}"
        if not changed and journals.digest(*verdicts) != known[name]:
            changed = f"journals: {name}"
    return changed


def seeds_see() -> str:
    """The first seed of which an `expect` line does not hold: what the manual says, seed by seed."""
    from nvmx_core.machines.bare import Bare  # noqa: PLC0415
    from nvmx_core.scenario.config import config_for  # noqa: PLC0415
    from nvmx_core.scenario.text import check_expectations  # noqa: PLC0415
    from nvmx_fuzz import journals  # noqa: PLC0415
    from nvmx_fuzz.scenario_files import load  # noqa: PLC0415

    for path in journals.scenario_paths():
        file = load(str(path)).text
        if file is None or not file.expects:
            continue
        bare = Bare(config_for(file.scenario.config))
        bare.run(file.scenario)
        if check_expectations(file, bare.journal, bare.step_starts):
            return f"seeds: {path.relative_to(journals.CORPUS)}"
    return ""


def entry_checks_see() -> str:
    """The first entry, of the corpus or random, of which the second reading of the checks says otherwise."""
    from nvmx_fuzz import journals  # noqa: PLC0415
    from nvmx_fuzz.entry_checks import Disagreement, check_entry  # noqa: PLC0415
    from nvmx_fuzz.generate import random_scenario  # noqa: PLC0415
    from nvmx_fuzz.scenario_files import load  # noqa: PLC0415

    scenarios = [(path.name, load(str(path)).scenario) for path in journals.scenario_paths()]
    scenarios += [(f"random {n}", random_scenario(n)) for n in range(journals.RANDOM)]
    for name, scenario in scenarios:
        try:
            check_entry(scenario)
        except Disagreement as error:
            return f"entry checks: {name}: {error}"
    return ""


def catalogue_sees() -> str:
    """The first known bug that its smallest scenario shows no more, or else one that it shows otherwise.

    Some of L0 does nothing on `fixed`: what judges L0, and what gives a virtual machine up.
    """
    from nvmx_fuzz import journals  # noqa: PLC0415

    known = journals.recorded()
    changed = ""
    for name, bug, verdict in journals.of_catalogue():
        if bug.rule not in {violation.rule for violation in verdict.violations}:
            return f"bugs: {bug.name} is found no more"
        if not changed and journals.digest(verdict) != known[name]:
            changed = f"{CHANGED}{name}"
    return changed


def bochs_sees() -> str:
    """The first scenario that is not as recorded and differs from the Bochs CPU in a way that is not listed.

    Nothing without the extra "bochs".
    """
    from nvmx_fuzz import journals  # noqa: PLC0415
    from nvmx_fuzz.codec import encode  # noqa: PLC0415
    from nvmx_fuzz.generate import random_scenario  # noqa: PLC0415
    from nvmx_fuzz.outcomes import DIFFERENT, UnavailableError  # noqa: PLC0415
    from nvmx_fuzz.scenario_files import load  # noqa: PLC0415

    try:
        from nvmx_fuzz.bochs.worker import Worker  # noqa: PLC0415
        from nvmx_fuzz.comparing import divergence_of  # noqa: PLC0415

        worker = Worker()
    except (ImportError, UnavailableError):
        return ""
    known = journals.recorded()
    changed = {
        name: load(str(journals.CORPUS / name)).scenario
        for name, verdict in journals.of_corpus()
        if journals.digest(verdict) != known[name]
    }
    for name, verdicts in journals.of_generator():
        if journals.digest(*verdicts) != known[name]:
            first, last = map(int, name.partition("/")[2].split("-"))
            changed |= {f"random {n}": random_scenario(n) for n in range(first, last + 1)}
    try:
        outcomes = worker.compare([encode(scenario) for scenario in changed.values()])
        for name, outcome in zip(changed, outcomes, strict=True):
            if outcome.verdict == DIFFERENT and divergence_of(outcome) is None:
                return f"bochs: {name}"
    finally:
        worker.close()
    return ""


def campaign_sees(inputs: str, reference: str = "") -> str:
    """What a short campaign finds, unless the unchanged model in the tree *reference* breaks a rule on it."""
    setting = bench_settings.campaign_setting()
    try:
        found = bench_settings.search(
            FIXED, SEED, CAMPAIGN_SECONDS, setting, f"-seed_inputs=@{inputs}"
        )
    except RuntimeError as error:
        return f"campaign: {str(error).splitlines()[-1]}"
    if not found["found"]:
        return ""
    if reference and _breaks_a_rule(found["data"], reference):
        return ""
    return f"campaign: after {found['executions']} executions, {found['data']}"


def is_called_equivalent(reference: str) -> bool:
    """Whether a verdict says that nobody can see how this tree differs from *reference*."""
    from nvmx_fuzz import mutation_score  # noqa: PLC0415 - it loads much that the first looks do not need

    mutant = mutation_score.mutant_between(Path(reference), Path.cwd())
    return mutant is not None and mutation_score.verdicts().is_equivalent(mutant)


def _breaks_a_rule(data: str, tree: str) -> bool:
    words = [sys.executable, "-P", "-c", _REPLAY, data]
    environment = os.environ | {"PYTHONPATH": f"{tree}:{tree}/fuzz", "NVMX_CORE": "python"}
    return subprocess.run(words, env=environment, check=False).returncode != 0


def tests_see() -> str:
    """The first test of a rule that fails."""
    words = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *_RULE_TESTS,
    ]
    finished = subprocess.run(words, capture_output=True, check=False, text=True)
    if not finished.returncode:
        return ""
    failed = [line for line in finished.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"tests only: {failed[0] if failed else finished.returncode}"


def guarded(look: Callable[[], str]) -> str:
    """What *look* sees, or what the mutant raises meanwhile; an endless one ends by its CPU time."""
    signal.setitimer(signal.ITIMER_PROF, _CORPUS_SECONDS_MAX)
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - whatever a mutant raises, it is seen
        return f"oracles: {type(error).__name__} {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def judged() -> str:
    """What says that something is wrong, or else that something is not as recorded."""
    changed = ""
    for look in (corpus_sees, seeds_see, entry_checks_see, generator_sees, catalogue_sees):
        seen = guarded(look)
        if seen and not seen.startswith(CHANGED):
            return seen
        changed = changed or seen
    return changed


def main(inputs: str, *options: str) -> int:
    """Look, say what was seen."""

    def give_up(_signal: int, _frame: object) -> None:
        sys.stdout.write("oracles: no end\n")
        sys.stdout.flush()
        os._exit(1)

    signal.signal(signal.SIGPROF, give_up)
    trees = [option.partition("=")[2] for option in options if option.startswith("--reference=")]
    reference = trees[0] if trees else ""
    seen = judged()
    if seen.startswith(CHANGED):
        seen = guarded(bochs_sees) or seen
    if seen.startswith(CHANGED) and "--thorough" in options:
        seen = campaign_sees(inputs, reference) or seen
    elif not seen and not (reference and is_called_equivalent(reference)):
        seen = campaign_sees(inputs, reference)
    by_tests = tests_see() if not seen and "--tests" in options else ""
    sys.stdout.write(f"{seen or by_tests or 'nobody'}\n")
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
