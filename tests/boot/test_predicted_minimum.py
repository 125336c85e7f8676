"""The smallest scenario that the catalogue predicts, found without a boot."""

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.bugs.versions import bugs_of
from nvmx_core.scenario.steps import ENTER, INJECT, Scenario
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.boot.predicted import journal_on_bare, journal_under, on_fresh_machine
from nvmx_fuzz.boot.predicted_minimum import predicted_minimum
from nvmx_fuzz.compare import first_difference
from nvmx_fuzz.outcomes import DIFFERENT, INCIDENT, Kind, Outcome, Shown
from nvmx_fuzz.realise.realiser import fit
from tests.boot.support import KVM_ON_BOCHS, scenario

LONG = """\
config exceptions=#UD hlt-exiting=on
L1 control pause-exiting on
L1 enter
L2 cpuid
L1 inject hardware-exception #OF
L1 enter
L2 nop
L2 cpuid
"""
RES2 = Kind("KVM: res2", "any")


VERSION = "kvm-6.1"


def shown_by(name: str, one: Scenario) -> Shown:
    """What a real KVM shows that is exactly our L0 with that bug."""
    fitted = fit(one, KVM_ON_BOCHS.flags())
    (l0,) = (bug.l0 for bug in bugs_of(VERSION) if bug.name == name)
    theirs = journal_under(on_fresh_machine(fitted), l0, has_rf=False)
    assert theirs is not None
    found = first_difference(
        journal_on_bare(fitted, has_rf=False),
        theirs,
        stand_alone_moved(one, KVM_ON_BOCHS).realised.entries,
    )
    assert found is not None
    return Shown(one, Outcome(DIFFERENT, "", found))


def test_the_steps_that_do_not_matter_are_gone() -> None:
    shown = shown_by("res2", scenario(LONG))
    guess = predicted_minimum(RES2, shown, KVM_ON_BOCHS, VERSION)
    assert guess is not None
    assert [step[0] for step in guess.steps] == [INJECT, ENTER]
    assert shown_by("res2", guess).outcome.difference is not None
    assert predicted_minimum(RES2, shown, KVM_ON_BOCHS, VERSION) == guess
    assert "config" not in format_scenario(guess)


def test_what_the_catalogue_does_not_predict_has_no_guess() -> None:
    shown = shown_by("res2", scenario(LONG))
    assert predicted_minimum(Kind("a row", "any"), shown, KVM_ON_BOCHS, VERSION) is None
    assert predicted_minimum(Kind("", "any"), shown, KVM_ON_BOCHS, VERSION) is None
    assert predicted_minimum(Kind("KVM: res4", "any"), shown, KVM_ON_BOCHS, VERSION) is None


def test_a_sleep_that_is_predicted_gets_smaller_too() -> None:
    shown = Shown(
        scenario(
            "L1 control pause-exiting on\nL1 vmwrite GUEST_ACTIVITY 0x1\n"
            "L1 vmwrite GUEST_INTERRUPTIBILITY 0x1\nL1 enter\n"
        ),
        Outcome(INCIDENT, "hangs"),
    )
    guess = predicted_minimum(Kind("KVM: res8", "hangs"), shown, KVM_ON_BOCHS, VERSION)
    assert guess == Scenario(
        guess.config if guess else shown.scenario.config, shown.scenario.steps[1:]
    )
