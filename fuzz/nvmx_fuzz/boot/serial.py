"""What an exported image has printed elsewhere, beside `bare`: the machine is whatever booted it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.boot.batch import Answer
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.export import EVERYTHING
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine, outcome_of
from nvmx_fuzz.boot.moved import fit_booting, stand_alone_moved
from nvmx_fuzz.boot.naming import HANGS
from nvmx_fuzz.boot.standalone import Standalone
from nvmx_fuzz.boot.wire import REFUSALS, whole_lines
from nvmx_fuzz.codec import decode
from nvmx_fuzz.files import BadFile, read_file
from nvmx_fuzz.outcomes import NOT_REALISABLE, MissingError, Outcome
from nvmx_fuzz.realise.vmcs import NotRealisableError

SIZE_MAX: Final = 256 << 20
MADE_FOR_ANOTHER: Final = "made-for-another-processor"
"""What a scenario is refused for whose image would differ for the processor that ran it."""
NOT_REACHED: Final = "not-reached"
"""The same for one behind a scenario with which the machine hung, or the text ends."""


class SerialText:
    """The text of a serial port as a machine (a `Comparer`); the scenarios are those of the image."""

    shrink_runs: Final = 0
    batch_size: Final = 1 << 30
    restarts = 0

    def __init__(self, name: str, machine: str = "") -> None:
        """Read the text; *machine* names the one of BOOTING that ran the image, if it was one.

        Raises: BadFile, UnavailableError.
        """
        text = read_file(name, SIZE_MAX, "text of a serial port").decode("latin-1")
        lines = list(whole_lines(text))
        for line in lines:
            if line.kind == "!":
                raise BadFile(
                    name, f"the image did not run: {REFUSALS.get(line.number, 'it refused')}"
                )
        heads = [line for line in lines if line.kind == "@"]
        if not heads:
            raise BadFile(name, "holds no output of an image")
        ran = BootingMachine(BOOTING[machine]) if machine else None
        if ran and not ran.is_at_hand:
            raise MissingError(
                f"the kernel of {machine} is not known; name its folder with NVMX_KERNEL"
            )
        read = Capabilities(heads[-1].records[0].values)
        self._capabilities: Final = ran.with_habits(read) if ran else read
        self._naming: Final = ran.naming(self._capabilities) if ran else None
        self._lines: Final = {line.number: line for line in lines if line.kind == "#"}
        self._name: Final = Path(name).name
        came_to_its_end = any(line.kind == "$" for line in lines)
        self._hung_at: Final = None if came_to_its_end else max(self._lines, default=-1) + 1
        self._ends_with_a_line: Final = any(whole_lines(text.rstrip().rpartition("\n")[2] + "\n"))

    def compare(self, scenarios: Sequence[bytes]) -> Iterator[Outcome]:
        """The outcome of each scenario, numbered as `nvmx-fuzz export` numbers them."""
        number = 0
        for content in scenarios:
            scenario = decode(content)
            try:
                exported = stand_alone_moved(scenario, EVERYTHING)
            except NotRealisableError as error:
                yield Outcome(NOT_REALISABLE, error.reason)
                continue
            yield self._outcome(scenario, exported, number)
            number += 1

    def _outcome(self, scenario: Scenario, exported: Standalone, number: int) -> Outcome:
        """What became of a scenario that was exported for a processor which offers everything."""
        try:
            expected = stand_alone_moved(scenario, self._capabilities)
        except NotRealisableError as error:
            return Outcome(NOT_REALISABLE, error.reason)
        if expected.realised.script != exported.realised.script:
            return Outcome(NOT_REALISABLE, MADE_FOR_ANOTHER)
        line = self._lines.get(number)
        if self._hung_at is not None and number > self._hung_at:
            return Outcome(NOT_REALISABLE, NOT_REACHED)
        reason = "" if line else f"has no whole line in {self._name}"
        if number == self._hung_at and self._ends_with_a_line:
            reason = HANGS
        return outcome_of(expected, Answer(line, reason), has_rf=self._capabilities.saves_rf)

    def known(self, content: bytes, outcome: Outcome) -> str:
        """What the machine that ran it is known for; nothing where that may be any hypervisor."""
        if not self._naming:
            return ""
        return self._naming.known(fit_booting(decode(content), self._capabilities), outcome)

    def memory(self) -> int:
        """Nothing runs."""
        return 0

    def close(self) -> None:
        """Nothing is open."""
