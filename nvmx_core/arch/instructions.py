"""L2's instructions, as one table: length, what makes each exit, and whether an L0 always emulates it.

Source: SDM, "Instructions That Cause VM Exits Unconditionally", "Instructions That Cause VM Exits
Conditionally", "Changes to Instruction Behavior in VMX Non-Root Operation".
"""

from typing import Final, NamedTuple

from nvmx_core.arch.controls import (
    CPU_CR3_LOAD_EXITING,
    CPU_CR8_LOAD_EXITING,
    CPU_HLT_EXITING,
    CPU_INVLPG_EXITING,
    CPU_MONITOR_EXITING,
    CPU_MOV_DR_EXITING,
    CPU_MWAIT_EXITING,
    CPU_PAUSE_EXITING,
    CPU_RDPMC_EXITING,
    CPU_RDTSC_EXITING,
    CPU_UNCOND_IO_EXITING,
    SECONDARY_WBINVD_EXITING,
)
from nvmx_core.arch.events import AC, BR, DE, GP, NM, NP, SS, TS, UD
from nvmx_core.arch.exits import (
    CPUID_EXIT,
    CR_ACCESS,
    HLT_EXIT,
    INVD_EXIT,
    INVLPG_EXIT,
    IO_INSTRUCTION,
    MONITOR_EXIT,
    MOV_DR_EXIT,
    MWAIT_EXIT,
    PAUSE_EXIT,
    RDMSR_EXIT,
    RDPMC_EXIT,
    RDTSC_EXIT,
    RDTSCP_EXIT,
    VMCALL_EXIT,
    VMLAUNCH_EXIT,
    WBINVD_EXIT,
    WRMSR_EXIT,
    XSETBV_EXIT,
)
from nvmx_core.arch.fields import CPU_BASED, SECONDARY

# What an instruction does when it does not exit.
NOTHING: Final = 0
HALT: Final = 1
SOFT_INTERRUPT: Final = 2
BREAKPOINT: Final = 3
OVERFLOW: Final = 4
ICEBP: Final = 5
FAULT: Final = 6
SET_IF: Final = 7
CLEAR_IF: Final = 8
POP_FLAGS: Final = 9
INTERRUPT_RETURN: Final = 10
LOAD_SS: Final = 11
MEMORY_READ: Final = 12
MEMORY_WRITE: Final = 13
WRITE_TPR: Final = 14
APIC_EOI: Final = 15
ARM_MONITOR: Final = 16

ALWAYS: Final = -1
NEVER: Final = -2


class Instruction(NamedTuple):
    """One L2 instruction.

    ``exit_field``/``exit_bit`` name the control that makes it exit; ALWAYS and NEVER as field mean what
    they say. ``privileged``: #GP(0) outside CPL 0, before any exit (P15). ``emulated``: the L0 of the
    nested machine always intercepts it and emulates it when L1 does not want it. ``fault`` is the vector
    that a FAULT instruction raises. ``qualification`` is that of its exit (SDM, Exit Qualification for
    Control-Register Accesses, for I/O Instructions); INVLPG names address 0, MOV DR reads RAX into DR0,
    that of MWAIT says whether MONITOR has armed the address-range monitor.
    """

    name: str
    length: int
    exit_reason: int
    exit_field: int
    exit_bit: int
    privileged: bool
    emulated: bool
    action: int
    fault: int
    qualification: int = 0


def _plain(name: str, length: int, action: int, privileged: bool = False) -> Instruction:
    return Instruction(name, length, 0, NEVER, 0, privileged, False, action, 0)


def _exiting(name: str, length: int, reason: int, privileged: bool = False) -> Instruction:
    return Instruction(name, length, reason, ALWAYS, 0, privileged, False, NOTHING, 0)


def _controlled(
    name: str,
    length: int,
    reason: int,
    bit: int,
    privileged: bool,
    emulated: bool = False,
    qualification: int = 0,
) -> Instruction:
    return Instruction(
        name, length, reason, CPU_BASED, bit, privileged, emulated, NOTHING, 0, qualification
    )


def _faulting(name: str, length: int, vector: int) -> Instruction:
    return Instruction(name, length, 0, NEVER, 0, False, False, FAULT, vector)


IO_IN: Final = 1 << 3
IO_IMMEDIATE: Final = 1 << 6
OUT_QUALIFICATION: Final = 0x80 << 16 | IO_IMMEDIATE
"""OUT 0x80, AL: one byte, the port in bits 31:16."""
IN_QUALIFICATION: Final = OUT_QUALIFICATION | IO_IN

