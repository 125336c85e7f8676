"""A folder with Linux kernels: which of them is the one, and what it has of KVM's modules.

Looked at is what a Debian package holds, or what `make install modules_install` leaves.
"""

import gzip
import lzma
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from nvmx_fuzz.boot.iso import MissingToolError
from nvmx_fuzz.files import reason_of
from nvmx_fuzz.outcomes import UnavailableError
from nvmx_fuzz.wording import printable

MODULES: Final = ("virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko")
_KVM_INTEL: Final = MODULES[-1]
_FOLDERS: Final = ("lib/modules", "usr/lib/modules")
_REPLACED: Final = ".old"
"""So ends the name of an image that `make install` has put another one in the place of."""
_VERSION: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
_PARTS: Final = re.compile(r"[0-9]+|[^0-9]+")


def images(root: Path) -> dict[str, Path]:
    """The kernels in a folder, by release."""
    found = {path.parent.name: path for name in _FOLDERS for path in root.glob(f"{name}/*/vmlinuz")}
    found |= {path.name.removeprefix("vmlinuz-"): path for path in root.glob("boot/vmlinuz-*")}
    return {release: path for release, path in found.items() if not release.endswith(_REPLACED)}


def newest(root: Path) -> tuple[str, Path] | None:
    """The release and the image of the newest kernel that brings KVM with it, or else of the newest.

    Raises: UnavailableError.
    """
    found = images(root)
    able = [release for release in found if _module(root, release, _KVM_INTEL)]
    able += [release for release in found if _is_built_in(root, release)]
    release = max(able or found, key=_age, default=None)
    return None if release is None else (release, found[release])


def _age(release: str) -> tuple[tuple[int, ...], bool, list[tuple[int, str]]]:
    """What orders releases: 6.9.0, 6.12.0-rc3, 6.12.0-rc10, 6.12.0, 6.12.0-1-amd64."""
    version = _VERSION.match(release)
    rest = release[version.end() :] if version else release
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in _PARTS.findall(rest)]
    numbers = tuple(int(number) for number in version[0].split(".")) if version else ()
    return numbers, not rest.startswith("-rc"), parts


def modules(root: Path, release: str) -> Iterator[tuple[str, bytes]]:
    """The modules of KVM (name and content) that a kernel has; none where it is built in.

    Raises: UnavailableError, MissingToolError where the kernel has modules, and no KVM.
    """
    if (
        _has_modules(root, release)
        and not _module(root, release, _KVM_INTEL)
        and not _is_built_in(root, release)
    ):
        raise MissingToolError(
            f"{printable(str(root))}: the modules of {printable(release)} have no kvm-intel.ko, "
            "and it is not built in"
        )
    for name in MODULES:
        path = _module(root, release, name)
        if path:
            yield Path(name).name, _opened(path)


def _folders(root: Path, release: str) -> list[Path]:
    return [root / start / release for start in _FOLDERS]


def _has_modules(root: Path, release: str) -> bool:
    """Whether somebody has installed modules, and not only an image beside where they would be."""
    folders = _folders(root, release)
    return any((each / name).exists() for each in folders for name in ("kernel", "modules.builtin"))


def _module(root: Path, release: str, name: str) -> Path | None:
    """A module in whatever form it has."""
    paths = (
        folder / "kernel" / f"{name}{ending}"
        for folder in _folders(root, release)
        for ending in _OPENERS
    )
    return next((path for path in paths if path.exists()), None)


def _is_built_in(root: Path, release: str) -> bool:
    """Whether the kernel says that kvm-intel is a part of it."""
    paths = (folder / "modules.builtin" for folder in _folders(root, release))
    listed = (line for path in paths if path.exists() for line in content_of(path).splitlines())
    return f"kernel/{_KVM_INTEL}".encode() in listed


def content_of(path: Path) -> bytes:
    """What is in a file of the kernel. Raises: UnavailableError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnavailableError(f"{printable(str(path))}: {reason_of(error)}") from None


def _opened(path: Path) -> bytes:
    """A module as it is without compression."""
    ending = path.suffix if path.suffix in _OPENERS else ""
    content = content_of(path)
    try:
        return _OPENERS[ending](content)
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise UnavailableError(f"{printable(str(path))} is damaged: {error}") from None


def _zstd(content: bytes) -> bytes:
    """What the program zstd makes of it. Raises: OSError."""
    if not shutil.which("zstd"):
        raise MissingToolError("zstd opens the modules of this kernel; try: apt-get install zstd")
    command = ["zstd", "--decompress", "--stdout", "--quiet"]
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise OSError(printable(said[-1]))
    return done.stdout


_OPENERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "": bytes,
    ".xz": lzma.decompress,
    ".gz": gzip.decompress,
    ".zst": _zstd,
}
"""How a module may be compressed."""
