"""The text of a C test for kvm-unit-tests: its comment, L2's program, the functions it calls, its table."""

import re
from collections.abc import Iterable
from pathlib import Path
from textwrap import wrap
from typing import Final, NamedTuple

from nvmx_fuzz.kvm_unit_test_code import (
    ASSEMBLY,
    EXCEPTIONS_WITH_HANDLER,
    HEAD,
    HELPERS,
    IRET,
    VARIABLES,
)
from nvmx_fuzz.wording import printable

_C_COMMENT: Final = re.compile(r"/\*.*?\*/", re.DOTALL)
_COMMENT_WIDTH: Final = 76
_HEAD_LENGTH: Final = 1000
_MARK: Final = "Written by nvmx-fuzz export --format kvm-unit-test."
_OTHERS: Final = "interrupt"
"""The handler of all vectors that the tree has none for."""


def name_of_test(name: str) -> str:
    """What the test of a scenario of this name is called, and its file without the ending."""
    return f"nvmx_{_identifier(printable(Path(name).stem))}"


def is_ours(text: str) -> bool:
    """Whether a C file was written by this module."""
    return f" * {_MARK}\n" in text[:_HEAD_LENGTH]


def handler_of(vector: int) -> str:
    """The function that L2 takes an event of this vector with."""
    return "l2_exception" if vector in EXCEPTIONS_WITH_HANDLER else _OTHERS


class Program:
    """L2's instructions: each an ``asm`` that runs when L2 goes on, wherever it is then.

    ``frames`` are the RFLAGS of the frames on L2's stack, the last on top; ``is_in_shadow``: the last
    instruction stands directly behind an STI.
    """

    def __init__(self) -> None:
        self.instructions: list[str] = []
        self.frames: list[int] = []
        self.is_in_shadow = False
        self._held = ""

    def add(self, name: str, operand: int, *, exits: bool) -> bool:
        """Append an instruction; whether that is possible. *exits*: L2 is left behind it or at it."""
        if name == "int":
            self._append(f'"int ${operand:#x}" : :')
        elif name == "iret" and self.frames:
            self._append(IRET.format(rflags=self.frames.pop()))
        elif name == "sti" and not exits:
            self._held += "sti; "  # its shadow lasts for one instruction, which has to come at once
        elif name in ASSEMBLY:
            self._append(ASSEMBLY[name])
        else:
            return False
        return True

    def end(self) -> None:
        """No instruction comes any more."""
        if self._held:
            self._append(ASSEMBLY["nop"])

    def _append(self, assembly: str) -> None:
        self.is_in_shadow = self._held != ""
        if self._held:
            assembly = f'"{self._held}{assembly[1:]}'
            self._held = ""
        self.instructions.append(f"asm volatile({assembly});")

    def text(self) -> str:
        """The function that L2 runs, and goes on with in its handlers."""
        cases = "".join(
            f"\t\tcase {number}:\n\t\t\t{code}\n\t\t\tbreak;\n"
            for number, code in enumerate(self.instructions)
        )
        return (
            "static void l2_program(void)\n{\n\tfor (;;) {\n\t\tswitch (l2_next++) {\n"
            f'{cases}\t\tdefault:\n\t\t\tasm volatile("vmcall");\n\t\t}}\n\t}}\n}}\n'
        )


class Host(NamedTuple):
    """What L1 does: what the processor needs, the handlers by vector, the lines, the untouched stacks."""

    needs: Iterable[str]
    vectors: dict[int, str]
    host: list[str]
    stacks: int

    def text(self) -> str:
        """The function of the host."""
        handlers = [
            f"handle_irq({vector:#x}, interrupt);"
            if handler == _OTHERS
            else f"handle_exception({vector}, {handler});"
            for vector, handler in sorted(self.vectors.items())
        ]
        needs = list(self.needs)
        misc = ["union vmx_misc misc = { .val = rdmsr(MSR_IA32_VMX_MISC) };", ""]
        head = misc if any("misc." in need for need in needs) else []
        start = ['asm volatile("cli");', *handlers, "test_set_guest(l2_program);"]
        body = [*head, *needs, *start, *self.host]
        lines = "".join(f"\t{line}".rstrip() + "\n" for line in body)
        return f"static void scenario(void)\n{{\n{lines}}}\n"


def c_file(name: str, comments: Iterable[str], program: Program, test: Host) -> str:
    """The whole file of a scenario with this name."""
    host = test.text()
    used = _called(host)
    variables = [
        text.replace("UNTOUCHED", str(test.stacks))
        for variable, text in VARIABLES.items()
        if re.search(rf"\b{variable}\b", "".join((host, *used)))
    ]
    head = _comment(name, comments) + HEAD + "".join(variables)
    return "\n".join((head, program.text(), *used, host, _table(name)))


def _comment(name: str, comments: Iterable[str]) -> str:
    test = name_of_test(name)
    lines = [
        f"{printable(Path(name).stem)}: what a processor does.",
        _MARK,
        f"Copy to x86/{test}.c and build by: make x86/{test}.flat",
        *comments,
    ]
    safe = [printable(line).replace("*/", "* /") for line in lines]
    text = [part for line in safe for part in (wrap(line, _COMMENT_WIDTH) or [""])]
    return "/*\n" + "".join(f" * {line}".rstrip() + "\n" for line in text) + " */\n"


def _table(name: str) -> str:
    return (
        "struct vmx_test vmx_tests[] = {\n"
        f'\t{{ .name = "{name_of_test(name)}", .v2 = scenario }},\n\t{{ NULL }},\n}};\n'
    )


def _called(test: str) -> list[str]:
    """The functions that a test needs, in the order of the table."""
    calls = _C_COMMENT.sub("", test)
    return [code for name, code in HELPERS.items() if re.search(rf"\b{name}\b", calls)]


def _identifier(name: str) -> str:
    return "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in name)
