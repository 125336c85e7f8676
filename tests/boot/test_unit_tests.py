"""kvm-unit-tests that run: the tree, the build, what the machine printed; without a tree or a boot."""

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz.boot import cli_unit_tests, unit_tests
from nvmx_fuzz.boot.batch import BootError
from nvmx_fuzz.boot.elf32 import Elf32Error, symbols
from nvmx_fuzz.boot.emulator import Ended
from nvmx_fuzz.boot.unit_tests import (
    FAILS,
    PASSES,
    SKIPPED,
    STOPS,
    Verdict,
    build,
    check_tree,
    export_into,
    run_below,
    verdict_of,
    with_apic_left_on,
)
from nvmx_fuzz.files import BadFile

ROOT = Path(__file__).resolve().parents[2]
SEED = ROOT / "corpus" / "nested_events" / "inject-external-interrupt.scn"
REFUSED = ROOT / "corpus" / "bugs" / "res6.scn"
HEAD = "enabling apic\r\nTest suite: nvmx_a\r\n"


def tree_in(folder: Path, makefile: str = "%.flat: %.c\n\tcp $< $@\n") -> Path:
    """What passes for a configured tree."""
    (folder / "x86").mkdir()
    (folder / "x86" / "vmx.c").write_text("")
    (folder / "config.mak").write_text("")
    (folder / "Makefile").write_text(makefile)
    return folder


# -- the tree -------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_tree_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="is no tree of kvm-unit-tests"):
        check_tree(tmp_path)


def test_a_tree_that_is_not_configured_is_named(tmp_path: Path) -> None:
    tree = tree_in(tmp_path)
    (tree / "config.mak").unlink()
    with pytest.raises(BadFile, match=r"is not configured; run \./configure in it"):
        check_tree(tree)


def test_scenarios_are_exported_and_built(tmp_path: Path) -> None:
    tree = tree_in(tmp_path)
    names, refused = export_into(tree, [str(SEED), str(REFUSED)])
    assert names == ["nvmx_inject_external_interrupt"]
    assert [Path(error.name).name for error in refused] == ["res6.scn"]
    (path,) = build(tree, names)
    assert path == tree / "x86" / "nvmx_inject_external_interrupt.flat"
    assert path.read_text().startswith("/*\n * inject-external-interrupt: what a processor does.\n")
    before = path.with_suffix(".c").stat().st_mtime_ns
    export_into(tree, [str(SEED)])
    assert path.with_suffix(".c").stat().st_mtime_ns == before


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    tree = tree_in(tmp_path)
    other = tree / "x86" / "nvmx_inject_external_interrupt.c"
    other.write_text("int x;\n")
    with pytest.raises(BadFile, match="was not written by nvmx-fuzz, and is left alone"):
        export_into(tree, [str(SEED)])
    assert other.read_text() == "int x;\n"


def test_two_scenarios_of_one_name_are_refused(tmp_path: Path) -> None:
    tree = tree_in(tmp_path)
    (tmp_path / SEED.name).write_text(SEED.read_text())
    with pytest.raises(BadFile, match="another scenario has this name"):
        export_into(tree, [str(SEED), str(tmp_path / SEED.name)])


def test_what_does_not_compile_is_said_in_one_line(tmp_path: Path) -> None:
    tree = tree_in(tmp_path, "%.flat:\n\t@echo 'x86/a.c:1:2: error: no such thing' >&2; exit 1\n")
    with pytest.raises(BadFile, match=r"does not build: x86/a\.c:1:2: error: no such thing"):
        build(tree, ["a"])


def test_without_make_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadFile, match="make: no such file or directory"):
        build(tree_in(tmp_path), ["a"])


# -- a test on Bochs ------------------------------------------------------------------------------------


