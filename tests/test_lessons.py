"""Scenarios on which the model was once wrong: each found by a campaign, minimised, and kept.

On ``fixed`` all of them show the same on both machines and break no rule. docs/LESSONS.md is made from them;
after a new lesson write it anew and commit it with the scenario:

    python tests/test_lessons.py
"""

from pathlib import Path
from typing import Final

import pytest

from nvmx_core.arch.rules import rule
from nvmx_core.oracle.judge import violations_of
from nvmx_core.scenario.text import parse_scenario

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "LESSONS.md"
SCENARIOS: Final = sorted((ROOT / "corpus" / "lessons").glob("*.scn"))
COMMAND: Final = "python tests/test_lessons.py"

TEMPLATE: Final = """\
# Lessons

`fixed` has no known bug, so each finding on it is a bug of ours: of L0 `fixed`, of the processor or of an
oracle. Each was found by a campaign, or by comparing with Bochs (docs/FIDELITY.md), and minimised; its
scenario is kept in `corpus/lessons/`, replayed by `tests/test_lessons.py`, and says first what the rule
taught. Nothing breaks a rule on them any more.

This page is made from the scenarios by

    {command}

One lesson has no scenario, since it can no longer be written down: a VMWRITE gives a field no more bits than
the field has (SDM: VMWRITE). The model kept 38 bits of an injection in ENTRY_INTR_INFO, which has 32, and two
oracles missed the upper ones behind L0's re-injection (X4, V2).

{lessons}"""


def parts(path: Path) -> tuple[str, str]:
    """What a lesson says in its first comment, and the scenario without it."""
    first, _, text = path.read_text().partition("\n")
    return first.removeprefix("# "), text


def page_text() -> str:
    """The whole page."""
    lessons = []
    for path in SCENARIOS:
        title, text = parts(path)
        lessons.append(f"## {title}\n\n`{path.relative_to(ROOT)}`\n\n```\n{text}```\n")
    return TEMPLATE.format(command=COMMAND, lessons="\n".join(lessons))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_lesson(path: Path) -> None:
    assert violations_of(parse_scenario(path.read_text()).scenario) == ()


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_lesson_names_its_rules(path: Path) -> None:
    title, _ = parts(path)
    ids, colon, _ = title.partition(":")
    assert colon
    for word in ids.replace(",", " ").split():
        if word not in ("with", "before"):
            rule(word)


def test_the_page_is_up_to_date() -> None:
    assert page_text() == PAGE.read_text(), f"run {COMMAND}"


if __name__ == "__main__":
    PAGE.write_text(page_text())
