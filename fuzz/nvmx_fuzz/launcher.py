"""Before a campaign: its plan, its folder, and the start of its fuzzing processes.

Nothing here imports the model, so that a fuzzing process starts at once and loads its own copy
while its parent does the same.

Several jobs write into one corpus folder, and each looks there for what the others wrote. Nothing is lost by
that: libFuzzer removes a file only when it is its own and a smaller input shows all that it showed.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from nvmx_fuzz.files import IS_A_LINK, BadFile, about, make_folder, open_own, write_whole
from nvmx_fuzz.progress import MEMORY_SIZE, Order, Progress

COMMAND_FILE: Final = "command.txt"
"""In the output folder of a campaign: how to repeat it."""
FREE_BYTES_MIN: Final = 1 << 20
JOBS_MAX: Final = 256
RELOAD_SECONDS: Final = 10
"""How often a job among several looks for what the others found.

Not at once: what is found in the first seconds each job finds by itself, and jobs that share it look alike.
"""

_SEEDS: Final = (1 << 31) - 1
"""A prime, so that any stride below it gives different seeds; libFuzzer's own has 32 bits."""
_SEED_STRIDE: Final = 0x5851F42D

NO_SPACE: Final = f"no space left: less than {FREE_BYTES_MIN >> 20} MiB is free"


@dataclass(frozen=True)
class Plan:
    """What a campaign is to do.

    *core* is the build of the model, "python" or "compiled".
    *seconds* and *runs* limit it (0: no limit); *seeds* is a folder of scenarios to start from, or
    None; *out* is the folder for everything that it leaves. *command* repeats the campaign. *jobs* is
    the number of fuzzing processes; where there are several each looks every *reload* seconds for what the
    others found (0: never).
    """

    l0: str
    core: str
    seconds: float
    runs: int
    seeds: Path | None
    out: Path
    seed: int
    feedback: str
    command: str
    jobs: int = 1
    reload: int = RELOAD_SECONDS

    @property
    def is_shared(self) -> bool:
        """Whether several processes work on the corpus."""
        return self.jobs > 1

    def runs_of(self, number: int) -> int:
        """How many of the runs are those of a job; 0: without end. No job has none, see `cli_run`."""
        return self.runs // self.jobs + (number < self.runs % self.jobs)

    def seed_of(self, number: int) -> int:
        """The seed of a job, a different one for each; the first one has that of the campaign."""
        return (self.seed - 1 + number * _SEED_STRIDE) % _SEEDS + 1

    def log_of(self, number: int) -> Path:
        """Where libFuzzer's own output of a job goes."""
        return self.log.with_stem(f"{self.log.stem}-{number + 1}") if number else self.log

    @property
    def corpus(self) -> Path:
        """Where libFuzzer writes new inputs."""
        return self.out / "corpus"

    @property
    def encoded_seeds(self) -> Path:
        """Where the seeds are in byte form."""
        return self.out / "seeds"

    @property
    def parts(self) -> tuple[Path, ...]:
        """The folders in `out`."""
        return (
            self.corpus, self.encoded_seeds, self.findings, self.arrivals, self.model_errors
        )  # fmt: skip

    @property
    def findings(self) -> Path:
        """Where findings are written."""
        return self.out / "findings"

    @property
    def arrivals(self) -> Path:
        """Where the fuzzing process leaves what violates an oracle until it is in `findings`."""
        return self.out / "arrivals"

    @property
    def model_errors(self) -> Path:
        """Where the inputs are written that make the model contradict itself."""
        return self.out / "model-errors"

    @property
    def log(self) -> Path:
        """Where libFuzzer's own output of the first job goes."""
        return self.out / "libfuzzer.log"


def free_bytes(folder: Path) -> int:
    """How much may still be written into a folder; raises BadFile."""
    with about(folder):
        space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


@contextmanager
def output_folder(plan: Plan) -> Iterator[None]:
    """Make the folders of a plan and keep other campaigns out of them; raises BadFile."""
    make_folder(plan.out)
    _require_that_it_is_ours(plan)
    for folder in plan.parts:
        make_folder(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise BadFile(folder, "cannot be written")
    if free_bytes(plan.out) < FREE_BYTES_MIN:
        raise BadFile(plan.out, NO_SPACE)
    with open_own(plan.out / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = "another campaign runs here; choose another folder with --out"
            raise BadFile(plan.out, message) from None
        write_whole(plan.out / COMMAND_FILE, f"{plan.command}\n".encode())
        yield


def _require_that_it_is_ours(plan: Plan) -> None:
    """Raise BadFile if what a campaign would replace or write behind is not that of a campaign."""
    is_campaign = (plan.out / COMMAND_FILE).is_file()
    for folder in plan.parts:
        with about(folder):
            if folder.is_symlink():
                raise BadFile(folder, IS_A_LINK)
            if not is_campaign and folder.is_dir() and any(folder.iterdir()):
                raise BadFile(folder, "is not empty, and not of a campaign; choose another --out")
    if plan.seeds is not None and plan.seeds.resolve().is_relative_to(plan.encoded_seeds.resolve()):
        raise BadFile(plan.seeds, "is where this campaign puts its own seeds; choose another --out")


class FuzzingProcess:
    """A process in which libFuzzer runs.

    Attributes:
        number: its number among the jobs of the campaign, from 0.
        progress: its numbers, which stay readable when it is gone.
        inbox: what it tells, see `progress.Inbox`; at its end it has gone.
    """

    def __init__(self, plan: Plan, number: int = 0) -> None:
        """Start it; it loads the model and then waits for `go`. Raises BadFile."""
        self.number: Final = number
        memory = os.memfd_create("nvmx-fuzz")
        os.ftruncate(memory, MEMORY_SIZE)
        self.progress: Final = Progress(memory)
        receiver, sender = os.pipe()
        self.inbox: Final[IO[bytes]] = os.fdopen(receiver, "rb", buffering=0)
        order = Order(
            l0=plan.l0,
            core=plan.core,
            feedback=plan.feedback,
            seed=plan.seed_of(number),
            runs=plan.runs_of(number),
            reload=plan.reload if plan.is_shared else 0,
            corpus=str(plan.corpus),
            seeds=str(plan.encoded_seeds),
            artifacts=str(plan.model_errors),
            arrivals=str(plan.arrivals),
            memory=memory,
            messages=sender,
            parent=os.getpid(),
        )
        try:
            self._process: Final = _start(order, plan.log_of(number))
        finally:
            os.close(memory)
            os.close(sender)

    @property
    def pid(self) -> int:
        """Its number in the system."""
        return self._process.pid

    def go(self) -> None:
        """Begin to fuzz."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.close()
        except BrokenPipeError:
            return  # it has gone; whoever reads the inbox sees that

    def stop(self) -> None:
        """Ask it to end after the current execution."""
        self._process.terminate()

    def kill(self) -> int:
        """End it now, if it has not ended; returns its status, negative for a signal."""
        self._process.kill()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; returns its status, negative for a signal."""
        return self._process.wait()


def _start(order: Order, log: Path) -> subprocess.Popen[bytes]:
    output = open_own(log)
    # Ctrl-C goes to all processes, but only the parent decides; what is ignored stays ignored.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with output:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "nvmx_fuzz.worker", order.to_json()],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(order.memory, order.messages),
            )
    finally:
        signal.signal(signal.SIGINT, handler)
