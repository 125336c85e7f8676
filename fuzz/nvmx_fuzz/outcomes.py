"""What a comparison of `bare` with another machine says of one scenario, and what such a machine is."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from nvmx_fuzz.compare import Difference

SAME: Final = "same"
DIFFERENT: Final = "different"
NOT_REALISABLE: Final = "not realisable"
INCIDENT: Final = "incident"


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


class Comparer(Protocol):
    """A machine that scenarios (byte form) can be run on, each beside `bare`."""

    restarts: int
    """How often it ended in the middle and was started anew."""

    def compare(self, scenarios: Sequence[bytes]) -> Iterator[Outcome]:
        """The outcome of each scenario, in order."""

    def memory(self) -> int:
        """Resident memory in bytes; 0 where nothing stays."""

    def close(self) -> None:
        """End it."""
