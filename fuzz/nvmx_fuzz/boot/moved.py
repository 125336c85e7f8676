"""Arrivals moved to where L1 can make them: an interrupt for L1 that would come in L2, sent before the entry.

L1 runs with its interrupts off, so it can send itself one before VMLAUNCH; whether that is the same
scenario is not argued but asked: the model runs both, and what can be seen has to be equal.
"""

from collections.abc import Iterator

from nvmx_core.scenario.steps import AT_ENTRY, ENTER, INTERRUPT, Scenario, Step
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.predicted import journal_on_bare
from nvmx_fuzz.boot.standalone import Standalone, stand_alone
from nvmx_fuzz.realise.realiser import fit
from nvmx_fuzz.realise.vmcs import NotRealisableError

_MOVABLE = ("interrupt-while-l2-runs", "interrupt-in-delivery", "interrupt-in-emulation")


def stand_alone_moved(scenario: Scenario, capabilities: Capabilities) -> Standalone:
    """Realise a scenario, with interrupts moved to the entry where nobody can tell.

    Raises: NotRealisableError, for the first reason that stays.
    """
    fitted = fit(scenario, capabilities.flags())
    try:
        return stand_alone(fitted, capabilities)
    except NotRealisableError as error:
        if error.reason not in _MOVABLE:
            raise
        first = error
    expected = journal_on_bare(fitted, has_rf=True)
    current = fitted
    for index in _arrivals(fitted.steps):
        candidate = Scenario(current.config, _moved(current.steps, index))
        if journal_on_bare(candidate, has_rf=True) != expected:
            continue
        current = candidate
        try:
            return stand_alone(current, capabilities)
        except NotRealisableError as error:
            if error.reason not in _MOVABLE:
                raise
    raise first


def _arrivals(steps: tuple[Step, ...]) -> Iterator[int]:
    """The interrupts that may be moved, the last one first: moving one leaves those before it in place."""
    return (
        index
        for index in reversed(range(len(steps)))
        if steps[index][0] == INTERRUPT and steps[index][1] != AT_ENTRY
    )


def _moved(steps: tuple[Step, ...], index: int) -> tuple[Step, ...]:
    """The steps with an arrival in front of the entry before it.

    One that waits for a delivery in the next entry stays in its place.
    """
    op, _when, vector, rest = steps[index]
    step = (op, AT_ENTRY, vector, rest)
    enters = [place for place in range(index) if steps[place][0] == ENTER]
    following = any(later[0] == ENTER for later in steps[index:])
    if not enters or (steps[index][1] and following):
        return (*steps[:index], step, *steps[index + 1 :])
    place = enters[-1]
    return (*steps[:place], step, *steps[place:index], *steps[index + 1 :])
