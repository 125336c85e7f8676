"""The bootable image: a multiboot file that holds L1, L2 and a batch of scripts.

It is one flat file without symbols or sections. What a runner may change in it stands in the parameters
(``places.PARAMETERS``).
"""

import functools
import struct
from collections.abc import Sequence
from typing import Final

from nvmx_core.guests.memory import CODE, HANDLER, page_address
from nvmx_fuzz.boot import places
from nvmx_fuzz.boot.program import CALL, RETURN, boot_program, entry_code, operation_table
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.image import base_image
from nvmx_fuzz.realise.l1_program import END, VMWRITE, interrupt_stubs, l1_program
from nvmx_fuzz.realise.script import Operation, encode, pointer_to, preparation_of, registers

MULTIBOOT_MAGIC: Final = 0x1BADB002
_ADDRESSES_GIVEN: Final = 1 << 16
_TSS_AVAILABLE: Final = 0x89
_HOST_RIP: Final = 0x6C16
_FILLER: Final = bytes.fromhex("0F01C1" * 5 + "90")
"""What L2 meets where no scenario has put an instruction: VMCALL, which always exits."""


@functools.cache
def pristine_memory() -> bytes:
    """The memory that every scenario starts from, up to ``layout.SCRIPT``."""
    memory = bytearray(base_image()[: layout.SCRIPT])
    program = boot_program()
    _write(memory, layout.L1_CODE, bytes(layout.L1_HANDLERS - layout.L1_CODE))
    _write(memory, layout.L1_CODE, program.code)
    _write(memory, layout.L1_HANDLERS, interrupt_stubs(program.labels))
    _write(memory, layout.VARIABLES + layout.OPERATION_TABLE, operation_table(program.labels))
    memory[layout.L1_GDT + layout.L1_TSS_SELECTOR + 5] = _TSS_AVAILABLE
    for number in range(places.MEMORY_SIZE >> 21):
        entry = struct.pack("<Q", number << 21 | 0x83)
        _write(memory, layout.L1_PAGE_DIRECTORY + 8 * number, entry)
    for start in range(page_address(CODE), page_address(HANDLER) + layout.PAGE, len(_FILLER)):
        _write(memory, start, _FILLER)
    return bytes(memory)


def boot_image(scripts: Sequence[Sequence[Operation]], doorbell: bool = False) -> bytes:
    """The file for a batch of scripts; *doorbell*: see ``places.PARAMETER_DOORBELL``."""
    body = bytearray()
    calls: dict[int, int] = {}
    for region in range(len(layout.VMCS_REGIONS)):
        calls[pointer_to(region)] = places.SCRIPTS + len(body)
        body += encode(_placed([*preparation_of(region), (RETURN, 0, 0, 0)]))
    addresses = []
    for script in scripts:
        addresses.append(places.SCRIPTS + len(body))
        used = sorted({operand for _op, *operands in script for operand in operands if operand in calls})
        prologue: list[Operation] = [(CALL, calls[pointer], 0, 0) for pointer in used]
        body += encode(_placed([*registers(), *prologue, *script]))
        if script[-1][0] != END:
            raise AssertionError("a script ends with END")
    table = places.SCRIPTS + len(body)
    body += struct.pack(f"<{len(addresses)}Q", *addresses)
    if places.SCRIPTS + len(body) > places.SHADOW:
        raise ValueError(f"{len(scripts)} scenarios do not fit into one image")
    parameters = struct.pack(
        "<6Q", places.MAGIC, 0, len(scripts), int(doorbell), table, len(scripts)
    )
    head = bytearray(places.PRISTINE - places.IMAGE)
    length = len(head) + layout.SCRIPT + len(body)
    _write(head, 0, _multiboot_header(length))
    _write(head, places.ENTRY - places.IMAGE, entry_code())
    _write(head, 0xFE0, struct.pack("<HI", 0x27, layout.L1_GDT))
    _write(head, 0xFF0, struct.pack("<HI", 0xFFF, layout.L1_IDT))
    _write(head, places.PARAMETERS - places.IMAGE, parameters)
    return bytes(head) + pristine_memory() + bytes(body)


def _multiboot_header(length: int) -> bytes:
    checksum = -(MULTIBOOT_MAGIC + _ADDRESSES_GIVEN) & 0xFFFFFFFF
    end = places.IMAGE + length
    return struct.pack(
        "<8I", MULTIBOOT_MAGIC, _ADDRESSES_GIVEN, checksum, places.IMAGE, places.IMAGE, end, end, places.ENTRY
    )


def _placed(script: Sequence[Operation]) -> list[Operation]:
    """The script with the place at which this program takes its exits."""
    ours, theirs = boot_program().labels["exited"], l1_program().labels["exited"]
    return [
        (op, a, ours, c) if op == VMWRITE and a == _HOST_RIP and b == theirs else (op, a, b, c)
        for op, a, b, c in script
    ]


def _write(memory: bytearray, address: int, content: bytes) -> None:
    memory[address : address + len(content)] = content
