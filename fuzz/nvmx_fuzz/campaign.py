"""A campaign: one fuzzing process or several, and this one, which watches, keeps findings, and tells people.

The split is for robustness. libFuzzer ends its process in many ways, none of which Python sees; the
model in it is instrumented, so that running it for other purposes would count as coverage. Here
nothing is instrumented: findings are shrunk, explained and written by this process. Whatever ends
a fuzzing process, and whenever, the summary is printed and nothing found is lost; a campaign of several
goes on with the others, and says so.

The output folder holds ``corpus/`` (written by libFuzzer), ``findings/``, ``arrivals/`` (inputs on
their way into ``findings/``), ``model-errors/``, ``seeds/`` (encoded anew at each start), ``progress.jsonl``
(see ``history.py``), ``libfuzzer.log`` (``libfuzzer-2.log`` … of further jobs) and ``summary.json``. A
second campaign into the same folder goes on from there.
"""

import selectors
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from nvmx_fuzz.corpus_files import read_seeds, write_seeds
from nvmx_fuzz.findings import Findings
from nvmx_fuzz.history import HistoryWriter
from nvmx_fuzz.launcher import FREE_BYTES_MIN, NO_SPACE, FuzzingProcess, Plan, free_bytes
from nvmx_fuzz.model_errors import ModelErrors
from nvmx_fuzz.progress import OUT_OF_MEMORY, Inbox, Message, Totals
from nvmx_fuzz.status import Reporter, Status, ran_out_of_memory
from nvmx_fuzz.wording import counted

POLL_SECONDS: Final = 0.2
STOP_SECONDS: Final = 5.0
"""How long the fuzzing process may take to finish its current execution."""

_SPACE_CHECK_SECONDS: Final = 5.0
_KILLING: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""What only others send, such as the kernel where memory runs out; a crash has other signals."""


class Signals:
    """Counts the requests to stop: whatever is being written is finished first."""

    def __init__(self) -> None:
        """Nobody asked yet."""
        self.count = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count instead of dying."""

        def count(_signal: int, _frame: object) -> None:
            self.count += 1

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = [signal.signal(number, count) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


class Campaign:
    """One campaign from the start of its fuzzing processes to the end of the last one.

    Attributes:
        status: what is known so far, for panel and summary.
    """

    def __init__(
        self,
        plan: Plan,
        processes: Sequence[FuzzingProcess],
        signals: Signals,
        seeds: Mapping[str, bytes] | None = None,
    ) -> None:
        """Carry out *plan* with *processes*, until *signals* says stop. Raises BadFile.

        *seeds* are those of the plan, if they have been read.
        """
        write_seeds(read_seeds(plan.seeds) if seeds is None else seeds, plan.encoded_seeds)
        self.status: Final = Status(
            plan,
            Totals([process.progress for process in processes]),
            Findings(plan.findings, plan.l0, plan.arrivals),
            ModelErrors(plan.model_errors, plan.l0),
        )
        self.status.findings.recall()
        self._history: Final = HistoryWriter(plan.out, plan.l0, plan.encoded_seeds, plan.corpus)
        self._processes: Final = processes
        self._signals: Final = signals
        self._stop_by = 0.0
        self._space_checked = 0.0

    def run(self, reporter: Reporter) -> None:
        """Fuzz until the plan is fulfilled or someone stops it; raises BadFile."""
        status = self.status
        for process in self._processes:
            process.go()
        started = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.inbox, selectors.EVENT_READ, (process, Inbox()))
            while selector.get_map():
                for key, _events in selector.select(POLL_SECONDS):
                    process, messages = key.data
                    received = process.inbox.read(1 << 16)
                    for message in messages.feed(received):
                        if message.kind == "ready" and not status.mode:
                            started = time.monotonic()
                        self._take(message, reporter)
                        self._show(started, reporter)
                    if not received:
                        selector.unregister(process.inbox)
                        is_last = not selector.get_map()
                        self._note_end(process, is_last=is_last, reporter=reporter)
                self._show(started, reporter)
                self._stop_if_due()
        self._history.end(status)

    def _show(self, started: float, reporter: Reporter) -> None:
        """Tell how it goes; findings that come in a burst take seconds, so also between two of them."""
        status = self.status
        status.seconds = time.monotonic() - started
        self._history.look(status)
        reporter.show(status)

    def _take(self, message: Message, reporter: Reporter) -> None:
        status = self.status
        if message.kind == "ready":
            status.mode = message.text
            status.probes = message.count
        elif message.kind == "model-error":
            path = status.model_errors.keep(message.data, message.text)
            reporter.tell(f"our own bug: {message.text.splitlines()[-1]} -> {path}")
        else:
            kept = status.findings.offer(message.data)
            if kept is not None:
                finding, is_new = kept
                steps = counted(len(finding.scenario.steps), "step")
                what = "finding" if is_new else "smaller"
                reporter.tell(f"{what}: {finding.violation.sentence} ({steps}) -> {finding.scn}")

    def _stop_if_due(self) -> None:
        """Ask the fuzzing processes to end; when that takes too long, or on a second Ctrl-C, end them."""
        if self._stop_by:
            if self._signals.count > 1 or time.monotonic() > self._stop_by:
                for process in self._processes:
                    process.kill()
            return
        reason = self._reason_to_stop()
        if reason:
            self.status.ended = reason
            self._stop_by = time.monotonic() + STOP_SECONDS
            for process in self._processes:
                process.stop()

    def _reason_to_stop(self) -> str:
        """Why the campaign should end now, or ""."""
        plan, seconds = self.status.plan, self.status.seconds
        if self._signals.count:
            return "interrupted"
        if plan.seconds and seconds >= plan.seconds:
            return "time is up"
        if seconds - self._space_checked >= _SPACE_CHECK_SECONDS:
            self._space_checked = seconds
            if free_bytes(plan.out) < FREE_BYTES_MIN:
                return NO_SPACE
        return ""

    def _note_end(self, process: FuzzingProcess, *, is_last: bool, reporter: Reporter) -> None:
        """Say why a fuzzing process ended, unless it was told to or its runs were done.

        The campaign has ended with the last one; while others go on people are told at once.
        """
        status, plan = self.status, self.status.plan
        exit_status = process.wait()
        if status.ended:
            return
        if exit_status == 0:
            if is_last:
                status.ended = (
                    "the other jobs have done their runs" if status.lost else "all runs done"
                )
            return
        who = f"job {process.number + 1}" if plan.is_shared else "the fuzzing process"
        if -exit_status in _KILLING:
            how = f"{who} was killed ({signal.Signals(-exit_status).name})"
            status.killed = True
        elif exit_status == OUT_OF_MEMORY or ran_out_of_memory(plan.log_of(process.number)):
            how = f"{who} got no more memory or threads"
            status.killed = True
        else:
            how = f"status {exit_status}"
            if exit_status < 0:
                how = f"signal {signal.Signals(-exit_status).name}"
            how = f"{who} ended by itself ({how})"
            status.model_errors.crashed(f"{how}; see {plan.log_of(process.number)}")
        if plan.is_shared:
            status.lost.append(f"{how} after {status.seconds:.1f} s")
            reporter.tell(how if is_last else f"{how}; the others go on")
        if is_last:
            status.ended = how
