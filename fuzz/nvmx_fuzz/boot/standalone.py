"""A scenario as a script that needs nobody beside L1 and L2.

Under the machine `bochs` a helper makes arrivals at exact boundaries and changes L2's memory while L2
rests. Here L1 and L2 do everything themselves: L1 sends itself interrupts and NMIs by its local APIC, what
L2 pops stands on its stack before it is entered, and where the scenario ends in L2 an instruction that
always exits brings L1 back. What cannot be done so is refused, each reason under its own name.
"""

from typing import Any, Final, NamedTuple

from nvmx_core.arch.controls import (
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_PREEMPTION_TIMER,
)
from nvmx_core.arch.exits import VMCALL_EXIT
from nvmx_core.arch.fields import (
    FIELDS,
    GUEST_ACTIVITY,
    PIN_BASED,
    POISON,
)
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import ACTIVE, INTERRUPT_SHADOW, WAIT_FOR_SIPI
from nvmx_core.cpu.processor_state import PENDING_INIT, PENDING_INTERRUPT, PENDING_NMI
from nvmx_core.guests.memory import page_of
from nvmx_core.journal import Record
from nvmx_core.scenario.config import Config
from nvmx_core.scenario.steps import INIT, INTERRUPT, NMI, SIPI, SMI, TIMER, Step
from nvmx_fuzz.boot import places
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.program import SELF_INTERRUPT, SELF_NMI
from nvmx_fuzz.compare import Met
from nvmx_fuzz.realise import l1_program as l1
from nvmx_fuzz.realise import layout, schedule
from nvmx_fuzz.realise.arrivals import ArrivalRecorder
from nvmx_fuzz.realise.realiser import Realised, Recorder
from nvmx_fuzz.realise.recording import AT_ENTRY, IN_EMULATION, IN_EVENT_DELIVERY
from nvmx_fuzz.realise.schedule import Item
from nvmx_fuzz.realise.vmcs import NotRealisableError

STOP_CODE: Final = bytes.fromhex("0F01C1")
"""VMCALL, where the scenario ends in L2."""
_RDPMC: Final = INSTRUCTION_INDEX["rdpmc"]
_NAMES: Final = {
    INTERRUPT: "interrupt", NMI: "nmi", INIT: "init", SIPI: "sipi", SMI: "smi", TIMER: "timer",
}  # fmt: skip
_EXITING: Final = {INTERRUPT: PIN_EXT_INTR_EXITING, NMI: PIN_NMI_EXITING}
"""With which control an arrival exits out of L2."""
_PENDING: Final = {INTERRUPT: PENDING_INTERRUPT, NMI: PENDING_NMI}
_ITEMS: Final = {
    schedule.ARRIVE_INTERRUPT: INTERRUPT, schedule.ARRIVE_NMI: NMI, schedule.ARRIVE_INIT: INIT,
    schedule.ARRIVE_SIPI: SIPI, schedule.ARRIVE_SMI: SMI, schedule.ARRIVE_TIMER: TIMER,
}  # fmt: skip


class Delivery(NamedTuple):
    """A delivery in L2 as the model has it, and where the words of its frame stand, the lowest first."""

    record: Record
    address: int
    has_error_code: bool


class Standalone(NamedTuple):
    """What L1 has to do, what the model expects, and how the records of the image are to be read.

    ``stays`` has the deliveries of each of L1's entries, in order; ``ends_in_l2``: the last exit is the one
    that brings L1 back, with the reason ``last_exit``.
    """

    realised: Realised
    stays: list[list[Delivery]]
    ends_in_l2: bool
    last_exit: int = VMCALL_EXIT


