"""The executions of the fuzzing process: run, judge, count, and report what is new.

This module imports the model; `worker.py` imports it inside `feedback.instrument`.
"""

import os
import traceback
from operator import add
from pathlib import Path
from typing import Final

from nvmx_core.l0.reach import REACH_COUNT
from nvmx_core.oracle.judge import Verdict
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.codec import decode
from nvmx_fuzz.files import BadFile, content_name, write_whole
from nvmx_fuzz.nested_events import NestedEvents
from nvmx_fuzz.progress import OUT_OF_MEMORY, Message, Order, Progress, send
from nvmx_fuzz.rule_rows import RULE_INDEX, RULE_ROWS
from nvmx_fuzz.state_feedback import StateFeedback

_PUBLISH_EVERY: Final = 64


class Executions:
    """Counts executions, and reports each finding and model error that is new or smaller.

    Attributes:
        stopping: set it from a signal handler, and the process ends before the next execution.
    """

    def __init__(self, order: Order, states: StateFeedback) -> None:
        """Run inputs with the L0 of *order*, and report as it says."""
        self.stopping = False
        self._order: Final = order
        self._target: Final = NestedEvents(order.l0, states)
        self._progress: Final = Progress(order.memory)
        self._executions = 0
        self._steps = 0
        self._skipped = 0
        self._violating = 0
        self._reach = [0] * REACH_COUNT
        self._fired: Final = [0] * len(RULE_ROWS)
        self._smallest: dict[str, tuple[int, bytes]] = {}

    def test_one_input(self, data: bytes) -> None:
        """What libFuzzer calls; never raises."""
        if self.stopping or self._executions == self._order.runs != 0:
            self._publish()
            os._exit(0)  # libFuzzer has nothing in memory that it would still write
        scenario = decode(data)
        self._executions += 1
        self._steps += len(scenario.steps)
        try:
            verdict = self._target.run(scenario)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # nobody's bug, and nothing more can be done here
        except Exception as error:  # noqa: BLE001 - whatever the model raises is our own bug
            self._report_model_error(data, error)
        else:
            self._count(scenario, verdict, data)
        if self._executions % _PUBLISH_EVERY == 0:
            self._publish()

    def _count(self, scenario: Scenario, verdict: Verdict, data: bytes) -> None:
        nested = verdict.nested
        self._skipped += nested.skipped
        self._reach = list(map(add, self._reach, nested.vcpu.reach))
        if verdict.violations:
            self._violating += 1
            for row in {(found.oracle, found.rule) for found in verdict.violations}:
                self._fired[RULE_INDEX[row]] += 1
            key = verdict.violations[0].key()
            if key not in self._smallest:
                self._leave(data)
            self._report("finding", key, "", len(scenario.steps), data)

    def _leave(self, data: bytes) -> None:
        """Write a new finding where the next campaign looks, should the reader of our messages die."""
        try:
            write_whole(Path(self._order.arrivals) / content_name(data), data)
        except BadFile:
            return  # the disk is full: the other process will notice, and show what it cannot write

    def _report_model_error(self, data: bytes, error: Exception) -> None:
        """Errors raised at the same place with the same words are the same one."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = "".join(traceback.format_exception(error))
        key = f"{frame.filename}:{frame.lineno} {error!r}"
        self._report("model-error", key, text, len(data) >> 3, data)

    def _report(self, kind: str, key: str, text: str, steps: int, data: bytes) -> None:
        """Send what is new under *key*, or has fewer steps than what was sent before."""
        size = (steps, data)
        known = self._smallest.get(key)
        if known is None or size < known:
            self._smallest[key] = size
            self._publish()
            send(self._order.messages, Message(kind, text=text, data=data))

    def _publish(self) -> None:
        self._progress.publish(
            self._executions,
            self._steps,
            self._skipped,
            self._violating,
            self._reach,
            self._fired,
        )
