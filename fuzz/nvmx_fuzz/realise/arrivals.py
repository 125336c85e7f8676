"""What arrives from outside, and where in the schedule it stands."""

from typing import Final

from nvmx_core.arch.controls import SECONDARY_PML
from nvmx_core.arch.fields import SECONDARY
from nvmx_core.scenario.steps import (
    IN_DELIVERY,
    INIT,
    INTERRUPT,
    LOWEST_VECTOR,
    NMI,
    POST_INTERRUPT,
    SAVE_RESTORE,
    SIPI,
    SMI,
    TIMER,
    Step,
)
from nvmx_fuzz.realise import l1_program as l1
from nvmx_fuzz.realise import schedule
from nvmx_fuzz.realise.l2_recorder import L2Recorder
from nvmx_fuzz.realise.recording import AT_ENTRY, IN_EMULATION, IN_EVENT_DELIVERY, IN_STEP
from nvmx_fuzz.realise.schedule import Item
from nvmx_fuzz.realise.vmcs import NotRealisableError

_ARRIVALS: Final = {
    INTERRUPT: schedule.ARRIVE_INTERRUPT,
    NMI: schedule.ARRIVE_NMI,
    INIT: schedule.ARRIVE_INIT,
    SIPI: schedule.ARRIVE_SIPI,
    SMI: schedule.ARRIVE_SMI,
    TIMER: schedule.ARRIVE_TIMER,
}


class ArrivalRecorder(L2Recorder):
    """The layer that writes the schedule of arrivals."""

    def at_entry(self) -> None:
        self.moment = AT_ENTRY
        super().at_entry()
        self.schedule.append((schedule.ENTERED, 0, 0))
        self.moment = IN_EVENT_DELIVERY  # what arrives during the injection was armed

    def in_delivery(self) -> None:
        before = self.moment
        self.moment = IN_EVENT_DELIVERY
        super().in_delivery()
        self.moment = before

    def in_emulation(self) -> None:
        self.moment = IN_EMULATION
        super().in_emulation()
        self.moment = IN_STEP

    def _arm(self, step: Step, when: int) -> None:
        super()._arm(step, when)
        op, _when, b, _c = step
        if when != IN_DELIVERY or op == SAVE_RESTORE:
            return
        if op == POST_INTERRUPT:
            raise NotRealisableError("post-interrupt-in-delivery")
        kind, operand = _arrival(op, _vector(op, b))
        self._in_order((schedule.ARM, kind, operand))

    def _arrive(self, op: int, b: int) -> None:
        if op == POST_INTERRUPT:
            vector = b if b >= LOWEST_VECTOR else b + LOWEST_VECTOR
            pir = self.tables.pir = self.memory.pir  # what the processor has taken is gone
            self.memory.post_interrupt(vector)
            words = self.tables.posted(self.memory)
            self.memory.pir = pir
            if self.moment == IN_EMULATION:
                raise NotRealisableError("post-interrupt-in-emulation")
            pokes = [(schedule.POKE, address, value) for address, value in words]
            if self.moment == IN_STEP:
                self._in_order(*pokes)
            else:
                self.schedule += pokes
        super()._arrive(op, b)

    def arrive(self, op: int, b: int) -> None:
        kind, operand = _arrival(op, b)
        if self.moment == IN_STEP:
            self._in_order((kind, operand, 0))
        elif self.moment == AT_ENTRY:
            self.schedule.append((kind, operand, 0))
        elif self.moment == IN_EMULATION:
            self.schedule.append((schedule.IN_EMULATION, kind, operand))
        super().arrive(op, b)

    def rsm(self) -> None:
        if self.cpu.in_smm:
            self._check_rsm()
            self.schedule.append((schedule.RESUME, 0, 0))
        super().rsm()

    def finish(self) -> None:
        if self.cpu.in_smm:
            self._check_rsm()  # a runner resumes L2 to read its state
        super().finish()

    def _check_rsm(self) -> None:
        """RSM reads L2's page-directory pointers through the EPT, and Bochs logs every walk of it."""
        cpu = self.cpu
        if cpu.non_root and self.memory.pml_full and cpu.vmcs[SECONDARY] & SECONDARY_PML:
            raise NotRealisableError("rsm-with-full-log")

    def _in_order(self, *items: Item) -> None:
        """Put items where whoever runs now meets them: L2 at its boundary, L1 at a mark, or SMM."""
        if self.l1_is_current():
            if self.l1.in_mov_ss_shadow:
                raise NotRealisableError("arrival-behind-mov-ss-of-l1")
            self.script.append((l1.MARK, 0, 0, 0))
            self.schedule += [*items, (schedule.MARKED, 0, 0)]
        else:
            self.schedule += items


def _arrival(op: int, operand: int) -> tuple[int, int]:
    return _ARRIVALS[op], operand


def _vector(op: int, b: int) -> int:
    return b + LOWEST_VECTOR if op == INTERRUPT and b < LOWEST_VECTOR else b
