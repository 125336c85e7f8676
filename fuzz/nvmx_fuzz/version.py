"""Which nvmx-fuzz this is."""

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_DISTRIBUTION = "nvmx-fuzz"


def version() -> str:
    """The version of the installed distribution; "unknown" when only the sources are there."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


@cache
def commit() -> str:
    """The commit of the checkout that this runs from, with "+" when it was changed; else ""."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    described = _git(root, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+")
    return described.strip()


def revision() -> str:
    """Version and commit, as reports and `--version` show them."""
    return f"{version()} {commit()}".rstrip()


def _git(root: Path, *arguments: str) -> str:
    """What git prints, or "" when it cannot tell."""
    try:
        finished = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return finished.stdout
