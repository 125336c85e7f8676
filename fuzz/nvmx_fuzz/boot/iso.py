"""The image on a disc that boots under any hypervisor with nested VMX: GRUB, which loads a multiboot file."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from nvmx_fuzz.outcomes import MissingError
from nvmx_fuzz.wording import printable

GRUB_MKRESCUE: Final = "grub-mkrescue"
_MODULES: Final = "multiboot multiboot2 normal biosdisk iso9660"
_IMAGE_MENU: Final = "set timeout=0\nmultiboot /boot/nvmx-fuzz.bin\nboot\n"


class MissingToolError(MissingError):
    """A program is needed that is not installed; the message names it, and what to install."""


def iso_of_image(image: bytes) -> bytes:
    """A disc with an image of ``image.boot_image``.

    Raises: MissingToolError.
    """
    return iso_of({"nvmx-fuzz.bin": image}, _IMAGE_MENU)


def iso_of(files: dict[str, bytes], menu: str) -> bytes:
    """A disc with some files in /boot, and what GRUB is to do.

    Raises: MissingToolError.
    """
    if not shutil.which(GRUB_MKRESCUE) or not shutil.which("xorriso"):
        raise MissingToolError(
            "grub-mkrescue is needed; try: apt-get install grub-common grub-pc-bin xorriso mtools"
        )
    with tempfile.TemporaryDirectory(prefix="nvmx-fuzz-") as folder:
        root, disc = Path(folder, "root"), Path(folder, "disc.iso")
        Path(root, "boot", "grub").mkdir(parents=True)
        for name, content in files.items():
            Path(root, "boot", name).write_bytes(content)
        Path(root, "boot", "grub", "grub.cfg").write_text(menu)
        command = [GRUB_MKRESCUE, "-o", str(disc), str(root), f"--install-modules={_MODULES}",
                   "--fonts=", "--locales=", "--themes="]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not disc.exists():
            said = done.stderr.splitlines() or ["no reason given"]
            raise MissingToolError(f"grub-mkrescue fails: {printable(said[-1])}")
        return disc.read_bytes()
