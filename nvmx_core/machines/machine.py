"""What all machines share: the walk over the steps, the moments of arrival, L1's instructions.

``Machine.run`` takes a scenario and returns nothing; the journal is the result. A step that cannot apply
(L1's while L2 runs, L2's while L1 runs or L2 sleeps, any but outside steps in SMM) does nothing and is
counted in ``skipped``.

A machine says what differs: how a VM entry happens, how an L2 instruction runs, and where events go.
"""

from typing import Final

from nvmx_core.arch.controls import CONTROLS, SECONDARY_UNRESTRICTED_GUEST
from nvmx_core.arch.events import (
    HARDWARE_EXCEPTION,
    VECTORS_WITH_ERROR_CODE,
    interruption_info,
)
from nvmx_core.arch.fields import (
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    EXCEPTION_BITMAP,
    GUEST_CR0,
    GUEST_INTR_STATUS,
    LAUNCH_STATE,
    POSTED_INTR_NV,
    SECONDARY,
    VM_INSTRUCTION_ERROR,
)
from nvmx_core.arch.state import CR0_PE
from nvmx_core.arch.virtual_apic import with_request
from nvmx_core.cpu.entry_checks import EntryChecker
from nvmx_core.cpu.processor import Processor
from nvmx_core.cpu.processor_state import NO_PLATFORM, Platform
from nvmx_core.errors import ModelError
from nvmx_core.guests.l1 import L1, NOTHING_OWED
from nvmx_core.guests.manners import keep_manners
from nvmx_core.guests.memory import NO_PAGE, PAGE_COUNT, L2Memory
from nvmx_core.journal import L1_ENTRY, VMFAIL, Record
from nvmx_core.scenario.config import NOTIFICATION_VECTOR, Config
from nvmx_core.scenario.steps import (
    APIC_PAGE,
    AT_ENTRY,
    CONTROL,
    DROP_PAGE,
    ENTER,
    EPT_PAGE,
    FORCE_LAUNCH,
    FORCE_RESUME,
    IN_DELIVERY,
    IN_EMULATION,
    INJECT,
    INTERCEPT,
    INTERRUPT,
    L1_EOI,
    L1_IRET,
    L1_MOV_SS,
    L2_GATE,
    L2_PAGE,
    LOWEST_VECTOR,
    NOW,
    OPEN_INTERRUPTS,
    PAGE_ABSENT,
    PAGE_MISCONFIGURED,
    PML_LOG,
    POST_INTERRUPT,
    RSM,
    RUN,
    SAVE_RESTORE,
    VIRTUAL_INTERRUPT,
    VMCLEAR,
    VMPTRLD,
    VMWRITE,
    VTPR,
    WRITABLE_PLACES,
    Scenario,
    Step,
    inject_error_code,
    inject_length,
    vmwrite_value,
)

VMFAIL_INVALID: Final = 0
VMFAIL_LAUNCH_NOT_CLEAR: Final = 4
VMFAIL_RESUME_NOT_LAUNCHED: Final = 5
VMFAIL_MOV_SS: Final = 26

_FIRST_L2_OPERATION: Final = RUN
_FIRST_OUTSIDE_OPERATION: Final = INTERRUPT
_FIRST_L0_OPERATION: Final = DROP_PAGE


