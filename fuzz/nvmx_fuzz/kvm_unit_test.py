"""A scenario as a test for kvm-unit-tests: one C file that compiles in an unmodified tree.

The file includes ``vmx.c``, which has the program around VMX tests, and brings the table of tests that
``vmx_tests.c`` brings otherwise; so ``make x86/NAME.flat`` builds it by the tree's own rules, and nothing
has to be registered.

What L1 does becomes the host's code, L2's instructions become a small program that goes on wherever L2
is: behind an instruction that exited, or in a handler. After each entry the test asserts what `bare` saw
of the exit. The machine under test is L1's processor: hardware, or a KVM that runs the test in a guest.

What a test cannot bring about is refused: faults of L2's tables, exits that another processor has to
cause at an exact moment, state that vmx.c does not set up. Steps of L0 stand as comments; whether L0 has
mapped a page is its own affair.
"""

import re
from pathlib import Path
from textwrap import wrap
from typing import Final

from nvmx_core.arch.controls import CONTROLS
from nvmx_core.arch.events import HARDWARE_EXCEPTION, NMI, VALID, VECTORS_WITH_ERROR_CODE
from nvmx_core.arch.exits import (
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    FAILED_ENTRY,
    INSTRUCTION_EXITS,
    exit_name,
)
from nvmx_core.arch.instructions import INSTRUCTIONS
from nvmx_core.guests.memory import HANDLER_BASE, HANDLER_SHIFT
from nvmx_core.journal import EXIT, L1_ENTRY, L1_INTERRUPT, SMM_ENTRY, VM_DEAD, VMFAIL, Record
from nvmx_core.machines.bare import Bare
from nvmx_core.scenario import steps
from nvmx_core.scenario.config import FLAG_BIT, Config, config_for, exception_bitmap
from nvmx_core.scenario.step_text import format_step
from nvmx_core.scenario.steps import Step
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.scenario_files import Loaded
from nvmx_fuzz.wording import printable

_NOT_SET_UP: Final = (
    "real-mode",
    "user-mode",
    "single-step",
    "tpr-shadow",
    "virtual-interrupt-delivery",
    "posted-interrupts",
    "preemption-timer",
)
_FIELD_BITS: Final = (
    ("external-interrupt-exiting", "PIN_CONTROLS", "PIN_EXTINT"),
    ("nmi-exiting", "PIN_CONTROLS", "PIN_NMI"),
    ("virtual-nmis", "PIN_CONTROLS", "PIN_VIRT_NMI"),
    ("hlt-exiting", "CPU_EXEC_CTRL0", "CPU_HLT"),
    ("unconditional-io-exiting", "CPU_EXEC_CTRL0", "CPU_IO"),
    ("acknowledge-interrupt-on-exit", "EXI_CONTROLS", "EXI_INTA"),
)
_MORE_CONTROLS: Final = (
    ("rdtsc-exiting", "CPU_EXEC_CTRL0", "CPU_RDTSC"),
    ("pause-exiting", "CPU_EXEC_CTRL0", "CPU_PAUSE"),
    ("interrupt-window-exiting", "CPU_EXEC_CTRL0", "CPU_INTR_WINDOW"),
    ("nmi-window-exiting", "CPU_EXEC_CTRL0", "CPU_NMI_WINDOW"),
    ("monitor-trap-flag", "CPU_EXEC_CTRL0", "CPU_MTF"),
)
_CONTROL_OF_NAME: Final = {name: (field, bit) for name, field, bit in _FIELD_BITS + _MORE_CONTROLS}

_ASSEMBLY: Final[dict[str, str]] = {
    "nop": '"nop"',
    "cpuid": '"cpuid" : : "a" (0) : "ebx", "ecx", "edx"',
    "hlt": '"hlt"',
    "int3": '"int3"',
    "ud2": '"ud2"',
    "sti": '"sti"',
    "cli": '"cli"',
    "pause": '"pause"',
    "rdtsc": '"rdtsc" : : : "eax", "edx"',
    "vmcall": '"vmcall"',
    "out": '"out %%al, $0x80" : : "a" (0)',
    "wbinvd": '"wbinvd"',
}
_C_COMMENT: Final = re.compile(r"/\*.*?\*/")
_COMMENT_WIDTH: Final = 76
_EXCEPTIONS: Final = 32
"""Vectors below are those of exceptions."""
_INTERRUPTION, _VECTORING, _RIP = 3, 5, 10

