"""A stock Debian kernel with KVM as L0, inside the full Bochs: what it needs, and its disc.

Everything comes from packages by name, and is kept in ``build/kvm`` of the checkout. The initramfs holds
busybox, the modules of KVM, our monitor and the image; what the monitor prints goes to the serial port.

Another kernel is a folder with what its package holds, or what `make install modules_install` leaves:
``boot/vmlinuz-*`` or ``lib/modules/*/vmlinuz``, and the modules, if KVM is not built in.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nvmx_fuzz.boot.emulator import CPU_MODEL, emulator
from nvmx_fuzz.boot.iso import MissingToolError, iso_of
from nvmx_fuzz.boot.kept import FOLDER
from nvmx_fuzz.boot.kernel_folder import MODULES, content_of, images, modules, newest
from nvmx_fuzz.files import reason_of
from nvmx_fuzz.outcomes import UnavailableError
from nvmx_fuzz.wording import printable

KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
KERNEL_VARIABLE: Final = "NVMX_KERNEL"
"""Names the folder of another kernel, unless it is empty."""
KVM_HEADER: Final = Path(__file__).with_name("_kvm.h")
"""What all programs of ours over /dev/kvm include."""
MONITOR_SOURCES: Final = (
    *(Path(__file__).with_name(name) for name in ("_vmm.c", "_vmm_stops.h")),
    KVM_HEADER,
)
"""What the monitor is compiled from: a program, and what it includes."""
_BUSYBOX: Final = Path("/bin/busybox")
_ARGUMENTS: Final = (
    "console=ttyS0 quiet loglevel=3 mitigations=off nokaslr tsc=reliable no_timer_check lpj=4000000 "
    "random.trust_cpu=on cryptomgr.notests init_on_alloc=0 audit=0 kvm-intel.nested=1 "
    "initcall_blacklist=load_system_certificate_list,cubictcp_register,init_kprobe_trace,netns_bpf_init,bpf_rstat_kfunc_init,init_blk_tracer"
)
_MENU: Final = f"set timeout=0\nlinux /boot/vmlinuz {_ARGUMENTS}\ninitrd /boot/initrd\nboot\n"
_INIT: Final = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox stty -F /dev/ttyS0 raw
exec >/dev/ttyS0 2>&1
for module in irqbypass kvm kvm-intel; do
    nested=; [ $module = kvm-intel ] && nested=nested=1
    [ ! -e /$module.ko ] || /bin/busybox insmod /$module.ko $nested || echo "%! $module.ko does not load"
done
TRACE
COMMAND
SHOW
/bin/busybox sleep 3
/bin/busybox poweroff -f
"""
_TRACE: Final = """\
/bin/busybox mount -t tracefs none /tracing
echo 0 > /tracing/tracing_on
echo 1 > /tracing/events/kvm/enable
echo 1 > /tracing/tracing_on"""
_SHOW: Final = """\
echo 0 > /tracing/tracing_on
/bin/busybox cat /tracing/trace"""


class Kernel(NamedTuple):
    """A kernel, its modules of KVM (name and content; none if KVM is built in), and its release."""

    image: bytes
    modules: tuple[tuple[str, bytes], ...]
    release: str


def kernel() -> Kernel:
    """The kernel that `KERNEL_VARIABLE` names, or that of the package, fetched if it is not here yet.

    Raises: UnavailableError, MissingToolError.
    """
    root, release, image = _chosen()
    found = tuple((name, _stripped(name, content)) for name, content in modules(root, release))
    missing = {Path(name).name for name in MODULES} - {name for name, _content in found}
    if missing and not _named():
        raise MissingToolError(f"{KERNEL_PACKAGE} has no {', '.join(sorted(missing))}")
    return Kernel(content_of(image), found, release)


def kernel_release() -> str:
    """What `kernel` would be, by its release ("6.1.0-56-cloud-amd64").

    Raises: UnavailableError, MissingToolError.
    """
    return _chosen()[1]


def known_release() -> str:
    """The same without fetching anything: "" where it would be fetched."""
    return kernel_release() if _named() or images(FOLDER / "kernel") else ""


def _named() -> str:
    """The folder that `KERNEL_VARIABLE` names; "" for none."""
    return os.environ.get(KERNEL_VARIABLE, "")


def _chosen() -> tuple[Path, str, Path]:
    """The folder of a kernel, its release and its image."""
    named = _named()
    root = Path(named) if named else FOLDER / "kernel"
    if not named and not images(root):
        _fetch(root)
    found = newest(root)
    if not found:
        raise MissingToolError(
            f"{KERNEL_VARIABLE}: {printable(str(root))} has no boot/vmlinuz-* or lib/modules/*/vmlinuz"
        )
    return (root, *found)


def _stripped(name: str, module: bytes) -> bytes:
    """A module without its debugging data, with which it loads too slowly; what was made is kept."""
    kept = FOLDER / f"module-{hashlib.sha256(module).hexdigest()[:16]}.ko"
    if not kept.exists():
        if not shutil.which("objcopy"):
            raise MissingToolError("objcopy is needed; try: apt-get install binutils")
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            made = Path(folder, name)
            made.write_bytes(module)
            _tool(["objcopy", "--strip-debug", "-R", ".BTF", str(made)], Path(folder))
            made.replace(kept)
    return kept.read_bytes()