# The order is part of the byte form of a scenario: append only.
INSTRUCTIONS: Final[tuple[Instruction, ...]] = (
    _plain("nop", 1, NOTHING),
    _exiting("cpuid", 2, CPUID_EXIT),
    Instruction("hlt", 1, HLT_EXIT, CPU_BASED, CPU_HLT_EXITING, True, True, HALT, 0),
    _plain("int", 2, SOFT_INTERRUPT),
    _plain("int3", 1, BREAKPOINT),
    _plain("into", 1, OVERFLOW),
    _plain("int1", 1, ICEBP),
    _faulting("ud2", 2, UD),
    _faulting("div0", 2, DE),
    _faulting("gp", 2, GP),
    _faulting("ss", 2, SS),
    _faulting("np", 2, NP),
    _faulting("ts", 2, TS),
    _faulting("nm", 2, NM),
    _faulting("ac", 2, AC),
    _plain("sti", 1, SET_IF, privileged=True),
    _plain("cli", 1, CLEAR_IF, privileged=True),
    _plain("popf", 1, POP_FLAGS),
    _plain("iret", 2, INTERRUPT_RETURN),
    _plain("mov-ss", 2, LOAD_SS),
    _plain("load", 3, MEMORY_READ),
    _plain("store", 3, MEMORY_WRITE),
    _exiting("vmcall", 3, VMCALL_EXIT),
    _controlled("pause", 2, PAUSE_EXIT, CPU_PAUSE_EXITING, privileged=False),
    _controlled("rdtsc", 2, RDTSC_EXIT, CPU_RDTSC_EXITING, privileged=False),
    _controlled("rdtscp", 3, RDTSCP_EXIT, CPU_RDTSC_EXITING, privileged=False),
    _controlled("rdpmc", 2, RDPMC_EXIT, CPU_RDPMC_EXITING, privileged=True, emulated=True),
    _controlled("out", 2, IO_INSTRUCTION, CPU_UNCOND_IO_EXITING, True, True, OUT_QUALIFICATION),
    Instruction(
        "wbinvd", 2, WBINVD_EXIT, SECONDARY, SECONDARY_WBINVD_EXITING, True, True, NOTHING, 0
    ),
    _controlled("invlpg", 3, INVLPG_EXIT, CPU_INVLPG_EXITING, privileged=True),
    _controlled("mwait", 3, MWAIT_EXIT, CPU_MWAIT_EXITING, privileged=True),
    Instruction(
        "monitor", 3, MONITOR_EXIT, CPU_BASED, CPU_MONITOR_EXITING, True, True, ARM_MONITOR, 0
    ),
    _controlled("mov-dr", 3, MOV_DR_EXIT, CPU_MOV_DR_EXITING, privileged=True),
    Instruction(
        "mov-cr8", 4, CR_ACCESS, CPU_BASED, CPU_CR8_LOAD_EXITING, True, False, WRITE_TPR, 0, 8
    ),
    _plain("apic-eoi", 2, APIC_EOI, privileged=True),
    _exiting("xsetbv", 3, XSETBV_EXIT, privileged=True),
    _exiting("invd", 2, INVD_EXIT, privileged=True),
    _exiting("vmlaunch", 3, VMLAUNCH_EXIT),
    _faulting("rsm", 2, UD),
    _faulting("vmfunc", 3, UD),
    _faulting("bound", 3, BR),
    _plain("pop-ss", 1, LOAD_SS),
    _controlled("in", 2, IO_INSTRUCTION, CPU_UNCOND_IO_EXITING, True, True, IN_QUALIFICATION),
    _controlled("mov-cr3", 3, CR_ACCESS, CPU_CR3_LOAD_EXITING, True, False, 3),
    _exiting("rdmsr", 2, RDMSR_EXIT, privileged=True),
    _exiting("wrmsr", 2, WRMSR_EXIT, privileged=True),
)  # fmt: skip

INSTRUCTION_INDEX: Final[dict[str, int]] = {
    instruction.name: index for index, instruction in enumerate(INSTRUCTIONS)
}


# Exit reasons that the nested L0 asks for in vmcs02 whatever L1 wants, with the action it emulates.
EMULATED_BY_REASON: Final[dict[int, Instruction]] = {
    instruction.exit_reason: instruction for instruction in INSTRUCTIONS if instruction.emulated
}

FAULT_ERROR_CODE: Final = 0
"""Error code of the faults that FAULT instructions raise, for the vectors that have one."""

assert len(INSTRUCTION_INDEX) == len(INSTRUCTIONS)
