"""Scores oracles, seeds and search by mutants of the model: `scripts/mutation`.

Cosmic Ray changes one operator, number or condition of `nvmx_core/l0` and `nvmx_core/cpu` at a time, in
copies of this tree below `build/mutation`, and `mutation_check.py` says who sees the mutant. A session that
was cut off goes on where it stopped. The score is of the mutants that are not equivalent; what nobody saw is
listed with a verdict from `docs/mutation-verdicts.txt`.
"""

import ast
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from difflib import unified_diff
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from nvmx_fuzz import module_command
from nvmx_fuzz.codec import encode
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.files import write_whole
from nvmx_fuzz.journals import scenario_paths
from nvmx_fuzz.scenario_files import load

BUILD: Final = ROOT / "build" / "mutation"
PAGE: Final = ROOT / "docs" / "MUTATION.md"
VERDICTS: Final = ROOT / "docs" / "mutation-verdicts.txt"
MARK: Final = "<!-- from here on written by: scripts/mutation --report -->"
MODULES: Final = ("nvmx_core/l0", "nvmx_core/cpu")

_TIMEOUT_SECONDS: Final = 150
_KEPT_OPERATORS: Final = (
    "AddNot", "NumberReplacer", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue", "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_Invert",
    "ReplaceUnaryOperator_Delete_USub", "ZeroIterationForLoop", "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak", "ReplaceBinaryOperator_BitAnd_BitOr", "ReplaceBinaryOperator_BitOr_BitAnd",
    "ReplaceBinaryOperator_BitXor_BitAnd", "ReplaceBinaryOperator_LShift_RShift",
    "ReplaceBinaryOperator_RShift_LShift", "ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add",
    "ReplaceBinaryOperator_Mul_FloorDiv", "ReplaceComparisonOperator_Eq_NotEq",
    "ReplaceComparisonOperator_NotEq_Eq", "ReplaceComparisonOperator_Lt_LtE",
    "ReplaceComparisonOperator_LtE_Lt", "ReplaceComparisonOperator_Gt_GtE",
    "ReplaceComparisonOperator_GtE_Gt",
    "ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is",
)  # fmt: skip
"""One replacement for each operator: x & y becomes x | y, not also x ^ y, x << y and seven more."""

JUDGED: Final = ("oracles", "seeds", "entry checks", "bugs", "bochs", "campaign")
"""Who says that something is wrong."""
SEEN: Final = (*JUDGED, "journals")
"""And who says only that something is not as recorded."""
UNSEEN: Final = ("tests only", "nobody")
_CONFIG: Final = """\
[cosmic-ray]
module-path = [{modules}]
timeout = {timeout}.0
excluded-modules = []
test-command = "{python} -P -m nvmx_fuzz.mutation_check {inputs}{options}"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = ["core/(?!({kept})$)"]
"""


class Mutant(NamedTuple):
    """One mutant that was looked at: where, old and new line, who saw it, and how.

    ``function`` is "" outside of functions; the same line in two functions is two questions.
    """

    module: str
    function: str
    old: str
    new: str
    who: str
    how: str

    @property
    def key(self) -> str:
        """What a verdict is given to."""
        place = f"{self.module} {self.function}".rstrip()
        return f"{place}: {self.old} -> {self.new}"


def folder_of(job: int) -> Path:
    """Where the session and the tree of one of several jobs are."""
    return BUILD / str(job)


def prepare(job: int, jobs: int, sample: int, options: str) -> None:
    """Copy the tree and make a session of the mutants of a job: every *sample*-th, dealt to the jobs."""
    folder = folder_of(job)
    shutil.rmtree(folder, ignore_errors=True)
    _copy(folder / "tree", tracked_files())
    _write_inputs(folder)
    _configure(folder, options)
    _compile(job)
    run(job, ["cosmic-ray", "init", "../config.toml", "../draft.sqlite"])
    run(job, ["cr-filter-operators", "../draft.sqlite", "../config.toml"])
    _deal(folder / "draft.sqlite", job, jobs, sample)
    (folder / "draft.sqlite").rename(folder / "session.sqlite")