def _fetch(root: Path) -> None:
    """Fetch the kernel of this very release, by the lists that the system has, with their updates.

    `scripts/from-debian` brings those of another release, by lists of its own.
    """
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "objcopy"):
        if not shutil.which(tool):
            raise MissingToolError(
                f"{tool} is needed to fetch {KERNEL_PACKAGE}; on Debian: apt-get install binutils"
            )
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as name:
            fetched = _unpacked(Path(name))
            if not images(root):  # another may have fetched it in the meantime
                fetched.replace(root)
    except OSError as error:
        if not images(root):
            raise UnavailableError(f"{printable(str(root))}: {reason_of(error)}") from None


def _unpacked(folder: Path) -> Path:
    """The content of the package, somewhere in a folder."""
    depends = _tool(["apt-cache", "depends", "--important", KERNEL_PACKAGE], folder)
    packages = [line.split()[-1] for line in depends.splitlines() if "Depends:" in line]
    if packages:
        _tool(["apt-get", "download", packages[0]], folder)
    for package in folder.glob("*.deb"):
        _tool(["dpkg-deb", "-x", str(package), str(folder / "root")], folder)
    if not images(folder / "root"):
        raise MissingToolError(f"{KERNEL_PACKAGE} cannot be fetched; try: apt-get update")
    return folder / "root"


def monitor() -> Path:
    """Our monitor, compiled as a static program.

    Raises: MissingToolError.
    """
    return compiled(MONITOR_SOURCES, "vmm")


def compiled(sources: Sequence[Path], name: str) -> Path:
    """A C program of ours, the first of *sources* with those that it includes, compiled as a static one.

    Raises: MissingToolError.
    """
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    target = FOLDER / f"{name}-{digest}"
    if not target.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            raise MissingToolError("a C compiler is needed; try: apt-get install gcc libc6-dev")
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            output = Path(folder, name)
            command = [compiler, "-static", "-O2", "-Wall", "-Wextra", "-o", output, sources[0]]
            _tool([str(part) for part in command], Path(folder))
            output.replace(target)
    return target


def _tool(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        told = next((line for line in said if line.startswith("E: ")), said[-1])  # apt's own way
        raise MissingToolError(f"{Path(command[0]).name} fails: {printable(told)}")
    return done.stdout


def kvm_in_bochs() -> str:
    """What names the kernel, the monitor and the processor under them. Raises: MissingToolError."""
    linux = kernel()
    content = hashlib.sha256(b"".join((linux.image, *(each for _name, each in linux.modules))))
    return f"{content.hexdigest()} {monitor().name} {emulator().version} {CPU_MODEL}"


def disc_with_kvm(image: bytes, *, traces: bool = False) -> bytes:
    """A disc that boots the kernel and runs the image below it; *traces*: and prints the trace of it.

    Raises: MissingToolError.
    """
    _require_busybox()
    files = {"vmm": monitor().read_bytes(), "image": image}
    return disc_with_program(files, "/vmm /image", traces=traces)


def disc_with_program(files: dict[str, bytes], command: str, *, traces: bool = False) -> bytes:
    """A disc that boots the kernel with these files below its root, all executable, and runs a command.

    Raises: MissingToolError.
    """
    _require_busybox()
    linux = kernel()
    init = _INIT.replace("TRACE\n", f"{_TRACE}\n" if traces else "")
    init = init.replace("SHOW\n", f"{_SHOW}\n" if traces else "").replace("COMMAND", command)
    contents = [
        ("init", init.encode(), 0o100755), ("tracing", b"", 0o40755), ("dev", b"", 0o40755),
        *((folder, b"", 0o40755) for folder in folders_of(["bin/busybox", *files])),
        ("bin/busybox", _BUSYBOX.read_bytes(), 0o100755),
        *((name, content, 0o100755) for name, content in files.items()),
        *((name, content, 0o100644) for name, content in linux.modules),
    ]  # fmt: skip
    initrd = gzip.compress(cpio(contents), 1, mtime=0)
    return iso_of({"vmlinuz": linux.image, "initrd": initrd}, _MENU)


def folders_of(names: Iterable[str]) -> list[str]:
    """The folders that files are in, each behind the one that it is in."""
    return sorted({str(folder) for name in names for folder in Path(name).parents[:-1]})


def _require_busybox() -> None:
    if not _BUSYBOX.exists():
        raise MissingToolError("a static busybox is needed; try: apt-get install busybox-static")


def cpio(files: list[tuple[str, bytes, int]]) -> bytes:
    """An initramfs (name, content, mode) in the form "newc"."""
    archive = bytearray()
    for number, (name, content, mode) in enumerate([*files, ("TRAILER!!!", b"", 0)]):
        label = name.encode() + b"\0"
        fields = (number + 1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(label), 0)
        archive += b"070701" + "".join(f"{field:08X}" for field in fields).encode() + label
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
