"""What an exported image has printed elsewhere, beside `bare`: the machine is whatever booted it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from nvmx_fuzz.boot.batch import Answer
from nvmx_fuzz.boot.export import EVERYTHING
from nvmx_fuzz.boot.machine import outcome_of
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.boot.wire import REFUSALS, whole_lines
from nvmx_fuzz.codec import decode
from nvmx_fuzz.files import BadFile, read_file
from nvmx_fuzz.outcomes import NOT_REALISABLE, Outcome
from nvmx_fuzz.realise.vmcs import NotRealisableError

SIZE_MAX: Final = 256 << 20


class SerialText:
    """The text of a serial port as a machine (a `Comparer`); the scenarios are those of the image."""

    shrink_runs: Final = 0
    batch_size: Final = 1 << 30
    restarts = 0

    def __init__(self, name: str) -> None:
        """Read the text.

        Raises: BadFile.
        """
        text = read_file(name, SIZE_MAX, "text of a serial port").decode("latin-1")
        lines = list(whole_lines(text))
        for line in lines:
            if line.kind == "!":
                raise BadFile(
                    name, f"the image did not run: {REFUSALS.get(line.number, 'it refused')}"
                )
        if not any(line.kind == "@" for line in lines):
            raise BadFile(name, "holds no output of an image")
        self._lines: Final = {line.number: line for line in lines if line.kind == "#"}
        self._name: Final = Path(name).name

    def compare(self, scenarios: Sequence[bytes]) -> Iterator[Outcome]:
        """The outcome of each scenario, numbered as `nvmx-fuzz export` numbers them."""
        number = 0
        for content in scenarios:
            try:
                expected = stand_alone_moved(decode(content), EVERYTHING)
            except NotRealisableError as error:
                yield Outcome(NOT_REALISABLE, error.reason)
                continue
            line = self._lines.get(number)
            reason = "" if line else f"has no whole line in {self._name}"
            yield outcome_of(expected, Answer(line, reason), has_rf=True)
            number += 1

    def known(self, _content: bytes, _outcome: Outcome) -> str:
        """Nothing: it may be any processor, and any hypervisor."""
        return ""

    def memory(self) -> int:
        """Nothing runs."""
        return 0

    def close(self) -> None:
        """Nothing is open."""
