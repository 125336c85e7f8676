"""A Linux host with nested VMX inside the full Bochs, with this program on it: `scripts/kvm --host`.

The machine `kvm` needs a host whose KVM nests, and an exported disc a hypervisor that others wrote. Where
no processor has VMX, both are tried here: the kernel that `kvm-bochs` boots, and on it this Python, this
program and QEMU, each as it is installed. It is slow: every instruction of Python is emulated.
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click

from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz import module_command
from nvmx_fuzz.boot.batch import BootError, last_words
from nvmx_fuzz.boot.emulator import Settings, run_disc
from nvmx_fuzz.boot.export import image_of
from nvmx_fuzz.boot.iso import MissingToolError
from nvmx_fuzz.boot.linux import disc_with_program, monitor
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.corpus_files import files_of
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.outcomes import UnavailableError
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.wording import printable

QEMU: Final = Path("/usr/bin/qemu-system-x86_64")
FIRMWARE: Final = (Path("/usr/share/seabios/bios-256k.bin"), Path("/usr/share/qemu/kvmvapic.bin"))
"""What QEMU gives a PC that has neither a screen nor a network."""
_SETTINGS: Final = Settings(megabytes=1024, silent_seconds=1200.0, start_seconds=1200.0)
_QEMU_SECONDS: Final = 600
"""Of the host's time, which the emulator counts in instructions."""
_LEFT_OUT: Final = frozenset(
    ("site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3")
)
"""Of Python's library: what no program needs that runs there."""
_PROBE: Final = (
    "import sys; import nvmx_fuzz.cli_compare, nvmx_fuzz.cli_options, nvmx_fuzz.boot.machine\n"
    "print(*filter(None, (getattr(module, '__file__', '') for module in sys.modules.values())), sep='\\n')"
)
"""Asks which files the command loads, those of other packages among them."""
_LINKED: Final = re.compile(r"(?:=> |^\t)(/.+?) \(0x", re.MULTILINE)
_NOT_LINKED: Final = re.compile(r"^\t(.+?) => not found", re.MULTILINE)

_HOME: Final = "nvmx-fuzz"
_PACKAGES: Final = "packages"
_SCENARIOS: Final = "scenarios"
_START: Final = """\
/bin/busybox mkdir -p /proc /sys /tmp
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t tmpfs none /tmp
export PYTHONPATH=/nvmx-fuzz:/nvmx-fuzz/fuzz:/packages PYTHONDONTWRITEBYTECODE=1 HOME=/tmp"""
_COMPARE: Final = """\
echo '%= compare'
PYTHON -m nvmx_fuzz.cli compare --machine kvm /scenarios
echo "%. compare $?\""""
_RUN_QEMU: Final = f"""\
echo '%= qemu'
/bin/busybox timeout {_QEMU_SECONDS} {QEMU} -M pc,accel=kvm -cpu host -m 256 -nodefaults -display none \
-no-reboot -L {FIRMWARE[0].parent} -L {FIRMWARE[1].parent} -cdrom /disc.iso -serial stdio </dev/null
echo "%. qemu $?\""""
_END: Final = "%. all"


class Said(NamedTuple):
    """What a program printed there, and its exit status; both for one that was not started."""

    text: str
    status: int


def run_host(files: Sequence[str]) -> tuple[Said, Said]:
    """Boot the host; what `compare --machine kvm` prints there for *files*, and what the serial port of QEMU.

    *files* are scenarios in text form. Raises: UnavailableError, BadFile.
    """
    disc, _names, _refused = image_of(files, is_disc=True)
    contents = {
        **_python(),
        **_program(),
        **_qemu(),
        "disc.iso": disc,
        **{f"{_SCENARIOS}/{number:03}.scn": Path(file).read_bytes() for number, file in enumerate(files)},
    }  # fmt: skip
    compare = _COMPARE.replace("PYTHON", str(_interpreter()))
    command = "\n".join((_START, compare, _RUN_QEMU, f"echo '{_END}'"))
    ended = run_disc(disc_with_program(contents, command), _SETTINGS, f"\n{_END}")
    if ended.reason:
        raise BootError(f"the host in Bochs {ended.reason}")
    text = ended.text.replace("\r", "")
    compared, shown = _said(text, "compare"), _said(text, "qemu")
    if shown.status:
        raise BootError(
            f"QEMU ends with status {shown.status} on the host in Bochs; {last_words(shown.text)}"
        )
    return compared, shown


def _said(text: str, name: str) -> Said:
    body, mark, rest = text.partition(f"%= {name}\n")[2].partition(f"%. {name} ")
    if not mark:
        raise BootError(f"{name} said nothing on the host in Bochs")
    return Said(body, int(rest.split()[0]))


# -- what is on it --------------------------------------------------------------------------------------


