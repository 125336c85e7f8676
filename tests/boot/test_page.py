"""docs/KVM.md has the table of what is known, and the scenarios that the documents name exist."""

import re

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz.boot.divergences import LISTED
from nvmx_fuzz.boot.page import FOLLOWING, PAGE, section
from nvmx_fuzz.core_choice import ROOT


def test_the_page_has_the_table_of_today() -> None:
    assert section() + FOLLOWING in PAGE.read_text()


@pytest.mark.parametrize("row", LISTED, ids=lambda row: row.name)
def test_the_table_has_every_row(row: object) -> None:
    assert f"**{getattr(row, 'name', '')}**" in section()


def test_each_finding_is_told_and_in_the_table_of_kernels() -> None:
    text = (ROOT / "docs" / "KVM-FINDINGS.md").read_text()
    numbers = [row.finding for row in LISTED if row.finding]
    assert len(set(numbers)) == len(numbers)
    for number in numbers:
        assert f"\n## {number} " in text
        assert f"\n| {number} | " in text


@pytest.mark.parametrize("page", ["KVM.md", "KVM-FINDINGS.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for name in re.findall(r"`((?:corpus|fuzz|scripts)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    seeds = {path.name for path in (ROOT / "corpus").rglob("*.scn")}
    for name in re.findall(r"`([\w-]+\.scn)`", text):
        assert name in seeds, name
