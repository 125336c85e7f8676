"""The full Bochs emulator of Debian as a process: a disc goes in, the text of its serial port comes out.

It has to be 3.0: 2.7 keeps NMIs blocked, and drops shadows and single steps, and Linux does not start on 3.1.

Debian's Bochs is built with its debugger and draws on a terminal, so it runs in a pseudo-terminal with a
command file that says "continue", and opens another one for the screen; both have to be read, or it waits
for ever once they are full. It counts instructions, not time: that it hangs is judged by the
processor time that it uses without printing anything, so that a loaded machine changes nothing.
"""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import tempfile
import termios
import time
import tty
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from nvmx_fuzz.boot.iso import MissingToolError
from nvmx_fuzz.boot.kept import FOLDER
from nvmx_fuzz.outcomes import UnavailableError
from nvmx_fuzz.wording import printable

BOCHS_VARIABLE: Final = "NVMX_BOCHS"
"""Names a folder with the unpacked packages of another Bochs (scripts/from-debian), unless it is empty."""
UNPACKED: Final = FOLDER / "bochs"
"""Where `scripts/kvm --setup` unpacks one if the installed one does not suffice."""
_VERSION: Final = "3.0"
_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
CPU_MODEL: Final = "corei7_haswell_4770"
"""The newest model that boots Linux at full speed."""
_POLL_SECONDS: Final = 0.1
_STILL_SECONDS: Final = 120.0
_SCREEN: Final = re.compile(rb'connected to screen "([^"]+)"')
_SCREEN_LINE_MAX: Final = 256
STANDS_STILL: Final = "stands still"
"""The emulator waits, for its terminal say: whatever ran is not to blame."""
GIVES_UP: Final = "the emulator gives up"
POWERS_OFF: Final = "powers off early"
_HEAD: Final = "@m"
"""With it the first line of the image begins."""


class Emulator(NamedTuple):
    """An installed Bochs, or an unpacked one: how it is started, where its BIOS is, "2.7" and the like."""

    command: tuple[str, ...]
    environment: dict[str, str]
    data: Path
    version: str


class Settings(NamedTuple):
    """Memory in MiB, and after how many seconds of processor time without output the machine counts as hung.

    ``start_seconds``: the same until the image has printed its first line.
    """

    megabytes: int
    silent_seconds: float
    start_seconds: float


class Ended(NamedTuple):
    """What the serial port said, and why the machine ended: "" when it shut itself down."""

    text: str
    reason: str


def run_disc(disc: bytes, settings: Settings, last_line: str) -> Ended:
    """Boot a disc until it prints *last_line*, powers off, or hangs.

    Raises: UnavailableError, MissingToolError.
    """
    bochs = emulator()
    with tempfile.TemporaryDirectory(prefix="nvmx-fuzz-") as name:
        folder = Path(name)
        Path(folder, "disc.iso").write_bytes(disc)
        Path(folder, "commands").write_text("c\n")
        Path(folder, "bochsrc").write_text(_configuration(folder, settings, bochs.data))
        return _Machine(folder, settings, bochs).run(last_line)


@cache
def emulator() -> Emulator:
    """The Bochs that `BOCHS_VARIABLE` names, that in `UNPACKED`, or the installed one.

    Raises: MissingToolError, also for a version that was not looked at.
    """
    named = os.environ.get(BOCHS_VARIABLE)
    root = Path(named).resolve() if named else UNPACKED
    by = f"{BOCHS_VARIABLE}: " if named else ""
    found = _unpacked(root, by) if named or UNPACKED.exists() else _installed()
    version = re.search(r"Bochs x86 Emulator (\d+\.\d+)", _said(found))
    if not version:
        raise MissingToolError(f"{by}{printable(found.command[-1])} is no Bochs that starts")
    if version[1] != _VERSION and not named:
        raise MissingToolError(
            f"Bochs {_VERSION} is needed, and {version[1]} is installed; try: scripts/kvm --setup"
        )
    return found._replace(version=version[1])


def _said(found: Emulator) -> str:
    """What one says of itself; "" if it does not start."""
    command = [*found.command, "--help", "cpu"]
    environment = {**os.environ, **found.environment}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout + done.stderr


def _installed() -> Emulator:
    if not shutil.which("bochs"):
        raise MissingToolError(f"Bochs {_VERSION} is needed; try: scripts/kvm --setup")
    return Emulator(("bochs",), {}, Path("/usr/share/bochs"), "")


