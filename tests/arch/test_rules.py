"""The table of rules: complete, well formed, and easy to look up."""

import re

import pytest

from nvmx_core.arch.rules import RULES, Rule, rule

FIRST_AND_LAST = {
    "E": (0, 8),
    "C": (1, 6),
    "G": (1, 12),
    "O": (1, 12),
    "P": (1, 16),
    "B": (1, 9),
    "N": (1, 3),
    "A": (1, 3),
    "M": (1, 5),
    "I": (1, 2),
    "D": (1, 6),
    "Y": (1, 6),
    "X": (1, 14),
    "F": (1, 5),
    "K": (1, 4),
    "S": (1, 9),
    "V": (1, 11),
}
EXPECTED_IDS = [
    f"{letter}{number}"
    for letter, (first, last) in FIRST_AND_LAST.items()
    for number in range(first, last + 1)
]


def test_ids_are_exactly_the_expected_ones() -> None:
    assert sorted(RULES) == sorted(EXPECTED_IDS)


def test_topics_stand_in_reading_order() -> None:
    letters = list(dict.fromkeys(rule_id[0] for rule_id in RULES))
    assert letters[:4] == ["E", "C", "G", "O"]
    assert letters[-2:] == ["S", "V"]


@pytest.mark.parametrize("rule_id", EXPECTED_IDS)
def test_rule_is_well_formed(rule_id: str) -> None:
    entry = RULES[rule_id]
    assert entry.id == rule_id
    assert 0 < len(entry.title) <= 60
    assert not entry.title.endswith(".")
    assert entry.text.endswith(".")
    assert entry.text == " ".join(entry.text.split())
    assert 1 <= len(re.findall(r"\.(?: |$)", entry.text)) <= 3
    assert entry.source.strip() == entry.source != ""


def test_titles_are_unique() -> None:
    titles = [entry.title for entry in RULES.values()]
    assert len(titles) == len(set(titles))


def test_rules_cited_as_sources_exist() -> None:
    for entry in RULES.values():
        for cited in re.findall(r"\b[A-Z]\d{1,2}\b", entry.source):
            assert cited in RULES, f"{entry.id} cites {cited}"


def test_invariants_of_l0_name_their_origin() -> None:
    for number in range(1, 12):
        assert RULES[f"V{number}"].source.startswith("KVM nested events")


def test_a_rule_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RULES["X3"].text = "Anything goes."  # type: ignore[misc]  # the test is that it fails


def test_rule_returns_the_entry() -> None:
    entry = rule("X3")
    assert isinstance(entry, Rule)
    assert entry is RULES["X3"]
    assert "IDT-vectoring" in entry.title


def test_unknown_rule_lists_its_neighbours() -> None:
    with pytest.raises(KeyError, match=r"no rule 'X99'; known are X1, X2"):
        rule("X99")


@pytest.mark.parametrize("rule_id", ["", "Z1"])
def test_unknown_topic_explains_the_form(rule_id: str) -> None:
    with pytest.raises(KeyError, match="a letter and a number"):
        rule(rule_id)
