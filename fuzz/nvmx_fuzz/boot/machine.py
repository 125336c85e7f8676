"""Scenarios on machines that boot the image: `bochs-boot`, and those that put a Linux KVM under it."""

import marshal
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Final

from nvmx_fuzz.boot.batch import LAST_LINE, Answer, Batch, BootError
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.emulator import Ended, Settings, run_disc
from nvmx_fuzz.boot.iso import iso_of_image
from nvmx_fuzz.boot.reading import journal_of, visible
from nvmx_fuzz.boot.standalone import Standalone
from nvmx_fuzz.boot.linux import disc_with_kvm
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.codec import decode
from nvmx_fuzz.compare import first_difference
from nvmx_fuzz.outcomes import DIFFERENT, INCIDENT, NOT_REALISABLE, SAME, Outcome
from nvmx_fuzz.realise.vmcs import NotRealisableError

BATCH_MAX: Final = 500
"""Scenarios of one boot."""
_EMULATED_LINUX: Final = Settings(megabytes=512, silent_seconds=30.0, start_seconds=120.0)
_EMULATED: Final = Settings(megabytes=128, silent_seconds=3.0, start_seconds=60.0)


class BootingMachine:
    """A machine that boots the image, and what it needs of itself."""

    def __init__(self, batch: Batch) -> None:
        self._batch: Final = batch
        self.restarts = 0

    @cached_property
    def capabilities(self) -> Capabilities:
        """What its processor offers.

        Raises: BootError, MissingToolError.
        """
        capabilities = self._batch.capabilities()
        problem = capabilities.suffices()
        if problem:
            raise BootError(problem)
        return capabilities

    def compare(self, scenarios: Sequence[bytes]) -> Iterator[Outcome]:
        """The outcome of each scenario, in order."""
        for start in range(0, len(scenarios), BATCH_MAX):
            yield from self._compare(scenarios[start : start + BATCH_MAX])

    def _compare(self, scenarios: Sequence[bytes]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        realised: dict[int, Standalone] = {}
        for index, content in enumerate(scenarios):
            try:
                realised[index] = stand_alone_moved(decode(content), self.capabilities)
            except NotRealisableError as error:
                outcomes[index] = Outcome(NOT_REALISABLE, error.reason)
        before = self._batch.boots
        answers = self._batch.run([one.realised.script for one in realised.values()])
        self.restarts += max(self._batch.boots - before - 1, 0)
        for (index, one), answer in zip(realised.items(), answers, strict=True):
            outcomes[index] = _outcome(one, answer)
        return [outcomes[index] for index in range(len(scenarios))]

    def memory(self) -> int:
        """Nothing stays resident between two boots."""
        return 0

    def close(self) -> None:
        """Every boot has ended already."""


def _outcome(expected: Standalone, answer: Answer) -> Outcome:
    rules = tuple(entry.rule for entry in expected.realised.entries)
    if answer.line is None:
        return Outcome(INCIDENT, f"the machine {answer.reason}", None, rules)
    shown = journal_of(answer.line, expected)
    found = first_difference(visible(expected.realised.journal), shown, expected.realised.entries)
    journal = zlib.crc32(marshal.dumps(shown, 2))  # version 2 depends on the values alone
    return Outcome(DIFFERENT if found else SAME, "", found, rules, journal)


def kvm_bochs() -> BootingMachine:
    """The image below a stock Linux KVM, which runs inside the full Bochs."""

    def start(image: bytes) -> Ended:
        return run_disc(disc_with_kvm(image), _EMULATED_LINUX, LAST_LINE)

    return BootingMachine(Batch(start, doorbell=True))


def bochs_boot() -> BootingMachine:
    """The image on the full Bochs, without any hypervisor below."""

    def start(image: bytes) -> Ended:
        return run_disc(iso_of_image(image), _EMULATED, LAST_LINE)

    return BootingMachine(Batch(start))
