"""Where the text seeds are."""

from pathlib import Path


def seed_folder() -> Path | None:
    """The folder of the seeds beside the sources; None in an installation without them."""
    folder = Path(__file__).resolve().parents[2] / "corpus" / "nested_events"
    return folder if folder.is_dir() else None


def bug_scenario(name: str) -> Path | None:
    """The smallest known scenario of a bug of the catalogue; None without one."""
    path = Path(__file__).resolve().parents[2] / "corpus" / "bugs" / f"{name}.scn"
    return path if path.is_file() else None
