"""What L0 did in secret: one tuple a record, the kind first, then the length of the journal at that time.

Never compared between machines; oracles judge it and ``explain`` shows it.
"""

from typing import Final

HARDWARE_ENTRY: Final = 0
"""(kind, position, entry info, immediate exit requested, nested_run_pending, re-injection, waiting mask,
request to re-evaluate raised, highest rank left behind by an event injected for this entry)"""
HIDDEN_EXIT: Final = 1
"""(kind, position, reason, IDT-vectoring info)"""
NESTED_EXIT: Final = 2
"""(kind, position, reason, IDT-vectoring info, nested_run_pending, an interrupt was there, highest rank
that was open)"""
NESTED_ENTRY: Final = 3
"""(kind, position, entry info, activity)"""
REINJECT: Final = 4
"""(kind, position, info)"""
INJECT: Final = 5
"""(kind, position, info): a new event of L0 for L2"""
REPAIR: Final = 6
"""(kind, position, page)"""
CANCEL: Final = 7
"""(kind, position, info): the injection was taken back into the queues"""
SAVE_RESTORE: Final = 8
"""(kind, position, mode)"""
QUEUE_EXCEPTION: Final = 9
"""(kind, position, info, for L1)"""
EMULATE: Final = 10
"""(kind, position, reason)"""
USERSPACE: Final = 11
"""(kind, position, vector): userspace was asked for an interrupt"""
ARRIVAL: Final = 12
"""(kind, position, step operation, operand)"""
RAN_PAST: Final = 13
"""(kind, position, waiting mask): an L2 instruction begins although an exit for L1 is due"""
SELF_CHECK: Final = 14
"""(kind, position, code): L0 found itself in a state that must not be; see ``SELF_CHECKS``"""
STUCK: Final = 15
"""(kind, position, round trips): the loop of L0 does not come to rest"""
SLEEP: Final = 16
"""(kind, position, activity)"""
WAKE: Final = 17
"""(kind, position, activity)"""
KICK: Final = 18
"""(kind, position)"""
POSTED: Final = 19
"""(kind, position, notification vector, highest posted vector)"""
LEAVE_FOR_SMM: Final = 20
"""(kind, position)"""

LOG_NAMES: Final = (
    "hardware entry", "hardware exit", "nested exit", "nested entry", "re-inject", "inject",
    "repair page", "cancel entry", "save and restore", "queue exception", "emulate",
    "userspace gives interrupt", "arrival", "L2 ran past a due exit", "self-check failed",
    "no rest", "L2 sleeps", "L2 wakes", "kick", "posted interrupts", "leave L2 for SMM",
)  # fmt: skip

# Self-checks, L0's own WARN_ONs.
CHECK_EXIT_WHILE_RUN_PENDING: Final = 0
CHECK_RUN_PENDING_OUTSIDE_GUEST: Final = 1
CHECK_VECTORING_WITH_REASON: Final = 2
CHECK_ENTRY_FAILED: Final = 3
CHECK_EVENT_FOR_L1: Final = 4
SELF_CHECKS: Final = (
    "nested exit while nested_run_pending",
    "nested_run_pending outside guest mode",
    "valid IDT-vectoring with an exit that cannot have it",
    "hardware refused vmcs02",
    "an event of L2 was left for L1",
)

# What waits, as a bit mask.
WAITS_SMI: Final = 1 << 0
WAITS_INIT: Final = 1 << 1
WAITS_MTF: Final = 1 << 2
WAITS_TRAP: Final = 1 << 3
WAITS_TIMER: Final = 1 << 4
WAITS_NMI: Final = 1 << 5
WAITS_INTERRUPT: Final = 1 << 6
WAITS_FAULT: Final = 1 << 7
WAITS_TRIPLE_FAULT: Final = 1 << 8
WAITS_FOR_L2: Final = 1 << 9
WAITS_NMI_WINDOW: Final = 1 << 10
WAITS_INTERRUPT_WINDOW: Final = 1 << 11
WAIT_NAMES: Final = (
    "SMI", "INIT", "MTF", "#DB trap", "preemption timer", "NMI", "external interrupt",
    "exception", "triple fault", "event for L2", "NMI window", "interrupt window",
)  # fmt: skip

L0Record = tuple[int, ...]
