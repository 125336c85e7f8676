"""A batch of scenarios through a machine that boots: what hangs is noted, and the rest goes on."""

import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from nvmx_fuzz.boot import places
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.emulator import GIVES_UP, POWERS_OFF, STANDS_STILL, Ended
from nvmx_fuzz.boot.image import boot_image
from nvmx_fuzz.boot.wire import REFUSALS, Line, remarks, system_management, whole_lines
from nvmx_fuzz.outcomes import UnavailableError
from nvmx_fuzz.realise.script import Operation
from nvmx_fuzz.wording import printable

Start = Callable[[bytes], Ended]
"""Boots an image, and returns what it printed."""

LAST_LINE: Final = "$ *210c8933"
"""What the image prints when the batch is done."""
_WORDS_MAX: Final = 200
LOST_MAX: Final = 3
"""So many runs that bring nothing at all are enough."""


class BootError(UnavailableError):
    """The machine does not run the image at all; the message says why."""


class Answer(NamedTuple):
    """The line of one scenario, or why there is none; both where the monitor could not do all of it."""

    line: Line | None
    reason: str = ""
    smm: tuple[tuple[int, int], ...] = ()


class Batch:
    """Runs batches on one machine, and counts how often it had to be booted."""

    def __init__(self, start: Start, *, doorbell: bool = False, sweep: bool = False) -> None:
        self._start: Final = start
        self._doorbell: Final = doorbell
        self._sweep: Final = sweep
        self.boots = 0

    def capabilities(self) -> Capabilities:
        """What the processor of the machine offers.

        Raises: BootError, MissingToolError.
        """
        ended = self._run(boot_image([], doorbell=self._doorbell), 0)
        for line in whole_lines(ended.text):
            if line.kind == "@":
                return Capabilities(line.records[0].values)
        raise BootError(
            f"the image does not run: {ended.reason or 'it prints nothing'}; {last_words(ended.text)}"
        )

    def run(self, scripts: Sequence[Sequence[Operation]]) -> list[Answer]:
        """The answer to each script, in order.

        Raises: BootError, MissingToolError.
        """
        image = boot_image(scripts, doorbell=self._doorbell, sweep=self._sweep)
        answers: dict[int, Answer] = {}
        first, lost = 0, 0
        doubted: set[int] = set()  # the machine ended there once, which need not be its fault
        while first < len(scripts):
            ended = self._run(image, first)
            lines = {line.number: line for line in whole_lines(ended.text) if line.kind == "#"}
            said, smm = remarks(ended.text), system_management(ended.text)
            reached = max([*lines, *said], default=first - 1) + 1
            for number in range(first, min(reached, len(scripts))):
                line = lines.get(number)
                reason = said.get(number, "" if line else "its line was cut")
                answers[number] = Answer(line, reason, smm.get(number, ()))
            lost = 0 if reached > first or _has_started(ended.text) else lost + 1
            if lost == LOST_MAX:
                said_last = last_words(ended.text)
                raise BootError(
                    f"the image brings nothing {LOST_MAX} times: {ended.reason}; {said_last}"
                )
            in_doubt = ended.reason.startswith((GIVES_UP, POWERS_OFF)) and reached not in doubted
            if ended.reason == STANDS_STILL or in_doubt:
                doubted.add(reached)
                first = reached
                continue
            if reached < len(scripts):
                answers[reached] = Answer(None, ended.reason or "its line was cut")
            first = reached + 1
        return [answers[number] for number in range(len(scripts))]

    def _run(self, image: bytes, first: int) -> Ended:
        self.boots += 1
        ended = self._start(with_first(image, first))
        if -1 in remarks(ended.text):
            raise BootError(remarks(ended.text)[-1])
        for line in whole_lines(ended.text):
            if line.kind == "!":
                raise BootError(REFUSALS.get(line.number, "the image refuses to start"))
        return ended


def _has_started(text: str) -> bool:
    """Whether the image ran at all: what hangs then is the scenario that was next."""
    return any(line.kind == "@" for line in whole_lines(text))


def last_words(text: str) -> str:
    """What a machine that does not run the image said last on its serial port, or why its kernel panics."""
    lines = [line for each in text.splitlines() if (line := printable(each.strip()))]
    told = next((line for line in lines if "panic" in line.lower()), lines[-1] if lines else "")
    return f"its serial port says: {told[:_WORDS_MAX]}" if told else "its serial port says nothing"


def with_first(content: bytes, first: int) -> bytes:
    """An image, or a file that holds one, that begins with scenario *first*."""
    place = content.index(struct.pack("<Q", places.MAGIC)) + places.PARAMETER_FIRST
    return content[:place] + struct.pack("<Q", first) + content[place + 8 :]
