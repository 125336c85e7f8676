"""The memory image that every realised scenario starts from: L1's program, its tables, L2's tables.

What a scenario changes of it, its script writes; see ``script.py``.
"""

import functools
import struct
from typing import Final

from nvmx_core.guests.memory import (
    GATE_NOT_PRESENT,
    GATE_PRESENT,
    GATE_PRIVILEGED,
    GATE_TASK,
    GDT,
    IDT_HIGH,
    OLD_TASK_SELECTOR,
    PAGE_COUNT,
    TASK_GATE_SELECTOR,
    TSS,
    handler_rip,
    page_address,
)
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.l1_program import (
    EXIT_FIELDS,
    handler_table,
    interrupt_stubs,
    l1_program,
)

PRESENT_WRITABLE_USER: Final = 0x7
ACCESSED_DIRTY: Final = 0x60
EPT_ALL: Final = 0x7
EPT_MEMORY_TYPE: Final = 6 << 3
EPT_ACCESSED: Final = 0x100
"""Set from the start: with a full log, setting it would exit as much as setting the dirty flag."""
EPT_ACCESSED_DIRTY: Final = 0x300
EPT_MISCONFIGURED: Final = 0x2
"""Writable, not readable: what no processor accepts."""

L2_IDT: Final = page_address(IDT_HIGH) - 32 * 8
"""Gates have eight bytes, so the gates below vector 32 fill the end of the first page."""

KERNEL_STACK: Final = 0x800
USER_STACK: Final = 0xE00
"""Offsets into the stack page at which the stacks of CPL 0 and of CPL 3 start."""

_TSS_FREE: Final = 0x89
_TSS_BUSY: Final = 0x8B

LAST_LOADED_MSR: Final = 64
ALWAYS_MAPPED: Final = (
    layout.LOW_PAGE, layout.L2_DIRECTORY_POINTERS, layout.L2_PAGE_DIRECTORY, layout.L2_PAGE_TABLE,
)  # fmt: skip
"""Pages of L2 beside the eight that scenarios know."""


def l2_page_entry(page: int, absent: bool) -> int:
    """The entry of L2's page table for one of its eight pages."""
    return 0 if absent else page_address(page) | PRESENT_WRITABLE_USER | ACCESSED_DIRTY


def l2_page_entry_address(page: int) -> int:
    """Where that entry stands."""
    return layout.L2_PAGE_TABLE + 8 * (page_address(page) >> 12)


def ept_entry(page: int, absent: bool, misconfigured: bool) -> int:
    """The entry of L1's EPT for one of L2's eight pages; the dirty flag is clear, for the log of writes."""
    if absent and not misconfigured:
        return 0
    rights = EPT_MISCONFIGURED if misconfigured else EPT_ALL
    return page_address(page) | rights | EPT_MEMORY_TYPE | EPT_ACCESSED


def ept_entry_address(page: int) -> int:
    """Where that entry stands."""
    return layout.EPT_PAGE_TABLE + 8 * (page_address(page) >> 12)


def gate_words(vector: int, kind: int) -> tuple[int, int]:
    """The two words of a gate of L2's IDT."""
    privileged = kind == GATE_PRIVILEGED or (vector < 32 and vector not in (3, 4))
    dpl = 0 if privileged else 3
    present = 0 if kind == GATE_NOT_PRESENT else 1
    if kind == GATE_TASK:
        return TASK_GATE_SELECTOR << 16, present << 15 | dpl << 13 | 0x5 << 8
    offset = handler_rip(vector)
    low = layout.L2_CODE_SELECTOR << 16 | offset & 0xFFFF
    return low, offset & 0xFFFF0000 | present << 15 | dpl << 13 | 0xE << 8


def gate_address(vector: int) -> int:
    """Where a gate stands."""
    return L2_IDT + 8 * vector


def _descriptor(base: int, limit: int, access: int, flags: int) -> int:
    return (
        limit & 0xFFFF
        | (base & 0xFFFFFF) << 16
        | access << 40
        | (limit >> 16 & 0xF) << 48
        | flags << 52
        | (base >> 24 & 0xFF) << 56
    )


def _write(memory: bytearray, address: int, content: bytes) -> None:
    memory[address : address + len(content)] = content


def _write_words(memory: bytearray, address: int, words: tuple[int, ...], code: str = "Q") -> None:
    _write(memory, address, struct.pack(f"<{len(words)}{code}", *words))


@functools.cache
def base_image() -> bytes:
    """The whole memory before a script runs."""
    memory = bytearray(layout.MEMORY_SIZE)
    _write_l1_program(memory)
    _write_l1_tables(memory)
    _write_l2_tables(memory)
    _write_ept(memory)
    _write(memory, layout.SMM_HANDLER, bytes.fromhex("0FAA"))
    bad_msr = struct.pack("<IIQ", 0xC0000100, 0, 0)  # IA32_FS_BASE must not be loaded by an entry
    for number in range(LAST_LOADED_MSR):
        good_msr = struct.pack("<IIQ", 0x174, 0, 0)  # IA32_SYSENTER_CS
        _write(memory, layout.MSR_LOAD_LIST + 16 * number, good_msr)
    _write(memory, layout.MSR_LOAD_LIST + 16 * LAST_LOADED_MSR, bad_msr)
    return bytes(memory)


