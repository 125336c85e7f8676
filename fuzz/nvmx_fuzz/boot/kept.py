"""Where what the boots need is kept: the kernel, an unpacked Bochs, what was compiled, journals."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parents[3] / "build" / "kvm"
