"""Scenarios written as calls, run on the machine ``bare``, and journals read by name.

    run = play(intercept(PF), page(STACK, PAGE_ABSENT), inject(NMI, 2), enter())
    assert run.exit.vector == PF
    assert run.exit.vectoring == event(NMI, 2)

A test that needs no machine builds a VMCS with :func:`vmcs_with` and asks one check about it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from nvmx_core.arch.controls import CONTROL_INDEX
from nvmx_core.arch.events import (
    ERROR_CODE_VALID,
    NMI_UNBLOCKING_BY_IRET,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
)
from nvmx_core.arch.exits import BASIC_REASON_MASK, FAILED_ENTRY
from nvmx_core.arch.fields import FIELDS, Vmcs
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import RFLAGS_FIXED, RFLAGS_IF
from nvmx_core.cpu.entry_checks import EntryChecker, Verdict
from nvmx_core.journal import DELIVER, END, EXIT, RETIRE, VMFAIL, Record
from nvmx_core.machines.bare import Bare
from nvmx_core.scenario import steps
from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAG_BIT, Config
from nvmx_core.scenario.steps import NOW, PAGE_ABSENT, Scenario, Step

RFLAGS_START: Final = RFLAGS_FIXED | RFLAGS_IF
"""L2's flags at the start of a default scenario."""


# -- steps, one function each -------------------------------------------------------------------


def enter(left_out: int = 0) -> Step:
    """L1 executes VMLAUNCH or VMRESUME; *left_out* are the NO_ and FORCE_ bits of the step."""
    return steps.ENTER, left_out, 0, 0


def inject(event_type: int, vector: int, error: int = 0, length: int = 0) -> Step:
    """L1 writes a well-formed event into the entry fields."""
    return steps.INJECT, event_type, vector, length << 16 | error


def vmwrite(field: int, value: int) -> Step:
    """L1 writes up to 48 bits into a field."""
    number = steps.WRITABLE_FIELDS.index(FIELDS[field].name)
    return steps.VMWRITE, number, value >> 32, value & 0xFFFFFFFF


def control(name: str, on: bool = True) -> Step:
    """L1 switches a control, named as in ``arch.controls.CONTROLS``."""
    return steps.CONTROL, CONTROL_INDEX[name], int(on), 0


def intercept(vector: int, on: bool = True) -> Step:
    """L1 sets or clears a bit of the exception bitmap."""
    return steps.INTERCEPT, vector, int(on), 0


def ept(page: int, state: int = PAGE_ABSENT) -> Step:
    """L1 changes a page in its EPT."""
    return steps.EPT_PAGE, page, state, 0


def absent(page: int) -> Step:
    """L2's own tables lack a page from now on."""
    return steps.L2_PAGE, page, PAGE_ABSENT, 0


def gate(vector: int, kind: int) -> Step:
    """L2's IDT has this kind of gate for the vector from now on."""
    return steps.L2_GATE, kind, vector, 0


def pml_log_full() -> Step:
    """L1's page-modification log has no room left."""
    return steps.PML_LOG, 1, 0, 0


def apic_page(page: int) -> Step:
    """L1 puts its APIC-access page where this page of L2 is."""
    return steps.APIC_PAGE, page, 0, 0


def virtual_interrupt(vector: int) -> Step:
    """L1 requests a virtual interrupt for L2."""
    return steps.VIRTUAL_INTERRUPT, 0, vector, 0


def vtpr(priority_class: int) -> Step:
    """L1 sets the class of the virtual TPR."""
    return steps.VTPR, priority_class, 0, 0


def eoi() -> Step:
    """L1 ends the interrupt in service."""
    return steps.L1_EOI, 0, 0, 0


def l1_iret() -> Step:
    """L1 executes IRET."""
    return steps.L1_IRET, 0, 0, 0


def l1_mov_ss() -> Step:
    """L1 executes MOV SS."""
    return steps.L1_MOV_SS, 0, 0, 0


