"""What is said when the machine `bochs` cannot be used, and what names a difference."""

import importlib.metadata
from pathlib import Path

import pytest

from nvmx_core.journal import L1_ENTRY, RETIRE, VMFAIL
from nvmx_fuzz.bochs import helper
from nvmx_fuzz.compare import Entry, first_difference


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_name: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    with pytest.raises(helper.BochsUnavailableError, match=r"try: pip install -e \.\[bochs\]"):
        helper.library_version()


def test_an_unknown_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "9.9")
    with pytest.raises(helper.BochsUnavailableError, match=r"9\.9 is not known here"):
        helper.library_version()


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(helper.BochsUnavailableError, match="needs a C compiler"):
        helper._compile(tmp_path / "helper.so")


def test_equal_journals_have_no_difference() -> None:
    assert first_difference([(RETIRE, 1)], [(RETIRE, 1)], []) is None


def test_the_first_difference_names_its_fields_and_the_rule_of_the_entry() -> None:
    entry = (L1_ENTRY, 0x80000202, 0, 0)
    found = first_difference([entry, (VMFAIL, 7)], [entry, (VMFAIL, 8)], [Entry("C1")])
    assert found is not None
    assert found.fields() == ("VM-instruction error",)
    assert (found.entry_rule, found.injected, found.before) == ("C1", 0x80000202, entry)
    assert found.key() == "VMfail: VM-instruction error [C1]"


def test_a_record_that_is_missing_is_a_difference() -> None:
    found = first_difference([(RETIRE, 1)], [], [])
    assert found is not None
    assert found.key() == "L2 instruction retired / nothing"
