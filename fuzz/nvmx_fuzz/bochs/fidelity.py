"""Writes docs/FIDELITY.md: how far the model and Bochs agree, by rule.

``python -m nvmx_fuzz.bochs.fidelity`` runs the corpus of the checkout on both machines. What stands under
the heading *Measured* is written by hand and kept.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from nvmx_core.arch.rules import RULES
from nvmx_fuzz.bochs.divergences import DIVERGENCES, MENDS
from nvmx_fuzz.bochs.worker import Worker
from nvmx_fuzz.boot import residuals
from nvmx_fuzz.boot.divergences import LISTED
from nvmx_fuzz.codec import encode
from nvmx_fuzz.comparing import divergence_of
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.generate import random_bytes
from nvmx_fuzz.outcomes import DIFFERENT, NOT_REALISABLE, SAME
from nvmx_fuzz.scenario_files import load

PAGE: Final = ROOT / "docs" / "FIDELITY.md"
CORPUS: Final = ROOT / "corpus"
DRAWN: Final = 8000
"""Random scenarios that count for the checks of VM entry (E, C, G)."""

COVERAGE: Final = "## Rules that ran on both\n"
"""The heading behind the tables, of what a run has shown."""

MEASURED: Final = "## Measured\n"
"""The heading of the end of the page."""

TOPICS: Final = "ECGOPDXYBNAKMI"
"""First letters of the rules that a processor alone can show."""

_RULE: Final = re.compile(r"\b[A-Z][0-9]{1,2}\b")

NOT_SHOWN: Final = {
    "P1": "the model has no machine check and no RESET (docs/ARCHITECTURE.md)",
    "P3": "the model has no T flag (docs/ARCHITECTURE.md)",
    "P13": "the model has no code breakpoints (docs/ARCHITECTURE.md)",
    "D5": "the image has 32-bit code, gates and paging; an L2 in real mode would need 16-bit code and an IVT",
}
"""Rules that no scenario on Bochs can show, and why."""


def main() -> int:
    """Write the page; returns the exit status."""
    text = "\n".join([*tables(), *_coverage()])
    PAGE.write_text(f"{text}\n\n{_measured(PAGE.read_text())}")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
    return 0


def _measured(page: str) -> str:
    """The hand-written end of a page."""
    _, heading, text = page.partition(MEASURED)
    return heading + text


def tables() -> Iterator[str]:
    """The lines that come from the tables alone, without a run."""
    yield from _head()
    yield from _divergences()
    yield from _mends()
    yield from _real_kvm()


def _head() -> Iterator[str]:
    yield "# Fidelity"
    yield ""
    yield "How far the model processor and Bochs agree, written by `python -m nvmx_fuzz.bochs.fidelity`."
    yield "`nvmx-fuzz compare` fails on any difference that is not listed here. A listed one ends the"
    yield "comparison of its scenario; what would come behind it is not compared."
    yield ""
    yield "Both sides share what is not in question: which bits and fields of an exit are undefined (they are"
    yield "left out on both by one function, `L1.observe_exit`), what L1 writes, and the stack pointer, which"
    yield "the model counts in frames."
    yield ""


def _divergences() -> Iterator[str]:
    yield "## Where they disagree"
    yield ""
    yield "| what | rule | who is right | why | scenario |"
    yield "|---|---|---|---|---|"
    for entry in DIVERGENCES:
        rules = ", ".join(entry.rules)
        yield f"| {entry.name} | {rules} | {entry.verdict} | {entry.why} | `{entry.scenario}` |"
    yield ""


def _mends() -> Iterator[str]:
    yield "## What the helper mends in Bochs"
    yield ""
    yield "Each of these would hide what comes after it. On its scenario both processors agree since. Where a"
    yield "mend has part in a rule, agreement means that the model does what the helper does, which is our"
    yield "own reading of the manual in C, not what Bochs does. The table of rules below says which they are."
    yield ""
    yield "| rule | as it should be | what Bochs does | who is right | scenario |"
    yield "|---|---|---|---|---|"
    for entry in MENDS:
        rules = ", ".join(entry.rules)
        yield f"| {rules} | {entry.what} | {entry.why} | {entry.verdict} | `{entry.scenario}` |"
    yield ""


def _real_kvm() -> Iterator[str]:
    yield "## On a real KVM"
    yield ""
    yield "The same scenarios run on a stock Linux 6.1 KVM inside the whole Bochs ([KVM.md](KVM.md)). What"
    yield "the catalogue of bugs says of today's KVM:"
    yield ""
    yield from residuals.rows()
    yield ""
    yield "And what was new. Full Bochs is the same image without a KVM under it:"
    yield ""
    yield "| what | rule | full Bochs | real KVM 6.1 | who is right |"
    yield "|---|---|---|---|---|"
    for row in LISTED:
        shown = ["differs" if name in row.machines else "-" for name in ("bochs-boot", "kvm-bochs")]
        yield f"| {row.name} | {', '.join(row.rules)} | {' | '.join(shown)} | {row.verdict} |"
    yield ""


def _coverage() -> Iterator[str]:
    same, known, refused = _counts()
    shown = [rule for rule in RULES if rule[0] in TOPICS]
    covered = [rule for rule in shown if same[rule] or known[rule]]
    realisable = [rule for rule in shown if rule not in NOT_SHOWN]
    yield COVERAGE
    yield (
        f"{len(covered)} of {len(realisable)} rules that can be shown have a scenario that ran on both "
        f"machines: one of the "
        f"corpus that cites the rule, or one of {DRAWN:,} random ones with an entry that breaks it."
    )
    yield ""
    yield "| rule | agree | known difference | not realisable | |"
    yield "|---|---|---|---|---|"
    mended = {rule for entry in MENDS for rule in entry.rules}
    for rule in shown:
        note = "a mend of the helper has part in it" if rule in mended else ""
        if rule not in covered:
            note = "no scenario of the corpus cites it"
        note = NOT_SHOWN.get(rule, note)
        yield f"| {rule} {RULES[rule].title} | {same[rule]} | {known[rule]} | {refused[rule]} | {note} |"


def _counts() -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """For each rule: scenarios that agree, that show a known difference, that are not realisable."""
    files = sorted(CORPUS.rglob("*.scn"))
    worker = Worker()
    outcomes = list(worker.compare([encode(load(str(file)).scenario) for file in files]))
    drawn = list(worker.compare([random_bytes(seed, 1 + seed % 4) for seed in range(DRAWN)]))
    worker.close()
    same: dict[str, int] = defaultdict(int)
    known: dict[str, int] = defaultdict(int)
    refused: dict[str, int] = defaultdict(int)
    for file, outcome in zip(files, outcomes, strict=True):
        comments = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
        for rule in sorted(set(_RULE.findall(comments)) & RULES.keys()):
            same[rule] += outcome.verdict == SAME
            known[rule] += outcome.verdict == DIFFERENT and divergence_of(outcome) is not None
            refused[rule] += outcome.verdict == NOT_REALISABLE
    for outcome in drawn:
        for rule in sorted(set(outcome.entry_rules) & RULES.keys()):
            same[rule] += outcome.verdict == SAME
            known[rule] += outcome.verdict == DIFFERENT and divergence_of(outcome) is not None
    return same, known, refused


if __name__ == "__main__":
    sys.exit(main())
