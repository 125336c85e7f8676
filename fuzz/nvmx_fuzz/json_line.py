"""A child process that measures, and the one line of JSON that it leaves."""

import json
import os
import subprocess
import sys
from typing import Any


def in_child(module: str, *words: str) -> dict[str, Any]:
    """Start *module* with *words* in a process of its own; what it gives to `finish`.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    finished = subprocess.run(
        [sys.executable, "-P", "-m", module, *words], capture_output=True, check=False
    )
    if finished.returncode:
        raise RuntimeError(f"{' '.join(words)}: {finished.stderr.decode()[-2000:]}")
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def finish(result: dict[str, Any]) -> None:
    """Print the result and end, past libFuzzer."""
    sys.stdout.write(f"{json.dumps(result)}\n")
    sys.stdout.flush()
    os._exit(0)
