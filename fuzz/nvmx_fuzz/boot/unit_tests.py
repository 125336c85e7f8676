"""Scenarios as kvm-unit-tests that run: exported, built in a tree, booted, and what became of each.

On `bochs-boot` each test is a disc of its own. On `kvm-bochs` and `kvm` a loader of ours (``_unit_tests.c``)
starts each in a virtual machine of its own below KVM; one boot takes them all. The tree stays as it is, but
for the files ``x86/nvmx_*`` that are added.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nvmx_fuzz.boot.batch import BootError
from nvmx_fuzz.boot.elf32 import Elf32Error, symbols
from nvmx_fuzz.boot.emulator import Ended, Settings, run_disc
from nvmx_fuzz.boot.host import check_host
from nvmx_fuzz.boot.iso import iso_of
from nvmx_fuzz.boot.linux import KVM_HEADER, compiled, disc_with_program
from nvmx_fuzz.files import BadFile, about, reason_of, write_whole
from nvmx_fuzz.kvm_unit_test import kvm_unit_test
from nvmx_fuzz.kvm_unit_test_text import is_ours, name_of_test
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.wording import printable

LOADER_SOURCE: Final = Path(__file__).with_name("_unit_tests.c")
ALL_DONE: Final = "%. all"
SECONDS_MAX: Final = 10
"""Of the guest's time; the longest test takes two."""
_ENVIRONMENT: Final = b"NR_CPUS=1\nMEMSIZE=64\nBOOTLOADER=1\nTEST_DEVICE=0\n"
"""What the tests would ask QEMU for."""
_MENU: Final = "set timeout=0\nmultiboot /boot/test {name}\nmodule /boot/environment\nboot\n"
_ALONE: Final = Settings(megabytes=64, silent_seconds=5.0, start_seconds=5.0)
_ON_LINUX: Final = Settings(megabytes=512, silent_seconds=60.0, start_seconds=120.0)
_STARTED: Final = "Test suite:"
_TEST_DEVICE_OFF: Final = "--- DONE:"
_HOURS: Final = 3600.0

PASSES, FAILS, SKIPPED, STOPS = "PASS", "FAIL", "SKIP", "STOP"


class Verdict(NamedTuple):
    """What became of a test; the reason is "" where it passes."""

    name: str
    verdict: str
    reason: str = ""


# -- building -------------------------------------------------------------------------------------------


def check_tree(tree: Path) -> None:
    """Raises BadFile unless *tree* is a configured tree of kvm-unit-tests."""
    with about(tree):
        if not (tree / "x86" / "vmx.c").is_file():
            raise BadFile(tree, "is no tree of kvm-unit-tests, x86/vmx.c is missing")
        if not (tree / "config.mak").is_file():
            raise BadFile(tree, "is not configured; run ./configure in it")


def export_into(tree: Path, files: Sequence[str]) -> tuple[list[str], list[BadFile]]:
    """Write the C file of each scenario; the names of the tests, and why others are left out.

    Raises: BadFile, for a scenario that cannot be read or a file that is not ours to replace.
    """
    names, refused = [], []
    for file in files:
        loaded = load(file)
        try:
            text = kvm_unit_test(loaded)
        except BadFile as error:
            refused.append(error)
            continue
        name = name_of_test(file)
        if name in names:
            raise BadFile(file, f"another scenario has this name, {name}")
        path = tree / "x86" / f"{name}.c"
        with about(path):
            if path.exists() and not is_ours(path.read_text("utf-8", "replace")):
                raise BadFile(path, "was not written by nvmx-fuzz, and is left alone")
            if not path.exists() or path.read_text("utf-8") != text:
                write_whole(path, text.encode())
        names.append(name)
    return names, refused


def build(tree: Path, names: Sequence[str]) -> list[Path]:
    """Build the tests by the tree's own rules.

    Raises: BadFile, with what the compiler says.
    """
    targets = [f"x86/{name}.flat" for name in names]
    try:
        done = subprocess.run(
            ["make", *targets], cwd=tree, capture_output=True, text=True, errors="replace", check=False
        )  # fmt: skip
    except OSError as error:
        raise BadFile("make", reason_of(error)) from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        said = said or done.stderr.splitlines() or ["no reason given"]
        raise BadFile(tree, f"does not build: {printable(said[0].strip())}")
    return [tree / target for target in targets]


# -- running --------------------------------------------------------------------------------------------


def run_alone(tests: Sequence[Path]) -> Iterator[Verdict]:
    """Each test on the full Bochs, without any hypervisor below it.

    Raises: BadFile, MissingToolError.
    """
    for path in tests:
        files = {"test": with_apic_left_on(path), "environment": _ENVIRONMENT}
        disc = iso_of(files, _MENU.format(name=path.stem))
        ended = run_disc(disc, _ALONE, _TEST_DEVICE_OFF)
        reason = (
            "hangs" if ended.reason == "does not start" and _STARTED in ended.text else ended.reason
        )
        yield verdict_of(path.stem, ended.text, reason)


