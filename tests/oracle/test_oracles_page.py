"""docs/ORACLES.md, made from the tables of ``oracle/judge.py`` and compared with the file.

After a change of the tables write the file anew, read its diff, and commit it with the change:

    python tests/oracle/test_oracles_page.py
"""

from pathlib import Path
from typing import Final

from nvmx_core.arch.rules import rule
from nvmx_core.oracle.judge import INVARIANTS, ORACLES

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "ORACLES.md"
COMMAND: Final = "python tests/oracle/test_oracles_page.py"


def cited(ids: tuple[str, ...]) -> str:
    """Rules with their titles, as the text of one cell."""
    return "; ".join(f"{rule_id} {rule(rule_id).title}" for rule_id in ids)


TEMPLATE: Final = """\
# The oracles

What is asked of every run, in the order in which findings are told. A finding cites the oracle and one of its
rules (`nvmx_core/arch/rules.py`); a planted wrong L0 in `tests/oracle/` shows each of them at work.

This page is made from `nvmx_core/oracle/judge.py` by

    {command}

| oracle | what it says | rules that it cites | source |
|---|---|---|---|
{oracles}

## The invariants of L0

Which rule a finding cites when an invariant is broken. Where an invariant says for L0 what a rule says of the
processor, the processor's rule is cited.

| invariant | cited as |
|---|---|
{invariants}
"""


def page_text() -> str:
    """The whole page."""
    oracles = [
        f"| {oracle.id} | {oracle.property} | {cited(oracle.rules)} | {oracle.source} |"
        for oracle in ORACLES
    ]
    invariants = [
        f"| {cited((invariant,))} | {', '.join(rules)} |" for invariant, rules in INVARIANTS.items()
    ]
    return TEMPLATE.format(
        command=COMMAND, oracles="\n".join(oracles), invariants="\n".join(invariants)
    )


def test_the_page_is_the_one_in_the_file() -> None:
    assert page_text() == PAGE.read_text(encoding="utf-8")


def test_the_page_says_how_it_is_made() -> None:
    assert f"    {COMMAND}\n" in page_text()


if __name__ == "__main__":
    PAGE.write_text(page_text(), encoding="utf-8")
