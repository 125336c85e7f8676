"""No row names what a bug of the catalogue shows that the real kernel does not have: it would hide it."""

from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.bugs.catalogue import CATALOGUE, Bug
from nvmx_core.bugs.versions import bugs_in
from nvmx_core.journal import Record
from nvmx_core.l0.kvm import Kvm
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.bochs import divergences as of_every_bochs
from nvmx_fuzz.boot.divergences import listed
from nvmx_fuzz.boot.moved import fit_booting, stand_alone_moved
from nvmx_fuzz.boot.predicted import journal_on_bare, journal_under, on_fresh_machine
from nvmx_fuzz.boot.rows import BOCHS
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.compare import Entry, first_difference
from nvmx_fuzz.realise.vmcs import NotRealisableError
from nvmx_fuzz.scenario_files import load
from tests.boot.support import WITH_MONITOR

ROOT = Path(__file__).resolve().parents[2]
KERNEL = (6, 1)
SHOWN_BY_BOCHS = {"bug51b": {"init-before-held-trap", "init-keeps-breakpoint"}}
"""With bit 12 alone pending Bochs drops the trap by itself: nobody can tell there whose fault it is."""
GONE = [bug for bug in CATALOGUE if bug not in bugs_in(KERNEL)]


@cache
def cases() -> list[tuple[str, Scenario, list[Record], list[Entry]]]:
    """The scenarios of the corpus that stand alone, with what `bare` shows of them."""
    found = []
    for path in sorted((ROOT / "corpus").rglob("*.scn")):
        try:
            fitted = fit_booting(decode(encode(load(str(path)).scenario)), WITH_MONITOR)
            entries = stand_alone_moved(fitted, WITH_MONITOR).realised.entries
        except NotRealisableError:
            continue
        bare = journal_on_bare(fitted, has_rf=False)
        found.append((path.stem, on_fresh_machine(fitted, acts=True), bare, entries))
    return found


def named(l0: type[Kvm], machine: str) -> dict[str, str]:
    """The scenarios in which an L0 shows a difference that a row names."""
    names = {}
    for stem, scenario, bare, entries in cases():
        shown = journal_under(scenario, l0, has_rf=False)
        found = first_difference(bare, shown, entries) if shown is not None else None
        if not found:
            continue
        row = listed(machine, found, KERNEL)
        if row:
            names[stem] = row.name
        of_bochs = of_every_bochs.known(found, below_l0=True) if machine in BOCHS else None
        if of_bochs and not row:
            names[stem] = of_bochs.name
    return names


@pytest.mark.parametrize("machine", ["kvm", "kvm-bochs"])
@pytest.mark.parametrize("bug", GONE, ids=lambda bug: bug.name)
def test_a_bug_that_the_kernel_does_not_have_is_news(bug: Bug, machine: str) -> None:
    names = named(bug.l0, machine).keys() - SHOWN_BY_BOCHS.get(bug.name, set())
    assert not names
