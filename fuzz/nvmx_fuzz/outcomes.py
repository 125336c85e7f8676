"""What a comparison of `bare` with another machine says of one scenario, and what such a machine is."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.compare import Difference

SAME: Final = "same"
DIFFERENT: Final = "different"
NOT_REALISABLE: Final = "not realisable"
INCIDENT: Final = "incident"


class UnavailableError(Exception):
    """A machine cannot be used here; the message says why and what to do."""


class MissingError(UnavailableError):
    """It is not installed, or there is none for this platform: nothing that is here is broken."""


class Outcome(NamedTuple):
    """What became of one scenario.

    SAME, DIFFERENT with the difference, NOT_REALISABLE or INCIDENT with the reason; ``entry_rules`` are
    those that its entries broke in the model, ``journal`` is a checksum of what the other machine showed.
    """

    verdict: str
    reason: str = ""
    difference: Difference | None = None
    entry_rules: tuple[str, ...] = ()
    journal: int = 0


class Kind(NamedTuple):
    """What names a difference: the name of what is known to make it, or "", and its key."""

    known: str
    key: str


class Shown(NamedTuple):
    """A scenario that shows a kind, and what the machine said of it."""

    scenario: Scenario
    outcome: Outcome


def key_of(outcome: Outcome) -> str:
    """What names the kind of an outcome."""
    difference = outcome.difference
    return difference.key() if difference else outcome.reason


class Comparer(Protocol):
    """A machine that scenarios (byte form) can be run on, each beside `bare`."""

    restarts: int
    """How often it ended in the middle and was started anew."""

    @property
    def shrink_runs(self) -> int:
        """How many runs may be spent on making one scenario smaller; 0 where a run is a boot."""

    @property
    def batch_size(self) -> int:
        """How many scenarios to hand over at once."""

    def compare(self, scenarios: Sequence[bytes]) -> Iterator[Outcome]:
        """The outcome of each scenario, in order."""

    def known(self, content: bytes, outcome: Outcome) -> str:
        """What is known to make a difference or an incident; "" if nothing is."""

    def memory(self) -> int:
        """Resident memory in bytes; 0 where nothing stays."""

    def close(self) -> None:
        """End it."""