_HEAD: Final = """\
#include "vmx.c"
#include "apic.h"
#include "desc.h"
#include "isr.h"

static volatile bool in_l2;
static volatile unsigned int l2_next;
static volatile unsigned int l1_interrupts;
"""

_HELPERS: Final[dict[str, str]] = {
    "l2_exception": """\
/* L2 takes an event: its program goes on in the handler. */
static void l2_exception(struct ex_regs *regs)
{
	if (!in_l2)
		report_abort("exception %lu while L1 runs", regs->vector);
	l2_program();
}
""",
    "interrupt": """\
static void interrupt(isr_regs_t *regs)
{
	if (in_l2)
		l2_program();
	l1_interrupts++;
	eoi();
}
""",
    "self_interrupt": """\
static void self_interrupt(unsigned int vector)
{
	apic_icr_write(APIC_DEST_SELF | APIC_DEST_PHYSICAL | APIC_DM_FIXED | vector, 0);
}
""",
    "enter_l2": """\
static void enter_l2(void)
{
	in_l2 = true;
	enter_guest();
	in_l2 = false;
}
""",
    "expect_exit": """\
/* The event words count where their valid bit is set. */
static void expect_exit(u32 reason, u32 interruption, u32 vectoring)
{
	u32 seen = vmcs_read(EXI_INTR_INFO);
	u32 seen_vectoring = vmcs_read(IDT_VECT_INFO) & ~(1u << 12);

	TEST_ASSERT_EQ((u32)vmcs_read(EXI_REASON), reason);
	TEST_ASSERT_EQ(seen & (1u << 31) ? seen : 0, interruption);
	TEST_ASSERT_EQ(seen_vectoring & (1u << 31) ? seen_vectoring : 0, vectoring);
	TEST_ASSERT_EQ((u32)vmcs_read(ENT_INTR_INFO) >> 31, 0u);
}
""",
    "expect_at_handler": """\
/* The event was delivered, and its handler has not begun. */
static void expect_at_handler(u8 vector)
{
	TEST_ASSERT_EQ(vmcs_read(GUEST_RIP), (u64)get_idt_addr(&boot_idt[vector]));
}
""",
    "behind_instruction": """\
static void behind_instruction(void)
{
	vmcs_write(GUEST_RIP, vmcs_read(GUEST_RIP) + vmcs_read(EXI_INST_LEN));
}
""",
    "take_interrupts": """\
static void take_interrupts(void)
{
	asm volatile("sti; nop; nop; cli");
}
""",
}
"""The functions of the host, each with what it is for; a file holds those that it calls."""


def kvm_unit_test(loaded: Loaded) -> str:
    """The C file of a scenario.

    Raises:
        BadFile: the scenario needs what a test cannot bring about; the message names the step.
    """
    return _Writer(loaded).text()


