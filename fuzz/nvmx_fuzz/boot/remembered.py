"""The capabilities of a machine that takes long to boot, kept in a file beside its kernel."""

import json
from collections.abc import Callable
from hashlib import sha256

from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.kept import FOLDER
from nvmx_fuzz.files import write_whole


def remembered(parts: Callable[[], str] | None, ask: Callable[[], Capabilities]) -> Capabilities:
    """What *ask* says, asked once for what *parts* names; asked always if it is None."""
    if parts is None:
        return ask()
    path = FOLDER / f"capabilities-{sha256(parts().encode()).hexdigest()[:16]}.json"
    try:
        return Capabilities(tuple(int(word, 16) for word in json.loads(path.read_text())))
    except (OSError, ValueError, TypeError):
        pass  # not asked yet, or a file that was cut: it is written anew
    capabilities = ask()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([f"{word:x}" for word in capabilities.msrs]).encode())
    return capabilities
