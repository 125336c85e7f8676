"""The realiser: run a scenario on the model machine ``bare`` and note what real code has to do the same.

The result is a script for L1, a schedule of what happens at the places at which L1 and L2 wait, and the
journal that the model wrote. A scenario that asks for what real code cannot do is refused with the name of
the reason; nothing is left out silently.
"""

from typing import Final, NamedTuple

from nvmx_core.arch.controls import (
    CPU_SECONDARY_CONTROLS,
    SECONDARY_EPT,
    SECONDARY_PML,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_MSR_LOAD_BAD,
    GUEST_RSP,
    GUEST_SS_DPL,
    LAUNCH_STATE,
    PIN_BASED,
    SECONDARY,
)
from nvmx_core.guests.manners import NO_EOI
from nvmx_core.journal import Record
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
    OPEN_INTERRUPTS,
    VMCLEAR,
    VMPTRLD,
    Scenario,
)
from nvmx_fuzz.compare import Entry
from nvmx_fuzz.realise import l1_program as l1
from nvmx_fuzz.realise import schedule
from nvmx_fuzz.realise.arrivals import ArrivalRecorder
from nvmx_fuzz.realise.recording import AT_ENTRY, IN_STEP
from nvmx_fuzz.realise.schedule import Item
from nvmx_fuzz.realise.script import (
    REGISTERS_ADDRESS,
    Operation,
    RealRegion,
    pointer_to,
)
from nvmx_fuzz.realise.vmcs import NotRealisableError

CAPABILITY_FLAGS: Final = (
    ERROR_CODE_OPTIONAL | ZERO_LENGTH | HLT_ACTIVITY | SHUTDOWN_ACTIVITY | WFS_ACTIVITY | MTF_OFFERED
    | STI_BLOCKS_NMI
)  # fmt: skip
"""Flags of a configuration that describe the processor; a real one has its own."""


class Realised(NamedTuple):
    """What a runner needs, and what the model expects to be seen.

    ``stacks``: L2's real stack pointer and the model's at each exit, in order; ``pins``: the pin-based
    controls then, which say whether bit 12 of an exit means anything. ``entries``: those of L1, as
    the model saw them.
    """

    script: list[Operation]
    schedule: list[Item]
    journal: list[Record]
    stacks: list[tuple[int, int]]
    pins: list[int]
    entries: list[Entry]


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


class Recorder(ArrivalRecorder):
    """The layer that writes L1's script: the whole machine `bare`, and how to do the same with real code."""

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
        return Realised(script, items, self.journal, self.stacks, self.pins, self.entries)

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
            self.entries.append(Entry("E0"))

    def vm_entry(self) -> int:
        self._write_vmcs()
        self.script.append(self.enter_operation)
        l1, checker = self.l1, self.cpu.checker
        self.entries.append(
            Entry(self._broken_rule(), tuple(l1.vmcs), self.memory.vtpr, checker.caps, l1.origin())
        )
        self.entered = True
        real = self._region()
        self.esp = real.rsp
        self.l2_cpl = self.l1.vmcs[GUEST_SS_DPL]
        self.moment = AT_ENTRY
        if not self.armed_at_entry:
            self.schedule.append((schedule.ENTERED, 0, 0))
        self.seen = len(self.journal)
        self.instruction = -1
        error = super().vm_entry()
        self.moment = IN_STEP
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
