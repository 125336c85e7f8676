"""The L0 of bugs that need memory of their own: what a wrong decision remembered."""

from typing import Final

from nvmx_core.cpu.processor import Processor
from nvmx_core.guests.l1 import L1
from nvmx_core.guests.memory import L2Memory
from nvmx_core.journal import Record
from nvmx_core.l0.kvm import Kvm
from nvmx_core.scenario.config import Config

NOWHERE: Final = (-1, -1)


class Remembering(Kvm):
    """Fields of all of them together, so that bugs can be combined; none crosses a save and restore.

    ``injected_int1_at`` is RIP and RSP of L2 when L1 injected an INT1 that L0 has not seen end, or NOWHERE;
    ``stage`` is how far a planted bug's history has come.
    """

    __slots__ = ("injected_int1_at", "nmi_known_unmasked", "notification_at_entry", "stage")

    def __init__(
        self, config: Config, cpu: Processor, memory: L2Memory, l1: L1, journal: list[Record]
    ) -> None:
        super().__init__(config, cpu, memory, l1, journal)
        self.injected_int1_at: tuple[int, int] = NOWHERE
        self.nmi_known_unmasked: bool = False
        self.notification_at_entry: bool = False
        self.stage: int = 0
