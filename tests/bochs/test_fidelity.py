"""docs/FIDELITY.md follows the tables of differences and mends."""

from pathlib import Path

from nvmx_core.arch.rules import RULES
from nvmx_fuzz.bochs.divergences import DIVERGENCES, MENDS
from nvmx_fuzz.bochs.fidelity import MEASURED, NOT_SHOWN, tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "FIDELITY.md"


def test_the_page_has_the_tables_of_today() -> None:
    lines = PAGE.read_text().splitlines()
    missing = [line for line in tables() if line not in lines]
    assert not missing, "run python -m nvmx_fuzz.bochs.fidelity"


def test_the_page_ends_with_what_was_measured() -> None:
    assert PAGE.read_text().count(MEASURED) == 1


def test_every_rule_named_there_exists() -> None:
    of_differences = {rule for entry in DIVERGENCES for rule in entry.rules}
    of_mends = {rule for entry in MENDS for rule in entry.rules}
    assert of_differences | of_mends | NOT_SHOWN.keys() <= RULES.keys()
