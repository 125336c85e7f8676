"""``nested`` driven step by step beside ``bare``: what they show is equal after every single step (V11).

Each rule is one actor of a scenario. A rule is open only when its actor may act, so that most steps do
something: Hypothesis spends its examples inside L2 instead of in front of the first check.
"""

from typing import Final

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nvmx_core.bugs.ordering import Bug3
from nvmx_core.l0.kvm import Kvm
from nvmx_core.machines.bare import Bare
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.judge import judge
from nvmx_core.scenario.config import DEFAULT_CONFIG, config_for
from nvmx_core.scenario.step_text import pack_step
from nvmx_core.scenario.steps import (
    ENTER,
    INJECT,
    L0,
    L1,
    L2,
    OPERATIONS,
    OUTSIDE,
    RSM,
    RUN,
    Step,
    canonical,
)
from nvmx_fuzz.codec import PackedConfig
from nvmx_fuzz.strategies import configs


def steps_of(op: int) -> st.SearchStrategy[Step]:
    """Every step of one operation, from the table."""
    operands = st.tuples(
        *(st.integers(0, operand.limit - 1) for operand in OPERATIONS[op].operands)
    )
    return operands.map(lambda values: canonical(*pack_step(op, values)))


def steps_by(actor: str, *left_out: int) -> st.SearchStrategy[Step]:
    """Every step of one actor, all operations alike."""
    return st.one_of(
        [
            steps_of(op)
            for op, operation in enumerate(OPERATIONS)
            if operation.actor == actor and op not in left_out
        ]
    )


L1_STEPS: Final = steps_by(L1, ENTER, INJECT)
L2_STEPS: Final = steps_by(L2, RUN)
OUTSIDE_STEPS: Final = steps_by(OUTSIDE, RSM)
L0_STEPS: Final = steps_by(L0)


class NestedBesideBare(RuleBasedStateMachine):
    """One scenario that grows while it runs on both machines."""

    l0: type[Kvm] = Kvm

    def __init__(self) -> None:
        super().__init__()
        self.bare = Bare(DEFAULT_CONFIG)
        self.nested = Nested(DEFAULT_CONFIG, self.l0)

    @initialize(packed=configs())
    def configure(self, packed: PackedConfig) -> None:
        """The configuration comes first."""
        config = config_for(packed)
        self.bare = Bare(config)
        self.nested = Nested(config, self.l0)

    def do(self, step: Step) -> None:
        """One step on both; who runs afterwards, and everything shown so far, is the same."""
        for machine in (self.bare, self.nested):
            machine.mark_step()
            machine.do_step(step)
        assert self.nested.journal == self.bare.journal
        assert self.nested.l1_is_current() == self.bare.l1_is_current()
        assert self.nested.l2_may_execute() == self.bare.l2_may_execute()

    @precondition(lambda self: self.bare.l1_is_current())
    @rule(step=L1_STEPS)
    def l1_prepares(self, step: Step) -> None:
        """L1 writes a field, changes a table, ends an interrupt."""
        self.do(step)

    @precondition(lambda self: self.bare.l1_is_current())
    @rule(step=steps_of(INJECT))
    def l1_injects(self, step: Step) -> None:
        """L1 prepares an event for L2."""
        self.do(step)

    @precondition(lambda self: self.bare.l1_is_current())
    @rule(step=steps_of(ENTER))
    def l1_enters(self, step: Step) -> None:
        """L1 enters L2, or tries to."""
        self.do(step)

    @precondition(lambda self: self.bare.l2_may_execute())
    @rule(step=steps_of(RUN))
    def l2_executes(self, step: Step) -> None:
        """L2 runs one instruction."""
        self.do(step)

    @rule(step=L2_STEPS)
    def l2_changes_its_tables(self, step: Step) -> None:
        """L2's page tables and IDT change."""
        self.do(step)

    @rule(step=OUTSIDE_STEPS)
    def something_arrives(self, step: Step) -> None:
        """An event for L1 arrives, or is tied to a moment."""
        self.do(step)

    @precondition(lambda self: self.bare.cpu.in_smm)
    @rule(step=steps_of(RSM))
    def smm_returns(self, step: Step) -> None:
        """RSM."""
        self.do(step)

    @rule(step=L0_STEPS)
    def l0_acts_in_secret(self, step: Step) -> None:
        """What neither L1 nor L2 may notice."""
        self.do(step)

    def teardown(self) -> None:
        """The end is the same, and no oracle finds anything."""
        for machine in (self.bare, self.nested):
            machine.mark_step()
            machine.finish()
        assert judge(self.bare, self.nested) == ()


class NestedWithBug3(NestedBesideBare):
    """A canary: the same machine on a core that never comes back at once."""

    l0 = Bug3


REPRODUCIBLE: Final = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
)

TestNestedBesideBare = NestedBesideBare.TestCase
TestNestedBesideBare.settings = REPRODUCIBLE


def test_the_machine_finds_a_core_without_immediate_exits() -> None:
    """O11: what shows nothing wrong on the fixed core shows something on bug3."""
    looking = settings(REPRODUCIBLE, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(NestedWithBug3, settings=looking)
