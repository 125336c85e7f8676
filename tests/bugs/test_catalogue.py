"""The catalogue of known bugs: its table, its smallest scenarios, versions and combinations."""

from itertools import combinations
from pathlib import Path

import pytest

from nvmx_core.arch.rules import RULES
from nvmx_core.bugs.catalogue import BUG_BY_NAME, CATALOGUE, UNEXPRESSED, Bug, shown_version
from nvmx_core.bugs.planted import PLANTED
from nvmx_core.bugs.versions import (
    FIXED,
    HIDDEN_BY,
    VERSIONS,
    CombinationError,
    UnknownL0Error,
    bugs_in,
    bugs_of,
    combine,
    hidden_in,
    l0_class,
)
from nvmx_core.journal import Record
from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.judge import INVARIANTS, run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import ScenarioFile, parse_scenario

FOLDER = Path(__file__).resolve().parents[2] / "corpus" / "bugs"
FILES = sorted(FOLDER.glob("*.scn"))


def scenario_of(path: Path) -> ScenarioFile:
    return parse_scenario(path.read_text())


def rules_broken(path: Path, l0: type[Kvm]) -> set[str]:
    scenario = scenario_of(path).scenario
    verdict = run_and_judge(scenario, config_for(scenario.config), l0)
    return {violation.rule for violation in verdict.violations}


@pytest.mark.parametrize("bug", CATALOGUE, ids=lambda bug: bug.name)
def test_entry_is_complete(bug: Bug) -> None:
    assert bug.rule in RULES or bug.rule in INVARIANTS
    assert bug.l0.__doc__ is not None
    assert issubclass(bug.l0, Kvm)
    assert bug.subject


@pytest.mark.parametrize("bug", CATALOGUE, ids=lambda bug: bug.name)
def test_docstring_ends_with_what_the_catalogue_knows(bug: Bug) -> None:
    words = " ".join((bug.l0.__doc__ or "").split())
    history = words[words.index(f'"{bug.subject}"; from ') :]
    assert bug.commit[:12] in words
    assert (shown_version(bug.introduced) or "3.1") in history
    assert (shown_version(bug.fixed_in) or "not fixed in 6.12") in history
    assert history.endswith(f"breaks {bug.rule}.")


def test_names_are_used_once() -> None:
    names = [bug.name for bug in CATALOGUE] + [entry.name for entry in UNEXPRESSED] + [*PLANTED]
    assert len(names) == len(set(names))
    assert len({bug.l0 for bug in CATALOGUE}) == len(CATALOGUE)


