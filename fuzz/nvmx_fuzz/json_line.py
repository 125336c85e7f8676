"""A child process that measures, and the one line of JSON that it leaves."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final


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


class SearchRun:
    """The account of one search: executions and CPU time; ends the process with the result."""

    def __init__(self, seconds: float) -> None:
        """Give up after *seconds* of CPU time."""
        self._seconds: Final = seconds
        self._started = time.process_time()
        self._executions = 0

    def begin(self) -> None:
        """The search begins now: what was imported and set up before does not count."""
        self._started = time.process_time()

    def executed(self, found: bool, data: Callable[[], bytes]) -> None:
        """One execution more, of *data*; does not return when it is the last."""
        self._executions += 1
        passed = time.process_time() - self._started
        if found or passed > self._seconds:
            finish(
                {
                    "found": found,
                    "executions": self._executions,
                    "seconds": passed,
                    "data": data().hex() if found else "",
                }
            )