def _write_l1_program(memory: bytearray) -> None:
    program = l1_program()
    _write(memory, layout.L1_CODE, program.code)
    _write(memory, layout.L1_HANDLERS, interrupt_stubs(program.labels))
    base = layout.VARIABLES
    _write(memory, base + layout.OPERATION_TABLE, handler_table(program.labels))
    _write_words(memory, base + layout.EXIT_FIELD_TABLE, EXIT_FIELDS, "H")
    _write_words(memory, base + layout.SCRIPT_POINTER, (layout.SCRIPT,))
    _write_words(memory, base + layout.DATA_SELECTOR, (layout.L1_DATA_SELECTOR,))
    _write_words(memory, base + layout.VMXON_POINTER, (layout.VMXON_REGION,))
    _write_words(memory, base + layout.VMCS_POINTERS, layout.VMCS_REGIONS)


def _write_l1_tables(memory: bytearray) -> None:
    for vector in range(256):
        offset = layout.L1_HANDLERS + vector * layout.HANDLER_STUB_SIZE
        low = offset & 0xFFFF | layout.L1_CODE_SELECTOR << 16 | 0x8E00 << 32 | (offset >> 16) << 48
        _write_words(memory, layout.L1_IDT + 16 * vector, (low, offset >> 32))
    tss = _descriptor(layout.L1_TSS, 0x67, 0x8B, 0)
    gdt = (0, _descriptor(0, 0xFFFFF, 0x9B, 0xA), _descriptor(0, 0xFFFFF, 0x93, 0xC), tss, 0)
    _write_words(memory, layout.L1_GDT, gdt)
    _write_words(memory, layout.L1_PML4, (layout.L1_PDPT | 3,))
    _write_words(memory, layout.L1_PDPT, (layout.L1_PAGE_DIRECTORY | 3,))
    _write_words(memory, layout.L1_PAGE_DIRECTORY, (0x83,))


def _write_l2_tables(memory: bytearray) -> None:
    _write_words(memory, layout.LOW_PAGE + 0x10, (1, 0), "I")  # bounds that nothing is within
    directory = layout.L2_PAGE_TABLE | PRESENT_WRITABLE_USER | ACCESSED_DIRTY
    _write_words(memory, layout.L2_DIRECTORY_POINTERS, (layout.L2_PAGE_DIRECTORY | 1,))
    _write_words(memory, layout.L2_PAGE_DIRECTORY, (directory,))
    for address in ALWAYS_MAPPED:
        entry = address | PRESENT_WRITABLE_USER | ACCESSED_DIRTY
        _write_words(memory, layout.L2_PAGE_TABLE + 8 * (address >> 12), (entry,))
    for page in range(PAGE_COUNT):
        _write_words(memory, l2_page_entry_address(page), (l2_page_entry(page, absent=False),))
    for vector in range(256):
        _write_words(memory, gate_address(vector), gate_words(vector, GATE_PRESENT), "I")
    limit, tss = layout.L2_DATA_LIMIT, page_address(TSS)
    gdt = (
        0,
        _descriptor(0, 0xFFFFF, 0x9B, 0xC),
        _descriptor(0, limit, 0x93, 0x4),
        _descriptor(0, 0xFFFFF, 0xFB, 0xC),
        _descriptor(0, limit, 0xF3, 0x4),
        _descriptor(tss, 0x67, _TSS_BUSY, 0),
        0,
        0,
        _descriptor(tss + 0x100, 0x67, _TSS_FREE, 0),  # what the task gates name
        _descriptor(tss + 0x200, 0x67, _TSS_BUSY, 0),  # what IRET with NT returns to
    )
    _write_words(memory, page_address(GDT), gdt)
    _write_words(memory, tss, (OLD_TASK_SELECTOR,), "I")  # the link
    stack = page_address(4) + KERNEL_STACK
    _write_words(memory, tss + 4, (stack, layout.L2_STACK_SELECTOR), "I")


def _write_ept(memory: bytearray) -> None:
    _write_words(memory, layout.EPT_PML4, (layout.EPT_PDPT | EPT_ALL | EPT_ACCESSED,))
    _write_words(memory, layout.EPT_PDPT, (layout.EPT_PAGE_DIRECTORY | EPT_ALL | EPT_ACCESSED,))
    _write_words(
        memory, layout.EPT_PAGE_DIRECTORY, (layout.EPT_PAGE_TABLE | EPT_ALL | EPT_ACCESSED,)
    )
    for address in ALWAYS_MAPPED:
        entry = address | EPT_ALL | EPT_MEMORY_TYPE | EPT_ACCESSED_DIRTY
        _write_words(memory, layout.EPT_PAGE_TABLE + 8 * (address >> 12), (entry,))
    for page in range(PAGE_COUNT):
        entry = ept_entry(page, absent=False, misconfigured=False)
        _write_words(memory, ept_entry_address(page), (entry,))