def elf(functions: dict[str, bytes]) -> bytes:
    """A 32-bit ELF file with these functions."""
    code, names, table = b"", b"\0", bytes(16)
    for name, body in functions.items():
        table += struct.pack("<IIIBBH", len(names), 0x400000 + len(code), len(body), 2, 0, 1)
        names += name.encode() + b"\0"
        code += body
    sections = [(0, 0, b"", 0), (1, 0x400000, code, 0), (2, 0, table, 3), (3, 0, names, 0)]
    body, headers, offset = b"", b"", 52
    for kind, address, content, link in sections:
        fields = (0, kind, 0, address, offset + len(body), len(content), link, 0, 1, 0)
        headers += struct.pack("<10I", *fields)
        body += content
    head = struct.pack(
        "<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01", 2, 3, 1, 0x400000, 0, 52 + len(body), 0,
        52, 0, 0, 40, len(sections), 0,
    )  # fmt: skip
    return head + body + headers


FUNCTIONS = {
    "other": b"\x0f\x30\xc3",
    "disable_apic": b"\x90\x0f\x30\xc3",
    "enable_x2apic": b"\x55\x0f\xa2\xc3",
}


def test_symbols_are_found_in_the_file() -> None:
    content = elf(FUNCTIONS)
    found = symbols(content)
    assert list(found) == list(FUNCTIONS)
    for name, body in FUNCTIONS.items():
        symbol = found[name]
        assert content[symbol.offset : symbol.offset + symbol.size] == body


@pytest.mark.parametrize("length", [0, 10, 60, 100])
def test_a_file_that_was_cut_has_no_symbols(length: int) -> None:
    with pytest.raises(Elf32Error):
        symbols(elf(FUNCTIONS)[:length])


def test_the_apic_stays_on_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.flat"
    path.write_bytes(elf(FUNCTIONS))
    changed = with_apic_left_on(path)
    assert changed == elf(
        {**FUNCTIONS, "disable_apic": b"\x90\x90\x90\xc3", "enable_x2apic": b"\x31\xc0\xc3\xc3"}
    )


@pytest.mark.parametrize("content", [b"", elf({}), elf({**FUNCTIONS, "disable_apic": b"\xc3"})])
def test_a_test_that_cannot_leave_it_on_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.flat"
    path.write_bytes(content)
    with pytest.raises(BadFile, match="cannot be made to leave its APIC on"):
        with_apic_left_on(path)


FAILED = """\
FAIL: x86/a.c:55: Assertion failed: (x) == (y)\r
\tLHS: 0x1 - 0001 - 1\r
\tRHS: 0x7 - 0111 - 7\r
\tSTACK: 40268c\r
SUMMARY: 4 tests, 1 unexpected failures\r
"""

# -- what was printed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ended", "verdict"),
    [
        ("SUMMARY: 8 tests\r\n", "", Verdict("a", PASSES)),
        ("SUMMARY: 8 tests\r\n", "triple fault", Verdict("a", PASSES)),
        (
            FAILED,
            "",
            Verdict("a", FAILS, "x86/a.c:55: Assertion failed: (x) == (y) 0x1 0x7"),
        ),
        ("Host skipping test: CPU_MTF\r\nSUMMARY: 0 tests\r\n", "", Verdict("a", SKIPPED, "CPU_MTF")),
        ("SUMMARY: 0 tests\r\n", "", Verdict("a", FAILS, "SUMMARY: 0 tests")),
        ("", "hangs", Verdict("a", STOPS, "hangs")),
        ("", "", Verdict("a", STOPS, "ends early")),
        ("SUMMARY: 8 te", "hangs", Verdict("a", STOPS, "hangs")),
        (
            "Unhandled exception 13 #GP(fb) at ip 00000000004001c8\r\nerror_code=00fb\r\n",
            "",
            Verdict("a", STOPS, "Unhandled exception 13 #GP(fb) at ip 00000000004001c8"),
        ),
    ],
)  # fmt: skip
def test_what_a_test_printed_is_judged(text: str, ended: str, verdict: Verdict) -> None:
    assert verdict_of("a", HEAD + text, ended) == verdict


def fates(starts: list[list[str]], **fate: str) -> unit_tests.Start:
    """A machine with the loader: of each test what it prints, or after "!" why the machine dies of it."""

    def start(tests: Sequence[Path]) -> Ended:
        starts.append([path.stem for path in tests])
        text = "loading\r\n"
        for path in tests:
            text += f"\r\n%= {path.stem}\r\n{HEAD}"
            said = fate.get(path.stem, "SUMMARY: 7 tests\r\n")
            if said.startswith("!"):
                return Ended(text, said[1:])
            reason = said.removeprefix("?") if said.startswith("?") else ""
            text += f"{'' if reason else said}\r\n%. {reason}\r\n"
        return Ended(text + "%. all\r\n", "")

    return start