def _configure(folder: Path, options: str) -> None:
    (folder / "config.toml").write_text(
        _CONFIG.format(
            modules=", ".join(f'"{name}"' for name in MODULES),
            timeout=_TIMEOUT_SECONDS,
            python=sys.executable,
            inputs=folder / "inputs.txt",
            options=f" --reference={ROOT}{options}",
            kept="|".join(_KEPT_OPERATORS),
        )
    )


def prepare_again(job: int, options: str) -> None:
    """Forget the mutants that nobody judged, or only a campaign, and copy all but the model anew.

    What a verdict calls equivalent stays unseen: there is nothing that anything new could show.

    Raises:
        ClickException: the model is not the one of the session.
    """
    folder = folder_of(job)
    files = tracked_files()
    model = [name for name in files if name.startswith(MODULES)]
    if any((folder / "tree" / name).read_bytes() != (ROOT / name).read_bytes() for name in model):
        raise click.ClickException("the model has changed since; begin anew with --fresh")
    _copy(folder / "tree", [name for name in files if name not in model])
    _write_inputs(folder)
    _configure(folder, options)
    _compile(job)
    known = verdicts()
    again = [
        (job_id,)
        for job_id, mutant in _looked_at(folder)
        if mutant.who in (*UNSEEN, "campaign", "journals", "bugs")
        and not known.is_equivalent(mutant)
    ]
    # Cosmic Ray can add and replace results, but has no call that removes one.
    with closing(sqlite3.connect(folder / "session.sqlite")) as session, session:
        session.executemany("DELETE FROM work_results WHERE job_id = ?", again)


def tracked_files() -> list[str]:
    """The files of this tree, by their names in it."""
    words = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(words, capture_output=True, check=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def _copy(tree: Path, names: Iterable[str]) -> None:
    helpers = (ROOT / "fuzz" / "nvmx_fuzz").glob("*.so")
    for name in (*names, *(str(path.relative_to(ROOT)) for path in helpers)):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)


def _write_inputs(folder: Path) -> None:
    """The scenarios of the corpus as bytes, and the list of them that libFuzzer reads."""
    inputs = folder / "inputs"
    inputs.mkdir(exist_ok=True)
    paths = []
    for number, path in enumerate(scenario_paths()):
        paths.append(inputs / str(number))
        paths[-1].write_bytes(encode(load(str(path)).scenario))
    (folder / "inputs.txt").write_text(",".join(map(str, paths)))


def _compile(job: int) -> None:
    # By content and not by time: Cosmic Ray writes a file twice within the resolution of its time stamp.
    run(job, [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "."])


def _deal(session: Path, job: int, jobs: int, sample: int) -> None:
    from cosmic_ray.work_db import use_db  # noqa: PLC0415 - of the extra "mutation"
    from cosmic_ray.work_item import WorkerOutcome, WorkResult  # noqa: PLC0415

    with use_db(str(session)) as work:
        for item in work.pending_work_items:
            (spec,) = item.mutations
            place = (
                f"{spec.module_path} {spec.operator_name} {spec.operator_args} {spec.occurrence}"
            )
            number = int.from_bytes(sha256(place.encode()).digest()[:6])
            if number % sample or number // sample % jobs != job:
                work.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


def run(job: int, words: list[str]) -> None:
    """Run a command in the tree of a job, which imports the model from there."""
    tree = folder_of(job) / "tree"
    subprocess.run(words, cwd=tree, env=environment(tree), check=True)


def environment(tree: Path) -> dict[str, str]:
    """The environment in which Python finds the model in *tree*, and only its source."""
    import os  # noqa: PLC0415

    return os.environ | {"PYTHONPATH": f"{tree}:{tree / 'fuzz'}", "NVMX_CORE": "python"}


def mutants() -> Iterator[Mutant]:
    """All that were looked at so far, in every session."""
    for session in sorted(BUILD.glob("*/session.sqlite")):
        yield from (mutant for _job_id, mutant in _looked_at(session.parent))


