"""A scenario as a test for kvm-unit-tests: one C file that compiles in an unmodified tree.

The file includes ``vmx.c``, which has the program around VMX tests, and brings the table of tests that
``vmx_tests.c`` brings otherwise; so ``make x86/NAME.flat`` builds it by the tree's own rules, and nothing
has to be registered.

What L1 does becomes the host's code: the steps, and what its manners write into the VMCS before an entry.
L2's instructions become a small program that goes on wherever L2 is: behind an instruction that exited, or
in a handler. After each entry the test asserts what `bare` saw of the exit. The machine under test is L1's
processor: hardware, or a KVM that runs the test in a guest.

What a test cannot bring about is refused: faults of L2's tables, single step and the monitor trap flag, exits
that another processor has to cause at an exact moment, state that vmx.c does not set up. Steps of L0 stand as
comments, but for one: where it has dropped a page that a delivery needs, the next delivery gets a stack that
nobody has touched.
A processor without a control or an activity state that the scenario needs skips the test.
"""

from typing import Final

from nvmx_core.arch.controls import CONTROLS
from nvmx_core.arch.events import (
    HARDWARE_EXCEPTION,
    NMI,
    OTHER_EVENT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    VECTORS_WITH_ERROR_CODE,
)
from nvmx_core.arch.exits import (
    EXTERNAL_INTERRUPT_EXIT,
    FAILED_ENTRY,
    INSTRUCTION_EXITS,
    PREEMPTION_TIMER,
    exit_name,
    is_soft,
)
from nvmx_core.arch.fields import FIELDS as MODEL_FIELDS
from nvmx_core.arch.fields import GUEST_RIP
from nvmx_core.arch.instructions import INSTRUCTIONS
from nvmx_core.arch.state import ACTIVE, INTERRUPT_SHADOW, RFLAGS_TF
from nvmx_core.guests.l1 import NOTHING_OWED
from nvmx_core.guests.manners import keep_manners
from nvmx_core.guests.memory import (
    CODE_BASE,
    HANDLER_BASE,
    HANDLER_SHIFT,
    IDT_HIGH,
    IDT_LOW,
    STACK,
)
from nvmx_core.journal import (
    DELIVER,
    END,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    RECORD_FIELDS,
    SMM_ENTRY,
    VM_DEAD,
    VMFAIL,
    Record,
)
from nvmx_core.machines.bare import Bare
from nvmx_core.scenario import steps
from nvmx_core.scenario.config import FLAG_BIT, FLAGS, Config, config_for, exception_bitmap
from nvmx_core.scenario.step_text import format_step
from nvmx_core.scenario.steps import Step
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.kvm_unit_test_code import (
    ACTIVITIES,
    CONTROL_BITS,
    FIELDS,
    SECONDARY,
    WITH_CONTROL,
)
from nvmx_fuzz.kvm_unit_test_text import Host, Program, c_file, handler_of
from nvmx_fuzz.scenario_files import Loaded

_NOT_SET_UP: Final = ("real-mode", "user-mode", "single-step", "posted-interrupts")
_CONFIGURED: Final = tuple(name for name, _ in FLAGS if name in CONTROL_BITS)
_ALWAYS_OFFERED: Final = ("external-interrupt-exiting", "nmi-exiting", "hlt-exiting")
_DELIVERY_PAGES: Final = frozenset((IDT_LOW, IDT_HIGH, STACK))
_LONG_TIME: Final = 0xFFFFFFFF
"""A VMX-preemption timer that does not end; a scenario's own ticks are no measure of real ones."""


def kvm_unit_test(loaded: Loaded) -> str:
    """The C file of a scenario.

    Raises:
        BadFile: the scenario needs what a test cannot bring about; the message names the step.
    """
    return _Writer(loaded).text()


def _field(record: Record, name: str) -> int:
    return record[1 + RECORD_FIELDS[record[0]].index(name)]


