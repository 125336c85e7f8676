"""docs/FIDELITY.md follows the tables of differences and mends."""

import re
from pathlib import Path

from nvmx_core.arch.rules import RULES
from nvmx_fuzz.bochs.divergences import DIVERGENCES, MENDS
from nvmx_fuzz.bochs.fidelity import COVERAGE, MEASURED, NOT_SHOWN, TOPICS, tables

ROW = re.compile(r"^\| ([A-Z][0-9]+) .*? \| ([0-9]+) \| ([0-9]+) \| [0-9]+ \|", re.MULTILINE)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "FIDELITY.md"


def test_the_page_has_the_tables_of_today() -> None:
    made, heading, _ = PAGE.read_text().partition(COVERAGE)
    assert heading
    assert made.splitlines() == list(tables()), "run python -m nvmx_fuzz.bochs.fidelity"


def test_every_rule_that_can_be_shown_has_run_on_both() -> None:
    """As the page says; `test_compare.py` runs the corpus that it counts."""
    coverage = PAGE.read_text().partition(COVERAGE)[2].partition(MEASURED)[0]
    rows = {row[0]: (int(row[1]), int(row[2])) for row in ROW.findall(coverage)}
    assert rows.keys() == {rule for rule in RULES if rule[0] in TOPICS}
    assert {rule for rule, (same, known) in rows.items() if same + known == 0} == NOT_SHOWN.keys()


def test_the_page_ends_with_what_was_measured() -> None:
    assert PAGE.read_text().count(MEASURED) == 1


def test_every_rule_named_there_exists() -> None:
    of_differences = {rule for entry in DIVERGENCES for rule in entry.rules}
    of_mends = {rule for entry in MENDS for rule in entry.rules}
    assert of_differences | of_mends | NOT_SHOWN.keys() <= RULES.keys()
