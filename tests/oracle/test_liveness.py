"""LIVENESS (S1): a loop of L0 is a finding and not a hang."""

from typing import Final

import pytest

from nvmx_core.guests.memory import CODE, HANDLER, IDT_HIGH
from nvmx_core.journal import VM_DEAD
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.log import STUCK
from nvmx_core.l0.run_loop import ROUND_TRIPS_MAX
from nvmx_core.machines.modes import MODE_DEAD
from nvmx_core.machines.nested import STARTS_MAX
from nvmx_core.oracle.liveness import ORACLE
from nvmx_core.scenario.steps import AT_ENTRY
from tests.nested_support import drop_page, host_interrupt, save_restore
from tests.oracle.planted import Planted, name_of, run_fixed, run_wrong, told_by
from tests.support import enter, interrupt, run


class AlwaysBusy(Kvm):
    """Wrong: an interrupt for L1 is due and never given (bug48's endless entries)."""

    def check_interrupt(self, blocked: bool) -> int:
        return super().check_interrupt(blocked or self.has_interrupt())


class NeverRepairs(Kvm):
    """Wrong: L2 goes on as if a page were back that still is missing (bug8's endless fault)."""

    def repair_page(self, page: int) -> None:
        """Nothing."""


class WantsUserspace(Kvm):
    """Wrong: every evaluation of events asks userspace to save and restore the vCPU."""

    def check_before_injection(self) -> bool:
        self.userspace_exit = True
        return super().check_before_injection()


class AsksForever(Kvm):
    """Wrong: userspace is asked for a vector although it has handed one over (bug19's window)."""

    def must_ask_userspace(self) -> bool:
        self.asks_userspace = True
        self.request_event = True
        return True


NEVER_RESTS: Final = "L0 does not come to rest"
WAITS: Final = Planted("S1", NEVER_RESTS, AlwaysBusy, (interrupt(0x40, AT_ENTRY), enter()))
FETCHES: Final = Planted("S1", NEVER_RESTS, NeverRepairs, (enter(), drop_page(CODE), run("nop")))
RESTARTS: Final = (
    FETCHES,
    FETCHES._replace(off="l0-ept"),
    Planted(
        "S1", NEVER_RESTS, NeverRepairs, (enter(), run("int", 0x80), drop_page(HANDLER), run("nop"))
    ),
)
"""Each instruction starts anew: L0 rests in L2 every time, and the loop is that of the machine."""
DELIVERS: Final = Planted(
    "S1", NEVER_RESTS, NeverRepairs, (enter(), drop_page(IDT_HIGH), run("int", 0x80))
)
USERSPACE: Final = (
    Planted("S1", NEVER_RESTS, WantsUserspace, (enter(), host_interrupt())),
    Planted(
        "S1",
        NEVER_RESTS,
        AsksForever,
        (interrupt(0x40, AT_ENTRY), enter()),
        on="acknowledge-interrupt-on-exit",
        off="in-kernel-apic",
    ),
)
PLANTED: Final = (WAITS, *RESTARTS, DELIVERS, *USERSPACE)


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_s1_fires_on_the_wrong_core(planted: Planted) -> None:
    pair = run_wrong(planted)
    assert told_by(ORACLE, pair) == [("S1", NEVER_RESTS)]
    assert VM_DEAD in pair.seen.kinds


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_s1_is_silent_on_the_fixed_core(planted: Planted) -> None:
    assert run_fixed(planted).violations == ()


def test_s1_the_finding_belongs_to_the_step_that_did_not_end() -> None:
    for planted, step in ((WAITS, 1), (FETCHES, 2), (DELIVERS, 2)):
        found = [found.step for found in run_wrong(planted).violations if found.oracle == ORACLE]
        assert found == [step]


def test_s1_the_run_ends_after_a_bounded_number_of_round_trips() -> None:
    assert len(run_wrong(WAITS).entries) == ROUND_TRIPS_MAX
    assert len(run_wrong(DELIVERS).entries) == 1 + ROUND_TRIPS_MAX


@pytest.mark.parametrize("planted", RESTARTS, ids=name_of)
def test_s1_an_instruction_starts_a_bounded_number_of_times(planted: Planted) -> None:
    """Each start ends in the fault on the missing page, and in one entry for the next start."""
    pair = run_wrong(planted)
    assert pair.log(STUCK) == [(STARTS_MAX + 1,)]
    assert len(pair.entries) == 1 + STARTS_MAX


@pytest.mark.parametrize("planted", USERSPACE, ids=name_of)
def test_s1_userspace_is_left_for_a_bounded_number_of_times(planted: Planted) -> None:
    assert run_wrong(planted).log(STUCK) == [(ROUND_TRIPS_MAX + 1,)]


@pytest.mark.parametrize("planted", PLANTED, ids=name_of)
def test_s1_a_machine_that_was_stopped_stays_so(planted: Planted) -> None:
    """Neither an arrival nor a restored vCPU brings it back."""
    moves = (*planted.moves, interrupt(0x51), save_restore(), run("nop"), enter())
    pair = run_wrong(planted._replace(moves=moves))
    assert pair.seen.kinds.count(VM_DEAD) == 1
    assert pair.seen.end.mode == MODE_DEAD
