"""What the C helper is made from. The package's build runs this file before there is a package."""

import hashlib
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("_helper.c")
PARTS: Final = (SOURCE, *sorted(SOURCE.parent.glob("_helper_*.h")))
"""The source and what it includes."""


def source_digest() -> str:
    """What the compiled helper says it was made from, see `nvmx_source`."""
    return hashlib.sha256(b"".join(part.read_bytes() for part in PARTS)).hexdigest()[:32]
