"""Machine code of assembler texts."""

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz.realise import assembly
from nvmx_fuzz.realise.assembly import AssemblyError, machine_code


def test_decimal_and_hexadecimal_numbers_are_the_same() -> None:
    decimal = (
        "again:\nmov r11, 4096\nadd r11d, 8\nmov rax, [rip + 16]\njmp again\n.byte 1, 0x22, 3\n"
    )
    other = decimal.replace("4096", "0x1000").replace("+ 16", "+ 0x10").replace(", 8", ", 0x8")
    assert machine_code(decimal, 0x1000) == machine_code(other, 0x1000)


def test_keystone_sees_no_decimal_number(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Assembler:
        def __init__(self, _arch: int, _mode: int) -> None:
            pass

        def asm(self, text: str, _origin: int) -> tuple[list[int], int]:
            seen.append(text)
            return [], 0

    monkeypatch.setattr(assembly, "Ks", Assembler)
    machine_code("mov r8, 255\n.byte 0xF3, 10\nop_1x:\nlgdt [4096]\n", 0)
    assert seen == ["mov r8, 0xff\n.byte 0xF3, 0xa\nop_1x:\nlgdt [0x1000]\n"]


def test_32_bit_code_is_other_code() -> None:
    assert machine_code("push eax", 0, long_mode=False) == b"\x50"
    with pytest.raises(AssemblyError, match="does not assemble"):
        machine_code("push eax", 0)