def _looked_at(folder: Path) -> Iterator[tuple[str, Mutant]]:
    from cosmic_ray.work_db import WorkDB, use_db  # noqa: PLC0415 - of the extra "mutation"

    with use_db(str(folder / "session.sqlite"), WorkDB.Mode.open) as work:
        for item, result in work.completed_work_items:
            if result.test_outcome is not None:
                yield item.job_id, _mutant(item, result, folder / "tree")


@cache
def _functions(module: Path) -> tuple[tuple[int, int, str], ...]:
    """The functions of a module: first and last line, and the name; inner ones behind outer ones."""
    tree = ast.parse(module.read_text())
    found = [
        (node.lineno, node.end_lineno or node.lineno, node.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    return tuple(sorted(found))


def _function_at(module: Path, line: int) -> str:
    """The innermost function that a line is in; "" for none."""
    names = [name for first, last, name in _functions(module) if first <= line <= last]
    return names[-1] if names else ""


def _changed_lines(diff: Iterable[str]) -> tuple[str, str]:
    """The old and the new line of a unified diff of one change."""
    old, new = ("", "")
    for line in diff:
        if not line[1:].strip():
            continue  # behind a change in the last line of a file Cosmic Ray shows its end as changed too
        if line.startswith("-") and not line.startswith("---"):
            old = line[1:].strip()
        elif line.startswith("+") and not line.startswith("+++"):
            new = line[1:].strip()
    return old, new


def _mutant(item: Any, result: Any, tree: Path) -> Mutant:
    (spec,) = item.mutations
    said = (result.output or "").strip().splitlines()
    last = said[-1] if said else ""
    who, _, how = last.partition(": ")
    if who not in (*SEEN, *UNSEEN):
        who, how = "oracles", last  # cut off, or it does not even start
    module = str(spec.module_path)
    function = _function_at(tree / module, spec.start_pos[0])
    lines = _changed_lines((result.diff or "").splitlines())
    return Mutant(module.removeprefix("nvmx_core/"), function, *lines, who, how)


def mutant_between(reference: Path, tree: Path) -> Mutant | None:
    """How the model in *tree* differs from that in *reference*, as a mutant that nobody saw; None: not."""
    for part in MODULES:
        for path in sorted((tree / part).rglob("*.py")):
            module = str(path.relative_to(tree))
            before = (reference / module).read_text().splitlines()
            after = path.read_text().splitlines()
            if before != after:
                pairs = enumerate(zip(before, after, strict=False), 1)
                line = next((number for number, (old, new) in pairs if old != new), 1)
                function = _function_at(reference / module, line)
                lines = _changed_lines(unified_diff(before, after, n=0, lineterm=""))
                return Mutant(module.removeprefix("nvmx_core/"), function, *lines, "nobody", "")
    return None


class Verdicts:
    """What was decided about mutants that nobody saw; the key of a mutant, or "/a regular expression/"."""

    def __init__(self, text: str) -> None:
        """Read lines "KEY => VERDICT"; those that begin with # are comments. Raises ValueError."""
        self._exact: Final[dict[str, str]] = {}
        self._patterns: Final[list[tuple[re.Pattern[str], str]]] = []
        for line in text.splitlines():
            if not line or line[0] == "#":
                continue
            key, arrow, verdict = line.rpartition(" => ")
            if not arrow:
                raise ValueError(f"no verdict in {line!r}")
            if key[0] == key[-1] == "/":
                self._patterns.append((re.compile(key[1:-1]), verdict))
            else:
                self._exact[key] = verdict

    def of(self, mutant: Mutant) -> str:
        """The verdict on a mutant; "" without one."""
        found = self._exact.get(mutant.key, "")
        if found:
            return found
        for pattern, verdict in self._patterns:
            if pattern.search(mutant.key):
                return verdict
        return ""

    def is_equivalent(self, mutant: Mutant) -> bool:
        """Whether nobody can see it, because there is nothing to see."""
        return mutant.who in UNSEEN and self.of(mutant).startswith("equivalent")


def verdicts() -> Verdicts:
    """Those in docs/mutation-verdicts.txt."""
    return Verdicts(VERDICTS.read_text() if VERDICTS.is_file() else "")


def page(found: list[Mutant], known: Verdicts) -> str:
    """The tables: by module, and what was not seen."""
    lines = [
        "| module | mutants | "
        + " | ".join(SEEN)
        + " | tests only | nobody | equivalent | judged | seen |",
        "|---|---|" + "---|" * (len(SEEN) + 5),
    ]
    modules = sorted({mutant.module for mutant in found})
    for title, members in (
        *((module, (module,)) for module in modules),
        *((part, tuple(m for m in modules if m.startswith(part))) for part in ("cpu/", "l0/")),
        ("all", tuple(modules)),
    ):
        lines.append(_row(title, [m for m in found if m.module in members], known))
    lines += ["", "## Not seen", "", "| mutant | the tests | verdict |", "|---|---|---|"]
    for mutant in sorted(found):
        if mutant.who in UNSEEN:
            seen = "see it" if mutant.who == "tests only" else "-"
            place = f"{mutant.module} {mutant.function}".rstrip()
            text = f"{place}: `{mutant.old}` becomes `{mutant.new}`".replace("|", "\\|")
            lines.append(f"| {text} | {seen} | {known.of(mutant) or 'none yet'} |")
    return "\n".join(lines)


def _row(title: str, found: list[Mutant], known: Verdicts) -> str:
    counts = Counter(mutant.who for mutant in found)
    equivalent = sum(map(known.is_equivalent, found))
    relevant = len(found) - equivalent
    scores = [
        f"{100 * sum(counts[who] for who in names) / relevant:.1f} %" if relevant else "-"
        for names in (JUDGED, SEEN)
    ]
    cells = [len(found), *(counts[who] for who in (*SEEN, *UNSEEN)), equivalent, *scores]
    return f"| {title} | " + " | ".join(map(str, cells)) + " |"


@click.command()
@click.option("--sample", default=1, show_default=True, type=click.IntRange(1), metavar="N",
              help="Only every N-th mutant.")  # fmt: skip
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), metavar="N",
              help="Mutants at the same time.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Begin anew, with the tree as it is now.")
