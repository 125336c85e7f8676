"""The smallest scenario of a difference that a catalogued bug predicts: found on the model, without a boot.

Our L0 with that bug, on pages that it has not mapped, shows the difference that the real one showed; so
``minimise.py`` can make the scenario smaller with the model as its judge. What comes out is a guess that the
real machine has to confirm.
"""

from collections.abc import Callable

from nvmx_core.bugs.versions import bugs_of
from nvmx_core.l0.kvm import Kvm
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.boot.predicted import (
    bugs_that_sleep,
    journal_on_bare,
    journal_under,
    on_fresh_machine,
)
from nvmx_fuzz.compare import Difference, Entry, first_difference
from nvmx_fuzz.minimise import minimise
from nvmx_fuzz.outcomes import Kind, Shown
from nvmx_fuzz.realise.realiser import fit
from nvmx_fuzz.realise.vmcs import NotRealisableError

_PREFIX = "KVM: "


def predicted_minimum(
    kind: Kind, shown: Shown, capabilities: Capabilities, version: str
) -> Scenario | None:
    """The guess; None where no bug of the catalogue predicts the difference."""
    if not kind.known.startswith(_PREFIX):
        return None
    names = kind.known.removeprefix(_PREFIX).split(", ")
    predicts = _judge(names, shown.outcome.difference, capabilities, version)

    def holds(candidate: Scenario) -> bool:
        try:
            stand_alone_moved(candidate, capabilities)
        except NotRealisableError:
            return False
        return predicts(fit(candidate, capabilities.flags()))

    return minimise(shown.scenario, holds) if holds(shown.scenario) else None


def _judge(
    names: list[str], found: Difference | None, capabilities: Capabilities, version: str
) -> Callable[[Scenario], bool]:
    """Whether the bugs of these names make our L0 show that difference, or sleep where there is none."""
    has_rf = capabilities.saves_rf
    if found is None:
        return lambda scenario: list(bugs_that_sleep(scenario, has_rf, version)) == names
    key = _plain_key(found)
    l0s = [bug.l0 for bug in bugs_of(version) if bug.name in names]
    return lambda scenario: all(_key_under(scenario, l0, has_rf) == key for l0 in l0s)


def _key_under(scenario: Scenario, l0: type[Kvm], has_rf: bool) -> str:
    shown = journal_under(on_fresh_machine(scenario), l0, has_rf)
    found = first_difference(journal_on_bare(scenario, has_rf), shown, ()) if shown else None
    return _plain_key(found) if found else ""


def _plain_key(found: Difference) -> str:
    """The key without the rule of the entry, which a run without realisation does not know."""
    return found._replace(entry=Entry()).key()
