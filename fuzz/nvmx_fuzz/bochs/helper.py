"""The C helper of the machine ``bochs``: built once, loaded before the package that it mends.

The package's build compiles it with the rest; a checkout that has no build compiles it at first use, into
``build/`` of the checkout.
"""

import ctypes
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from nvmx_fuzz.bochs import helper_source
from nvmx_fuzz.outcomes import MissingError, UnavailableError

PACKAGE: Final = "bochscpu"
DISTRIBUTION: Final = "bochscpu-python"
CPU_MODELS: Final = {"0.4.0": 26}
"""The number of the CPU model skylake_x in each version of the package that the helper knows."""

# Offsets into Bochs' CPU object and its local APIC, in the order of `struct layout`: rip, previous rip,
# rsp, eflags, icount, inhibit mask, debug trap, CR2, DR6, the APIC's address, in VMX non-root, activity,
# pending events, masked events, asynchronous event, CPL, RVI; in the APIC ISR, TMR, IRR. Read from the
# package's machine code.
LAYOUTS: Final = {
    "0.4.0": (
        0xD8, 0x110, 0x78, 0xF8, 0x128, 0x138, 0x290, 0x298, 0x288, 0xC58, 0x8DA9, 0x9074, 0x9078, 0x907C,
        0x9080,
        0x16D, 0x8EE1, 0x5C, 0x7C, 0x9C,
    ),
}  # fmt: skip


class BochsUnavailableError(UnavailableError):
    """The machine `bochs` cannot be used here; the message says why and what to do."""


class BochsMissingError(BochsUnavailableError, MissingError):
    """It is not installed, or there is none for this platform: nothing that is here is broken."""


def library_version() -> str:
    """The version of the installed package.

    Raises: BochsUnavailableError.
    """
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise BochsMissingError(
            f"{DISTRIBUTION} is not installed; try: pip install -e '.[bochs]'"
        ) from None
    if version not in LAYOUTS:
        raise BochsUnavailableError(
            f"{DISTRIBUTION} {version} is not known here; try: pip install {DISTRIBUTION}=={max(LAYOUTS)}"
        )
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise BochsMissingError("the machine bochs runs on x86-64 Linux only")
    return version


def library_path() -> str:
    """The shared object of the package, found without importing it.

    Raises: BochsUnavailableError.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BochsUnavailableError(f"{DISTRIBUTION} is installed without the module {PACKAGE}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    suffixes = [*importlib.machinery.EXTENSION_SUFFIXES]
    if sys.version_info >= (3, 12):
        # The wheel for 3.12 and later has the stable ABI, and a name as if it were for 3.12 alone.
        suffixes.append(".cpython-312-x86_64-linux-gnu.so")
    for suffix in suffixes:
        path = folder / f"_{PACKAGE}{suffix}"
        if path.exists():
            return str(path)
    raise BochsMissingError(f"{DISTRIBUTION} has no build for Python {sys.version_info[:2]}")


def helper_path() -> Path:
    """The compiled helper; it is compiled when there is none for this source.

    Raises: BochsUnavailableError.
    """
    digest = helper_source.source_digest()
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        built = helper_source.SOURCE.with_name(f"_helper{suffix}")
        if built.exists() and digest.encode() in built.read_bytes():
            return built
    target = helper_source.SOURCE.parents[3] / "build" / f"bochs-helper-{digest}.so"
    if not target.exists():
        _compile(target)
    return target


def _compile(target: Path) -> None:
    compiler = os.environ.get("CC", "").strip() or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise BochsMissingError(
            "the machine bochs needs a C compiler for its helper; install one (cc) or set CC"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder) / target.name
            made_from = f'-DNVMX_SOURCE="{helper_source.source_digest()}"'
            options = [
                "-O2",
                "-shared",
                "-fPIC",
                made_from,
                "-o",
                str(output),
                str(helper_source.SOURCE),
                "-ldl",
            ]
            done = subprocess.run(
                [*compiler.split(), *options], capture_output=True, text=True, check=False
            )
            if done.returncode:
                first = (done.stderr.strip() or f"{compiler} says nothing").splitlines()[0]
                raise BochsUnavailableError(
                    f"the helper of the machine bochs does not compile: {first}"
                )
            output.replace(target)
    except OSError as error:
        raise BochsUnavailableError(
            f"the helper of the machine bochs does not compile: {error}"
        ) from None


def _import_package(path: str) -> None:
    """Import the package with the shared object at *path*, whatever that is called."""
    name = f"{PACKAGE}._{PACKAGE}"
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    library = importlib.util.module_from_spec(spec)
    sys.modules[name] = library
    loader.exec_module(library)
    __import__(PACKAGE)


def load_helper() -> ctypes.CDLL:
    """Load the helper so that its functions come before those of the package, then import the package.

    Raises: BochsUnavailableError.
    """
    version = library_version()
    path = library_path()
    helper = ctypes.CDLL(str(helper_path()), mode=ctypes.RTLD_GLOBAL)
    _import_package(path)
    offsets = LAYOUTS[version]
    helper.nvmx_bind.restype = ctypes.c_char_p
    missing = helper.nvmx_bind(path.encode(), (ctypes.c_uint64 * len(offsets))(*offsets))
    if missing:
        raise BochsUnavailableError(f"{DISTRIBUTION} {version} lacks {missing.decode()}")
    helper.nvmx_run.restype = ctypes.c_uint64
    helper.nvmx_log.restype = ctypes.POINTER(ctypes.c_uint64)
    return helper
