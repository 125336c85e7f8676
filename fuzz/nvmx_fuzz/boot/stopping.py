"""The recorder for machines with our monitor under L0: arrivals and steps of L0 become stops (``stops.py``).

A stop is tied to the first touch of a page, so the recorder follows which pages L2 has touched for
certain, or may have touched, since the stop before it or since the entry. At a boundary that page is the one
that L2 fetches from next; where it has fetched from that before and the arrival makes L2 exit, L2 finds an
instruction there that reads a page of its own, and never completes it. In a delivery it is the page of the
gate, or the stack.

Steps of L0 do nothing on `bare`, and are left out where no stop can make them: while L2 runs on a page that
it has fetched from already, in SMM, and host interrupts, which come by themselves.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nvmx_core.arch.events import TYPE_MASK, VALID, VECTOR_MASK
from nvmx_core.arch.exits import INIT_SIGNAL, SIPI_SIGNAL
from nvmx_core.arch.fields import ENTRY_INTR_INFO, GUEST_PENDING_DBG, GUEST_RIP
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import ACTIVE, WAIT_FOR_SIPI
from nvmx_core.guests.memory import (
    ALL_PAGES,
    CODE_BASE,
    DATA,
    GDT,
    HANDLER,
    IDT_HIGH,
    IDT_LOW,
    PAGE_COUNT,
    STACK,
    TSS,
    page_address,
    page_of,
)
from nvmx_core.journal import EXIT
from nvmx_core.scenario.config import Config
from nvmx_core.scenario.steps import (
    CANCEL_ENTRY,
    DROP_PAGE,
    INIT,
    SAVE_RESTORE,
    SIPI,
    SMI,
    Scenario,
)
from nvmx_fuzz.boot import stops
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.standalone import STOP_CODE, Standalone, StandaloneRecorder
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.realiser import fit
from nvmx_fuzz.realise.recording import AT_ENTRY, IN_EVENT_DELIVERY, IN_STEP
from nvmx_fuzz.realise.vmcs import NotRealisableError

if TYPE_CHECKING:
    from nvmx_fuzz.realise.script import Operation

READS_LOW_PAGE: Final = bytes.fromhex("A000000000")
"""MOV AL, [0]: what L2 finds where it has to exit before it completes another instruction."""
_PORTS: Final = (INSTRUCTION_INDEX["in"], INSTRUCTION_INDEX["out"])
_READS_DATA: Final = (INSTRUCTION_INDEX["load"], INSTRUCTION_INDEX["store"])
_READS_LOW: Final = (INSTRUCTION_INDEX["bound"], INSTRUCTION_INDEX["monitor"])
_LOW: Final = 1 << PAGE_COUNT
"""The bit of the page that `READS_LOW_PAGE` reads."""
_OF_INSTRUCTIONS: Final = 1 << STACK | 1 << GDT | 1 << TSS
_OF_DELIVERIES: Final = 1 << STACK | 1 << GDT | 1 << TSS


def stand_alone(scenario: Scenario, capabilities: Capabilities) -> Standalone:
    """Realise a scenario for a machine with these capabilities.

    Raises: NotRealisableError.
    """
    fitted = fit(scenario, capabilities.flags())
    kind = StoppingRecorder if capabilities.has_monitor else StandaloneRecorder
    recorder = kind(Config(*fitted.config), capabilities)
    recorder.run_unmarked(fitted)
    return Standalone(recorder.result(), recorder.stays, recorder.ends_in_l2, recorder.last_exit)


class StoppingRecorder(StandaloneRecorder):
    """The layer with a monitor that L1 tells where to stop.

    ``met``: the pages (a mask) that L2 may have touched since the last stop; ``waiting``: the actions at a
    boundary whose stop is not found yet, with the reason if there is none, ``rest``: where that is; ``owed``:
    the actions at this entry, made at its first stop: until then L0 alone decides, as from L1's VMLAUNCH on;
    ``owed_reason``: what is said if there is none.
    """

    def __init__(self, config: Config, capabilities: Capabilities) -> None:
        super().__init__(config, capabilities)
        self.stops: list[Operation] = []
        self.met: int = 0
        self.place: tuple[int, ...] = ()
        self.dropped: int = 0
        self.owed: list[int] = []
        self.owed_reason: str = ""
        self.entry_start: int = 0
        self.waiting: list[int] = []
        self.refusal: str = ""
        self.rest: tuple[int, int] = (0, 0)

    # -- arrivals -------------------------------------------------------------------------------------

    def _arrive_inside(self, op: int, b: int, reason: str) -> None:
        action = stops.message(op, b)
        in_delivery = self.moment == IN_EVENT_DELIVERY
        if action < 0 or not (
            self._stop_in_delivery(action) if in_delivery else self._stop_at_port(action)
        ):
            raise NotRealisableError(reason)

    def _arrive_during_entry(self, op: int, b: int, reason: str) -> None:
        action = stops.message(op, b)
        if action < 0:
            raise NotRealisableError(reason)
        self.owed.append(action)
        self.owed_reason = reason

    def _arrive_in_l1(self, op: int, operand: int, reason: str) -> None:
        if op not in (INIT, SIPI, SMI) or self.cpu.in_smm:
            raise NotRealisableError(reason)
        self.script.append(stops.stop(stops.NOW, 0, stops.message(op, operand)))

    def _arrive_in_l2(self, op: int, operand: int, reason: str) -> None:
        action = stops.message(op, operand)
        if action < 0 or (self.cpu.in_smm and not self.cpu.non_root):
            raise NotRealisableError(reason)
        if self.cpu.in_smm:  # its handler uses a port before it returns
            moment = (len(self.stays), len(self.journal), -3)
            self._add(stops.AT_PORT, stops.SMM_PORT, action, moment)
        else:
            self._stop_at_boundary(action, reason)

    # -- steps of L0 ----------------------------------------------------------------------------------

    def hidden_step(self, op: int, a: int) -> None:
        super().hidden_step(op, a)
        if op == DROP_PAGE:
            self.dropped |= 1 << a
            if self.l1_is_current() and self.stays:
                self._in_l1(stops.DROP_ALL)
        elif op == CANCEL_ENTRY and self.l1_is_current():
            self.owed.append(stops.CANCEL)
        elif op == SAVE_RESTORE and self.moment == AT_ENTRY:
            self.owed.append(stops.SAVE)
        elif op == SAVE_RESTORE and self.moment == IN_EVENT_DELIVERY:
            self._stop_in_delivery(stops.SAVE)
        elif op == SAVE_RESTORE and self.moment == IN_STEP:
            if self.l1_is_current():
                self._in_l1(stops.SAVE)
            elif not self.waiting and not self.cpu.in_smm:
                self._stop_at_next_page(stops.SAVE)

    def _in_l1(self, action: int) -> None:
        wanted = stops.stop(stops.NOW, 0, action)
        if not self.l1.in_mov_ss_shadow and self.script[-1] != wanted:
            self.script.append(wanted)

    # -- finding a stop -------------------------------------------------------------------------------

    def _add(self, place: int, where: int, action: int, moment: tuple[int, ...]) -> None:
        """A stop, or one action more at the same moment."""
        if action == stops.SAVE:
            self._note(saved_at=self.cpu.rip)
        if self.stops and self.place == moment:
            self.stops.append(stops.stop(stops.ALSO, 0, action))
            return
        if self.monitored:
            self._flush()  # an exit may lose a monitor that is armed (P14)
        self.stops.append(stops.stop(place, where, action))
        self.place = moment
        self.met = 0

    def _is_certain(self, page: int) -> bool:
        """Whether nothing but L0 keeps L2 from a page."""
        memory = self.memory
        unusual = memory.l2_absent | memory.ept12_absent | memory.ept12_misconfigured
        if memory.apic_page >= 0:
            unusual |= 1 << memory.apic_page
        return not unusual >> page & 1

    def _is_first_touch(self, page: int) -> bool:
        return not self.met >> page & 1 and self._is_certain(page)

    def _stop_in_delivery(self, action: int) -> bool:
        """Where the delivery that begins touches the page of its gate, or a stack that L0 has dropped."""
        moment = (len(self.stays), len(self.journal), self.cpu.event_info)
        if self.place == moment:
            self._add(stops.ALSO, 0, action, moment)
            return True
        if self.cpu.real_mode or self.waiting:
            return False
        gate = self._gate_page()
        if not self._is_first_touch(gate):
            return False
        page = gate
        completes = not self.memory.gates and self._is_first_touch(STACK) and not self.l2_cpl
        completes = completes and self._is_certain(GDT)
        if self.dropped >> STACK & 1 and not self.dropped >> gate & 1 and completes:
            page = STACK
        self._add(stops.AT_PAGE, page_address(page), action, moment)
        return True

    def _gate_page(self) -> int:
        return IDT_LOW if self.cpu.event_info & VECTOR_MASK < 32 else IDT_HIGH

    def _stop_at_port(self, action: int) -> bool:
        if self.instruction not in _PORTS:
            return False
        moment = (len(self.stays), len(self.journal), self.cpu.rip)
        self._add(stops.AT_PORT, stops.PORT, action, moment)
        return True

    def _stop_at_next_page(self, action: int) -> bool:
        """At L2's next fetch, if it has not fetched from that page since the last stop."""
        cpu = self.cpu
        moment = (len(self.stays), len(self.journal), -1)
        if self.place == moment:
            self._add(stops.ALSO, 0, action, moment)
            return True
        if cpu.activity != ACTIVE:
            self._add(stops.ASLEEP, 0, action, moment)
            return True
        page = page_of(cpu.rip)
        in_code = cpu.rip >= CODE_BASE and page <= HANDLER
        if cpu.real_mode or not in_code or not self._is_first_touch(page):
            return False
        self._add(stops.AT_PAGE, page_address(page), action, moment)
        return True

    def _stop_at_boundary(self, action: int, reason: str) -> None:
        if not self.waiting and self._stop_at_next_page(action):
            return
        self.waiting.append(action)
        self.refusal = self.refusal or reason
        self.rest = (len(self.journal), self.cpu.rip)

    def _place_waiting(self, page_address_: int) -> None:
        moment = (len(self.stays), self.rest[0], -2)
        for action in self.waiting:
            self._add(stops.AT_PAGE, page_address_, action, moment)
        self.waiting = []
        self.refusal = ""

    def settle(self) -> None:
        super().settle()
        if self.waiting:
            self._stop_before_exit()

    def _stop_before_exit(self) -> None:
        """L2 has exited where it rested: an instruction there reads a page, and does not complete."""
        start, rip = self.rest
        records = self.journal[start:]
        if not records:
            return  # nothing has happened yet: what L2 executes next may touch a page
        is_exit = records[0][0] == EXIT and not self.cpu.non_root
        if not is_exit or self.l1.vmcs[GUEST_RIP] != rip or not self._is_free(rip):
            raise NotRealisableError(self.refusal)
        self._place_code(rip, READS_LOW_PAGE)
        self._place_waiting(layout.LOW_PAGE)

    def _is_free(self, rip: int) -> bool:
        """Whether an instruction that reads a page can stand there, and L2 can fetch it."""
        page, last = page_of(rip), rip + len(READS_LOW_PAGE) - 1
        in_code = rip >= CODE_BASE and page <= HANDLER and page == page_of(last)
        taken = any(address in self.bytes_of_stint for address in range(rip, last + 1))
        return in_code and not taken and not self.met & _LOW and self._is_certain(page)

    # -- what L2 touches ------------------------------------------------------------------------------

    def in_delivery(self) -> None:
        if not self.owed_reason or self._is_injection():
            self._pay(self._stop_in_delivery)
        super().in_delivery()
        self.met |= 1 << self._gate_page() | _OF_DELIVERIES
        self.cpu.delivery_armed = True

    def _is_injection(self) -> bool:
        """Whether the delivery that begins is the first thing that comes of L1's entry."""
        return (
            len(self.journal) == self.entry_start
            and self.cpu.event_info & (TYPE_MASK | VECTOR_MASK)
            == self.l1.vmcs[ENTRY_INTR_INFO] & (TYPE_MASK | VECTOR_MASK)
            and self.l1.vmcs[ENTRY_INTR_INFO] & VALID != 0
        )

    def _pay(self, stop_at: Callable[[int], bool]) -> None:
        """Make the steps of L0 that belong to an entry at its first stop."""
        if self.owed and not self.waiting and all(stop_at(action) for action in self.owed):
            self.owed = []

    def _write_vmcs(self) -> None:
        super()._write_vmcs()
        self.stops = []
        self.script.append(self.stops)
        self.place = ()
        # Deliveries that keep a trap are not announced.
        self.met = ALL_PAGES if self.l1.vmcs[GUEST_PENDING_DBG] else 0
        self.cpu.platform = self
        self.cpu.delivery_armed = True

    def vm_entry(self) -> int:
        self.owed_reason = ""
        self.entry_start = len(self.journal)
        error = super().vm_entry()
        quiet = len(self.journal) == self.entry_start or not self.owed_reason
        if self.cpu.non_root and not self.cpu.in_smm and quiet:
            self._pay(self._stop_at_next_page)
        if self.owed and self.owed_reason:  # its effect came before any stop
            raise NotRealisableError(self.owed_reason)
        self.owed = []
        return error

    def execute(self, instruction: int, operand: int) -> None:
        if self.waiting:
            if instruction not in _READS_DATA or not self._is_first_touch(DATA):
                raise NotRealisableError(self.refusal)
            self._place_waiting(page_address(DATA))
        rip = self.cpu.rip
        if self.cpu.pending_dbg:
            self.met = ALL_PAGES | _LOW
        if not rip >> 32 and rip >= CODE_BASE and page_of(rip) <= HANDLER:
            self.met |= 1 << page_of(rip)
        self.met |= _OF_INSTRUCTIONS | (1 << DATA if instruction in _READS_DATA else 0)
        self.met |= _LOW if instruction in _READS_LOW else 0
        super().execute(instruction, operand)

    # -- the end --------------------------------------------------------------------------------------

    def _place_stop(self) -> None:
        """Where an instruction cannot bring L1 back, an INIT does, or a SIPI."""
        cpu = self.cpu
        if cpu.in_smm:
            raise NotRealisableError("ends-in-smm")
        if cpu.activity == ACTIVE and not self.waiting:
            super()._place_stop()
            return
        if cpu.activity == WAIT_FOR_SIPI:
            op, self.last_exit = SIPI, SIPI_SIGNAL
        else:
            op, self.last_exit = INIT, INIT_SIGNAL
        if cpu.activity == ACTIVE:
            rip = cpu.rip
            if rip >> 32 or not self._is_free(rip):
                raise NotRealisableError(self.refusal)
            self._place_code(rip, READS_LOW_PAGE)
            self.waiting.append(stops.message(op, 0))
            self._place_waiting(layout.LOW_PAGE)
        else:
            self._stop_at_next_page(stops.message(op, 0))
            if not cpu.rip >> 32 and self._is_free(cpu.rip):
                self._place_code(cpu.rip, STOP_CODE)  # for an L2 that does not sleep
        self.ends_in_l2 = True