def _unpacked(root: Path, by: str) -> Emulator:
    """One that runs out of a folder, with the C library that is in it; what else it needs is the system's."""
    libraries, program = root / _LIBRARIES, root / "usr/bin/bochs-bin"
    if not program.exists():
        raise MissingToolError(f"{by}{printable(str(root))} has no usr/bin/bochs-bin")
    path = f"{libraries}:/{_LIBRARIES}:/lib/x86_64-linux-gnu"
    return Emulator(
        (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", path, str(program)),
        {"LTDL_LIBRARY_PATH": str(libraries / "bochs/plugins")},
        root / "usr/share/bochs",
        "",
    )


def _configuration(folder: Path, settings: Settings, data: Path) -> str:
    """What Bochs is to be. Raises: UnavailableError."""
    lines = (
        "display_library: term",
        f"megs: {settings.megabytes}",
        f"romimage: file={_quoted(data / 'BIOS-bochs-latest')}",
        f"vgaromimage: file={_quoted(data / 'VGABIOS-lgpl-latest')}",
        f"cpu: model={CPU_MODEL}, count=1, ips=20000000, reset_on_triple_fault=0",
        "clock: sync=none",
        f"ata0-master: type=cdrom, path={_quoted(folder / 'disc.iso')}, status=inserted",
        "boot: cdrom",
        f"com1: enabled=1, mode=file, dev={_quoted(folder / 'serial')}",
        f"log: {_quoted(folder / 'log')}",
        "panic: action=report",
        "error: action=ignore",
        "info: action=ignore",
        "debug: action=ignore",
    )
    return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    """A file in the configuration: behind $ Bochs looks for a variable, and a quote has no other form."""
    name = str(path)
    if not name.isprintable() or set(name) & set('"$'):
        raise UnavailableError(f"{printable(name)}: Bochs takes no such name of a file")
    return f'"{name}"'


class _Machine:
    """One run."""

    def __init__(self, folder: Path, settings: Settings, bochs: Emulator) -> None:
        self._serial: Final = folder / "serial"
        self._log: Final = folder / "log"
        self._settings: Final = settings
        self._said = b""
        terminal, theirs = pty.openpty()
        self._terminals: Final = [terminal]
        tty.setraw(theirs)  # nothing that it draws may stop its output
        self._process: Final = subprocess.Popen(
            [*bochs.command, "-q", "-f", str(folder / "bochsrc"), "-rc", str(folder / "commands")],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, **bochs.environment, "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)

    def run(self, last_line: str) -> Ended:
        try:
            return self._watch(last_line)
        finally:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            for terminal in self._terminals:
                os.close(terminal)

    def _watch(self, last_line: str) -> Ended:
        size, silent_since, used = 0, 0.0, 0.0
        moved = time.monotonic()
        while True:
            ended = self._process.poll() is not None
            self._drain()
            text = self._text()
            if last_line in text:
                return Ended(text, "")
            if ended:
                return Ended(text, self._why())
            before, used = used, self._processor_seconds()
            if used > before or len(text) > size:
                moved = time.monotonic()
            elif time.monotonic() - moved > _STILL_SECONDS:
                return Ended(text, STANDS_STILL)
            if len(text) > size:
                size, silent_since = len(text), used
            elif used - silent_since > (
                self._settings.silent_seconds if _HEAD in text else self._settings.start_seconds
            ):
                return Ended(text, "hangs" if _HEAD in text else "does not start")

    def _drain(self) -> None:
        """Take what it draws, so that it does not wait for a reader; sleeps a moment if there is nothing."""
        readable, _, _ = select.select(self._terminals, [], [], _POLL_SECONDS)
        for terminal in readable:
            try:
                said = os.read(terminal, 1 << 16)
            except OSError:  # its side is closed
                select.select([], [], [], _POLL_SECONDS)
                continue
            if len(self._terminals) == 1:
                self._find_screen(said)

    def _find_screen(self, said: bytes) -> None:
        """Open the terminal that it has chosen for its screen, once it has told which."""
        said = self._said + said
        self._said = said[-_SCREEN_LINE_MAX:]
        found = _SCREEN.search(said)
        if found:
            with suppress(OSError, termios.error):  # it has died in the meantime
                screen = os.open(found[1], os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
                self._terminals.append(screen)
                tty.setraw(screen)  # what waits for the end of a line there would fill it too

    def _text(self) -> str:
        try:
            return self._serial.read_bytes().decode("latin-1")
        except OSError:
            return ""

    def _why(self) -> str:
        """Why the emulator gave up, from its log."""
        try:
            log = self._log.read_text("latin-1")
        except OSError:
            log = ""
        for line in log.splitlines():
            if "triple fault" in line.lower() or "shutdown" in line.lower():
                return "triple fault"
        panics = [line for line in log.splitlines() if ">>PANIC<<" in line]
        return f"{GIVES_UP}: {panics[-1].split('>>PANIC<<')[1].strip()}" if panics else POWERS_OFF

    def _processor_seconds(self) -> float:
        """Of the thread that emulates; others wake up now and then while it waits."""
        emulates = self._process.pid
        try:
            text = Path(f"/proc/{emulates}/task/{emulates}/stat").read_text()
            fields = text.rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
