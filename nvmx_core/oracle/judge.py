"""Run a scenario on both machines and ask every oracle."""

from typing import Final, NamedTuple

from nvmx_core.l0.kvm import Kvm
from nvmx_core.machines.bare import Bare
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.conservation import conservation
from nvmx_core.oracle.event_rank import event_rank
from nvmx_core.oracle.exit_info import exit_info
from nvmx_core.oracle.immediate_exit import immediate_exit
from nvmx_core.oracle.liveness import liveness
from nvmx_core.oracle.self_check import self_check
from nvmx_core.oracle.transparency import transparency
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario.config import Config, config_for
from nvmx_core.scenario.steps import Scenario


class Oracle(NamedTuple):
    """One property: its id, what it says, the rules that its violations cite, and where it comes from."""

    id: str
    property: str
    rules: tuple[str, ...]
    source: str


ORACLES: Final[tuple[Oracle, ...]] = (
    Oracle(
        "EXIT-INFO",
        "Every exit carries the event information that a processor returns with it, and no other.",
        ("X1", "X2", "X3", "X4", "X6"),
        "SDM: Information for VM Exits During Event Delivery",
    ),
    Oracle(
        "IMMEDIATE-EXIT",
        "What had to wait for an injection comes right after it, and nothing of L2 comes before it.",
        ("O7", "O11", "M1", "B5", "B6", "V10"),
        "KVM vcpu_enter_guest, KVM_REQ_IMMEDIATE_EXIT",
    ),
    Oracle(
        "EVENT-RANK",
        "Events of one boundary come in the order of their ranks, whoever they are for.",
        ("V4",),
        "SDM: Priority Among Concurrent Events; KVM vmx_check_nested_events",
    ),
    Oracle("LIVENESS", "L0 comes to rest.", ("S1",), "KVM vcpu_run"),
    Oracle(
        "SELF-CHECK",
        "L0 never finds itself in a state that must not be.",
        ("V5", "V6", "X1", "E0"),
        "KVM, WARN_ON in nested.c and x86.c",
    ),
    Oracle(
        "CONSERVATION",
        "Nothing is lost and nothing happens twice: injections, interrupts, NMIs, also on their way into "
        "L2; CR2 and DR6; virtual interrupts only once the processor has taken them.",
        ("V2", "V7", "V8", "K2", "Y1"),
        "SDM: Event Injection; Handling Multiple NMIs",
    ),
    Oracle(
        "TRANSPARENCY",
        "L1 and L2 see on nested exactly what they see on bare.",
        ("V11",),
        "the definition of nested virtualization",
    ),
)
"""Every oracle, in the order in which findings are told; docs/ORACLES.md is made from it."""

INVARIANTS: Final[dict[str, tuple[str, ...]]] = {
    "V1": ("X2", "X3"),
    "V2": ("V2",),
    "V3": ("O7", "O11", "B5", "B6"),
    "V4": ("V4",),
    "V5": ("V5",),
    "V6": ("V6",),
    "V7": ("V7", "K2"),
    "V8": ("V8",),
    "V9": ("Y1",),
    "V10": ("V10", "O7", "O11", "M1"),
    "V11": ("V11",),
}
"""Each invariant of L0 and the rules that a violation of it cites.

Where an invariant says for L0 what a rule says of the processor, violations cite the processor's rule.
"""


class Verdict(NamedTuple):
    """Both machines after the run, and what is wrong; ``violations`` is empty when nothing is."""

    bare: Bare
    nested: Nested
    violations: tuple[Violation, ...]


def run_and_judge(scenario: Scenario, config: Config, l0: type[Kvm] = Kvm) -> Verdict:
    """Run *scenario* (whose configuration is *config*) on ``bare`` and on ``nested`` with *l0*.

    Raises ModelError, and nothing else, when our own model contradicts itself. The first run does not note
    where steps begin; the rare one that shows a violation is repeated with that.
    """
    bare = Bare(config)
    bare.run_unmarked(scenario)
    nested = Nested(config, l0)
    nested.run_unmarked(scenario)
    violations = judge(bare, nested)
    if not violations:
        return Verdict(bare, nested, violations)
    bare = Bare(config)
    bare.run(scenario)
    nested = Nested(config, l0)
    nested.run(scenario)
    return Verdict(bare, nested, judge(bare, nested))


def run_and_compare(scenario: Scenario, config: Config, l0: type[Kvm] = Kvm) -> Verdict:
    """The same as `run_and_judge` with one oracle, TRANSPARENCY: are the two journals equal?"""
    bare = Bare(config)
    bare.run_unmarked(scenario)
    nested = Nested(config, l0)
    nested.run_unmarked(scenario)
    if bare.journal == nested.journal:
        return Verdict(bare, nested, ())
    bare = Bare(config)
    bare.run(scenario)
    nested = Nested(config, l0)
    nested.run(scenario)
    return Verdict(bare, nested, tuple(transparency(bare, nested)))


def violations_of(scenario: Scenario, l0: type[Kvm] = Kvm) -> tuple[Violation, ...]:
    """What `run_and_judge` finds, for those who want nothing else of the two runs."""
    return run_and_judge(scenario, config_for(scenario.config), l0).violations


def judge(bare: Bare, nested: Nested) -> tuple[Violation, ...]:
    """All violations of a finished pair of runs, the most telling oracle first."""
    return (
        *exit_info(nested),
        *immediate_exit(nested),
        *event_rank(nested),
        *liveness(nested),
        *self_check(nested),
        *conservation(nested),
        *transparency(bare, nested),
    )
