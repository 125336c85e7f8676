"""Layouts of the guest's non-register state and of the registers that event delivery touches.

Source: SDM, "Guest Non-Register State", "RFLAGS Register".
"""

from typing import Final

# Interruptibility state (4824h).
BLOCKING_BY_STI: Final = 1 << 0
BLOCKING_BY_MOV_SS: Final = 1 << 1
BLOCKING_BY_SMI: Final = 1 << 2
BLOCKING_BY_NMI: Final = 1 << 3
INTERRUPT_SHADOW: Final = BLOCKING_BY_STI | BLOCKING_BY_MOV_SS
INTERRUPTIBILITY_RESERVED: Final = ~0xF

# Activity state (4826h).
ACTIVE: Final = 0
HLT: Final = 1
SHUTDOWN: Final = 2
WAIT_FOR_SIPI: Final = 3
ACTIVITY_NAMES: Final = ("active", "hlt", "shutdown", "wait-for-sipi")

# Pending debug exceptions (6822h); the low bits are those of DR6 and of the exit qualification of #DB.
PENDING_DBG_B: Final = 0xF
PENDING_DBG_ENABLED_BP: Final = 1 << 12
PENDING_DBG_BS: Final = 1 << 14
PENDING_DBG_VALID: Final = PENDING_DBG_ENABLED_BP | PENDING_DBG_BS
PENDING_DBG_RESERVED: Final = ~(PENDING_DBG_B | PENDING_DBG_VALID)
DEBUG_CONDITIONS: Final = PENDING_DBG_B | PENDING_DBG_BS

# RFLAGS.
RFLAGS_FIXED: Final = 1 << 1
RFLAGS_TF: Final = 1 << 8
RFLAGS_IF: Final = 1 << 9
RFLAGS_OF: Final = 1 << 11
RFLAGS_IOPL_SHIFT: Final = 12
RFLAGS_IOPL: Final = 3 << RFLAGS_IOPL_SHIFT
RFLAGS_NT: Final = 1 << 14
RFLAGS_RF: Final = 1 << 16
RFLAGS_VIF: Final = 1 << 19
RFLAGS_VIP: Final = 1 << 20
RFLAGS_DEFINED: Final = 0x3D7FD7
"""Every flag of the architecture but VM: virtual-8086 mode is not modelled, so it counts as reserved."""

CR0_PE: Final = 1 << 0

LINK_POINTER_NONE: Final = (1 << 64) - 1
CANONICAL_LIMIT: Final = 1 << 47


def debug_conditions(pending_dbg: int) -> int:
    """The debug conditions of a pending-debug field as DR6 and the exit qualification report them."""
    return pending_dbg & DEBUG_CONDITIONS


def pending_dbg_of(conditions: int) -> int:
    """The pending-debug field that holds the debug conditions of a trap that was not delivered."""
    enabled = PENDING_DBG_ENABLED_BP if conditions & PENDING_DBG_B else 0
    return conditions & DEBUG_CONDITIONS | enabled