class _Writer:
    """Walks the steps beside the journal of `bare` and writes host code and L2's program."""

    def __init__(self, loaded: Loaded) -> None:
        self._name = loaded.name
        self._loaded = loaded
        self._config = config_for(loaded.scenario.config)
        self._bare = Bare(self._config)
        self._bare.run(loaded.scenario)
        self._host: list[str] = []
        self._program: list[str] = []
        self._vectors: dict[int, None] = {}
        self._in_l2 = False
        self._require_plain_entries()

    def text(self) -> str:
        """The whole file."""
        self._require_config()
        self._set_up()
        for number, step in enumerate(self._loaded.scenario.steps):
            self._take(number, step)
            self._after(number)
        self._finish()
        test = self._test()
        calls = _C_COMMENT.sub("", test)
        used = [code for name, code in _HELPERS.items() if re.search(rf"\b{name}\b", calls)]
        return "\n".join((self._comment() + _HEAD, self._l2_program(), *used, test, self._table()))

    # -- what there is ------------------------------------------------------------------------------

    def _records(self, number: int) -> list[Record]:
        """The records of a step on `bare`."""
        starts = [*self._bare.step_starts, len(self._bare.journal)]
        return list(self._bare.journal[starts[number] : starts[number + 1]])

    def _require_plain_entries(self) -> None:
        for record in self._bare.journal:
            if record[0] in (VMFAIL, SMM_ENTRY, VM_DEAD) or (
                record[0] == EXIT and record[1] & FAILED_ENTRY
            ):
                raise BadFile(
                    self._name, "a failing entry or SMM has no counterpart in a kvm-unit-test"
                )

    def _refuse(self, number: int, step: Step) -> BadFile:
        text = " ".join(format_step(step).split())
        return BadFile(
            self._name, f"step {number + 1}, {text!r}, has no counterpart in a kvm-unit-test"
        )

    def _require_config(self) -> None:
        flags = self._config.flags
        for name in _NOT_SET_UP:
            if flags & FLAG_BIT[name]:
                raise BadFile(self._name, f"config {name}=on has no counterpart in a kvm-unit-test")
        if self._config.pf_filter:
            raise BadFile(self._name, "a page-fault filter has no counterpart in a kvm-unit-test")

    # -- steps --------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        config: Config = self._config
        for name, field, bit in _FIELD_BITS:
            self._switch(field, bit, config.flags & FLAG_BIT[name] != 0)
        self._host.append(f"vmcs_write(EXC_BITMAP, {exception_bitmap(config.exceptions):#x});")
        enabled = " | X86_EFLAGS_IF" if config.flags & FLAG_BIT["interrupts-on"] else ""
        self._host.append(f"vmcs_write(GUEST_RFLAGS, X86_EFLAGS_FIXED{enabled});")

    def _switch(self, field: str, bit: str, is_on: bool) -> None:
        operation = f"| {bit}" if is_on else f"& ~{bit}"
        self._host.append(f"vmcs_write({field}, vmcs_read({field}) {operation});")

    def _take(self, number: int, step: Step) -> None:
        op, a, b, c = step
        operation = steps.OPERATIONS[op]
        self._host.append(f"/* {number + 1}: {' '.join(format_step(step).split())} */")
        if operation.actor == steps.L0:
            return
        if op == steps.RUN:
            self._run(number, step)
        elif self._in_l2:
            raise self._refuse(number, step)
        elif op == steps.ENTER and not a:
            self._host.append("enter_l2();")
        elif op == steps.INJECT:
            self._inject(a, b, c)
        elif op == steps.CONTROL and CONTROLS[a].name in _CONTROL_OF_NAME:
            self._switch(*_CONTROL_OF_NAME[CONTROLS[a].name], is_on=b == 1)
        elif op == steps.INTERCEPT:
            change = f"| (1u << {a})" if b else f"& ~(1u << {a})"
            self._host.append(f"vmcs_write(EXC_BITMAP, vmcs_read(EXC_BITMAP) {change});")
        elif op == steps.INTERRUPT and a in (steps.NOW, steps.AT_ENTRY, steps.IN_DELIVERY):
            self._interrupt(b, a)
        else:
            raise self._refuse(number, step)

    def _run(self, number: int, step: Step) -> None:
        if not self._in_l2:
            self._host.append("/* L2 does not run then */")
            return
        name = INSTRUCTIONS[step[1]].name
        if name == "int":
            self._vectors[step[2]] = None
            self._program.append(f'asm volatile("int ${step[2]:#x}");')
        elif name in _ASSEMBLY:
            self._program.append(f"asm volatile({_ASSEMBLY[name]});")
        else:
            raise self._refuse(number, step)

    def _inject(self, event_type: int, vector: int, c: int) -> None:
        has_error_code = event_type == HARDWARE_EXCEPTION and VECTORS_WITH_ERROR_CODE >> vector & 1
        if event_type == NMI:
            vector = 2
        self._vectors[vector] = None
        word = VALID | event_type << 8 | vector | (1 << 11 if has_error_code else 0)
        self._host.append(f"vmcs_write(ENT_INTR_INFO, {word:#x});")
        if has_error_code:
            self._host.append(f"vmcs_write(ENT_INTR_ERROR, {steps.inject_error_code(c):#x});")
        if steps.inject_length(c):
            self._host.append(f"vmcs_write(ENT_INST_LEN, {steps.inject_length(c)});")

    def _interrupt(self, vector: int, when: int) -> None:
        vector = vector if vector >= steps.LOWEST_VECTOR else vector + 16
        self._vectors[vector] = None
        if when != steps.NOW:
            self._host.append("/* pending at the entry already, to the same effect (O11) */")
        self._host.append(f"self_interrupt({vector:#x});")

    # -- what comes of them -------------------------------------------------------------------------

    def _after(self, number: int) -> None:
        for record in self._records(number):
            if record[0] == L1_ENTRY:
                self._in_l2 = True
            elif record[0] == EXIT:
                self._in_l2 = False
                self._expect(record)
            elif record[0] == L1_INTERRUPT:
                self._host.append("take_interrupts();")

    def _expect(self, record: Record) -> None:
        reason = record[1]
        words = f"{record[_INTERRUPTION]:#x}, {record[_VECTORING]:#x}"
        self._host.append(f"expect_exit({reason} /* {exit_name(reason)} */, {words});")
        offset = record[_RIP] - HANDLER_BASE
        is_at_handler = offset >= 0 and not offset & ((1 << HANDLER_SHIFT) - 1)
        if is_at_handler and reason not in INSTRUCTION_EXITS and offset >> HANDLER_SHIFT < 256:
            self._host.append(f"expect_at_handler({offset >> HANDLER_SHIFT:#x});")
        if reason in INSTRUCTION_EXITS:
            self._host.append("behind_instruction();")
        elif reason == EXCEPTION_NMI:
            self._host.append("vmcs_write(GUEST_RIP, (u64)l2_program);")
        if reason == EXTERNAL_INTERRUPT_EXIT and record[_INTERRUPTION]:
            self._host.append("eoi();")

    def _finish(self) -> None:
        if self._in_l2:
            self._host.append("/* The end: L2 runs, and exits by the VMCALL behind its program. */")
            self._host.append("expect_exit(18 /* VMCALL */, 0x0, 0x0);")
        if any("self_interrupt" in line for line in self._host):
            self._host.append("take_interrupts();")
        self._host.append("test_set_guest_finished();")

    # -- text ---------------------------------------------------------------------------------------

    def _comment(self) -> str:
        comments = self._loaded.text.comments if self._loaded.text is not None else ()
        name = printable(Path(self._name).stem)
        lines = [
            f"{name}: what a processor does, written by nvmx-fuzz export --format kvm-unit-test.",
            f"Copy to x86/nvmx_{_identifier(name)}.c and build by: make x86/nvmx_{_identifier(name)}.flat",
            *(printable(comment).replace("*/", "* /") for comment in comments),
        ]
        text = [part for line in lines for part in (wrap(line, _COMMENT_WIDTH) or [""])]
        return "/*\n" + "".join(f" * {line}".rstrip() + "\n" for line in text) + " */\n"

    def _l2_program(self) -> str:
        cases = "".join(
            f"\t\tcase {number}:\n\t\t\t{code}\n\t\t\tbreak;\n"
            for number, code in enumerate(self._program)
        )
        return (
            "static void l2_program(void)\n{\n\tfor (;;) {\n\t\tswitch (l2_next++) {\n"
            f'{cases}\t\tdefault:\n\t\t\tasm volatile("vmcall");\n\t\t}}\n\t}}\n}}\n'
        )

    def _test(self) -> str:
        handlers = [
            f"handle_exception({vector}, l2_exception);"
            if vector < 32
            else f"handle_irq({vector:#x}, interrupt);"
            for vector in sorted(self._all_vectors())
        ]
        body = ['asm volatile("cli");', *handlers, "test_set_guest(l2_program);", *self._host]
        return "static void scenario(void)\n{\n" + "".join(f"\t{line}\n" for line in body) + "}\n"

    def _all_vectors(self) -> set[int]:
        exceptions = {"ud2": 6, "int3": 3}
        used = {exceptions[name] for name in exceptions if f'"{name}"' in "".join(self._program)}
        return {*self._vectors, *used}

    def _table(self) -> str:
        name = _identifier(Path(self._name).stem)
        return (
            "struct vmx_test vmx_tests[] = {\n"
            f'\t{{ .name = "nvmx_{name}", .v2 = scenario }},\n\t{{ NULL }},\n}};\n'
        )


def _handler(vector: int) -> str:
    if vector < _EXCEPTIONS:
        return f"handle_exception({vector}, l2_exception);"
    return f"handle_irq({vector:#x}, interrupt);"


def _identifier(name: str) -> str:
    return "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in name)
