"""The schedule of a realised scenario: what happens at the places at which L1 or L2 waits, in order.

An item is three integers: the operation, then two operands. Whoever runs the image walks the schedule: at a
boundary at which L2 rests it makes the arrivals at the head one by one, each followed by an evaluation of the
boundary, until an instruction is to run. An item of L1 at the head while L2 rests, or the reverse, means
that the two processors no longer agree; the run ends there.
"""

from typing import Final

Item = tuple[int, int, int]

RUN: Final = 1
"""RIP: L2 executes one instruction there."""
ARRIVE_INTERRUPT: Final = 2
"""vector"""
ARRIVE_NMI: Final = 3
ARRIVE_INIT: Final = 4
ARRIVE_SIPI: Final = 5
"""vector"""
ARRIVE_TIMER: Final = 6
"""ticks of the VMX-preemption timer"""
POKE: Final = 7
"""address, 32-bit value: memory of L2 changes while it rests"""
FLUSH: Final = 8
"""The translations that L2 has cached are dropped."""
ARM: Final = 9
"""An arrival (its operation, its operand) for the next event delivery in L2."""
EXIT: Final = 10
"""L1 sees a VM exit."""
VMFAIL: Final = 11
"""L1 sees a VMfail."""
MARKED: Final = 12
"""L1 goes on from the place where it waited."""
STOP: Final = 13
IN_EMULATION: Final = 14
"""An arrival (its operation, its operand) while the instruction in front of it executes."""
POKE_BYTE: Final = 15
"""address, value"""
ENTERED: Final = 16
"""What stands between an entry of L1 and this arrives while L1 enters."""
ARRIVE_SMI: Final = 17
RESUME: Final = 18
"""The system-management handler goes on, to its RSM."""