def open_interrupts() -> Step:
    """L1 takes the interrupts that wait for it."""
    return steps.OPEN_INTERRUPTS, 0, 0, 0


def vmclear(region: int) -> Step:
    """L1 clears a VMCS region."""
    return steps.VMCLEAR, region, 0, 0


def vmptrld(region: int) -> Step:
    """L1 makes a VMCS region current."""
    return steps.VMPTRLD, region, 0, 0


def run(instruction: str, operand: int = 0) -> Step:
    """L2 executes one instruction, named as in ``arch.instructions.INSTRUCTIONS``."""
    return steps.RUN, INSTRUCTION_INDEX[instruction], operand, 0


def interrupt(vector: int, when: int = NOW) -> Step:
    """An external interrupt arrives for L1's virtual processor."""
    return steps.INTERRUPT, when, vector, 0


def post_interrupt(vector: int, when: int = NOW) -> Step:
    """Another processor of L1 posts an interrupt and sends the notification."""
    return steps.POST_INTERRUPT, when, vector, 0


def nmi(when: int = NOW) -> Step:
    """An NMI arrives."""
    return steps.NMI, when, 0, 0


def smi(when: int = NOW) -> Step:
    """An SMI arrives."""
    return steps.SMI, when, 0, 0


def init(when: int = NOW) -> Step:
    """An INIT arrives."""
    return steps.INIT, when, 0, 0


def sipi(vector: int, when: int = NOW) -> Step:
    """A start-up IPI arrives."""
    return steps.SIPI, when, vector, 0


def timer(ticks: int, when: int = NOW) -> Step:
    """Time passes for the VMX-preemption timer."""
    return steps.TIMER, when, ticks, 0


def rsm() -> Step:
    """The system-management handler returns."""
    return steps.RSM, 0, 0, 0


# -- what was seen -----------------------------------------------------------------------------


class Exit(NamedTuple):
    """One VM exit as L1 read it; the fields in the order of the journal's record."""

    full_reason: int
    qualification: int
    interruption: int
    error_code: int
    vectoring: int
    vectoring_error_code: int
    length: int
    linear_address: int
    physical_address: int
    rip: int
    rsp: int
    rflags: int
    ss_dpl: int
    interruptibility: int
    activity: int
    pending_dbg: int
    timer: int
    interrupt_status: int
    entry_info: int
    entry_error_code: int
    entry_length: int
    cr2: int
    dr6: int

    @property
    def reason(self) -> int:
        """The basic exit reason."""
        return self.full_reason & BASIC_REASON_MASK

    @property
    def failed_entry(self) -> bool:
        """Bit 31 of the reason: the entry itself failed."""
        return self.full_reason & FAILED_ENTRY != 0

    @property
    def vector(self) -> int:
        """The vector in the interruption information, which must be valid."""
        assert self.interruption & VALID, "this exit has no valid interruption information"
        return self.interruption & VECTOR_MASK

    @property
    def type(self) -> int:
        """The event type in the interruption information, which must be valid."""
        assert self.interruption & VALID, "this exit has no valid interruption information"
        return (self.interruption & TYPE_MASK) >> TYPE_SHIFT

    @property
    def nmi_unblocking(self) -> bool:
        """Bit 12 of the interruption information."""
        return self.interruption & NMI_UNBLOCKING_BY_IRET != 0


class Delivered(NamedTuple):
    """One event that reached a handler of L2."""

    vector: int
    error_code: int
    return_rip: int
    rflags: int
    cr2: int
    dr6: int


class End(NamedTuple):
    """What the END record says is left over."""

    mode: int
    irr: int
    isr: int
    nmi_latched: int
    nmi_blocked_in_l1: int
    init_latched: int
    smi_latched: int
    rip: int
    rflags: int
    activity: int
    interruptibility: int


