"""How many transitions of L0's secret log the kept inputs show; see ``state_feedback.py`` for what one is.

Counted by the process that watches a campaign, from the files that libFuzzer keeps: it costs the fuzzing
process nothing, and means the same in every mode of feedback.
"""

import os
import time
from pathlib import Path
from typing import Final

from nvmx_core.bugs.versions import l0_class
from nvmx_core.l0.reach import REACH_COUNT
from nvmx_core.machines.nested import Nested
from nvmx_core.scenario.config import config_for
from nvmx_fuzz.codec import decode
from nvmx_fuzz.files import is_kept, is_whole
from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback

LOOK_SECONDS: Final = 0.05
"""How long one look may take; what is left over is for the next."""


class TransitionCount:
    """Counts over the folders of a corpus, whose files are looked at once each."""

    def __init__(self, l0_name: str, *folders: Path) -> None:
        """Count for the L0 called *l0_name*; UnknownL0Error if there is none."""
        self._l0: Final = l0_class(l0_name)
        self._folders: Final = folders
        self._buffer: Final = bytearray(COUNTERS)
        self._feedback: Final = StateFeedback(self._buffer, reach=False)
        self._clear: Final = bytes(COUNTERS)
        self._known: Final[set[str]] = set()
        self._seen = 0

    @property
    def count(self) -> int:
        """How many transitions were seen so far."""
        return self._seen.bit_count()

    @property
    def files(self) -> int:
        """How many files there were, at the last look, that were looked at."""
        return len(self._known)

    def look(self, seconds: float = LOOK_SECONDS) -> bool:
        """Run files that are new, for *seconds* at most; whether all were run."""
        until = time.monotonic() + seconds
        paths = [path for folder in self._folders for path in _files(folder)]
        self._known.intersection_update(paths)  # libFuzzer replaces files for as long as it runs
        for path in paths:
            if path in self._known:
                continue
            if time.monotonic() > until:
                return False
            self._known.add(path)
            self._run(path)
        return True

    def _run(self, path: str) -> None:
        try:
            data = Path(path).read_bytes()
        except OSError:
            return  # libFuzzer replaced it by a smaller one
        if not is_whole(os.path.basename(path), data):
            return
        scenario = decode(data)
        nested = Nested(config_for(scenario.config), self._l0)
        try:
            nested.run_unmarked(scenario)
        except Exception:  # noqa: BLE001 - our own bug, which the fuzzing process reports
            return
        self._buffer[:] = self._clear
        self._feedback.record(nested.vcpu.reach, nested.vcpu.log)
        self._seen |= int.from_bytes(self._buffer[REACH_COUNT:], "little")


def _files(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if is_kept(entry))
    except OSError:
        return []
