"""Arrivals: into the queues, and a reason to look at them (S2, N2, P12)."""

import pytest

from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INIT_SIGNAL,
    PREEMPTION_TIMER,
)
from nvmx_core.arch.fields import GUEST_PREEMPTION_TIMER
from nvmx_core.errors import ModelError
from nvmx_core.journal import SMM_ENTRY
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.log import ARRIVAL, KICK
from nvmx_core.machines.nested import Nested
from nvmx_core.scenario.steps import RUN, Step
from tests.nested_support import both, transparent
from tests.support import (
    config,
    enter,
    init,
    interrupt,
    nmi,
    open_interrupts,
    run,
    sipi,
    smi,
    timer,
    vmwrite,
)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (interrupt(0x51), EXTERNAL_INTERRUPT_EXIT),
        (nmi(), EXCEPTION_NMI),
        (init(), INIT_SIGNAL),
        (timer(1000), PREEMPTION_TIMER),
    ],
)
def test_p12_an_arrival_ends_l2_at_its_next_boundary(step: Step, reason: int) -> None:
    """bug17, bug18: the host is kicked and the events are looked at."""
    pair = transparent(enter(), run("nop"), step, on="preemption-timer")
    assert len(pair.log(KICK)) == 1
    assert pair.seen.exit.reason == reason


def test_p4_an_smi_ends_l2_at_its_next_boundary() -> None:
    assert SMM_ENTRY in transparent(enter(), smi()).seen.kinds


@pytest.mark.parametrize("step", [interrupt(0x51), nmi(), init(), smi()])
def test_s2_an_arrival_in_l1_kicks_nobody(step: Step) -> None:
    pair = transparent(step)
    assert pair.log(KICK) == []
    assert len(pair.log(ARRIVAL)) == 1


def test_s3_a_sipi_outside_wait_for_sipi_is_dropped() -> None:
    pair = transparent(sipi(0x10), enter(), sipi(0x11), run("nop"))
    assert pair.seen.reasons == []


def test_n2_two_nmis_before_the_first_is_taken_are_one() -> None:
    pair = transparent(init(), enter(), nmi(), nmi(), enter(), run("nop"))
    assert pair.seen.end.nmi_latched == pair.metal.end.nmi_latched


def test_k1_the_same_vector_twice_is_one_interrupt() -> None:
    pair = transparent(interrupt(0x51), interrupt(0x51), open_interrupts())
    assert pair.nested.vcpu.apic.accepted == [0x51]
    assert pair.seen.end.irr == 0


def test_o7_the_timer_stands_still_in_l1() -> None:
    moves = (vmwrite(GUEST_PREEMPTION_TIMER, 5), enter(), run("cpuid"), timer(5), enter())
    pair = transparent(*moves, run("nop"), on="preemption-timer")
    assert PREEMPTION_TIMER not in pair.seen.reasons


def test_an_operation_that_is_no_arrival_is_our_own_bug() -> None:
    with pytest.raises(ModelError):
        Nested(config()).vcpu.arrive(RUN, 0)


class OtherKvm(Kvm):
    """Another version of L0."""


def test_a_restored_vcpu_is_of_the_same_kind() -> None:
    """A bug survives save and restore."""
    vcpu = both(enter(), l0=OtherKvm).nested.vcpu
    assert type(vcpu.save_and_restore()) is OtherKvm