class _Writer:
    """Walks the steps beside the journal of `bare`; writes host code and L2's program."""

    def __init__(self, loaded: Loaded) -> None:
        self._name = loaded.name
        self._loaded = loaded
        self._config = config_for(loaded.scenario.config)
        self._bare = Bare(self._config)
        self._bare.run(loaded.scenario)
        self._needs: dict[str, None] = {}
        self._host: list[str] = []
        self._program = Program()
        self._vectors: dict[int, str] = {}
        self._stacks = 0
        self._has_secondary = False
        self._in_l2 = False
        self._events = 0
        self._handler_waits = False
        self._counts_instructions = False

    def text(self) -> str:
        """The whole file."""
        self._require_possible()
        self._set_up()
        for number, step in enumerate(self._loaded.scenario.steps):
            self._take(number, step)
            self._after(number)
        self._finish()
        comments = self._loaded.text.comments if self._loaded.text is not None else ()
        host = Host(self._needs, self._vectors, self._host, self._stacks)
        return c_file(self._name, comments, self._program, host)

    # -- what there is ------------------------------------------------------------------------------

    def _records(self, number: int) -> list[Record]:
        """The records of a step on `bare`."""
        starts = [*self._bare.step_starts, len(self._bare.journal)]
        return list(self._bare.journal[starts[number] : starts[number + 1]])

    def _refused(self, what: str) -> BadFile:
        return BadFile(self._name, f"{what} has no counterpart in a kvm-unit-test")

    def _refuse(self, number: int, step: Step) -> BadFile:
        text = " ".join(format_step(step).split())
        return self._refused(f"step {number + 1}, {text!r},")

    def _require_possible(self) -> None:
        for name in _NOT_SET_UP:
            if self._has(name):
                raise self._refused(f"config {name}=on")
        if self._config.pf_filter:
            raise self._refused("a page-fault filter")
        if self._depends_on("sti-blocks-nmi"):
            raise self._refused("what depends on whether STI blocks NMIs, which no processor says,")
        for record in self._bare.journal:
            if record[0] in (SMM_ENTRY, VM_DEAD):
                raise self._refused("SMM or a dead machine")
        end = self._bare.journal[-1]
        if end[0] == END and _field(end, "activity") != ACTIVE:
            raise self._refused("a scenario that ends with L2 asleep")

    def _depends_on(self, flag: str) -> bool:
        """Whether a processor that is different in this way shows something else."""
        scenario = self._loaded.scenario
        flags, *choices = scenario.config
        other = Bare(Config(flags ^ FLAG_BIT[flag], *choices))
        other.run_unmarked(scenario)
        return other.journal != self._bare.journal

    # -- the set-up -----------------------------------------------------------------------------------

    def _set_up(self) -> None:
        for name in _CONFIGURED:
            is_on = self._has(name)
            if is_on or CONTROL_BITS[name].field != SECONDARY:
                self._switch(name, is_on)
        self._host.append(
            f"vmcs_write(EXC_BITMAP, {exception_bitmap(self._config.exceptions):#x});"
        )
        enabled = " | X86_EFLAGS_IF" if self._has("interrupts-on") else ""
        self._host.append(f"vmcs_write(GUEST_RFLAGS, X86_EFLAGS_FIXED{enabled});")
        if self._has("preemption-timer"):
            self._host.append(f"vmcs_write(PREEMPT_TIMER_VALUE, {_LONG_TIME:#x});")

    def _switch(self, name: str, is_on: bool) -> None:
        field, bit, offered = CONTROL_BITS[name]
        if name == "monitor-trap-flag":
            self._counts_instructions = is_on
        if is_on and name not in _ALWAYS_OFFERED:
            self._need(f"{offered} & {bit}", bit)
        if field == SECONDARY and not self._has_secondary:
            self._has_secondary = True
            self._need("ctrl_cpu_rev[0].clr & CPU_SECONDARY", "CPU_SECONDARY")
            self._host.append(
                "vmcs_write(CPU_EXEC_CTRL0, vmcs_read(CPU_EXEC_CTRL0) | CPU_SECONDARY);"
            )
            self._host.append(f"vmcs_write({SECONDARY}, 0);")
        if is_on:
            self._host += WITH_CONTROL.get(name, ())
        operation = f"| {bit}" if is_on else f"& ~{bit}"
        self._host.append(f"vmcs_write({field}, vmcs_read({field}) {operation});")

    def _need(self, condition: str, name: str) -> None:
        self._needs[f'require({condition}, "{name}");'] = None

    def _need_as_configured(self, word: str, bit: str, flag: str) -> None:
        """Where it matters, a bit of a capability MSR says the same as the scenario's processor."""
        is_on = int(self._has(flag))
        if self._depends_on(flag):
            self._need(f"{word}.{bit} == {is_on}", f"{bit} = {is_on}")

    # -- steps --------------------------------------------------------------------------------------

    def _take(self, number: int, step: Step) -> None:
        op, a, b, c = step
        self._host.append(f"/* {number + 1}: {' '.join(format_step(step).split())} */")
        if steps.OPERATIONS[op].actor == steps.L0:
            self._hidden(op, a)
        elif op == steps.RUN:
            self._run(number, step)
        elif self._in_l2:
            raise self._refuse(number, step)
        elif op == steps.ENTER and not a:
            self._before_entry(number, step)
        elif op == steps.INJECT:
            self._inject(a, b, c)
        elif op == steps.CONTROL and CONTROLS[a].name in CONTROL_BITS:
            self._switch(CONTROLS[a].name, is_on=b == 1)
        elif op == steps.INTERCEPT:
            change = f"| (1u << {a})" if b else f"& ~(1u << {a})"
            self._host.append(f"vmcs_write(EXC_BITMAP, vmcs_read(EXC_BITMAP) {change});")
        elif op == steps.VMWRITE and steps.WRITABLE_FIELDS[a] in FIELDS:
            self._write(number, step, steps.WRITABLE_FIELDS[a], steps.vmwrite_value(b, c))
        elif op == steps.VTPR and self._has("tpr-shadow"):
            self._host.append(f"virtual_apic[0x80] = {a << 4:#x};")
        elif op == steps.VIRTUAL_INTERRUPT and self._has("virtual-interrupt-delivery"):
            self._vectors[b] = "interrupt"
            self._host.append(f"virtual_interrupt({b:#x});")
        elif op == steps.INTERRUPT and a in (steps.NOW, steps.AT_ENTRY, steps.IN_DELIVERY):
            self._interrupt(b, a)
        else:
            raise self._refuse(number, step)

    def _has(self, flag: str) -> bool:
        return self._config.flags & FLAG_BIT[flag] != 0

    def _hidden(self, op: int, page: int) -> None:
        if op == steps.DROP_PAGE and page in _DELIVERY_PAGES and not self._in_l2:
            self._host.append("fresh_stack();")
            self._stacks += 1

    def _run(self, number: int, step: Step) -> None:
        if not self._in_l2:
            self._host.append("/* L2 does not run then */")
            return
        if self._counts_instructions:  # those of the test itself too
            raise self._refuse(number, step)
        self._begin_handler()
        exits = any(record[0] == EXIT for record in self._records(number))
        if not self._program.add(INSTRUCTIONS[step[1]].name, step[2], exits=exits):
            raise self._refuse(number, step)

    def _inject(self, event_type: int, vector: int, c: int) -> None:
        has_error_code = event_type == HARDWARE_EXCEPTION and VECTORS_WITH_ERROR_CODE >> vector & 1
        if event_type == NMI:
            vector = 2
        word = VALID | event_type << TYPE_SHIFT | vector | (1 << 11 if has_error_code else 0)
        self._event(word)
        if has_error_code:
            self._host.append(f"vmcs_write(ENT_INTR_ERROR, {steps.inject_error_code(c):#x});")
        if steps.inject_length(c):
            self._host.append(f"vmcs_write(ENT_INST_LEN, {steps.inject_length(c)});")
        elif is_soft(word):
            self._need_as_configured("misc", "inject_len0", "zero-length-injection")

    def _event(self, word: int) -> None:
        if word & TYPE_MASK == OTHER_EVENT << TYPE_SHIFT:
            if self._has("mtf-offered"):
                self._need("ctrl_cpu_rev[0].clr & CPU_MTF", "CPU_MTF")
            else:
                self._need("!(ctrl_cpu_rev[0].clr & CPU_MTF)", "no CPU_MTF")
        vector = word & VECTOR_MASK
        self._vectors.setdefault(vector, handler_of(vector))
        self._host.append(f"vmcs_write(ENT_INTR_INFO, {word:#x});")

    def _write(self, number: int, step: Step, name: str, value: int) -> None:
        if name == "GUEST_RFLAGS" and value & RFLAGS_TF:
            raise self._refuse(number, step)
        if name == "GUEST_ACTIVITY" and 0 < value < len(ACTIVITIES):
            flag = ("", "hlt-activity", "shutdown-activity", "wait-for-sipi-activity")[value]
            self._need_as_configured("misc", ACTIVITIES[value], flag)
        if name == "GUEST_PREEMPTION_TIMER" and value:
            value = _LONG_TIME
        if name == "ENTRY_INTR_INFO":
            self._need_as_configured("basic_msr", "no_hw_errcode_cc", "error-code-optional")
            self._event(value)
        else:
            self._host.append(f"vmcs_write({FIELDS[name]}, {value:#x});")

    def _interrupt(self, vector: int, when: int) -> None:
        vector = vector if vector >= steps.LOWEST_VECTOR else vector + 16
        self._vectors[vector] = "interrupt"
        if when != steps.NOW:
            self._host.append("/* pending at the entry already, to the same effect (O11) */")
        self._host.append(f"self_interrupt({vector:#x});")

    # -- what L1's manners do -------------------------------------------------------------------------

    def _before_entry(self, number: int, step: Step) -> None:
        """Write what a well-behaved L1 writes about the last exit."""
        machine = Bare(self._config)
        for earlier in self._loaded.scenario.steps[:number]:
            machine.do_step(earlier)
        before = list(machine.l1.vmcs)
        if machine.l1.owed_reason != NOTHING_OWED:
            keep_manners(machine.l1, machine, 0)
        after = machine.l1.vmcs
        for field in MODEL_FIELDS:
            old, new = before[field.place], after[field.place]
            if old != new:
                self._mind(number, step, field.name, field.place, old, new)

    def _mind(self, number: int, step: Step, name: str, place: int, old: int, new: int) -> None:
        """One field that differs: the place of L2, a control, or a value."""
        controls = {one.name: one for one in CONTROLS if one.field == place}
        if place == GUEST_RIP:
            self._host.append(
                "vmcs_write(GUEST_RIP, (u64)l2_program);"
                if new == CODE_BASE
                else "behind_instruction();"
            )
        elif controls and name not in FIELDS:
            for control_name, control in controls.items():
                if (old ^ new) & control.bit:
                    if control_name not in CONTROL_BITS:
                        raise self._refuse(number, step)
                    self._switch(control_name, is_on=new & control.bit != 0)
        elif name in FIELDS:
            self._write(number, step, name, new)
        else:
            raise self._refuse(number, step)

    # -- what comes of them -------------------------------------------------------------------------

    def _after(self, number: int) -> None:
        for record in self._records(number):
            if record[0] == L1_ENTRY:
                self._in_l2 = True
                self._host.append("enter_l2();")
            elif record[0] == DELIVER:
                self._handler_waits = True
                self._program.frames.append(_field(record, "rflags"))
                vector = _field(record, "vector")
                self._vectors.setdefault(vector, handler_of(vector))
            elif record[0] == VMFAIL:
                self._in_l2 = False
                self._host.append(f"expect_vmfail({record[1]});")
            elif record[0] == EXIT:
                self._in_l2 = False
                self._expect(record)
            elif record[0] == L1_INTERRUPT:
                self._host.append("take_interrupts();")

    def _begin_handler(self) -> None:
        """L2 executes something; behind a delivery it is the handler that does."""
        self._events += self._handler_waits
        self._handler_waits = False

    def _expect(self, record: Record) -> None:
        reason = _field(record, "reason")
        name = exit_name(reason)
        state = f"{_field(record, 'activity')}, {_field(record, 'interruptibility'):#x}"
        if reason & FAILED_ENTRY:
            qualification = _field(record, "qualification")
            self._host.append(f"expect_failed_entry({reason:#x} /* {name} */, {qualification:#x});")
            self._host.append(f"expect_state({state});")
            return
        shadow = _field(record, "interruptibility") & INTERRUPT_SHADOW
        if shadow and reason in INSTRUCTION_EXITS and not self._program.is_in_shadow:
            raise self._refused("a shadow of the entry that lasts until an instruction of L2")
        words = ", ".join(
            f"{_field(record, word):#x}" for word in ("interruption info", "IDT-vectoring info")
        )
        self._host.append(f"expect_exit({reason} /* {name} */, {words});")
        self._host.append(f"expect_state({state});")
        self._host.append(f"expect_events({self._events});")
        if self._handler_waits:
            vector = _field(record, "rip") - HANDLER_BASE >> HANDLER_SHIFT
            self._host.append(f"expect_at_handler({vector:#x});")
        if reason == PREEMPTION_TIMER and self._has("save-preemption-timer"):
            self._host.append("TEST_ASSERT_EQ(vmcs_read(PREEMPT_TIMER_VALUE), 0ul);")
        if reason == EXTERNAL_INTERRUPT_EXIT and _field(record, "interruption info"):
            self._host.append("eoi();")

    def _finish(self) -> None:
        self._program.end()
        if self._in_l2:
            self._host.append("/* The end: L2 runs, and exits by the VMCALL behind its program. */")
            self._host.append("expect_exit(18 /* VMCALL */, 0x0, 0x0);")
            self._begin_handler()
            self._host.append(f"expect_events({self._events});")
        if any("self_interrupt" in line for line in self._host):
            self._host.append("take_interrupts();")
        self._host.append("test_set_guest_finished();")
