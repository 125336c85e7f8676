"""The table of the oracles says what they cite, no more and no less; every invariant of L0 has one."""

from nvmx_core.arch.rules import RULES
from nvmx_core.oracle.judge import INVARIANTS, ORACLES
from tests.oracle import (
    test_conservation,
    test_event_rank,
    test_exit_info,
    test_immediate_exit,
    test_injections,
    test_liveness,
    test_self_check,
    test_transparency,
)
from tests.oracle.planted import Planted, run_wrong

PLANTED: tuple[Planted, ...] = (
    *test_conservation.PLANTED,
    *test_event_rank.PLANTED,
    *test_exit_info.PLANTED,
    *test_exit_info.STALE.values(),
    *test_immediate_exit.ALL,
    *test_injections.PLANTED,
    *test_liveness.PLANTED,
    *test_self_check.PLANTED,
    *test_transparency.PLANTED,
)


def test_each_oracle_cites_exactly_the_rules_of_its_row() -> None:
    """Over all wrong cores: nothing else is cited, and each rule of a row is cited by one of them."""
    cited: dict[str, set[str]] = {}
    for planted in PLANTED:
        for oracle, rule, _situation in run_wrong(planted).rules:
            cited.setdefault(oracle, set()).add(rule)
    assert cited == {oracle.id: set(oracle.rules) for oracle in ORACLES}


def test_findings_are_told_in_the_order_of_the_table() -> None:
    order = [oracle.id for oracle in ORACLES]
    for planted in PLANTED:
        told = [order.index(oracle) for oracle, _rule, _situation in run_wrong(planted).rules]
        assert told == sorted(told)


def test_rules_of_the_oracles_exist() -> None:
    for oracle in ORACLES:
        assert set(oracle.rules) <= RULES.keys()
        assert len(set(oracle.rules)) == len(oracle.rules)
        assert oracle.source
        assert oracle.property.endswith(".")


def test_v1_to_v11_each_have_a_rule_that_an_oracle_cites() -> None:
    """The rows are the invariants of the rule table, in its order."""
    assert list(INVARIANTS) == [rule_id for rule_id in RULES if rule_id[0] == "V"]
    cited = {rule for oracle in ORACLES for rule in oracle.rules}
    for invariant, rules in INVARIANTS.items():
        assert rules, f"nothing tells that {invariant} is broken"
        assert set(rules) <= cited


def test_v1_to_v11_are_cited_by_their_own_id_or_not_at_all() -> None:
    """An invariant whose row does not name it is never cited: what covers it says the same."""
    cited = {rule for oracle in ORACLES for rule in oracle.rules}
    for invariant, rules in INVARIANTS.items():
        assert (invariant in cited) == (invariant in rules)