class StandaloneRecorder(Recorder):
    """The layer that does without a helper.

    ``words``: what is known of L2's stack, by address; ``stood``: the same when L2 was entered; ``touched``:
    the words that L2 has written or read since then; ``came``: what came in this stay in L2; ``for_l2``: the
    pending events, of `processor_state`, that came while L2 might have them.
    """

    def __init__(self, config: Config, capabilities: Capabilities) -> None:
        super().__init__(config)
        self.capabilities: Final = capabilities
        self.stays: list[list[Delivery]] = []
        self.ends_in_l2: bool = False
        self.last_exit: int = VMCALL_EXIT
        self.words: dict[int, int] = {}
        self.stood: dict[int, int] = {}
        self.touched: set[int] = set()
        self.came: Met = Met()
        self.for_l2: int = 0

    # -- arrivals -------------------------------------------------------------------------------------

    def _arm(self, step: Step, when: int) -> None:
        # What waits for a delivery that never comes needs nobody.
        super(ArrivalRecorder, self)._arm(step, when)

    def arrive(self, op: int, b: int) -> None:
        self._note_arrival(op)
        if self.moment == AT_ENTRY:
            self._arrive_at_entry(op, b)
        elif self.moment == IN_EVENT_DELIVERY and not self._passes(op):
            self._arrive_inside(op, b, f"{_NAMES[op]}-in-delivery")
        elif self.moment == IN_EMULATION and not self._passes(op):
            self._arrive_inside(op, b, f"{_NAMES[op]}-in-emulation")
        super().arrive(op, b)

    def _note_arrival(self, op: int) -> None:
        cpu = self.cpu
        if op == NMI and cpu.pending & PENDING_NMI:
            self._note(second_nmi=True)
        in_l2 = cpu.non_root or self.moment == AT_ENTRY
        if op in _EXITING and in_l2 and not self.l1.vmcs[PIN_BASED] & _EXITING[op]:
            self.for_l2 |= _PENDING[op]
        if op == SMI and cpu.non_root and not cpu.in_smm:
            in_delivery = self.moment == IN_EVENT_DELIVERY
            shadow = not in_delivery and cpu.blocking & INTERRUPT_SHADOW != 0
            at = 0 if in_delivery else cpu.rip
            self._note(smi_at=at, smi_activity=cpu.activity, smi_shadow=shadow)

    def _note(self, **what: Any) -> None:
        """Something came in this stay in L2, or before the first."""
        self.came = self.came._replace(**what)
        if self.entries:
            self.entries[-1] = self.entries[-1]._replace(met=self.came)

    def _arrive_inside(self, _op: int, _b: int, reason: str) -> None:
        """Something arrives in a delivery, or while L0 emulates an instruction."""
        raise NotRealisableError(reason)

    def _arrive_during_entry(self, _op: int, _b: int, reason: str) -> None:
        """Something arrives at the entry that L1 would have taken before it."""
        raise NotRealisableError(reason)

    def _arrive_in_l2(self, _op: int, _operand: int, reason: str) -> None:
        """Something arrives at a boundary at which L2 rests."""
        raise NotRealisableError(reason)

    def _arrive_in_l1(self, _op: int, _operand: int, reason: str) -> None:
        """Something arrives while L1 runs that it cannot send to itself."""
        raise NotRealisableError(reason)

    def _timer_runs(self) -> bool:
        """Whether time means anything: L2 runs, or is being entered, with the VMX-preemption timer."""
        entered = self.cpu.non_root or self.moment == AT_ENTRY
        return entered and self.l1.vmcs[PIN_BASED] & PIN_PREEMPTION_TIMER != 0

    def _passes(self, op: int) -> bool:
        return op == TIMER and not self._timer_runs()

    def _arrive_at_entry(self, op: int, b: int) -> None:
        """Sent before the entry: L1's interrupts are off, its NMIs must be blocked."""
        place = len(self.script) - 1
        if self._passes(op):
            return
        if op == INTERRUPT:
            self.script.insert(place, (SELF_INTERRUPT, b, 0, 0))
        elif op == NMI and self.cpu.root_nmi_blocked:
            self.script.insert(place, (SELF_NMI, 0, 0, 0))
        elif op in (INIT, SIPI):  # the one is blocked in VMX root operation, the other ignored
            self._arrive_in_l1(op, b, f"{_NAMES[op]}-at-entry")
            self.script.insert(place, self.script.pop())
        else:
            self._arrive_during_entry(op, b, f"{_NAMES[op]}-at-entry")

    def _in_order(self, *items: Item) -> None:
        for kind, operand, value in items:
            if kind == schedule.ARRIVE_TIMER and not self._timer_runs():
                continue
            if not self.l1_is_current():
                if kind not in _ITEMS:
                    raise NotRealisableError("post-interrupt-while-l2-runs")
                op = _ITEMS[kind]
                self._arrive_in_l2(op, operand, f"{_NAMES[op]}-while-l2-runs")
                continue
            if self.l1.in_mov_ss_shadow:
                raise NotRealisableError("arrival-behind-mov-ss-of-l1")
            if kind == schedule.ARRIVE_INTERRUPT:
                self.script.append((SELF_INTERRUPT, operand, 0, 0))
            elif kind == schedule.ARRIVE_NMI:
                self.script.append((SELF_NMI, 0, 0, 0))
            elif kind == schedule.POKE:
                self.script.append((l1.STORE32, operand, value, 0))
            else:
                self._arrive_in_l1(_ITEMS[kind], operand, f"{_NAMES[_ITEMS[kind]]}-while-l1-runs")

    # -- L2's memory ----------------------------------------------------------------------------------

    def _l2_table_step(self, op: int, a: int, b: int) -> None:
        before = len(self.schedule)
        super()._l2_table_step(op, a, b)
        if any(item[0] == schedule.POKE for item in self.schedule[before:]):
            raise NotRealisableError("l2-tables-change-while-l2-runs")

    def _poke(self, _address: int, _content: bytes) -> None:
        raise NotRealisableError("code-changes-while-l2-runs")

    def execute(self, instruction: int, operand: int) -> None:
        before = len(self.schedule)
        reads_counter = instruction == _RDPMC and self.cpu.would_execute(instruction)
        if reads_counter and not self.capabilities.has_counters:
            raise NotRealisableError("rdpmc-without-counters")
        self._note(executed=self.came.executed | 1 << instruction)
        super().execute(instruction, operand)
        if any(item[0] == schedule.POKE_BYTE for item in self.schedule[before:]):
            raise NotRealisableError("iret-to-old-task")

    def _place_operand(self, instruction: int, operand: int) -> None:
        """What L2 is to pop is there already, or is put there before the entry."""
        before = len(self.schedule)
        super()._place_operand(instruction, operand)
        pokes = self.schedule[before:]
        del self.schedule[before:]
        for _kind, address, value in pokes:
            if self.words.get(address) != value:
                if address in self.touched:
                    raise NotRealisableError("stack-changes-while-l2-runs")
                self.code_of_stint.append((l1.STORE32, address, value, 0))
                self.words[address] = self.stood[address] = value
            self.touched.add(address)

    def _follow_delivery(self, record: Record) -> None:
        outer, esp = self.l2_cpl, self.esp
        super()._follow_delivery(record)
        has_error_code = record[2] != POISON
        selector = layout.L2_USER_CODE_SELECTOR if outer else layout.L2_CODE_SELECTOR
        frame = [record[2]] if has_error_code else []
        frame += [record[3], selector, record[4]]
        if all(self.stood.get(self.esp + 4 * index) == word for index, word in enumerate(frame)):
            raise NotRealisableError("frame-stood-there-before")
        if outer:
            frame += [esp, layout.L2_USER_DATA_SELECTOR]
        for index, word in enumerate(frame):
            self.words[self.esp + 4 * index] = word
            self.touched.add(self.esp + 4 * index)
        self.stays[-1].append(Delivery(record, self.esp, has_error_code))

    # -- entries, exits and the end -------------------------------------------------------------------

    def _enter(self, manners: int) -> None:
        self.stays.append([])
        super()._enter(manners)

    def _write_vmcs(self) -> None:
        vmcs = self.l1.vmcs
        place, lacking = self.capabilities.missing(vmcs)
        if lacking:
            raise NotRealisableError(f"not-offered: {FIELDS[place].name} {lacking:#x}")
        super()._write_vmcs()
        self.stood = dict(self.words)
        self.touched = set()

    def vm_entry(self) -> int:
        met = self.came
        self.came = Met(
            second_nmi=met.second_nmi, late_event=met.late_event, late_init=met.late_init
        )
        error = super().vm_entry()
        self._note()
        return error

    def _after_exit(self) -> None:
        pending = self.cpu.pending
        self.for_l2 &= pending
        if self.for_l2:
            self._note(late_event=True)
        if pending & PENDING_INIT and self.l1.vmcs[GUEST_ACTIVITY] == WAIT_FOR_SIPI:
            self._note(late_init=True)
        self._follow()
        self._scrub()
        super()._after_exit()

    def _scrub(self) -> None:
        """L1 has made unrecognisable what is dead of the stack."""
        limit = places.STACK_TOP
        if self.l2_cpl == 0 and places.STACK_BOTTOM <= self.esp <= places.STACK_TOP:
            limit = self.esp
        for address in [address for address in self.words if address < limit]:
            del self.words[address]

    def finish(self) -> None:
        if self.cpu.non_root:
            if self.for_l2 & self.cpu.pending:  # what brings L1 back is an exit too
                self._note(late_event=True)
            self._place_stop()
        super().finish()

    def _place_stop(self) -> None:
        cpu = self.cpu
        if cpu.activity != ACTIVE:
            raise NotRealisableError("l2-sleeps-at-the-end")
        if cpu.rip >> 32:
            raise NotRealisableError("rip-outside-of-code")
        self._place_code(cpu.rip, STOP_CODE)
        memory = self.memory
        unusual = memory.l2_absent | memory.ept12_absent | memory.ept12_misconfigured
        if memory.apic_page >= 0:
            unusual |= 1 << memory.apic_page
        if unusual >> page_of(cpu.rip) & 1:
            raise NotRealisableError("l2-cannot-be-stopped")
        self.ends_in_l2 = True
