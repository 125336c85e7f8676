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

from nvmx_fuzz.boot import emulator as emulator_module
from nvmx_fuzz.boot import linux
from nvmx_fuzz.boot.emulator import BOCHS_VARIABLE, emulator
from nvmx_fuzz.boot.iso import MissingToolError
from nvmx_fuzz.boot.linux import KERNEL_VARIABLE, kernel, kernel_release, known_release
from nvmx_fuzz.outcomes import UnavailableError

RELEASE = "6.12.1-test"
needs_objcopy = pytest.mark.skipif(not shutil.which("objcopy"), reason="binutils is not installed")


@pytest.fixture(autouse=True)
def asks_anew() -> Iterator[None]:
    emulator.cache_clear()
    yield
    emulator.cache_clear()


@pytest.fixture
def no_bochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an unpacked one nor an installed one."""
    monkeypatch.setattr(emulator_module, "UNPACKED", tmp_path / "none")
    monkeypatch.setattr(shutil, "which", lambda _name: None)


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


MODULE = "lib/modules/{}/kernel/arch/x86/kvm/{}"


def folder_with(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("releases", "taken"),
    [
        ("6.9.0 6.12.0", "6.12.0"),
        ("6.12.0-9-cloud 6.12.0-10-cloud", "6.12.0-10-cloud"),
        ("6.12.0-rc3 6.12.0-rc10", "6.12.0-rc10"),
        ("6.12.0-rc3 6.12.0", "6.12.0"),
        ("6.12.0+ 6.12.0", "6.12.0+"),
        ("mine 5.4.0", "5.4.0"),
        ("mine", "mine"),
        ("6.12.0 6.12.0.old", "6.12.0"),
        ("6.9.0 6.12.0.old", "6.9.0"),
    ],
)
def test_the_newest_kernel_of_a_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, releases: str, taken: str
) -> None:
    folder_with(tmp_path, {f"boot/vmlinuz-{release}": b"" for release in releases.split()})
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    assert kernel_release() == taken


@pytest.mark.parametrize(
    "brings",
    [MODULE.format("6.9.0", "kvm-intel.ko.zst"), "usr/lib/modules/6.9.0/modules.builtin"],
)
def test_a_kernel_with_kvm_comes_before_a_newer_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brings: str
) -> None:
    images = {f"boot/vmlinuz-{release}": b"" for release in ("6.9.0", "6.12.0")}
    folder_with(tmp_path, {**images, brings: b"kernel/arch/x86/kvm/kvm-intel.ko\n"})
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    assert kernel_release() == "6.9.0"


def compressed(tmp_path: Path, content: bytes) -> bytes:
    source = tmp_path / "module"
    source.write_bytes(content)
    command = ["zstd", "--quiet", "--stdout", str(source)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@needs_objcopy
@pytest.mark.skipif(not shutil.which("zstd"), reason="zstd is not installed")
def test_a_module_of_zstd_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = MODULE.format(RELEASE, "kvm-intel.ko.zst")
    folder_with(tmp_path, {path: compressed(tmp_path, module()), f"boot/vmlinuz-{RELEASE}": b""})
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    ((name, content),) = kernel().modules
    assert name == "kvm-intel.ko"
    assert content.startswith(b"\x7fELF")


def test_without_zstd_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = MODULE.format(RELEASE, "kvm-intel.ko.zst")
    folder_with(tmp_path, {path: b"", f"boot/vmlinuz-{RELEASE}": b""})
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(MissingToolError, match="apt-get install zstd"):
        kernel()


def test_without_objcopy_its_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = MODULE.format(RELEASE, "kvm-intel.ko")
    folder_with(tmp_path, {path: b"new to objcopy", f"boot/vmlinuz-{RELEASE}": b""})
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(MissingToolError, match="apt-get install binutils"):
        kernel()


@pytest.mark.parametrize(
    ("form", "content"),
    [
        (".xz", b"nonsense"),
        (".xz", lzma.compress(bytes(999))[:-20]),
        (".gz", b"nonsense"),
        (".gz", gzip.compress(bytes(999))[:-9]),
        (".gz", gzip.compress(bytes(999))[:12] + b"nonsense" * 9),
        (".zst", b"nonsense"),
    ],
)
def test_a_module_that_is_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, content: bytes
) -> None:
    if form == ".zst" and not shutil.which("zstd"):
        pytest.skip("zstd is not installed")
    path = MODULE.format(RELEASE, f"kvm-intel.ko{form}")
    folder_with(tmp_path, {path: content, f"boot/vmlinuz-{RELEASE}": b""})
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    with pytest.raises(UnavailableError, match=r"kvm-intel\.ko.* is damaged: ") as caught:
        kernel()
    assert len(str(caught.value).splitlines()) == 1


def test_what_cannot_be_read_of_a_kernel_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot" / f"vmlinuz-{RELEASE}").mkdir(parents=True)
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    with pytest.raises(UnavailableError, match=f"vmlinuz-{RELEASE}: is a directory"):
        kernel()


@pytest.mark.parametrize("listed", [None, b"kernel/arch/x86/kvm/kvm.ko\n"])
def test_a_kernel_with_modules_but_without_kvm_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bytes | None
) -> None:
    files = {f"boot/vmlinuz-{RELEASE}": b"", MODULE.format(RELEASE, "kvm-amd.ko"): b""}
    if listed is not None:
        files[f"lib/modules/{RELEASE}/modules.builtin"] = listed
    folder_with(tmp_path, files)
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    with pytest.raises(MissingToolError, match=r"have no kvm-intel\.ko, and it is not built in"):
        kernel()


@pytest.mark.parametrize(
    "files",
    [
        {f"lib/modules/{RELEASE}/vmlinuz": b""},
        {
            f"lib/modules/{RELEASE}/vmlinuz": b"",
            f"lib/modules/{RELEASE}/modules.builtin": b"kernel/arch/x86/kvm/kvm-intel.ko\n",
            f"lib/modules/{RELEASE}/kernel/fs/other.ko": b"",
        },
    ],
)
def test_kvm_is_built_in_where_nothing_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    folder_with(tmp_path, files)
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    assert kernel().modules == ()


@needs_objcopy
def test_a_folder_under_two_names_has_its_modules_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"usr/{MODULE.format(RELEASE, 'kvm-intel.ko')}"
    folder_with(tmp_path, {path: module(), f"boot/vmlinuz-{RELEASE}": b""})
    (tmp_path / "lib").symlink_to("usr/lib")
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    assert len(kernel().modules) == 1


def test_an_empty_variable_names_no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "FOLDER", tmp_path)
    monkeypatch.setenv(KERNEL_VARIABLE, "")
    assert known_release() == ""
    folder_with(tmp_path, {f"kernel/boot/vmlinuz-{RELEASE}": b""})
    assert known_release() == RELEASE
    with pytest.raises(MissingToolError, match=r"has no irqbypass\.ko"):
        kernel()


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Other programs of these names, and a folder without a kernel."""
    folder.mkdir()
    for name, text in {"apt-cache": "echo ' Depends: linux-image-1'", **scripts}.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(linux, "FOLDER", folder / "kvm")
    monkeypatch.delenv(KERNEL_VARIABLE, raising=False)