def test_every_bug_has_a_smallest_scenario() -> None:
    assert {path.stem for path in FILES} == set(BUG_BY_NAME)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_smallest_scenario_breaks_the_rule_of_the_catalogue(path: Path) -> None:
    bug = BUG_BY_NAME[path.stem]
    assert bug.rule in rules_broken(path, bug.l0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_smallest_scenario_breaks_nothing_on_fixed(path: Path) -> None:
    assert rules_broken(path, Kvm) == set()


Shown = tuple[list[Record], list[Record], list[str]]


def shown(scenario: Scenario, l0: type[Kvm]) -> Shown:
    """All that a run on an L0 shows: the journal, what L0 logs, what the oracles say."""
    verdict = run_and_judge(scenario, config_for(scenario.config), l0)
    keys = [violation.key() for violation in verdict.violations]
    return verdict.nested.journal, verdict.nested.vcpu.log, keys


@pytest.fixture(scope="module")
def corpus() -> list[Scenario]:
    """Every scenario of the corpus, those of the bugs first."""
    paths = [*FILES, *sorted(set(FOLDER.parent.rglob("*.scn")) - set(FILES))]
    return [scenario_of(path).scenario for path in paths]


def adds_nothing(
    bug: str, all_of_them: type[Kvm], others: type[Kvm], corpus: list[Scenario]
) -> bool:
    """Whether an L0 shows the same with a bug and without it."""
    own = scenario_of(FOLDER / f"{bug}.scn").scenario
    return all(shown(one, all_of_them) == shown(one, others) for one in (own, *corpus))


@pytest.mark.parametrize("version", VERSIONS)
def test_version_shows_every_bug_that_was_in_it_but_those_that_another_hides(
    version: str, corpus: list[Scenario]
) -> None:
    bugs = bugs_of(f"kvm-{version}")
    names = tuple(bug.name for bug in bugs)
    silent = {
        bug
        for bug in names
        if adds_nothing(
            bug, combine(names), combine(tuple(name for name in names if name != bug)), corpus
        )
    }
    assert silent <= {hidden for hidden, _hider in hidden_in(bugs)}


COMPOSE: dict[tuple[str, str], str] = {
    (
        "bug25",
        "bug17",
    ): "outside interrupt 0x0\nL1 enter\nL1 control nmi-window-exiting on\nL1 inject nmi\n"
    "L1 enter\nL0 drop-page stack\nL2 iret\n",
    (
        "res6",
        "bug28",
    ): "config l0-ept=off exceptions=#BP\nL1 inject nmi\nL2 page handler absent\nL1 enter\n"
    "L2 nop\n",
    ("bug42", "bug41b"): "outside init in-delivery\nL1 inject external-interrupt 0x0\n"
    "L2 page idt-low absent\nL1 enter\nL1 enter\n",
    ("bug45", "bug37"): "config single-step=on\nL1 control monitor-trap-flag on\n"
    "outside sipi 0x0 in-emulation\nL1 enter\nL2 hlt\n",
    ("bug46", "bug3"): "config acknowledge-interrupt-on-exit=on tpr-shadow=on\n"
    "config virtual-interrupt-delivery=on posted-interrupts=on\noutside post-interrupt 0x0\nL1 enter\n"
    "L0 cancel-entry\nL0 host-interrupt\n",
}
"""Where the first of two bugs adds something to the second, and no scenario of the corpus shows it."""


def test_of_two_bugs_each_adds_something_or_the_pair_is_refused(corpus: list[Scenario]) -> None:
    hidden = set()
    for two in combinations(BUG_BY_NAME, 2):
        try:
            both = combine(two)
        except CombinationError:
            continue
        for bug, other in (two, two[::-1]):
            broken = rules_broken(FOLDER / f"{bug}.scn", both)
            if not broken or adds_nothing(bug, both, BUG_BY_NAME[other].l0, corpus):
                hidden.add((bug, other))
    for (bug, other), text in COMPOSE.items():
        scenario = parse_scenario(f"version 1\n{text}").scenario
        both = l0_class(f"{bug},{other}")
        assert shown(scenario, both) != shown(scenario, BUG_BY_NAME[other].l0)
    stated = {(bug, other) for bug, others in HIDDEN_BY.items() for other in others}
    assert hidden == stated | COMPOSE.keys()


@pytest.mark.parametrize("name", ["bug4,bug23", "bug23,bug3", "kvm-4.12,bug23", "kvm-6.10,bug3"])
def test_a_list_with_a_hidden_bug_is_refused(name: str) -> None:
    with pytest.raises(CombinationError, match=r"bug\d+ takes away what bug(23|48) needs"):
        l0_class(name)


def test_a_version_with_one_of_its_own_bugs_named_is_the_version() -> None:
    assert l0_class("kvm-4.12,bug30") is l0_class("kvm-4.12")


def test_versions_follow_from_the_first_and_the_last() -> None:
    assert "bug1" in {bug.name for bug in bugs_in((3, 1))}
    assert "bug1" not in {bug.name for bug in bugs_in((3, 3))}
    assert "bug2" in {bug.name for bug in bugs_in((4, 10))}
    assert "bug2" not in {bug.name for bug in bugs_in((4, 9))}
    assert {bug.name for bug in bugs_in((6, 12))} <= {b.name for b in CATALOGUE if not b.fixed_in}


def test_a_fix_that_is_not_known_leaves_the_version_that_was_read() -> None:
    assert BUG_BY_NAME["bug28"].fixed_in == ">3.1"
    assert "bug28" in {bug.name for bug in bugs_in((3, 1))}
    assert "bug28" not in {bug.name for bug in bugs_in((3, 4))}


def test_a_bug_that_no_version_is_known_of_is_in_none() -> None:
    unknown = {bug.name for bug in CATALOGUE if bug.fixed_in == "?"}
    assert unknown == {"bug36"}
    for version in VERSIONS:
        assert not unknown & {bug.name for bug in bugs_of(f"kvm-{version}")}


@pytest.mark.parametrize(
    ("version", "shown"),
    [("", ""), ("5.8", "5.8"), ("~4.14", "about 4.14"), (">3.1", "after 3.1"), ("?", "not known")],
)
def test_a_version_is_shown_as_sure_as_it_is(version: str, shown: str) -> None:
    assert shown_version(version) == shown


def test_fixed_is_part_of_a_list_and_adds_nothing() -> None:
    assert l0_class(FIXED) is Kvm
    assert bugs_of("fixed,bug1") == [BUG_BY_NAME["bug1"]]
    assert l0_class("bug1,bug1") is BUG_BY_NAME["bug1"].l0


def test_bugs_go_together_through_super() -> None:
    both = l0_class("bug16,bug42")
    for name in ("bug16", "bug42"):
        assert rules_broken(FOLDER / f"{name}.scn", both), name


def test_two_bugs_that_replace_the_same_decision_are_refused() -> None:
    with pytest.raises(CombinationError, match="bug3 and bug30 both replace request_immediate"):
        l0_class("bug3,bug30")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bug999", ""),
        ("bug1,bug999", ""),
        ("kvm-6", ""),
        ("", "a name is empty"),
        ("kvm-2.0", "has no nested VMX"),
        ("kvm-3.0", "has no nested VMX"),
        ("kvm-3.20", "the last of that series is kvm-3.19"),
        ("kvm-4.21", "the last of that series is kvm-4.20"),
        ("kvm-5.20", "the last of that series is kvm-5.19"),
        ("kvm-6.13", "newer than the catalogue, which ends with kvm-6.12"),
        ("kvm-99.1", "newer than the catalogue"),
        ("bug6", "known, but not expressed: no step makes L0"),
        ("bug1,res9", "known, but not expressed: "),
        ("deep1,bug1", "planted, no bug of KVM, and is chosen alone"),
    ],
)
def test_unknown_name_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UnknownL0Error) as refused:
        l0_class(name)
    assert reason in refused.value.reason
    assert bool(reason) == bool(refused.value.reason)


@pytest.mark.parametrize("name", ["kvm-3.1", "kvm-3.19", "kvm-4.20", "kvm-5.19", "kvm-6.0"])
def test_versions_between_those_that_are_named_work_too(name: str) -> None:
    assert bugs_of(name)