def _interpreter() -> Path:
    return Path(sys.executable).resolve()


def _python() -> dict[str, bytes]:
    """The interpreter, its library, and the packages that the command loads."""
    library = Path(sysconfig.get_path("stdlib"))
    packages = Path(sysconfig.get_path("purelib"))
    files = {str(path): path for path in _files_below(library)}
    probe = [sys.executable, "-c", _PROBE]
    loaded = subprocess.run(probe, capture_output=True, text=True, check=False)
    if loaded.returncode:
        raise MissingToolError(f"{printable(loaded.stderr.strip().splitlines()[-1])}")
    paths = [path for path in map(Path, loaded.stdout.splitlines()) if packages in path.parents]
    for name in sorted({path.relative_to(packages).parts[0] for path in paths}):
        top = packages / name
        for path in [top] if top.is_file() else _files_below(top):
            files[f"{_PACKAGES}/{path.relative_to(packages)}"] = path
    return _with_libraries(files, _interpreter())


def _program() -> dict[str, bytes]:
    """This program, laid out as in a checkout, with the monitor compiled."""
    folders = (ROOT / "nvmx_core", ROOT / "fuzz" / "nvmx_fuzz")
    below = [path for folder in folders for path in _files_below(folder)]
    paths = [*below, ROOT / "pyproject.toml", monitor()]
    return {f"{_HOME}/{path.relative_to(ROOT)}": path.read_bytes() for path in paths}


def _qemu() -> dict[str, bytes]:
    for path in (QEMU, *FIRMWARE):
        if not path.exists():
            raise MissingToolError(
                f"there is no {path}; try: apt-get install qemu-system-x86 seabios"
            )
    return _with_libraries({str(path): path for path in FIRMWARE}, QEMU)


def _files_below(folder: Path) -> Iterator[Path]:
    """All files, in order, but for what is left out, and code compiled for another level of optimisation."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        is_wanted = _LEFT_OUT.isdisjoint(parts) and ".opt-" not in path.name
        if is_wanted and not parts[0].startswith("config-") and path.is_file():
            yield path


def _with_libraries(files: dict[str, Path], program: Path) -> dict[str, bytes]:
    """A program and files, and the libraries that they are linked with."""
    linked = [program, *(path for path in files.values() if ".so" in path.suffixes)]
    files[str(program)] = program
    done = subprocess.run(
        ["ldd", *map(str, linked)], capture_output=True, text=True, errors="replace", check=False
    )
    lacking = _NOT_LINKED.search(done.stdout)
    if lacking:
        raise MissingToolError(f"{printable(lacking[1])} is not found by ldd")
    files.update((name, Path(name)) for name in _LINKED.findall(done.stdout))
    return {name.lstrip("/"): path.read_bytes() for name, path in files.items()}


# -- the command ----------------------------------------------------------------------------------------


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIR...")
def main(files: tuple[str, ...]) -> int:
    """Run scenarios on a host inside Bochs: with `compare --machine kvm`, and below QEMU as an exported disc.

    Exit status: the higher one of the two.
    """
    with tempfile.TemporaryDirectory(prefix="nvmx-fuzz-") as folder:
        try:
            names = _scenarios(files, Path(folder))
            compared, shown = run_host(names)
        except (BadFile, UnavailableError) as error:
            raise click.ClickException(str(error)) from None
        click.echo("on the host, nvmx-fuzz compare --machine kvm:")
        click.echo(compared.text.rstrip())
        click.echo("what QEMU has printed on it, nvmx-fuzz compare --machine kvm-bochs --serial:")
        sys.stdout.flush()  # the next prints by itself
        return max(compared.status, _compare_serial(shown.text, names))


def _scenarios(files: Sequence[str], folder: Path) -> list[str]:
    """The scenarios, each read once, as files in text form in *folder*. Raises: BadFile."""
    names = []
    for number, name in enumerate(files_of(files)):
        path = folder / f"{number:03}.scn"
        path.write_text(format_scenario(load(name).scenario), "utf-8")
        names.append(str(path))
    if not names:
        raise BadFile(files[0], "holds no scenario")
    return names


def _compare_serial(text: str, names: Sequence[str]) -> int:
    """Have `compare` judge what a serial port said, and return its exit status."""
    with tempfile.NamedTemporaryFile("w", prefix="nvmx-fuzz-", suffix=".txt") as serial:
        serial.write(text)
        serial.flush()
        words = ["compare", "--machine", "kvm-bochs", "--serial", serial.name, *names]
        return subprocess.run(
            [sys.executable, "-m", "nvmx_fuzz.cli", *words], check=False
        ).returncode


def run() -> int:
    """The command for a shell: one line for what went wrong."""
    return module_command.run(main, "scripts/kvm --host")


if __name__ == "__main__":
    raise SystemExit(run())
