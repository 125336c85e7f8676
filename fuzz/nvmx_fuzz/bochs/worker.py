"""The machine `bochs` in a process of its own: a crash of the emulator is recorded, not suffered.

The worker takes batches of scenarios (byte form) and runs each on `bare` and on Bochs. Before each it notes
its number in shared memory, so that the parent knows which one ended it.
"""

import marshal
import multiprocessing
import resource
import signal
import zlib
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from nvmx_core.scenario.config import (
    HLT_ACTIVITY,
    MTF_OFFERED,
    SHUTDOWN_ACTIVITY,
    STI_BLOCKS_NMI,
    WFS_ACTIVITY,
    ZERO_LENGTH,
)
from nvmx_fuzz.bochs.divergences import known
from nvmx_fuzz.bochs.helper import BochsMissingError, BochsUnavailableError
from nvmx_fuzz.codec import decode
from nvmx_fuzz.compare import first_difference
from nvmx_fuzz.outcomes import DIFFERENT, INCIDENT, NOT_REALISABLE, SAME, Outcome

BOCHS_CAPABILITIES: Final = (
    ZERO_LENGTH | HLT_ACTIVITY | SHUTDOWN_ACTIVITY | WFS_ACTIVITY | MTF_OFFERED | STI_BLOCKS_NMI
)
"""What the CPU of the helper offers, as flags of a configuration; IA32_VMX_BASIC[56] is 0."""

_BATCH: Final = 200
"""So many scenarios take far less than `SECONDS_MAX`: only what hangs is cut off."""

SECONDS_MAX: Final = 60.0
"""A batch that takes longer hangs."""
START_SECONDS_MAX: Final = 300.0
"""A start that takes longer hangs; it may compile the helper first."""


def serve(connection: Connection, position: Any) -> None:
    """The worker's life: bring up the CPU, then answer batches until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent that a person interrupts
    try:
        from nvmx_fuzz.bochs.session import Session  # noqa: PLC0415 - loads assembler and emulator

        session = Session()
    except BochsUnavailableError as error:
        connection.send(error)
        return
    except ModuleNotFoundError as error:
        connection.send(BochsMissingError(f"{error}; try: pip install -e '.[bochs]'"))
        return
    except ImportError as error:
        connection.send(BochsUnavailableError(str(error)))
        return
    connection.send(None)
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        outcomes = []
        for index, content in enumerate(batch):
            position.value = index
            outcomes.append(_compare(session, content))
        connection.send(outcomes)


def _compare(session: Any, content: bytes) -> Outcome:
    from nvmx_fuzz.bochs.machine import run_realised  # noqa: PLC0415 - see serve
    from nvmx_fuzz.realise.realiser import fit, realise  # noqa: PLC0415
    from nvmx_fuzz.realise.vmcs import NotRealisableError  # noqa: PLC0415

    try:
        realised = realise(fit(decode(content), BOCHS_CAPABILITIES))
    except NotRealisableError as error:
        return Outcome(NOT_REALISABLE, error.reason)
    run = run_realised(session, realised)
    found = first_difference(realised.journal, run.journal, realised.entries)
    journal = zlib.crc32(marshal.dumps(run.journal, 2))  # version 2 depends on the values alone
    rules = tuple(entry.rule for entry in realised.entries)
    return Outcome(DIFFERENT if found else SAME, "", found, rules, journal)


class Worker:
    """The parent's side: compares scenarios, starts the process anew when it ends."""

    shrink_runs: Final = 300
    batch_size: Final = _BATCH

    def __init__(self) -> None:
        """Start the process.

        Raises:
            BochsUnavailableError: the emulator cannot be used here.
        """
        self._context: Final = multiprocessing.get_context("spawn")
        self._position: Final = self._context.Value("q", 0, lock=False)
        self.restarts = 0
        self._start()

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=serve, args=(theirs, self._position), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            if not self._connection.poll(START_SECONDS_MAX):
                self._process.kill()
            problem = self._connection.recv()
        except EOFError:
            self._process.join()
            status = self._process.exitcode
            problem = BochsUnavailableError(
                f"the emulator ends with status {status} when it starts"
            )
        if problem:
            raise problem

    def compare(self, scenarios: Sequence[bytes]) -> Iterator[Outcome]:
        """The outcome of each scenario, in order."""
        done = 0
        while done < len(scenarios):
            self._position.value = -1
            try:
                self._connection.send(scenarios[done : done + _BATCH])
                if not self._connection.poll(SECONDS_MAX):
                    self._process.kill()
                outcomes = self._connection.recv()
            except (EOFError, ConnectionError):
                lost = self._position.value
                reason = self._bury()
                if lost >= 0:  # those before it are asked again, without it
                    yield from self.compare(scenarios[done : done + lost])
                    yield Outcome(INCIDENT, reason)
                    done += lost + 1
                continue
            yield from outcomes
            done += len(outcomes)

    def _bury(self) -> str:
        self._process.join()
        status = self._process.exitcode
        self._connection.close()
        self.restarts += 1
        self._start()
        return f"the emulator ended with status {status}"

    def known(self, _content: bytes, outcome: Outcome) -> str:
        """The divergence of docs/FIDELITY.md that a difference is an instance of; "" for none."""
        divergence = known(outcome.difference) if outcome.difference else None
        return divergence.name if divergence else ""

    def memory(self) -> int:
        """The resident memory of the process, in bytes; 0 where nobody tells."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            return 0
        return pages * resource.getpagesize()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
