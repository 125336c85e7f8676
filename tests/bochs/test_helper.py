"""What is said when the machine `bochs` cannot be used, and what names a difference."""

import importlib.metadata
import os
import shutil
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from nvmx_core.journal import L1_ENTRY, RETIRE, VMFAIL
from nvmx_fuzz.bochs import helper, helper_source
from nvmx_fuzz.compare import Entry, first_difference


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_name: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    with pytest.raises(helper.BochsUnavailableError, match=r"try: pip install -e '\.\[bochs\]'"):
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


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A copy of the source in a folder of its own, and what is compiled of it instead of a library."""
    folder = tmp_path / "site" / "package" / "bochs"
    folder.mkdir(parents=True)
    parts = tuple(Path(shutil.copy(part, folder)) for part in helper_source.PARTS)
    made: list[Path] = []
    monkeypatch.setattr(helper_source, "SOURCE", parts[0])
    monkeypatch.setattr(helper_source, "PARTS", parts)
    monkeypatch.setattr(helper, "_compile", made.append)
    return made


def build_of(digest: str) -> Path:
    """What a build would have put beside the source."""
    path = helper_source.SOURCE.with_name(f"_helper{EXTENSION_SUFFIXES[0]}")
    path.write_bytes(b"ELF" + digest.encode() + b"end")
    return path


def test_the_helper_of_the_build_is_used_whatever_the_times_of_files(compiled: list[Path]) -> None:
    built = build_of(helper_source.source_digest())
    for part in helper_source.PARTS:
        os.utime(part, (1 << 32, 1 << 32))
    assert helper.helper_path() == built
    assert compiled == []


def test_a_helper_of_another_source_is_compiled_anew(compiled: list[Path]) -> None:
    build_of(helper_source.source_digest())
    with helper_source.PARTS[-1].open("a") as stream:
        stream.write("/* changed */")
    assert helper.helper_path() == compiled[0]


def test_the_build_writes_down_its_source() -> None:
    assert helper_source.source_digest().encode() in helper.helper_path().read_bytes()


def test_equal_journals_have_no_difference() -> None:
    assert first_difference([(RETIRE, 1)], [(RETIRE, 1)], []) is None


def test_the_first_difference_names_its_fields_and_the_rule_of_the_entry() -> None:
    entry = (L1_ENTRY, 0x80000202, 0, 0)
    found = first_difference([entry, (VMFAIL, 7)], [entry, (VMFAIL, 8)], [Entry("C1")])
    assert found is not None
    assert found.fields() == ("VM-instruction error",)
    assert (found.entry_rule, found.history) == ("C1", (entry,))
    assert found.key() == "VMfail: VM-instruction error [C1]"


def test_a_record_that_is_missing_is_a_difference() -> None:
    found = first_difference([(RETIRE, 1)], [], [])
    assert found is not None
    assert found.key() == "L2 instruction retired / nothing"
