"""Which kernel and which Bochs: the installed ones, or those that the environment names."""

import gzip
import lzma
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz import BAD_INPUT
from nvmx_fuzz.boot import emulator as emulator_module
from nvmx_fuzz.boot.emulator import BOCHS_VARIABLE, emulator
from nvmx_fuzz.boot.iso import MissingToolError
from nvmx_fuzz.boot.linux import KERNEL_VARIABLE, kernel, kernel_release

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "6.12.1-test"
needs_objcopy = pytest.mark.skipif(not shutil.which("objcopy"), reason="binutils is not installed")


@pytest.fixture(autouse=True)
def asks_anew() -> Iterator[None]:
    emulator.cache_clear()
    yield
    emulator.cache_clear()


def module() -> bytes:
    """A file that objcopy takes."""
    return Path("/bin/true").read_bytes()


@needs_objcopy
@pytest.mark.parametrize(
    "place", ["boot/vmlinuz-{}", "lib/modules/{}/vmlinuz", "usr/lib/modules/{}/vmlinuz"]
)
def test_a_folder_of_another_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    image = tmp_path / place.format(RELEASE)
    image.parent.mkdir(parents=True)
    image.write_bytes(b"kernel")
    modules = tmp_path / "usr/lib/modules" / RELEASE / "kernel"
    (modules / "virt/lib").mkdir(parents=True)
    (modules / "arch/x86/kvm").mkdir(parents=True)
    (modules / "virt/lib/irqbypass.ko").write_bytes(module())
    (modules / "arch/x86/kvm/kvm.ko.xz").write_bytes(lzma.compress(module()))
    (modules / "arch/x86/kvm/kvm-intel.ko.gz").write_bytes(gzip.compress(module()))
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    found = kernel()
    assert (found.image, found.release) == (b"kernel", RELEASE) == (b"kernel", kernel_release())
    names = [name for name, _content in found.modules]
    assert names == ["irqbypass.ko", "kvm.ko", "kvm-intel.ko"]
    assert len({content for _name, content in found.modules}) == 1


def test_a_kernel_with_kvm_built_in_has_no_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / f"vmlinuz-{RELEASE}").write_bytes(b"kernel")
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    assert kernel().modules == ()


def test_a_folder_without_a_kernel_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    with pytest.raises(MissingToolError, match="has no boot/vmlinuz-"):
        kernel()


def test_a_folder_without_a_bochs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOCHS_VARIABLE, str(tmp_path))
    with pytest.raises(MissingToolError, match="has no usr/bin/bochs-bin"):
        emulator()


def test_without_a_bochs_the_set_up_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator_module, "UNPACKED", tmp_path / "bochs")
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(MissingToolError, match=r"Bochs 3\.0 is needed; try: scripts/kvm --setup"):
        emulator()


def test_an_installed_bochs_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bochs"
    program.write_text("#!/bin/sh\necho '   Bochs x86 Emulator 2.7'\n")
    program.chmod(0o755)
    monkeypatch.setattr(emulator_module, "UNPACKED", tmp_path / "none")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(MissingToolError, match=r"3\.0 is needed, and 2\.7 is installed"):
        emulator()


def test_what_does_not_start_is_no_bochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("usr/bin/bochs-bin", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\nexit 1\n")
        path.chmod(0o755)
    monkeypatch.setenv(BOCHS_VARIABLE, str(tmp_path))
    with pytest.raises(MissingToolError, match="is no Bochs that starts"):
        emulator()


# -- the scripts -------------------------------------------------------------------------------------------


def complaint(*command: str) -> str:
    """What a script says that ends with status 2, in one line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == BAD_INPUT
    (line,) = done.stderr.splitlines()
    return line


needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="not on Debian")


@needs_apt
def test_a_folder_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    said = complaint("scripts/from-debian", "trixie", str(tmp_path), "bochs")
    assert said == f"nvmx-fuzz: {tmp_path} is there already"
    assert not list(tmp_path.iterdir())


def test_packages_have_to_be_named(tmp_path: Path) -> None:
    said = complaint("scripts/from-debian", "trixie", str(tmp_path / "new"))
    assert said == "nvmx-fuzz: usage: scripts/from-debian SUITE FOLDER PACKAGE..."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kernel",), "--kernel needs a release of Debian or a folder"),
        (("--kernel", "./no such folder", "--findings"), "./no such folder is no folder"),
        (("--bochs", "/no/such/folder"), "/no/such/folder is no folder"),
    ],
)
def test_a_folder_that_is_not_there_is_named(arguments: tuple[str, ...], said: str) -> None:
    assert complaint("scripts/kvm", *arguments) == f"nvmx-fuzz: {said}"