@needs_objcopy
def test_a_kernel_that_cannot_be_fetched_is_told_by_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = "printf 'W: as root\\nE: no network\\nE: gives up\\n' >&2; exit 100"
    programs(tmp_path / "tools", monkeypatch, apt_get=fails, dpkg_deb="")
    with pytest.raises(MissingToolError, match=r"^apt-get fails: E: no network$"):
        kernel_release()


@needs_objcopy
def test_a_kernel_that_another_one_has_fetched_in_the_meantime_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "tools/kvm/kernel/boot"
    both = f'mkdir -p "$3/boot" "{boot}"; touch "$3/boot/vmlinuz-1.0" "{boot}/vmlinuz-2.0"'
    programs(tmp_path / "tools", monkeypatch, apt_get="touch linux.deb", dpkg_deb=both)
    assert kernel_release() == "2.0"


def test_a_folder_without_a_kernel_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, str(tmp_path))
    with pytest.raises(MissingToolError, match="has no boot/vmlinuz-"):
        kernel()


def test_a_folder_without_a_bochs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOCHS_VARIABLE, str(tmp_path))
    with pytest.raises(MissingToolError, match=f"{BOCHS_VARIABLE}: .* has no usr/bin/bochs-bin"):
        emulator()


@pytest.mark.usefixtures("no_bochs")
def test_without_a_bochs_the_set_up_is_named() -> None:
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
    with pytest.raises(MissingToolError, match=f"{BOCHS_VARIABLE}: .* is no Bochs that starts"):
        emulator()


def test_one_without_its_c_library_is_no_bochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_with(tmp_path, {"usr/bin/bochs-bin": b""})
    monkeypatch.setenv(BOCHS_VARIABLE, str(tmp_path))
    with pytest.raises(MissingToolError, match="is no Bochs that starts"):
        emulator()


@pytest.mark.usefixtures("no_bochs")
def test_an_empty_variable_names_no_bochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOCHS_VARIABLE, "")
    with pytest.raises(MissingToolError, match="try: scripts/kvm --setup"):
        emulator()
