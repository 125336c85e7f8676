"""Where the parts of the bootable image stand in physical memory, and the numbers that its runners know.

The image is one flat file. A boot loader (multiboot) puts it at ``IMAGE`` and jumps to its entry; L1, its
tables and L2 are then copied to where ``realise.layout`` has them, and copied anew before every scenario.
"""

from typing import Final

from nvmx_core.guests.memory import STACK, page_address
from nvmx_fuzz.realise import layout

IMAGE: Final = 0x400000
ENTRY: Final = IMAGE + 0x40
GDT_POINTER: Final = IMAGE + 0xFE0
IDT_POINTER: Final = IMAGE + 0xFF0
PARAMETERS: Final = IMAGE + 0x1000
"""What a runner may change in the file before it starts it (`PARAMETER_*`, 64-bit words)."""
PARAMETER_MAGIC: Final = 0
PARAMETER_FIRST: Final = 8
"""The number of the first scenario that runs."""
PARAMETER_END: Final = 16
"""The number behind the last one."""
PARAMETER_DOORBELL: Final = 24
"""1: a line is announced at a port and stands at `OUTPUT`; 0: it goes to the serial port COM1; 2: as 1, but
without the line of capabilities."""
RINGS: Final = 1
RINGS_SILENTLY: Final = 2
PARAMETER_TABLE: Final = 32
"""The address of a table with the address of each scenario's script."""
PARAMETER_COUNT: Final = 40
"""How many scenarios the table has."""
MAGIC: Final = 0x31585A46584D564E
"""'NVMXFZX1'"""

PRISTINE: Final = IMAGE + 0x2000
"""A copy of the memory that every scenario starts from, `layout.SCRIPT` bytes of it."""
SCRIPTS: Final = PRISTINE + layout.SCRIPT

MEMORY_SIZE: Final = 0x4000000
"""What L1's tables map, 64 MiB."""
OUTPUT: Final = 0x3000000
"""The line of a scenario while it grows; more than any scenario fills."""
OUTPUT_SIZE: Final = 0x1000000
EVENTS: Final = 0x2F00000
EVENTS_END: Final = EVENTS + 0x1000
"""What arrived in L1: kind, vector, interrupted RIP, how many records stood then."""
SHADOW: Final = 0x2F10000
"""L2's stack as it was at the last entry."""

NUMBER: Final = 0x10F000
"""The number of the next scenario; not among what is copied anew."""

DOORBELL_PORT: Final = 0x5E0
STOP_PORT: Final = 0x5E8
"""L1 has a stop for our monitor, whose address it writes; 0: it is about to enter L2."""
STOPS_WAIT: Final = 0x58
"""Offset from ``layout.VARIABLES``: at how many entries the monitor has to hear of it."""
BOCHS_SHUTDOWN_PORT: Final = 0x8900
QEMU_POWER_PORT: Final = 0x604
"""PM1a control of the PCs that QEMU makes, where SeaBIOS puts it."""
POWER_OFF: Final = 1 << 13
"""SLP_EN, with the sleep type 0 that is "off" there."""

STACK_BOTTOM: Final = page_address(STACK) + 0x400
STACK_TOP: Final = page_address(STACK) + 0x800
"""The part of L2's stack page on which deliveries push."""
WATCHED_TOP: Final = STACK_TOP + 0x40
"""They push above it where L2 has popped before."""
STACK_WORDS: Final = (WATCHED_TOP - STACK_BOTTOM) // 4
SCRUBBED: Final = 0x5C5C5C5C
"""What L1 puts into the dead part of L2's stack after an exit, so that the next push shows."""

PROGRAM: Final = (
    (layout.L1_CODE, layout.L1_PAGE_DIRECTORY + layout.PAGE),
    (layout.VARIABLES, layout.VMXON_REGION + layout.PAGE),
)
"""What is copied once: L1's code, tables and variables. Each page more is one that an L0 has to map."""
RESTORED: Final = (
    (layout.LOW_PAGE, layout.LOW_PAGE + layout.PAGE),
    (layout.L2_DIRECTORY_POINTERS, layout.L2_PAGE_TABLE + layout.PAGE),
    (0x10000, 0x18000),
    (layout.VARIABLES, layout.VARIABLES + 2 * layout.PAGE),
    (layout.VMCS_REGIONS[0], layout.SPARE_APIC_PAGE + layout.PAGE),
)
"""What is copied anew before every scenario: L2's tables and pages, L1's variables and structures."""

LONG_TIMER: Final = 0xFFFFFFFF
LONG_TIMER_LEFT: Final = 0xC0000000
"""A VMX-preemption timer that does not end while a scenario runs, and what is left of it then at least."""

CAPABILITY_MSRS: Final = 13
"""IA32_VMX_BASIC and those behind it, up to IA32_VMX_EPT_VPID_CAP."""
FIRST_CAPABILITY_MSR: Final = 0x480
