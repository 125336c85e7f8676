"""What a difference on a booting machine is called: a bug of the catalogue, or a row of the tables."""

from typing import Final, NamedTuple

from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.bochs import divergences as of_every_bochs
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.divergences import SLEEPS, SLEEPS_IN_BOCHS, UNCHECKED, listed
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.boot.predicates_of_idle import (
    met_smi_in_hlt,
    sleeps_in_bochs,
    sleeps_though_due,
)
from nvmx_fuzz.boot.predicted import (
    bugs_that_go_astray,
    bugs_that_sleep,
    journal_on_bare,
    predicting_bugs,
)
from nvmx_fuzz.boot.rows import SMI_ENDS_HLT
from nvmx_fuzz.outcomes import INCIDENT, Outcome

HANGS: Final = "hangs"


class Naming(NamedTuple):
    """What names depend on: the machine whose rows hold, and what it is made of.

    ``version``: the catalogue's name of its L0, "" without one; ``kernel``: the version of the kernel in it.
    """

    machine: str
    on_bochs: bool
    capabilities: Capabilities
    version: str
    kernel: tuple[int, int]

    def known(self, scenario: Scenario, outcome: Outcome) -> str:
        """The bug of KVM that predicts it, or the row of docs/KVM.md or docs/FIDELITY.md; "" for none.

        *scenario* is what the machine ran, see `moved.fit_booting`.
        """
        if outcome.verdict == INCIDENT:
            return self._known_incident(scenario, outcome.reason)
        found = outcome.difference
        if not found:
            return ""
        has_rf = self.capabilities.saves_rf
        if self.version:
            bare = journal_on_bare(scenario, has_rf)
            bugs = list(predicting_bugs(scenario, bare, found, has_rf, self.version))
            if bugs:
                return f"KVM: {', '.join(bugs)}"
        row = listed(self.machine, found, self.kernel)
        if row:
            return row.name
        if not self.on_bochs:
            return ""
        of_bochs = of_every_bochs.known(found, below_l0=bool(self.version))
        return of_bochs.name if of_bochs else ""

    def _known_incident(self, scenario: Scenario, reason: str) -> str:
        """A machine that hangs where L2 may sleep, or runs what it should not come by."""
        if reason != HANGS:
            return ""
        if self.version:
            bugs = list(bugs_that_sleep(scenario, self.capabilities.saves_rf, self.version))
            if bugs:
                return f"KVM: {', '.join(bugs)}"
        entries = stand_alone_moved(scenario, self.capabilities).realised.entries
        if any(sleeps_though_due(entry) for entry in entries):
            return SLEEPS
        if not self.version and any(sleeps_in_bochs(entry) for entry in entries):
            return SLEEPS_IN_BOCHS
        if any(met_smi_in_hlt(entry) for entry in entries):
            return SMI_ENDS_HLT
        if self.on_bochs and any(entry.rule == "G9" for entry in entries):
            return UNCHECKED
        astray = self.version and bugs_that_go_astray(
            scenario, self.capabilities.saves_rf, self.version
        )
        return f"KVM: {', '.join(astray)}" if astray else ""
