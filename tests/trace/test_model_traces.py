"""Our own L0, printed as KVM would print it: `fixed` gives no finding, bugs give theirs.

`fixed` keeps every rule, so whatever is found in its traces is a false alarm: over the whole corpus, and
over random scenarios in which everything meets everything.
"""

from pathlib import Path

import pytest

from nvmx_core.bugs.versions import l0_class
from nvmx_core.machines.nested import Nested
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.generate import random_scenario
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.trace.check import Check
from tests.trace.model_trace import trace_of
from tests.trace.writer import FORMS, Form

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("nested_events", "lessons", "entry_checks", "bugs")
RANDOM_SCENARIOS = 3_000

SEEN_IN_THEIR_SMALLEST_SCENARIO = {
    "bug1": "X3",
    "bug2": "X3",
    "bug5": "X1",
    "bug11": "X13",
    "res3": "X13",
}


def found(scenario: Scenario, l0: str, form: Form) -> list[str]:
    """The rules that the trace of a run breaks."""
    nested = Nested(config_for(scenario.config), l0_class(l0))
    nested.run(scenario)
    check = Check()
    check.feed(trace_of(nested).render(form))
    check.finish()
    assert not check.unread
    return [finding.rule for finding in check.findings]


@pytest.mark.parametrize("folder", FOLDERS)
def test_fixed_gives_no_finding_on_any_scenario_of_the_corpus(folder: str) -> None:
    paths = sorted((ROOT / "corpus" / folder).glob("*.scn"))
    assert paths
    for path in paths:
        scenario = load(str(path)).scenario
        for name in ("4.8", "4.8-plugin", "5.10", "6.1", "6.13"):
            assert found(scenario, "fixed", FORMS[name]) == [], (path.name, name)


def test_fixed_gives_no_finding_on_random_scenarios() -> None:
    forms = list(FORMS.values())
    for seed in range(RANDOM_SCENARIOS):
        form = forms[seed % len(forms)]
        assert found(random_scenario(seed, 6), "fixed", form) == [], (seed, form.name)


@pytest.mark.parametrize("seed", [162, 228, 1962, 1968])
def test_an_l0_that_comes_back_in_vain_loses_nothing(seed: int) -> None:
    """bug23 enters L2 without the fault that replaced an event, comes back at once, and injects it then."""
    for name in ("5.10", "6.1", "6.13"):
        assert found(random_scenario(seed, 6), "bug23", FORMS[name]) == []


@pytest.mark.parametrize("bug", SEEN_IN_THEIR_SMALLEST_SCENARIO)
def test_a_bug_shows_in_the_trace_of_its_smallest_scenario(bug: str) -> None:
    scenario = load(str(ROOT / "corpus" / "bugs" / f"{bug}.scn")).scenario
    assert set(found(scenario, bug, FORMS["6.13"])) == {SEEN_IN_THEIR_SMALLEST_SCENARIO[bug]}
