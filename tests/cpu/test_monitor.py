"""What the exit of MWAIT says about the monitor that MONITOR armed (P14)."""

import pytest

from nvmx_core.arch.exits import MWAIT_EXIT
from nvmx_core.journal import EXIT
from nvmx_core.scenario.steps import Step
from tests.nested_support import drop_page, host_interrupt, transparent
from tests.support import Play, control, enter, interrupt, play, rsm, run, smi

MWAIT = control("mwait-exiting")


def mwait_behind(*moves: Step, off: str = "") -> Play:
    seen = play(MWAIT, enter(), *moves, run("mwait"), off=off)
    assert seen.exit.reason == MWAIT_EXIT
    return seen


def test_p14_without_monitor_it_is_not_armed() -> None:
    assert mwait_behind().exit.qualification == 0


def test_p14_monitor_arms_it_until_mwait() -> None:
    assert mwait_behind(run("monitor"), run("nop")).exit.qualification == 1


def test_p14_an_exit_ends_it() -> None:
    seen = play(MWAIT, enter(), run("monitor"), run("cpuid"), enter(), run("mwait"))
    assert (seen.exits[-1].reason, seen.exits[-1].qualification) == (MWAIT_EXIT, 0)


def test_p14_an_smi_ends_it() -> None:
    assert mwait_behind(run("monitor"), smi(), rsm()).exit.qualification == 0


def test_p14_a_delivery_does_not_end_it() -> None:
    seen = mwait_behind(run("monitor"), interrupt(0x40), off="external-interrupt-exiting")
    assert (seen.vectors, seen.exit.qualification) == ([0x40], 1)


@pytest.mark.parametrize("between", [host_interrupt(), drop_page(6), run("nop")])
def test_p14_exits_that_l1_does_not_see_do_not_end_it(between: Step) -> None:
    pair = transparent(MWAIT, enter(), run("monitor"), between, run("mwait"))
    (record,) = (record for record in pair.nested.journal if record[0] == EXIT)
    assert record[:3] == (EXIT, MWAIT_EXIT, 1)
