"""Where the text seeds are."""

from pathlib import Path
from typing import Final

from nvmx_fuzz.core_choice import ROOT

BUGS_FOLDER: Final = ROOT / "corpus" / "bugs"


def seed_folder() -> Path | None:
    """The folder of the seeds beside the sources; None in an installation without them."""
    folder = ROOT / "corpus" / "nested_events"
    return folder if folder.is_dir() else None


def bug_scenario(name: str) -> Path | None:
    """The smallest known scenario of a bug of the catalogue; None without one."""
    path = BUGS_FOLDER / f"{name}.scn"
    return path if path.is_file() else None
