"""The machine `kvm`, and a disc below QEMU, on a host inside Bochs: what is on it, and that it runs."""

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz.boot import host, host_in_bochs
from nvmx_fuzz.boot.batch import BootError
from nvmx_fuzz.boot.emulator import Ended, emulator
from nvmx_fuzz.boot.host_in_bochs import QEMU, run_host
from nvmx_fuzz.boot.iso import MissingToolError
from nvmx_fuzz.boot.linux import folders_of
from nvmx_fuzz.boot.wire import whole_lines
from nvmx_fuzz.codec import encode
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.scenario_files import load

SCENARIO = str(ROOT / "corpus/nested_events/interrupt-window-before-pending-interrupt.scn")


@pytest.fixture
def nothing_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a program nor a disc is made."""
    for name in ("_python", "_program", "_qemu"):
        monkeypatch.setattr(host_in_bochs, name, dict)
    monkeypatch.setattr(host_in_bochs, "disc_with_program", lambda _files, _command: b"")


def says(monkeypatch: pytest.MonkeyPatch, ended: Ended) -> None:
    monkeypatch.setattr(host_in_bochs, "run_disc", lambda *_: ended)


@pytest.mark.usefixtures("nothing_on_it")
def test_what_both_have_printed_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "%= compare\r\na\r\nb\r\n%. compare 1\r\n%= qemu\r\n$ *1\r\n%. qemu 0\r\n%. all\r\n"
    says(monkeypatch, Ended(text, ""))
    compared, shown = run_host([SCENARIO])
    assert compared == ("a\nb\n", 1)
    assert shown == ("$ *1\n", 0)


@pytest.mark.usefixtures("nothing_on_it")
@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        ("", "does not start", "the host in Bochs does not start"),
        ("%= compare\n", "hangs", "the host in Bochs hangs"),
        ("%= compare\n%. compare 0\n%. all\n", "", "qemu said nothing"),
        (
            "%= compare\n%. compare 0\n%= qemu\nno KVM\n%. qemu 1\n%. all\n",
            "",
            "QEMU ends with status 1 .* no KVM",
        ),
    ],
)
def test_a_host_that_does_not_come_to_its_end_is_an_error(
    text: str, reason: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, Ended(text, reason))
    with pytest.raises(BootError, match=message):
        run_host([SCENARIO])


def test_each_scenario_is_read_once_and_goes_there_as_text(tmp_path: Path) -> None:
    content = encode(load(SCENARIO).scenario)
    found = tmp_path / "crash-1"
    found.write_bytes(content)
    folder = tmp_path / "texts"
    folder.mkdir()
    (name,) = host_in_bochs._scenarios([str(found)], folder)
    assert name.endswith(".scn")
    assert encode(load(name).scenario) == content


def test_libraries_are_found_in_folders_with_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, program = tmp_path / "my libs" / "libx.so", tmp_path / "program"
    library.parent.mkdir()
    library.write_bytes(b"x")
    program.write_bytes(b"p")
    said = f"{tmp_path}/my libs/y.so:\n\tlibx.so => {library} (0x00007f)\n\tlinux-vdso.so.1 (0x00007f)\n"
    done = subprocess.CompletedProcess([], 0, said, "")
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_more: done)
    found = host_in_bochs._with_libraries({}, program)
    assert found == {str(library).lstrip("/"): b"x", str(program).lstrip("/"): b"p"}
    done.stdout = "\tlibz.so => not found\n"
    with pytest.raises(MissingToolError, match=r"libz\.so is not found"):
        host_in_bochs._with_libraries({}, program)


def test_a_host_inside_bochs_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = tmp_path / "bios_vendor"
    monkeypatch.setattr(host, "BIOS_VENDOR", vendor)
    assert not host.is_in_bochs()
    for other in ("SeaBIOS\n", "Bochs\n"):  # the second is that of an old QEMU
        vendor.write_text(other)
        assert not host.is_in_bochs()
    vendor.write_text("The Bochs Project\n")
    assert host.is_in_bochs()


def test_each_folder_comes_behind_the_one_that_it_is_in() -> None:
    assert folders_of(["init", "usr/lib/a", "bin/b", "usr/c"]) == ["bin", "usr", "usr/lib"]


@pytest.mark.boot
def test_the_machine_kvm_and_qemu_show_the_same_finding() -> None:
    try:
        emulator()
    except MissingToolError as error:
        pytest.skip(str(error))
    if not QEMU.exists():
        pytest.skip(f"there is no {QEMU}")
    compared, shown = run_host([SCENARIO])
    assert compared.status == 0, compared.text
    assert "interrupt before what ranks higher" in compared.text
    lines = {line.kind: line for line in whole_lines(shown.text)}
    assert list(lines) == ["@", "#", "$"]
    first = lines["#"].records[0]
    assert (first.letter, first.values[0]) == ("x", 1)  # exit 1 where the window comes first
