"""Where the text seeds are."""

from pathlib import Path


def seed_folder() -> Path | None:
    """The folder of the seeds beside the sources; None in an installation without them."""
    folder = Path(__file__).resolve().parents[2] / "corpus" / "nested_events"
    return folder if folder.is_dir() else None
