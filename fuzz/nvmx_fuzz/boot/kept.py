"""Where what the boots need is kept: the kernel, an unpacked Bochs, what was compiled, journals."""

from pathlib import Path
from typing import Final

from nvmx_fuzz.core_choice import ROOT

FOLDER: Final = ROOT / "build" / "kvm"


def campaign_database(label: str) -> Path:
    """That of the campaign on a machine, by its name with the release of its L0."""
    return FOLDER / f"campaign-{label}.sqlite"
