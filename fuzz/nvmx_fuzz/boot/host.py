"""The KVM of this host under the image: for a host with nested VMX."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from nvmx_fuzz.boot.emulator import Ended
from nvmx_fuzz.boot.linux import monitor
from nvmx_fuzz.outcomes import MissingError
from nvmx_fuzz.wording import printable

DEVICE: Final = Path("/dev/kvm")
NESTED: Final = Path("/sys/module/kvm_intel/parameters/nested")
BIOS_VENDOR: Final = Path("/sys/class/dmi/id/bios_vendor")
_BOCHS: Final = "The Bochs Project"
"""The vendor of its BIOS; that of an old QEMU, which is no Bochs, calls itself Bochs only."""
_SECONDS_MAX: Final = 3600.0


def run_monitor(image: bytes) -> Ended:
    """Run an image below this host's KVM.

    Raises: MissingError.
    """
    check_host()
    with tempfile.TemporaryDirectory(prefix="nvmx-fuzz-") as folder:
        path = Path(folder, "image")
        path.write_bytes(image)
        try:
            done = subprocess.run(
                [str(monitor()), str(path)], capture_output=True, timeout=_SECONDS_MAX, check=False
            )
        except subprocess.TimeoutExpired as error:
            return Ended((error.stdout or b"").decode("latin-1"), "hangs")
    said = printable(done.stderr.decode("latin-1").strip())
    reason = said or (f"the monitor ends with status {done.returncode}" if done.returncode else "")
    return Ended(done.stdout.decode("latin-1"), reason)


def check_host() -> None:
    """Raises MissingError when this host cannot run L1 as a hypervisor, with what to do."""
    if not DEVICE.exists():
        raise MissingError(f"there is no {DEVICE} here; try: nvmx-fuzz compare --machine kvm-bochs")
    if not NESTED.exists():
        raise MissingError(
            "kvm_intel is not loaded here; try: nvmx-fuzz compare --machine kvm-bochs"
        )
    if NESTED.read_text().strip() not in ("Y", "1"):
        raise MissingError("kvm_intel has nesting turned off; try: modprobe kvm_intel nested=1")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise MissingError(f"{DEVICE} cannot be opened; try: usermod -aG kvm $USER")


def is_in_bochs() -> bool:
    """Whether the processor of this host is Bochs, which does some things otherwise than all others."""
    try:
        return BIOS_VENDOR.read_text().strip() == _BOCHS
    except OSError:
        return False
