"""L2's instructions as bytes of 32-bit code, each as long as the table of the model says.

They find their operands in registers that L1 loads at every entry (:data:`REGISTER_VALUES`) and that no
instruction of L2 changes, save where :class:`Code` says so.
"""

from typing import Final, NamedTuple

from nvmx_core.arch.instructions import INSTRUCTIONS
from nvmx_core.guests.memory import DATA, page_address
from nvmx_fuzz.realise import layout

REGISTER_VALUES: Final[dict[str, int]] = {
    "eax": layout.L2_DIRECTORY_POINTERS,  # for MOV CR3, and mapped, for MONITOR
    "ebx": page_address(DATA) + 0x10,
    "ecx": 0,
    "edx": 0,
    "esi": 0x100000
    | layout.L2_USER_DATA_SELECTOR,  # above the limit; SI is the stack selector of CPL 3
    "edi": layout.L2_STACK_SELECTOR,
    "ebp": 0,
}


class Code(NamedTuple):
    """One instruction: its bytes at CPL 0 and at CPL 3, or why it has none.

    ``reads_stack``, ``reads_gdt``: real code reads that page, the model's instruction does not.
    ``changes_eax``, ``needs_eax``: about the value that L1 loaded.
    """

    kernel: str
    user: str = ""
    reason: str = ""
    reads_stack: bool = False
    reads_gdt: bool = False
    changes_eax: bool = False
    needs_eax: bool = False

    def encode(self, cpl: int, operand: int) -> bytes:
        """The bytes at a privilege level; INT n takes its vector from *operand*."""
        text = self.user if cpl and self.user else self.kernel
        return bytes.fromhex(text.replace("nn", f"{operand & 0xFF:02x}"))


_CODE: Final[dict[str, Code]] = {
    "nop": Code("90"),
    "cpuid": Code("0FA2"),
    "hlt": Code("F4"),
    "int": Code("CDnn"),
    "int3": Code("CC"),
    "into": Code("CE"),
    "int1": Code("F1"),
    "ud2": Code("0F0B"),
    "div0": Code("F7F5"),
    "gp": Code("8A06"),
    "ss": Code("36AC"),
    "np": Code("", reason="np-without-selector"),
    "ts": Code("", reason="ts-without-selector"),
    "nm": Code("0F77"),
    "ac": Code("", reason="ac-at-cpl-0"),
    "sti": Code("FB"),
    "cli": Code("FA"),
    "popf": Code("9D", reads_stack=True),
    "iret": Code("2ECF", reads_gdt=True),
    "mov-ss": Code("8ED7", "8ED6", reads_gdt=True),
    "load": Code("8A4B00"),
    "store": Code("884B00"),
    "vmcall": Code("0F01C1"),
    "pause": Code("F390"),
    "rdtsc": Code("0F31", changes_eax=True),
    "rdtscp": Code("0F01F9", changes_eax=True),
    "rdpmc": Code("0F33", changes_eax=True),
    "out": Code("E680"),
    "wbinvd": Code("0F09"),
    "invlpg": Code("0F0139"),
    "mwait": Code("0F01C9"),
    "monitor": Code("0F01C8", needs_eax=True),
    "mov-dr": Code("0F23C0"),
    "mov-cr8": Code("", reason="mov-cr8-in-32-bit-code"),
    "apic-eoi": Code("", reason="apic-eoi-by-msr"),
    "xsetbv": Code("0F01D1"),
    "invd": Code("0F08"),
    "vmlaunch": Code("0F01C2"),
    "rsm": Code("0FAA"),
    "vmfunc": Code("0F01D4"),
    "bound": Code("624510"),
    "pop-ss": Code("17", reads_stack=True, reads_gdt=True),
    "in": Code("E480", changes_eax=True),
    "mov-cr3": Code("0F22D8", needs_eax=True),
    "rdmsr": Code("0F32"),
    "wrmsr": Code("0F30"),
}

CODE: Final = tuple(_CODE[instruction.name] for instruction in INSTRUCTIONS)
"""By the number of the instruction in the model's table."""

assert all(
    code.reason or len(code.encode(0, 0)) == instruction.length
    for code, instruction in zip(CODE, INSTRUCTIONS, strict=True)
)
