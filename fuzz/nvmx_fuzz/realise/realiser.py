"""The realiser: run a scenario on the model machine ``bare`` and note what real code has to do the same.

The result is a script for L1, a schedule of what happens at the places at which L1 and L2 wait, and the
journal
that the model wrote. A scenario that asks for what real code cannot do is refused with the name of the
reason;
nothing is left out silently.
"""

from typing import Final, NamedTuple

from nvmx_core.arch.controls import (
    CPU_SECONDARY_CONTROLS,
    SECONDARY_EPT,
    SECONDARY_PML,
    SECONDARY_VIRTUALIZE_APIC_ACCESSES,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_MSR_LOAD_BAD,
    GUEST_RSP,
    GUEST_SS_DPL,
    LAUNCH_STATE,
    PIN_BASED,
    POISON,
    SECONDARY,
)
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import RFLAGS_NT
from nvmx_core.guests.manners import NO_EOI
from nvmx_core.guests.memory import (
    CODE,
    CODE_BASE,
    GDT,
    HANDLER,
    NO_PAGE,
    PAGE_COUNT,
    STACK,
    page_address,
)
from nvmx_core.journal import DELIVER, RETIRE, Record
from nvmx_core.machines.bare import Bare
from nvmx_core.scenario.config import (
    ERROR_CODE_OPTIONAL,
    HLT_ACTIVITY,
    MTF_OFFERED,
    SHUTDOWN_ACTIVITY,
    STI_BLOCKS_NMI,
    WFS_ACTIVITY,
    ZERO_LENGTH,
    Config,
)
from nvmx_core.scenario.steps import (
    FORCE_LAUNCH,
    FORCE_RESUME,
    IN_DELIVERY,
    INIT,
    INTERRUPT,
    LOWEST_VECTOR,
    NMI,
    OPEN_INTERRUPTS,
    POST_INTERRUPT,
    SAVE_RESTORE,
    SIPI,
    SMI,
    TIMER,
    VMCLEAR,
    VMPTRLD,
    Scenario,
    Step,
)
from nvmx_fuzz.realise import l1_program as l1
from nvmx_fuzz.realise import layout, schedule
from nvmx_fuzz.realise.code import CODE as INSTRUCTION_CODE
from nvmx_fuzz.realise.image import KERNEL_STACK
from nvmx_fuzz.realise.schedule import Item
from nvmx_fuzz.realise.script import (
    REGISTERS_ADDRESS,
    Operation,
    RealRegion,
    RealTables,
    pointer_to,
)
from nvmx_fuzz.realise.vmcs import NotRealisableError, default_stack

CAPABILITY_FLAGS: Final = (
    ERROR_CODE_OPTIONAL | ZERO_LENGTH | HLT_ACTIVITY | SHUTDOWN_ACTIVITY | WFS_ACTIVITY | MTF_OFFERED
    | STI_BLOCKS_NMI
)  # fmt: skip
"""Flags of a configuration that describe the processor; a real one has its own."""

_ARRIVALS: Final = {
    INTERRUPT: schedule.ARRIVE_INTERRUPT,
    NMI: schedule.ARRIVE_NMI,
    INIT: schedule.ARRIVE_INIT,
    SIPI: schedule.ARRIVE_SIPI,
    TIMER: schedule.ARRIVE_TIMER,
}
_POP_FLAGS: Final = INSTRUCTION_INDEX["popf"]
_POP_SS: Final = INSTRUCTION_INDEX["pop-ss"]
_IRET: Final = INSTRUCTION_INDEX["iret"]
_MONITOR: Final = INSTRUCTION_INDEX["monitor"]
_MWAIT: Final = INSTRUCTION_INDEX["mwait"]
_FRAME: Final = 12
_FRAME_FROM_USER: Final = 20
_NOWHERE, _IN_STEP, _AT_ENTRY, _IN_DELIVERY, _IN_EMULATION = range(5)


class Realised(NamedTuple):
    """What a runner needs, and what the model expects to be seen.

    ``stacks``: L2's real stack pointer and the model's at each exit, in order; ``pins``: the pin-based
    controls
    then, which say whether bit 12 of an exit means anything. ``entry_rules``: the rule that each entry of
    L1 broke,
    "" for none.
    """

    script: list[Operation]
    schedule: list[Item]
    journal: list[Record]
    stacks: list[tuple[int, int]]
    pins: list[int]
    entry_rules: list[str]


def fit(scenario: Scenario, capability_flags: int) -> Scenario:
    """The scenario on a processor with these capabilities."""
    flags, exceptions, l0_exceptions, pf_filter = scenario.config
    flags = flags & ~CAPABILITY_FLAGS | capability_flags
    return Scenario((flags, exceptions, l0_exceptions, pf_filter), scenario.steps)