def with_apic_left_on(path: Path) -> bytes:
    """A test whose local APIC stays on, and in the mode without MSRs.

    The tests turn it off and on again when they start; in Bochs it stays off then.
    """
    content = bytearray(path.read_bytes())
    try:
        found = symbols(bytes(content))
        turn_off, to_msrs = found["disable_apic"], found["enable_x2apic"]
        place = content.index(b"\x0f\x30", turn_off.offset, turn_off.offset + turn_off.size)
    except (Elf32Error, KeyError, ValueError) as error:
        raise BadFile(path, f"cannot be made to leave its APIC on: {error}") from None
    content[place : place + 2] = b"\x90\x90"  # WRMSR
    content[to_msrs.offset : to_msrs.offset + 3] = (
        b"\x31\xc0\xc3"  # XOR EAX, EAX; RET: there is none
    )
    return bytes(content)


Start = Callable[[Sequence[Path]], Ended]
"""Boots a machine with a loader for the tests, and returns what it printed."""


def run_below(tests: Sequence[Path], start: Start) -> Iterator[Verdict]:
    """The tests below a KVM; a machine that dies is started again for those behind the one that it was at.

    Raises: BootError, MissingError.
    """
    left = list(tests)
    while left:
        ended = start(left)
        said = re.search(r"^%! (.*)$", ended.text.replace("\r", ""), re.MULTILINE)
        if said:
            raise BootError(said[1])
        reached = list(_parts(ended))
        if not reached:
            raise BootError(f"the tests do not start: {ended.reason or 'nothing was printed'}")
        for path, (text, reason) in zip(left, reached, strict=False):
            yield verdict_of(path.stem, text, reason)
        left = left[len(reached) :]


def _parts(ended: Ended) -> Iterator[tuple[str, str]]:
    """What each test that began has printed, and why it ended."""
    text = ended.text.replace("\r", "")
    for part in re.split(r"^%= .*\n", text, flags=re.MULTILINE)[1:]:
        body, mark, rest = part.partition("\n%.")
        yield body, rest.splitlines()[0].strip() if mark else ended.reason or "its output was cut"


def kvm_in_bochs(tests: Sequence[Path]) -> Ended:
    """Below a stock Linux KVM in Bochs. Raises: MissingToolError."""
    files = {"loader": _loader().read_bytes(), **{path.name: path.read_bytes() for path in tests}}
    names = " ".join(f"/{path.name}" for path in tests)
    disc = disc_with_program(files, f"/loader {SECONDS_MAX} {names}")
    return run_disc(disc, _ON_LINUX, ALL_DONE)


def kvm_of_host(tests: Sequence[Path]) -> Ended:
    """Below this host's KVM. Raises: MissingError."""
    check_host()
    with tempfile.TemporaryFile() as output:
        command = [str(_loader()), str(SECONDS_MAX), *map(str, tests)]
        try:
            subprocess.run(command, stdout=output, timeout=_HOURS, check=False)
            reason = ""
        except subprocess.TimeoutExpired:
            reason = "hangs"
        output.seek(0)
        return Ended(output.read().decode("latin-1"), reason)


def _loader() -> Path:
    return compiled((LOADER_SOURCE, KVM_HEADER), "unit-tests")


# -- what it means --------------------------------------------------------------------------------------


def verdict_of(name: str, text: str, reason: str) -> Verdict:
    """The verdict of what a test printed, and why its machine ended ("" if it ended itself)."""
    text = text.replace("\r", "")
    summary = re.search(r"^SUMMARY: (\d+) tests(.*)$", text, re.MULTILINE)
    failed = re.search(r"^FAIL: (.*(?:\n\t(?:LHS|RHS): .*)*)", text, re.MULTILINE)
    skipped = re.search(r"skipping test: (.*)$", text, re.MULTILINE)
    if failed:
        return Verdict(name, FAILS, _assertion(failed[1]))
    if not summary:
        stopped = re.search(r"^(VM-Fail on .*|Unhandled .*|.*ABORT: .*)$", text, re.MULTILINE)
        return Verdict(name, STOPS, printable(stopped[1] if stopped else reason or "ends early"))
    if skipped:
        return Verdict(name, SKIPPED, printable(skipped[1]))
    if "unexpected" in summary[2] or summary[1] == "0":
        return Verdict(name, FAILS, printable(summary[0]))
    return Verdict(name, PASSES)


def _assertion(text: str) -> str:
    """The first failed assertion on one line: what was compared, and both values."""
    first, *sides = text.splitlines()
    values = [side.split()[1] for side in sides]
    return printable(" ".join([first, *(f"{value}" for value in values)]))