TESTS = [Path(f"/x/{name}.flat") for name in "abc"]


def test_one_boot_takes_all_tests() -> None:
    starts: list[list[str]] = []
    found = list(run_below(TESTS, fates(starts, b="?hangs")))
    assert found == [Verdict("a", PASSES), Verdict("b", STOPS, "hangs"), Verdict("c", PASSES)]
    assert starts == [["a", "b", "c"]]


@pytest.mark.parametrize("lost", "abc")
def test_a_machine_that_dies_is_started_again_for_the_rest(lost: str) -> None:
    starts: list[list[str]] = []
    found = list(run_below(TESTS, fates(starts, **{lost: "!stands still"})))
    assert [one.name for one in found] == ["a", "b", "c"]
    assert [one.reason for one in found if one.name == lost] == ["stands still"]
    assert len(starts) == (1 if lost == "c" else 2)


def test_a_machine_on_which_nothing_starts_is_named() -> None:
    with pytest.raises(BootError, match="the tests do not start: does not start"):
        list(run_below(TESTS, lambda _tests: Ended("GRUB", "does not start")))
    with pytest.raises(BootError, match="/dev/kvm: No such device"):
        list(run_below(TESTS, lambda _tests: Ended("%! /dev/kvm: No such device\r\n", "")))


# -- the command ----------------------------------------------------------------------------------------


def test_the_command_says_what_became_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[list[str]] = []
    machine = fates(starts, nvmx_inject_external_interrupt="?hangs")
    monkeypatch.setattr(cli_unit_tests, "kvm_in_bochs", machine)
    done = CliRunner().invoke(
        cli_unit_tests.main, [str(tree_in(tmp_path)), str(SEED)], standalone_mode=False
    )
    assert done.return_value == 1
    assert done.output.splitlines() == [
        "STOP  nvmx_inject_external_interrupt  hangs",
        "kvm-bochs: 1 stopped",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["TREE"], "Missing argument"),
        (["none", str(SEED)], "is no tree of kvm-unit-tests"),
        (["TREE", "none.scn"], "none.scn: no such file or directory"),
        (["TREE", str(REFUSED)], "holds no scenario that can be a unit test"),
        (["TREE", str(SEED), "--machine", "toaster"], "'toaster' is not one of"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    tree = str(tree_in(tmp_path))
    words = [tree if word == "TREE" else word for word in arguments]
    monkeypatch.setattr("sys.argv", ["unit-tests", *words])
    assert cli_unit_tests.run() == 2
    said = capsys.readouterr().err.splitlines()
    assert says in said.pop()
    assert all(line.startswith("left out: ") for line in said)


def test_the_loader_compiles_without_a_warning(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler")
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-O2", "-o", str(tmp_path / "loader")]
    assert subprocess.run([*command, str(unit_tests.LOADER_SOURCE)], check=False).returncode == 0


# -- a real tree ----------------------------------------------------------------------------------------

TREE = os.environ.get("NVMX_KVM_UNIT_TESTS")
WINDOW = "interrupt-window-before-pending-interrupt"


@pytest.mark.boot
@pytest.mark.skipif(not TREE, reason="NVMX_KVM_UNIT_TESTS names no tree of kvm-unit-tests")
def test_a_finding_fails_below_the_real_kvm_and_passes_on_the_processor() -> None:
    assert TREE is not None
    tree = Path(TREE).resolve()
    files = [str(SEED.with_name(f"{name}.scn")) for name in ("inject-external-interrupt", WINDOW)]
    names, refused = export_into(tree, files)
    paths = build(tree, names)
    assert not refused
    assert [found.verdict for found in unit_tests.run_alone(paths)] == [PASSES, PASSES]
    below = list(run_below(paths, unit_tests.kvm_in_bochs))
    assert [found.verdict for found in below] == [PASSES, FAILS]
    assert below[1].reason.endswith("0x0000000000000001 0x0000000000000007")