def realise(scenario: Scenario) -> Realised:
    """Realise a scenario that fits the processor (:func:`fit`).

    Raises: NotRealisableError.
    """
    recorder = Recorder(Config(*scenario.config))
    recorder.run_unmarked(scenario)
    return recorder.result()


class Recorder(Bare):
    """The machine `bare`, writing down how to do the same with real code."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.script: list[Operation | list[Operation]] = [(l1.VMPTRLD, pointer_to(0), 0, 0)]
        self.schedule: list[Item] = []
        self.stacks: list[tuple[int, int]] = []
        self.pins: list[int] = []
        self.entry_rules: list[str] = []
        self.real_regions: list[RealRegion] = [RealRegion(), RealRegion()]
        self.tables: RealTables = RealTables()
        self.moment: int = _IN_STEP
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

    def result(self) -> Realised:
        """The finished script and schedule."""
        script: list[Operation] = []
        for operation in self.script:
            if isinstance(operation, list):
                script += operation
            else:
                script.append(operation)
        script.append((l1.END, 0, 0, 0))
        items = [*self.schedule, (schedule.STOP, 0, 0)]
        return Realised(script, items, self.journal, self.stacks, self.pins, self.entry_rules)

    # -- L1 -------------------------------------------------------------------------------------------

    def _do_l1_step(self, op: int, a: int, b: int, c: int) -> None:
        if op == VMPTRLD:
            self.script.append((l1.VMPTRLD, pointer_to(a), 0, 0))
        elif op == VMCLEAR:
            self.script.append((l1.VMCLEAR, pointer_to(a), 0, 0))
        elif op == OPEN_INTERRUPTS:
            self.manners = 0
        super()._do_l1_step(op, a, b, c)

    def l1_take_interrupt(self) -> int:
        if not self.opening:
            self.opening = True
            self.script.append((l1.OPEN, 0 if self.manners & NO_EOI else 1, 0, 0))
        vector = super().l1_take_interrupt()
        if vector < 0:
            self.opening = False
        return vector

    def l1_end_interrupt(self) -> None:
        if not self.opening:
            self.script.append((l1.EOI, 0, 0, 0))
        super().l1_end_interrupt()

    def l1_iret(self) -> None:
        if self.l1.in_mov_ss_shadow:
            raise NotRealisableError("iret-behind-mov-ss-of-l1")
        self.script.append((l1.IRET, 0, 0, 0))
        super().l1_iret()

    def _enter(self, manners: int) -> None:
        self.manners = manners
        self.entered = False
        shadow = self.l1.in_mov_ss_shadow
        vmcs = self.l1.vmcs
        # The instruction that fails, if L1 forces one.
        launched = vmcs[LAUNCH_STATE] != 0
        resumes = not manners & FORCE_LAUNCH if launched else manners & FORCE_RESUME
        self.enter_operation = (
            l1.ENTER,
            1 if resumes else 0,
            1 if shadow else 0,
            REGISTERS_ADDRESS,
        )
        position = len(self.schedule)
        super()._enter(manners)
        if not self.entered:  # refused before the checks that read the VMCS
            self.script.append(self.enter_operation)
            self.schedule.insert(position, (schedule.VMFAIL, 0, 0))
            self.entry_rules.append("E0")

    def vm_entry(self) -> int:
        self._write_vmcs()
        self.script.append(self.enter_operation)
        self.entry_rules.append(self._broken_rule())
        self.entered = True
        real = self._region()
        self.esp = real.rsp
        self.l2_cpl = self.l1.vmcs[GUEST_SS_DPL]
        self.moment = _AT_ENTRY
        if not self.armed_at_entry:
            self.schedule.append((schedule.ENTERED, 0, 0))
        self.seen = len(self.journal)
        self.instruction = -1
        error = super().vm_entry()
        self.moment = _IN_STEP
        self._follow()
        if error:
            self.schedule.append((schedule.VMFAIL, 0, 0))
        return error

    def _broken_rule(self) -> str:
        checker, vmcs = self.cpu.checker, self.l1.vmcs
        rule = (
            checker.judge_controls(vmcs, self.memory.vtpr)[1] or checker.judge_guest_state(vmcs)[1]
        )
        return rule or ("E0" if vmcs[ENTRY_MSR_LOAD_BAD] else "")

    def _write_vmcs(self) -> None:
        vmcs = self.l1.vmcs
        has_ept = vmcs[SECONDARY] & SECONDARY_EPT != 0
        if not vmcs[CPU_BASED] & CPU_SECONDARY_CONTROLS or has_ept != self.config.l1_ept:
            raise NotRealisableError("control-that-the-model-fixes")
        logs_writes = vmcs[SECONDARY] & SECONDARY_PML != 0
        self.script += self._region().writes(vmcs, self.memory)
        self.script += self.tables.writes(self.memory, logs_writes)
        self.code_of_stint = []
        self.bytes_of_stint = {}
        self.eax_changed = self.monitored = False
        self.script.append(self.code_of_stint)

    def _region(self) -> RealRegion:
        for number, region in enumerate(self.l1.regions):
            if region is self.l1.vmcs:
                return self.real_regions[number]
        raise AssertionError("the current VMCS is a region of L1")

    # -- arrivals -------------------------------------------------------------------------------------

    def at_entry(self) -> None:
        self.moment = _AT_ENTRY
        super().at_entry()
        self.schedule.append((schedule.ENTERED, 0, 0))
        self.moment = _IN_DELIVERY  # what arrives during the injection was armed

    def in_delivery(self) -> None:
        before = self.moment
        self.moment = _IN_DELIVERY
        super().in_delivery()
        self.moment = before

    def in_emulation(self) -> None:
        self.moment = _IN_EMULATION
        super().in_emulation()
        self.moment = _IN_STEP

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
            if self.moment == _IN_EMULATION:
                raise NotRealisableError("post-interrupt-in-emulation")
            pokes = [(schedule.POKE, address, value) for address, value in words]
            if self.moment == _IN_STEP:
                self._in_order(*pokes)
            else:
                self.schedule += pokes
        super()._arrive(op, b)

    def arrive(self, op: int, b: int) -> None:
        kind, operand = _arrival(op, b)
        if self.moment == _IN_STEP:
            self._in_order((kind, operand, 0))
        elif self.moment == _AT_ENTRY:
            self.schedule.append((kind, operand, 0))
        elif self.moment == _IN_EMULATION:
            self.schedule.append((schedule.IN_EMULATION, kind, operand))
        super().arrive(op, b)

    def _in_order(self, *items: Item) -> None:
        """Put items where whoever runs now meets them: L2 at its boundary, L1 at a mark."""
        if self.l1_is_current():
            if self.l1.in_mov_ss_shadow:
                raise NotRealisableError("arrival-behind-mov-ss-of-l1")
            self.script.append((l1.MARK, 0, 0, 0))
            self.schedule += [*items, (schedule.MARKED, 0, 0)]
        else:
            self.schedule += items

    def settle(self) -> None:
        super().settle()
        self._follow()

    def _after_exit(self) -> None:
        self._follow()
        self.schedule.append((schedule.EXIT, 0, 0))
        vmcs = self.l1.vmcs
        region = self._region()
        region.follow(vmcs, self.esp)
        self.tables.follow(self.memory)
        self.stacks.append((self.esp, vmcs[GUEST_RSP]))
        self.pins.append(vmcs[PIN_BASED])
        super()._after_exit()

    # -- L2 -------------------------------------------------------------------------------------------

    def _l2_table_step(self, op: int, a: int, b: int) -> None:
        super()._l2_table_step(op, a, b)
        if not self.l1_is_current():
            for address, value in self.tables.l2_changes(self.memory):
                self.schedule.append((schedule.POKE, address, value))
            self.schedule.append((schedule.FLUSH, 0, 0))

    def execute(self, instruction: int, operand: int) -> None:
        code = INSTRUCTION_CODE[instruction]
        if code.reason:
            raise NotRealisableError(code.reason)
        cpu = self.cpu
        rip = cpu.rip
        self._place_code(rip, code.encode(cpu.cpl, operand))
        self._check_registers(instruction)
        if code.reads_stack or code.reads_gdt:
            self._check_pages(code.reads_stack, code.reads_gdt)
            self._place_operand(instruction, operand)
        apic_page = self.memory.apic_page
        virtualizes = cpu.vmcs[SECONDARY] & SECONDARY_VIRTUALIZE_APIC_ACCESSES
        if virtualizes and rip >> 12 == page_address(max(apic_page, 0)) >> 12 and apic_page >= 0:
            raise NotRealisableError("fetch-from-apic-page")
        self.schedule.append((schedule.RUN, rip, 0))
        self.instruction = instruction
        self.l2_cpl = cpu.cpl
        super().execute(instruction, operand)
        self._follow()

    def _place_code(self, rip: int, code: bytes) -> None:
        page = rip - page_address(CODE) >> 12
        if rip < CODE_BASE or page > HANDLER - CODE or (rip + len(code) - 1 ^ rip) >> 12:
            raise NotRealisableError("rip-outside-of-code")
        for offset, value in enumerate(code):
            if self.bytes_of_stint.get(rip + offset, value) != value:
                self._poke(rip, code)
                return
        for offset, value in enumerate(code):
            if (
                rip + offset not in self.bytes_of_stint
            ):  # what is there was put there at the entry, or later
                self.bytes_of_stint[rip + offset] = value
                self.code_of_stint.append((l1.STORE_BYTES, rip + offset, value, 1))

    def _poke(self, address: int, content: bytes) -> None:
        for offset, value in enumerate(content):
            self.bytes_of_stint[address + offset] = value
            self.schedule.append((schedule.POKE_BYTE, address + offset, value))

    def _check_registers(self, instruction: int) -> None:
        """Registers that an earlier instruction of this stay in L2 has changed."""
        code = INSTRUCTION_CODE[instruction]
        executes = self.cpu.would_execute(instruction)
        if code.needs_eax and self.eax_changed:
            raise NotRealisableError("register-changed-by-l2")
        if executes and instruction == _MWAIT and self.monitored:
            raise NotRealisableError("mwait-behind-monitor")
        self.eax_changed |= executes and code.changes_eax
        self.monitored |= executes and instruction == _MONITOR

    def _check_pages(self, stack: bool, gdt: bool) -> None:
        memory = self.memory
        unusual = memory.l2_absent | memory.ept12_absent | memory.ept12_misconfigured
        if memory.apic_page != NO_PAGE and memory.apic_page < PAGE_COUNT:
            unusual |= 1 << memory.apic_page
        if gdt and unusual >> GDT & 1:
            raise NotRealisableError("instruction-reads-gdt")
        if stack and unusual >> STACK & 1:
            raise NotRealisableError("instruction-reads-stack")

    def _place_operand(self, instruction: int, operand: int) -> None:
        """Put on L2's stack what the instruction is to pop; the model's frames have no bytes."""
        cpu = self.cpu
        if instruction == _POP_FLAGS:
            flags = 2 | (operand & 1) << 9 | (operand >> 1 & 1) << 8 | (operand >> 2 & 1) << 11
            flags |= cpu.rflags & ~0x10B02
            words = [flags]
        elif instruction == _POP_SS:
            words = [layout.L2_USER_DATA_SELECTOR if cpu.cpl else layout.L2_STACK_SELECTOR]
        elif instruction == _IRET and not cpu.rflags & RFLAGS_NT:
            words = self._frame()
        else:
            return
        for index, word in enumerate(words):
            self.schedule.append((schedule.POKE, self.esp + 4 * index, word))

    def _frame(self) -> list[int]:
        cpu = self.cpu
        depth = min(cpu.rsp, len(self.memory.frames))
        rip, rflags, cpl = CODE_BASE, 0x202, cpu.cpl
        if depth:
            rip, rflags, cpl = self.memory.frames[depth - 1]
        self.return_cpl = cpl
        if rip >> 32:
            raise NotRealisableError("rip-outside-of-code")
        if cpl < cpu.cpl:
            return [rip, 0, rflags]  # a null selector: #GP(0), as for a return to more privilege
        if cpl == 0:
            return [rip, layout.L2_CODE_SELECTOR, rflags]
        frame = [rip, layout.L2_USER_CODE_SELECTOR, rflags]
        if cpu.cpl == 0:
            frame += [default_stack(3), layout.L2_USER_DATA_SELECTOR]
        return frame

    def _follow(self) -> None:
        """Follow L2's real stack pointer through what the journal says has happened."""
        journal = self.journal
        for record in journal[self.seen :]:
            if record[0] == DELIVER:
                base, size = self.esp, _FRAME
                if self.l2_cpl:
                    base, size = page_address(STACK) + KERNEL_STACK, _FRAME_FROM_USER
                self.esp = base - size - (0 if record[2] == POISON else 4)
                self.l2_cpl = 0
            elif record[0] == RETIRE:
                self._follow_instruction()
        self.seen = len(journal)
        if self.cpu.non_root and not 0x14400 <= self.esp < 0x15000:
            raise NotRealisableError("stack-depth")

    def _follow_instruction(self) -> None:
        if self.instruction == _POP_FLAGS or self.instruction == _POP_SS:
            self.esp += 4
        elif self.instruction == _IRET:
            outer = self.return_cpl > self.l2_cpl
            self.esp = default_stack(3) if outer else self.esp + _FRAME
            self.l2_cpl = self.return_cpl
        self.instruction = -1


def _arrival(op: int, operand: int) -> tuple[int, int]:
    if op == SMI:
        raise NotRealisableError("smi")
    return _ARRIVALS[op], operand


def _vector(op: int, b: int) -> int:
    return b + LOWEST_VECTOR if op == INTERRUPT and b < LOWEST_VECTOR else b
