"""Steps moved to where L1 can make them: an interrupt that would come in L2, a change of L2's tables.

L1 runs with its interrupts off, so it can send itself one before VMLAUNCH; whether that is the same
scenario is not argued but asked: the model runs both, and what can be seen has to be equal.
"""

from collections.abc import Iterator
from typing import Final

from nvmx_core.journal import Record
from nvmx_core.machines.modes import MODE_SMM
from nvmx_core.scenario.steps import (
    AT_ENTRY,
    ENTER,
    IN_DELIVERY,
    INIT,
    INTERRUPT,
    L2_GATE,
    L2_PAGE,
    NMI,
    NOW,
    RSM,
    SIPI,
    SMI,
    Scenario,
    Step,
)
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.predicted import journal_on_bare
from nvmx_fuzz.boot.standalone import Standalone
from nvmx_fuzz.boot.stopping import stand_alone
from nvmx_fuzz.realise.realiser import fit
from nvmx_fuzz.realise.vmcs import NotRealisableError

_TABLES: Final = "l2-tables-change-while-l2-runs"
_MOVABLE: Final = (
    "interrupt-while-l2-runs", "interrupt-in-delivery", "interrupt-in-emulation",
    _TABLES,
)  # fmt: skip
_WITH_MONITOR: Final = {
    f"{name}-{where}": op
    for name, op in (
        ("interrupt", INTERRUPT),
        ("nmi", NMI),
        ("init", INIT),
        ("sipi", SIPI),
        ("smi", SMI),
    )
    for where in ("at-entry", "in-delivery", "in-emulation", "while-l2-runs")
}
"""What our monitor can make at one moment or another, and the step."""

Steps = tuple[Step, ...]


def fit_booting(scenario: Scenario, capabilities: Capabilities) -> Scenario:
    """The scenario on such a machine; one that ends in the system-management handler goes on to its RSM."""
    fitted = fit(scenario, capabilities.flags())
    if not capabilities.has_monitor or SMI not in (step[0] for step in fitted.steps):
        return fitted
    if journal_on_bare(fitted, has_rf=True)[-1][1] != MODE_SMM:
        return fitted
    return Scenario(fitted.config, (*fitted.steps, (RSM, 0, 0, 0)))


def stand_alone_moved(scenario: Scenario, capabilities: Capabilities) -> Standalone:
    """Realise a scenario, with steps moved where nobody can tell.

    Raises: NotRealisableError, for the first reason that stays.
    """
    current = fit_booting(scenario, capabilities)
    expected: list[Record] = []
    tried = {current.steps}
    for _ in range(len(scenario.steps) + 1):
        try:
            return stand_alone(current, capabilities)
        except NotRealisableError as error:
            moves = _moves(current.steps, error.reason, capabilities.has_monitor)
            expected = expected or journal_on_bare(current, has_rf=True)
            moved = _first_that_shows(current, expected, moves, tried)
            if not moved:
                raise
            current = moved
            tried.add(current.steps)
    raise NotRealisableError("too-many-moves")


def _moves(steps: Steps, reason: str, has_monitor: bool) -> Iterator[Steps]:
    """The steps with one of them moved, that for which they are refused."""
    if reason in _MOVABLE:
        yield from _table_steps(steps) if reason == _TABLES else _interrupts(steps)
    if has_monitor and reason in _WITH_MONITOR:
        yield from _arrivals(steps, _WITH_MONITOR[reason])


def _first_that_shows(
    scenario: Scenario, expected: list[Record], moves: Iterator[Steps], tried: set[Steps]
) -> Scenario | None:
    """The scenario with one step moved that still shows what is expected; None if there is none."""
    for steps in moves:
        candidate = Scenario(scenario.config, steps)
        if steps not in tried and journal_on_bare(candidate, has_rf=True) == expected:
            return candidate
    return None


def _arrivals(steps: Steps, wanted: int) -> Iterator[Steps]:
    """An arrival of a kind made in a delivery, at an entry, or at the first boundary behind one."""
    for index in reversed(range(len(steps))):
        op, when, vector, rest = steps[index]
        if op != wanted:
            continue
        others = (*steps[:index], *steps[index + 1 :])
        for place in range(len(others)):
            if others[place][0] != ENTER:
                continue
            for moment, behind in ((IN_DELIVERY, 0), (NOW, 1), (AT_ENTRY, 0)):
                step = (op, moment, vector, rest)
                yield (*others[: place + behind], step, *others[place + behind :])
        if when != NOW:
            yield (*steps[:index], (op, NOW, vector, rest), *steps[index + 1 :])


def _interrupts(steps: Steps) -> Iterator[Steps]:
    """An interrupt sent at the entry before it; one that waits for a delivery, at the entry behind it."""
    for index in reversed(range(len(steps))):
        op, when, vector, rest = steps[index]
        if op != INTERRUPT or when == AT_ENTRY:
            continue
        step = (op, AT_ENTRY, vector, rest)
        if when and ENTER in (later[0] for later in steps[index:]):
            yield (*steps[:index], step, *steps[index + 1 :])
        else:
            yield from _before(steps, index, step, _last_enter(steps, index))


def _table_steps(steps: Steps) -> Iterator[Steps]:
    """A change of L2's tables made before L2 is entered, or after it has been left for good."""
    for index in range(len(steps)):
        if steps[index][0] in (L2_PAGE, L2_GATE):
            yield from _before(steps, index, steps[index], _last_enter(steps, index))
    for index in range(len(steps)):
        if steps[index][0] in (L2_PAGE, L2_GATE) and steps[index + 1 :]:
            later = [place for place in range(index, len(steps)) if steps[place][0] == ENTER]
            place = later[0] if later else len(steps)
            if place > index + 1:
                yield (*steps[:index], *steps[index + 1 : place], steps[index], *steps[place:])


def _last_enter(steps: Steps, index: int) -> int:
    """The last entry of L1 before a step; -1 for none."""
    return max((place for place in range(index) if steps[place][0] == ENTER), default=-1)


def _before(steps: Steps, index: int, step: Step, place: int) -> Iterator[Steps]:
    """A step in front of another, instead of at *index*."""
    if place >= 0:
        yield (*steps[:place], step, *steps[place:index], *steps[index + 1 :])
