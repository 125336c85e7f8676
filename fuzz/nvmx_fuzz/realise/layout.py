"""Where everything stands in the physical memory of a realised scenario.

L2's linear, guest-physical and physical addresses are equal, as in ``nvmx_core.guests.memory``; what belongs
to L1 stands above 1 MiB, where L2's tables map nothing.
"""

from typing import Final

PAGE: Final = 0x1000
MEMORY_SIZE: Final = 0x200000

# -- L2 -----------------------------------------------------------------------------------------------------
LOW_PAGE: Final = 0x0000
"""A page that L2's BOUND and MONITOR read; no scenario takes it away."""
L2_DIRECTORY_POINTERS: Final = 0x7000
"""What L2's CR3 names: page-directory pointers, for page faults tell fetches only with PAE and NXE."""
L2_PAGE_DIRECTORY: Final = 0x8000
L2_PAGE_TABLE: Final = 0x9000

# -- the system-management handler: where SMBASE is after a reset ------------------------------------------
SMM_HANDLER: Final = 0x38000
"""One RSM. The state that an SMI saves stands above, up to 0x40000."""

# -- L1 -----------------------------------------------------------------------------------------------------
L1_CODE: Final = 0x100000
L1_HANDLERS: Final = 0x104000
L1_IDT: Final = 0x108000
L1_GDT: Final = 0x109000
L1_TSS: Final = 0x109100
L1_PML4: Final = 0x10A000
L1_PDPT: Final = 0x10B000
L1_PAGE_DIRECTORY: Final = 0x10C000
L1_STACK_TOP: Final = 0x10E000
HANDLER_STUB_SIZE: Final = 16

VARIABLES: Final = 0x110000
# Offsets from VARIABLES; L1's program keeps their address in R13.
SCRIPT_POINTER: Final = 0x00
STOP_FLAG: Final = 0x08
ENDS_INTERRUPTS: Final = 0x10
SAVED_SCRIPT: Final = 0x18
DATA_SELECTOR: Final = 0x20
VMXON_POINTER: Final = 0x28
VMCS_POINTERS: Final = 0x30
INVEPT_DESCRIPTOR: Final = 0x40
EXIT_FIELD_TABLE: Final = 0x80
OPERATION_TABLE: Final = 0x200
MAILBOX: Final = 0x1000
MAILBOX2: Final = 0x1800

VMXON_REGION: Final = 0x112000
VMCS_REGIONS: Final = (0x113000, 0x114000)
EPT_PML4: Final = 0x115000
EPT_PDPT: Final = 0x116000
EPT_PAGE_DIRECTORY: Final = 0x117000
EPT_PAGE_TABLE: Final = 0x118000
VIRTUAL_APIC_PAGE: Final = 0x119000
POSTED_INTERRUPT_DESCRIPTOR: Final = 0x11A000
PML_PAGE: Final = 0x11B000
MSR_LOAD_LIST: Final = 0x11C000
SPARE_APIC_PAGE: Final = 0x11D000
SCRIPT: Final = 0x120000
SCRIPT_END: Final = MEMORY_SIZE

# -- L1's selectors -----------------------------------------------------------------------------------------
L1_CODE_SELECTOR: Final = 0x08
L1_DATA_SELECTOR: Final = 0x10
L1_TSS_SELECTOR: Final = 0x18

# -- L2's selectors -----------------------------------------------------------------------------------------
L2_CODE_SELECTOR: Final = 0x08
L2_STACK_SELECTOR: Final = 0x10
L2_USER_CODE_SELECTOR: Final = 0x1B
L2_USER_DATA_SELECTOR: Final = 0x23
L2_TSS_SELECTOR: Final = 0x28
L2_DATA_LIMIT: Final = 0xFFFFF
"""Limit of L2's data and stack segments: an access above it raises #GP(0) or #SS(0)."""
L2_TSS_LIMIT: Final = 0x66
"""One byte short of the I/O-map base, so that IN and OUT outside IOPL raise #GP without reading it."""