class Play(NamedTuple):
    """A finished run: the machine, and its journal decoded."""

    machine: Bare
    journal: list[Record]

    @property
    def exits(self) -> list[Exit]:
        """All VM exits to L1, in order."""
        return [Exit(*record[1:]) for record in self.journal if record[0] == EXIT]

    @property
    def exit(self) -> Exit:
        """The one VM exit of a run that must have exactly one."""
        exits = self.exits
        assert len(exits) == 1, f"expected one exit, saw reasons {self.reasons}"
        return exits[0]

    @property
    def reasons(self) -> list[int]:
        """The basic reasons of all exits, in order."""
        return [seen.reason for seen in self.exits]

    @property
    def delivered(self) -> list[Delivered]:
        """All events that L2's handlers got, in order."""
        return [Delivered(*record[1:]) for record in self.journal if record[0] == DELIVER]

    @property
    def vectors(self) -> list[int]:
        """The vectors of the delivered events, in order."""
        return [delivered.vector for delivered in self.delivered]

    @property
    def retired(self) -> int:
        """How many instructions of L2 completed."""
        return sum(record[0] == RETIRE for record in self.journal)

    @property
    def vmfails(self) -> list[int]:
        """The VM-instruction errors of failed VMLAUNCH and VMRESUME, 0 for VMfailInvalid."""
        return [record[1] for record in self.journal if record[0] == VMFAIL]

    @property
    def kinds(self) -> list[int]:
        """The kinds of all records, in order."""
        return [record[0] for record in self.journal]

    @property
    def end(self) -> End:
        """The END record."""
        assert self.journal[-1][0] == END
        return End(*self.journal[-1][1:])

    @property
    def vmcs(self) -> Vmcs:
        """L1's VMCS after the run."""
        return self.machine.l1.vmcs

    @property
    def in_l2(self) -> bool:
        """Whether L2 runs, or sleeps, at the end."""
        return self.machine.cpu.non_root


def event(event_type: int, vector: int, error_code: bool = False) -> int:
    """The information word of an event, to compare with."""
    return VALID | event_type << TYPE_SHIFT | vector | (ERROR_CODE_VALID if error_code else 0)


def config(on: str = "", off: str = "") -> Config:
    """The default configuration with some flags (words of ``FLAG_BIT``) switched."""
    flags = DEFAULT_FLAGS
    for name in on.split():
        flags |= FLAG_BIT[name]
    for name in off.split():
        flags &= ~FLAG_BIT[name]
    return Config(flags)


def vmcs_with(values: dict[int, int], on: str = "", off: str = "") -> Vmcs:
    """A VMCS that enters L2, with some fields replaced."""
    vmcs = config(on, off).initial_vmcs[:]
    for field, value in values.items():
        vmcs[field] = value
    return vmcs


def judge_controls(
    values: dict[int, int], on: str = "", off: str = "", virtual_tpr: int = 0
) -> Verdict:
    """What the checks on controls and host state say: (VM-instruction error, rule), or PASS."""
    checker = EntryChecker(config(on, off).caps)
    return checker.judge_controls(vmcs_with(values, on, off), virtual_tpr)


def judge_guest(values: dict[int, int], on: str = "", off: str = "") -> Verdict:
    """What the checks on the guest state say: (exit qualification, rule), or PASS."""
    return EntryChecker(config(on, off).caps).judge_guest_state(vmcs_with(values, on, off))


def play(*moves: Step, on: str = "", off: str = "") -> Play:
    """Run steps on ``bare``; *on* and *off* switch flags of the configuration, by name."""
    chosen = config(on, off)
    machine = Bare(chosen)
    machine.run(Scenario((chosen.flags, 0, 0, 0), _checked(moves)))
    return Play(machine, machine.journal)


def _checked(moves: Sequence[Step]) -> tuple[Step, ...]:
    """The steps as they are, none of which the byte form would read as another one."""
    for step in moves:
        assert steps.canonical(*step) == step, f"{step} is not canonical"
    return tuple(moves)
