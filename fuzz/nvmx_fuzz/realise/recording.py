"""What the recorder of a scenario knows while it goes along: script, schedule, L2's real stack."""

from typing import TYPE_CHECKING, Final

from nvmx_core.arch.fields import POISON
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.guests.memory import STACK, page_address
from nvmx_core.journal import DELIVER, RETIRE, Record
from nvmx_core.machines.bare import Bare
from nvmx_core.scenario.config import Config
from nvmx_fuzz.realise import l1_program as l1
from nvmx_fuzz.realise import schedule
from nvmx_fuzz.realise.image import KERNEL_STACK
from nvmx_fuzz.realise.script import (
    REGISTERS_ADDRESS,
    Operation,
    RealRegion,
    RealTables,
    pointer_to,
)
from nvmx_fuzz.realise.vmcs import NotRealisableError, default_stack

if TYPE_CHECKING:
    from nvmx_fuzz.compare import Entry

POP_FLAGS: Final = INSTRUCTION_INDEX["popf"]
POP_SS: Final = INSTRUCTION_INDEX["pop-ss"]
IRET: Final = INSTRUCTION_INDEX["iret"]
_FRAME: Final = 12
_FRAME_FROM_USER: Final = 20

IN_STEP, AT_ENTRY, IN_EVENT_DELIVERY, IN_EMULATION = range(4)
"""The moment of an arrival."""


class Recording(Bare):
    """The machine `bare` with all that its recorder writes down."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.script: list[Operation | list[Operation]] = [(l1.VMPTRLD, pointer_to(0), 0, 0)]
        self.schedule: list[schedule.Item] = []
        self.stacks: list[tuple[int, int]] = []
        self.pins: list[int] = []
        self.entries: list[Entry] = []
        self.real_regions: list[RealRegion] = [RealRegion(), RealRegion()]
        self.tables: RealTables = RealTables()
        self.moment: int = IN_STEP
        self.manners: int = 0
        self.opening: bool = False
        self.entered: bool = False
        self.seen: int = 0
        self.esp: int = 0
        self.l2_cpl: int = 0
        self.return_cpl: int = 0
        self.enter_operation: Operation = (l1.ENTER, 0, 0, REGISTERS_ADDRESS)
        self.instruction: int = -1
        self.code_of_stint: list[Operation] = []
        self.bytes_of_stint: dict[int, int] = {}
        self.eax_changed: bool = False
        self.monitored: bool = False

    def _follow(self) -> None:
        """Follow L2's real stack pointer through what the journal says has happened."""
        journal = self.journal
        for record in journal[self.seen :]:
            if record[0] == DELIVER:
                self._follow_delivery(record)
            elif record[0] == RETIRE:
                self._follow_instruction()
        self.seen = len(journal)
        if self.cpu.non_root and not 0x14400 <= self.esp < 0x15000:
            raise NotRealisableError("stack-depth")

    def _follow_delivery(self, record: Record) -> None:
        """A delivery has pushed a frame."""
        base, size = self.esp, _FRAME
        if self.l2_cpl:
            base, size = page_address(STACK) + KERNEL_STACK, _FRAME_FROM_USER
        self.esp = base - size - (0 if record[2] == POISON else 4)
        self.l2_cpl = 0

    def _follow_instruction(self) -> None:
        if self.instruction == POP_FLAGS or self.instruction == POP_SS:
            self.esp += 4
        elif self.instruction == IRET:
            outer = self.return_cpl > self.l2_cpl
            self.esp = default_stack(3) if outer else self.esp + _FRAME
            self.l2_cpl = self.return_cpl
        self.instruction = -1
