"""LIVENESS (S1): a loop of L0 is a finding and not a hang."""

from typing import Final

from nvmx_core.journal import VM_DEAD
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.run_loop import ROUND_TRIPS_MAX
from nvmx_core.oracle.liveness import ORACLE
from nvmx_core.scenario.steps import AT_ENTRY
from tests.oracle.planted import Planted, run_fixed, run_wrong, told_by
from tests.support import enter, interrupt


class AlwaysBusy(Kvm):
    """Wrong: an interrupt for L1 is due and never given (bug48's endless entries)."""

    def check_interrupt(self, blocked: bool) -> int:
        return super().check_interrupt(blocked or self.has_interrupt())


NEVER_RESTS = "L0 does not come to rest"
WAITS = Planted("S1", NEVER_RESTS, AlwaysBusy, (interrupt(0x40, AT_ENTRY), enter()))
PLANTED: Final = (WAITS,)


def test_s1_fires_when_l0_only_asks_to_come_back() -> None:
    pair = run_wrong(WAITS)
    assert told_by(ORACLE, pair) == [("S1", NEVER_RESTS)]
    assert [found.step for found in pair.violations if found.oracle == ORACLE] == [1]


def test_s1_the_run_ends_after_a_bounded_number_of_round_trips() -> None:
    pair = run_wrong(WAITS)
    assert VM_DEAD in pair.seen.kinds
    assert len(pair.entries) == ROUND_TRIPS_MAX


def test_s1_is_silent_on_the_fixed_core() -> None:
    assert run_fixed(WAITS).violations == ()
