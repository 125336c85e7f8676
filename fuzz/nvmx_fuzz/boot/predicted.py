"""Does our L0, with the bugs that a version of KVM has, predict what the real one showed?

The real machine is a fresh one for each scenario, so every page of L2 is dropped by L0 at the start. Other
steps of L0 are made there if a stop can make them (``stopping.py``), so both are asked: without and with.
"""

from collections.abc import Iterator
from typing import Final

from nvmx_core.arch.state import ACTIVE
from nvmx_core.bugs.versions import bugs_of
from nvmx_core.errors import ModelError
from nvmx_core.guests.memory import PAGE_COUNT
from nvmx_core.journal import DELIVER, END, EXIT, RECORD_FIELDS, Record
from nvmx_core.l0.kvm import Kvm
from nvmx_core.machines.bare import Bare
from nvmx_core.machines.modes import MODE_L2
from nvmx_core.machines.nested import Nested
from nvmx_core.scenario.config import Config
from nvmx_core.scenario.steps import DROP_PAGE, OPERATIONS, Scenario, Step
from nvmx_fuzz.boot.reading import visible
from nvmx_fuzz.compare import Difference, first_difference

_END_ACTIVITY: Final = 1 + RECORD_FIELDS[END].index("activity")
_FRESH: Final[tuple[Step, ...]] = tuple((DROP_PAGE, page, 0, 0) for page in range(PAGE_COUNT))


def predicting_bugs(
    scenario: Scenario, bare: list[Record], found: Difference, has_rf: bool, version: str
) -> Iterator[str]:
    """The catalogued bugs of a version that make our L0 show the same difference from *bare*, by name."""
    fresh = on_fresh_machines(scenario)
    for bug in bugs_of(version):
        if any(_shows(each, bug.l0, bare, found, has_rf) for each in fresh):
            yield bug.name


def _shows(
    scenario: Scenario, l0: type[Kvm], bare: list[Record], found: Difference, has_rf: bool
) -> bool:
    """Whether an L0 of ours shows the same difference from *bare*.

    Where an event is lost L2's stack pointer is not that of the model's exit, and is one of bytes there,
    of frames here.
    """
    shown = journal_under(scenario, l0, has_rf)
    ours = first_difference(bare, shown, ()) if shown is not None else None
    if not ours or ours.place != found.place or ours.other[:1] != found.other[:1]:
        return False
    return found._replace(bare=ours.other).fields() in ((), ("rsp",))


def bugs_that_sleep(scenario: Scenario, has_rf: bool, version: str) -> Iterator[str]:
    """The catalogued bugs of a version that leave L2 asleep at the end, where `bare` does not."""
    if _ends_asleep(journal_on_bare(scenario, has_rf)):
        return
    fresh = on_fresh_machine(scenario)
    for bug in bugs_of(version):
        shown = journal_under(fresh, bug.l0, has_rf)
        if shown and _ends_asleep(shown):
            yield bug.name


def _ends_asleep(journal: list[Record]) -> bool:
    """Whether L2 rests in another state than active at the end."""
    return journal[-1][1] == MODE_L2 and journal[-1][_END_ACTIVITY] != ACTIVE


def bugs_that_go_astray(scenario: Scenario, has_rf: bool, version: str) -> list[str]:
    """The catalogued bugs of a version with which other things happen than on `bare`."""
    expected = _happenings(journal_on_bare(scenario, has_rf))
    fresh = on_fresh_machines(scenario)
    return [
        bug.name
        for bug in bugs_of(version)
        if any(
            shown and _happenings(shown) != expected
            for shown in (journal_under(each, bug.l0, has_rf) for each in fresh)
        )
    ]


def _happenings(journal: list[Record]) -> list[Record]:
    """What happens, without how: kinds of records, reasons, vectors."""
    return [record[:2] if record[0] in (EXIT, DELIVER) else record[:1] for record in journal]


def on_fresh_machine(scenario: Scenario, *, acts: bool = False) -> Scenario:
    """The scenario as a machine runs it whose L0 has mapped nothing yet; *acts*: and does its own steps."""
    steps = tuple(step for step in scenario.steps if acts or OPERATIONS[step[0]].actor != "L0")
    return Scenario(scenario.config, (*_FRESH, *steps))


def on_fresh_machines(scenario: Scenario) -> tuple[Scenario, ...]:
    """What such a machine may come to run: without L0's own steps, and with them where there are any."""
    return tuple(dict.fromkeys(on_fresh_machine(scenario, acts=acts) for acts in (False, True)))


def journal_on_bare(scenario: Scenario, has_rf: bool) -> list[Record]:
    """What can be seen of a scenario on `bare`."""
    machine = Bare(Config(*scenario.config))
    machine.run_unmarked(scenario)
    return visible(machine.journal, has_rf=has_rf)


def journal_under(scenario: Scenario, l0: type[Kvm], has_rf: bool) -> list[Record] | None:
    """What can be seen of a scenario on an L0 of ours; None where it breaks the model."""
    machine = Nested(Config(*scenario.config), l0)
    try:
        machine.run_unmarked(scenario)
    except ModelError:
        return None
    return visible(machine.journal, has_rf=has_rf)
