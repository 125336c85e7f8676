"""Which bugs of the catalogue a campaign on a real KVM confirms, and which it does not show."""

from collections import Counter
from collections.abc import Iterator

from nvmx_core.bugs.versions import bugs_of
from nvmx_fuzz.boot.journal_base import JournalBase
from nvmx_fuzz.boot.predicted import journal_on_bare, journal_under, on_fresh_machines
from nvmx_fuzz.codec import decode
from nvmx_fuzz.outcomes import SAME
from nvmx_fuzz.realise.realiser import fit

CONFIRMED, HIDDEN, NOT_SHOWN = "confirmed", "something else came first", "not shown"
LEFT_OPEN = "not shown, by a step of L0 that may have been left out"


def predictions(
    base: JournalBase, flags: int, version: str, *, has_rf: bool
) -> dict[str, Counter[str]]:
    """For each bug of a version how often it predicts a difference, by what the real one showed."""
    found = {bug.name: Counter[str]() for bug in bugs_of(version)}
    for content, verdict, known in base.runs():
        scenario = fit(decode(content), flags)
        bare, fresh = journal_on_bare(scenario, has_rf), on_fresh_machines(scenario)
        for bug in bugs_of(version):
            shown = [journal_under(each, bug.l0, has_rf) for each in fresh]
            differs = [journal is not None and journal != bare for journal in shown]
            if not any(differs):
                continue
            if verdict == SAME:
                found[bug.name][NOT_SHOWN if differs[0] else LEFT_OPEN] += 1
            else:
                found[bug.name][CONFIRMED if bug.name in known else HIDDEN] += 1
    return found


def lines(found: dict[str, Counter[str]]) -> Iterator[str]:
    """The same for a person."""
    for name, counts in found.items():
        words = ", ".join(
            f"{counts[what]} {what}"
            for what in (CONFIRMED, HIDDEN, NOT_SHOWN, LEFT_OPEN)
            if counts[what]
        )
        yield f"  {name:6} predicted {counts.total():5}: {words or 'by no scenario that ran'}"
