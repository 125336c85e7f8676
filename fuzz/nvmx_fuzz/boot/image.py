"""The bootable image: a multiboot file that holds L1, L2 and a batch of scripts.

It is one flat file without symbols or sections. What a runner may change in it stands in the parameters
(``places.PARAMETERS``).
"""

import functools
import struct
from collections.abc import Sequence
from typing import Final

from nvmx_core.guests.memory import CODE, CODE_BASE, HANDLER, page_address
from nvmx_fuzz.boot import places
from nvmx_fuzz.boot.program import CALL, RESTART, RETURN, boot_program, entry_code, operation_table
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.image import base_image
from nvmx_fuzz.realise.l1_program import (
    END,
    ENTER,
    STORE32,
    STORE_BYTES,
    VMPTRLD,
    VMWRITE,
    interrupt_stubs,
    l1_program,
)
from nvmx_fuzz.realise.script import (
    REGISTERS_ADDRESS,
    Operation,
    encode,
    pointer_to,
    preparation_of,
    registers,
)
from nvmx_fuzz.realise.vmcs import default_stack

MULTIBOOT_MAGIC: Final = 0x1BADB002
_ADDRESSES_GIVEN: Final = 1 << 16
_TSS_AVAILABLE: Final = 0x89
_HOST_RIP: Final = 0x6C16
_PREEMPTION_TIMER: Final = 0x482E
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


def boot_image(
    scripts: Sequence[Sequence[Operation]], *, doorbell: bool = False, sweep: bool = False
) -> bytes:
    """The file for a batch of scripts.

    *doorbell*: see ``places.PARAMETER_DOORBELL``; *sweep*: L2 executes an IRET before each scenario, for a
    processor on which virtual-NMI blocking outlives the entry that it came from.
    """
    body = _Body()
    preparations = {
        pointer_to(region): body.add([*_preparation(region, doorbell), (RETURN, 0, 0, 0)])
        for region in range(len(layout.VMCS_REGIONS))
    }
    sweeping = body.add(_sweep()) if sweep else 0
    addresses = []
    for script in scripts:
        if script[-1][0] != END:
            raise AssertionError("a script ends with END")
        named = {operand for _op, *operands in script for operand in operands}
        calls = [
            (CALL, preparations[pointer], 0, 0) for pointer in sorted(named & preparations.keys())
        ]
        address = body.add([*registers(), *calls, *script])
        if sweep:
            address = body.add([(CALL, sweeping, 0, 0), (RESTART, address, 0, 0)])
        addresses.append(address)
    table = body.add_words(addresses)
    if body.end > places.EVENTS:
        raise ValueError(f"{len(scripts)} scenarios do not fit into one image")
    parameters = struct.pack(
        "<6Q", places.MAGIC, 0, len(scripts), int(doorbell), table, len(scripts)
    )
    return _head(parameters, body.end) + pristine_memory() + bytes(body.content)


def _preparation(region: int, has_zeros: bool) -> list[Operation]:
    """What L1 writes into a VMCS; *has_zeros*: below KVM, whose VMCS for L1 in clean memory is all 0."""
    script = preparation_of(region)
    return [each for each in script if not has_zeros or each[0] != VMWRITE or each[2]]


class _Body:
    """What stands behind the pristine memory, and where."""

    def __init__(self) -> None:
        self.content: Final = bytearray()

    @property
    def end(self) -> int:
        return places.SCRIPTS + len(self.content)

    def add(self, script: Sequence[Operation]) -> int:
        address = self.end
        self.content.extend(encode(_placed(script)))
        return address

    def add_words(self, words: Sequence[int]) -> int:
        address = self.end
        self.content.extend(struct.pack(f"<{len(words)}Q", *words))
        return address


def _sweep() -> list[Operation]:
    """L2, with virtual NMIs, executes IRET and comes back."""
    frame = (CODE_BASE + 1, layout.L2_CODE_SELECTOR, 2)
    stack = default_stack(0)
    return [
        *registers(),
        *preparation_of(0),
        (VMPTRLD, pointer_to(0), 0, 0),
        (STORE_BYTES, CODE_BASE, int.from_bytes(b"\xcf" + _FILLER[:3], "little"), 4),
        *((STORE32, stack + 4 * index, word, 0) for index, word in enumerate(frame)),
        (ENTER, 0, 0, REGISTERS_ADDRESS),
        (RETURN, 0, 0, 0),
    ]


def _head(parameters: bytes, end: int) -> bytes:
    """The first pages of the file: header, entry, parameters."""
    head = bytearray(places.PRISTINE - places.IMAGE)
    _write(head, 0, _multiboot_header(end))
    _write(head, places.ENTRY - places.IMAGE, entry_code())
    _write(head, places.GDT_POINTER - places.IMAGE, struct.pack("<HI", 0x27, layout.L1_GDT))
    _write(head, places.IDT_POINTER - places.IMAGE, struct.pack("<HI", 0xFFF, layout.L1_IDT))
    _write(head, places.PARAMETERS - places.IMAGE, parameters)
    return bytes(head)


def _multiboot_header(end: int) -> bytes:
    checksum = -(MULTIBOOT_MAGIC + _ADDRESSES_GIVEN) & 0xFFFFFFFF
    return struct.pack(
        "<8I",
        MULTIBOOT_MAGIC,
        _ADDRESSES_GIVEN,
        checksum,
        places.IMAGE,
        places.IMAGE,
        end,
        end,
        places.ENTRY,
    )


def _placed(script: Sequence[Operation]) -> list[Operation]:
    """The script with the place at which this program takes its exits, and with timers that do not end.

    In a scenario time passes by steps only, none of which stand alone.
    """
    ours, theirs = boot_program().labels["exited"], l1_program().labels["exited"]
    placed = []
    for op, a, b, c in script:
        value = b
        if op == VMWRITE and a == _HOST_RIP and b == theirs:
            value = ours
        elif op == VMWRITE and a == _PREEMPTION_TIMER and b:
            value = places.LONG_TIMER
        placed.append((op, a, value, c))
    return placed


def _write(memory: bytearray, address: int, content: bytes) -> None:
    memory[address : address + len(content)] = content