class Machine(Platform):
    """One run of one scenario. Make a new machine for every run.

    *checker* is that of the model processor under the machine. ``arrived`` has a bit for every kind of
    outside step that took effect.
    """

    skipped: int = 0
    arrived: int = 0

    def __init__(self, config: Config, checker: EntryChecker) -> None:
        self.config: Final = config
        self.journal: list[Record] = []
        self.memory: L2Memory = L2Memory()
        self.cpu: Processor = Processor(checker, self.memory, self.journal)
        self.l1: L1 = L1(config.initial_vmcs, self.memory, self.journal)
        self.armed_at_entry: list[Step] = []
        self.armed_in_delivery: list[Step] = []
        self.armed_in_emulation: list[Step] = []
        self.step_starts: list[int] = []

    # -- the walk -------------------------------------------------------------------------------------

    def run(self, scenario: Scenario) -> None:
        """Run all steps, then write the END record. ``step_starts[i]`` is the journal length before i."""
        self._walk(scenario.steps, True)
        self.mark_step()
        self._end()

    def run_unmarked(self, scenario: Scenario) -> None:
        """The same without ``step_starts``: for runs that most likely nobody will ask about."""
        self._walk(scenario.steps, False)
        self._end()

    def _end(self) -> None:
        self.finish()
        # Nothing arrives any more, and a machine that its own parts point to is not freed at once.
        self.cpu.platform = NO_PLATFORM

    def mark_step(self) -> None:
        """Note where the records of the next step begin."""
        self.step_starts.append(len(self.journal))

    def do_step(self, step: Step) -> None:
        """Do one step, or skip it when it cannot apply."""
        self._walk((step,), False)

    def _walk(self, steps: tuple[Step, ...], marks: bool) -> None:
        """Do steps; one loop for all, because a call for each would cost as much as many a step."""
        for step in steps:
            if marks:
                self.mark_step()
            op, a, b, c = step
            if op < _FIRST_L2_OPERATION:
                if not self.l1_is_current():
                    self.skipped += 1
                elif op == ENTER:
                    self._enter(a)
                else:
                    self._l1_step(op, a, b, c)
            elif op < _FIRST_OUTSIDE_OPERATION:
                if op != RUN:
                    self._l2_table_step(op, a, b)
                elif self.l2_may_execute():
                    self.execute(a, b)
                else:
                    self.skipped += 1
            elif op >= _FIRST_L0_OPERATION:
                self._l0_step(step)
            elif op == RSM:
                self.rsm()
            elif a == NOW:
                self._arrive(op, b)
                self.settle()
            else:
                self._arm(step, a)

    # -- what differs between machines ----------------------------------------------------------------

    def l1_is_current(self) -> bool:
        """Whether L1 executes: not L2, not the system-management handler."""
        raise ModelError("a machine knows who runs")

    def l2_may_execute(self) -> bool:
        """Whether L2 is current and awake."""
        raise ModelError("a machine knows who runs")

    def vm_entry(self) -> int:
        """L1's VMLAUNCH or VMRESUME after the permission checks; a VM-instruction error or 0."""
        raise ModelError("a machine enters L2")

    def execute(self, instruction: int, operand: int) -> None:
        """Run one L2 instruction and what follows from it until L1 or L2 may act again."""
        raise ModelError("a machine runs L2")

    def arrive(self, op: int, b: int) -> None:
        """An outside event reaches L1's virtual processor; nothing is looked at yet."""
        raise ModelError("a machine takes events")

    def settle(self) -> None:
        """Let what has arrived take effect, until L1 or L2 may act again."""
        raise ModelError("a machine takes events")

    def rsm(self) -> None:
        """The system-management handler executes RSM; outside SMM nothing happens."""
        raise ModelError("a machine has an SMM")

    def hidden_step(self, op: int, a: int) -> None:
        """A step of L0 that L1 and L2 must never notice; nothing where there is no L0."""

    def finish(self) -> None:
        """Write the END record."""
        raise ModelError("a machine ends a run")

    # -- L1 -------------------------------------------------------------------------------------------

    def _enter(self, manners: int) -> None:
        """VMLAUNCH or VMRESUME with L1's manners; the permission checks of E0, classes 1 to 3."""
        l1 = self.l1
        if l1.owed_reason != NOTHING_OWED and l1.has_current:
            keep_manners(l1, self, manners)
        vmcs = l1.vmcs
        l1.ask_for_highest_virtual_interrupt()
        self.journal.append(
            (
                L1_ENTRY,
                vmcs[ENTRY_INTR_INFO],
                vmcs[ENTRY_ERROR_CODE],
                vmcs[ENTRY_INSTRUCTION_LEN],
            )
        )
        in_mov_ss_shadow = l1.in_mov_ss_shadow
        l1.in_mov_ss_shadow = False
        if not l1.has_current:
            error = VMFAIL_INVALID
        elif in_mov_ss_shadow and self.refuses_entry_behind_mov_ss():
            error = VMFAIL_MOV_SS
        elif manners & FORCE_LAUNCH and vmcs[LAUNCH_STATE]:
            error = VMFAIL_LAUNCH_NOT_CLEAR
        elif manners & FORCE_RESUME and not vmcs[LAUNCH_STATE]:
            error = VMFAIL_RESUME_NOT_LAUNCHED
        else:
            error = self.vm_entry()
            if not error:
                return
        self.journal.append((VMFAIL, error))
        if l1.has_current:
            vmcs[VM_INSTRUCTION_ERROR] = error
        l1.observe_vmfail(error)
        if in_mov_ss_shadow:
            self.settle()

    def refuses_entry_behind_mov_ss(self) -> bool:
        """Whether L1's entry in a MOV-SS shadow fails (E0, class 2)."""
        return True

    def _l1_step(self, op: int, a: int, b: int, c: int) -> None:
        l1 = self.l1
        ends_shadow = l1.in_mov_ss_shadow
        l1.in_mov_ss_shadow = op == L1_MOV_SS
        self._do_l1_step(op, a, b, c)
        if ends_shadow:
            self.settle()  # B2: what the shadow held back comes behind the instruction in it

    def _do_l1_step(self, op: int, a: int, b: int, c: int) -> None:
        l1 = self.l1
        if op <= INTERCEPT:
            if not l1.has_current:
                self.skipped += 1  # VMWRITE without a current VMCS: VMfailInvalid
            elif op == INJECT:
                self._inject(a, b, c)
            else:
                self._vmwrite_step(op, a, b, c)
        elif op == EPT_PAGE or op >= PML_LOG:
            self._l1_memory_step(op, a, b)
        elif op == OPEN_INTERRUPTS:
            l1.open_interrupts(self)
        elif op == L1_EOI:
            self.l1_end_interrupt()
        elif op == L1_IRET:
            self.l1_iret()
        elif op == VMPTRLD:
            l1.vmptrld(a)
        elif op == VMCLEAR:
            l1.vmclear(a)

    def _vmwrite_step(self, op: int, a: int, b: int, c: int) -> None:
        vmcs = self.l1.vmcs
        if op == VMWRITE:
            vmcs[WRITABLE_PLACES[a]] = vmwrite_value(b, c)
        elif op == CONTROL:
            control = CONTROLS[a]
            if b:
                vmcs[control.field] |= control.bit
            else:
                vmcs[control.field] &= ~control.bit
        elif b:
            vmcs[EXCEPTION_BITMAP] |= 1 << a
        else:
            vmcs[EXCEPTION_BITMAP] &= ~(1 << a)

    def _l1_memory_step(self, op: int, a: int, b: int) -> None:
        memory = self.memory
        if op == EPT_PAGE:
            bit = 1 << a
            memory.ept12_absent &= ~bit
            memory.ept12_misconfigured &= ~bit
            if b == PAGE_ABSENT:
                memory.ept12_absent |= bit
            elif b == PAGE_MISCONFIGURED:
                memory.ept12_misconfigured |= bit
        elif op == PML_LOG:
            memory.pml_full = a != 0
        elif op == APIC_PAGE:
            memory.apic_page = a if a < PAGE_COUNT else NO_PAGE
        elif op == VIRTUAL_INTERRUPT:
            if not self.l1.has_current:
                self.skipped += 1
                return
            memory.virr |= 1 << b
            vmcs = self.l1.vmcs
            vmcs[GUEST_INTR_STATUS] = with_request(vmcs[GUEST_INTR_STATUS], b)
        elif op == VTPR:
            memory.vtpr = a << 4
        else:
            raise ModelError(f"no L1 step {op}")
        self.l1_changed_tables()

    def _inject(self, event_type: int, vector: int, c: int) -> None:
        """A well-formed entry field: bit 11 exactly where E5 wants it."""
        vmcs = self.l1.vmcs
        protected = (
            not vmcs[SECONDARY] & SECONDARY_UNRESTRICTED_GUEST or vmcs[GUEST_CR0] & CR0_PE != 0
        )
        has_error_code = (
            event_type == HARDWARE_EXCEPTION
            and protected
            and VECTORS_WITH_ERROR_CODE >> vector & 1 != 0
        )
        vmcs[ENTRY_INTR_INFO] = interruption_info(event_type, vector, has_error_code)
        vmcs[ENTRY_ERROR_CODE] = inject_error_code(c)
        vmcs[ENTRY_INSTRUCTION_LEN] = inject_length(c)

    # -- L2 -------------------------------------------------------------------------------------------

    def _l2_table_step(self, op: int, a: int, b: int) -> None:
        memory = self.memory
        if op == L2_PAGE:
            if b == PAGE_ABSENT:
                memory.l2_absent |= 1 << a
            else:
                memory.l2_absent &= ~(1 << a)
            self.l1_changed_tables()
        elif op == L2_GATE:
            if a:
                memory.gates[b] = a
            else:
                memory.gates.pop(b, None)
        else:
            raise ModelError(f"no L2 step {op}")

    # -- outside and L0 -------------------------------------------------------------------------------

    def _l0_step(self, step: Step) -> None:
        op, a, _b, _c = step
        if op == SAVE_RESTORE and a != NOW:
            self._arm(step, a)
        else:
            self.hidden_step(op, a)

    def _arm(self, step: Step, when: int) -> None:
        self.cpu.platform = self  # until then the plain one, which is cheaper to ask
        if when == AT_ENTRY:
            self.armed_at_entry.append(step)
        elif when == IN_DELIVERY:
            self.armed_in_delivery.append(step)
            self.cpu.delivery_armed = True
        elif when == IN_EMULATION:
            self.armed_in_emulation.append(step)

    def fire(self, armed: list[Step]) -> None:
        """Let the steps tied to a moment happen; they are not looked at before the next boundary."""
        steps = armed[:]
        armed.clear()
        for op, _when, b, _c in steps:
            if op == SAVE_RESTORE:
                self.hidden_step(op, IN_DELIVERY)
            else:
                self._arrive(op, b)

    def _arrive(self, op: int, b: int) -> None:
        self.arrived |= 1 << op
        if op == INTERRUPT:
            self.arrive(op, b if b >= LOWEST_VECTOR else b + LOWEST_VECTOR)
        elif op == POST_INTERRUPT:
            self.memory.post_interrupt(b if b >= LOWEST_VECTOR else b + LOWEST_VECTOR)
            vector = self.l1.vmcs[POSTED_INTR_NV] & 0xFF
            self.arrive(INTERRUPT, vector if vector >= LOWEST_VECTOR else NOTIFICATION_VECTOR)
        else:
            self.arrive(op, b)

    def in_delivery(self) -> None:
        self.fire(self.armed_in_delivery)

    def at_entry(self) -> None:
        if self.armed_at_entry:
            self.fire(self.armed_at_entry)

    def in_emulation(self) -> None:
        if self.armed_in_emulation:
            self.fire(self.armed_in_emulation)
