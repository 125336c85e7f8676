"""Run a scenario on both machines and ask every oracle."""

from typing import NamedTuple

from nvmx_core.l0.kvm import Kvm
from nvmx_core.machines.bare import Bare
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.transparency import transparency
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario.config import Config
from nvmx_core.scenario.steps import Scenario


class Verdict(NamedTuple):
    """Both machines after the run, and what is wrong; ``violations`` is empty when nothing is."""

    bare: Bare
    nested: Nested
    violations: tuple[Violation, ...]


def run_and_judge(scenario: Scenario, config: Config, l0: type[Kvm] = Kvm) -> Verdict:
    """Run *scenario* (whose configuration is *config*) on ``bare`` and on ``nested`` with *l0*.

    Raises ModelError, and nothing else, when our own model contradicts itself.
    """
    bare = Bare(config)
    bare.run(scenario)
    nested = Nested(config, l0)
    nested.run(scenario)
    return Verdict(bare, nested, judge(bare, nested))


def judge(bare: Bare, nested: Nested) -> tuple[Violation, ...]:
    """All violations of a finished pair of runs, the most telling rule first."""
    return tuple(transparency(bare, nested))