@click.option("--again", is_flag=True,
              help="Show those that nobody judged or a campaign saw to all of now.")  # fmt: skip
@click.option("--thorough", is_flag=True,
              help="A campaign also for what is only not as recorded (11 CPU seconds each).")  # fmt: skip
@click.option("--tests", is_flag=True,
              help="Show those that nobody saw to the tests of the rules too, for the verdict.")  # fmt: skip
@click.option("--report", is_flag=True, help="Only write docs/MUTATION.md from what there is.")
def command(
    sample: int, jobs: int, fresh: bool, again: bool, thorough: bool, tests: bool, report: bool
) -> None:
    """Let mutants of the model meet the oracles, the corpus and a short campaign."""
    options = (" --thorough" if thorough else "") + (" --tests" if tests else "")
    if not report:
        for job in range(jobs):
            if fresh or not (folder_of(job) / "session.sqlite").exists():
                click.echo(f"preparing {folder_of(job)}", err=True)
                prepare(job, jobs, sample, options)
            elif again:
                prepare_again(job, options)
        processes = [
            subprocess.Popen(
                ["cosmic-ray", "exec", "../config.toml", "../session.sqlite"],
                cwd=folder_of(job) / "tree",
                env=environment(folder_of(job) / "tree"),
            )
            for job in range(jobs)
        ]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            raise click.ClickException("Cosmic Ray failed")
    text = page(list(mutants()), verdicts())
    prose = PAGE.read_text().partition(MARK)[0] if PAGE.is_file() else "# Mutation score\n\n"
    write_whole(PAGE, f"{prose}{MARK}\n\n{text}\n".encode())


if __name__ == "__main__":
    sys.exit(module_command.run(command, "scripts/mutation"))
