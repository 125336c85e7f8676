"""Bits of the VM-execution, VM-exit and VM-entry controls that take part in event handling.

Source: SDM, "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry Control Fields".
"""

from typing import Final, NamedTuple

from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_CONTROLS,
    EXIT_CONTROLS,
    PIN_BASED,
    SECONDARY,
)

PIN_EXT_INTR_EXITING: Final = 1 << 0
PIN_NMI_EXITING: Final = 1 << 3
PIN_VIRTUAL_NMIS: Final = 1 << 5
PIN_PREEMPTION_TIMER: Final = 1 << 6
PIN_POSTED_INTR: Final = 1 << 7

CPU_INTR_WINDOW_EXITING: Final = 1 << 2
CPU_HLT_EXITING: Final = 1 << 7
CPU_INVLPG_EXITING: Final = 1 << 9
CPU_MWAIT_EXITING: Final = 1 << 10
CPU_RDPMC_EXITING: Final = 1 << 11
CPU_RDTSC_EXITING: Final = 1 << 12
CPU_CR3_LOAD_EXITING: Final = 1 << 15
CPU_CR8_LOAD_EXITING: Final = 1 << 19
CPU_TPR_SHADOW: Final = 1 << 21
CPU_NMI_WINDOW_EXITING: Final = 1 << 22
CPU_MOV_DR_EXITING: Final = 1 << 23
CPU_UNCOND_IO_EXITING: Final = 1 << 24
CPU_MONITOR_TRAP_FLAG: Final = 1 << 27
CPU_MONITOR_EXITING: Final = 1 << 29
CPU_PAUSE_EXITING: Final = 1 << 30
CPU_SECONDARY_CONTROLS: Final = 1 << 31

SECONDARY_VIRTUALIZE_APIC_ACCESSES: Final = 1 << 0
SECONDARY_EPT: Final = 1 << 1
SECONDARY_WBINVD_EXITING: Final = 1 << 6
SECONDARY_UNRESTRICTED_GUEST: Final = 1 << 7
SECONDARY_VIRTUAL_INTR_DELIVERY: Final = 1 << 9
SECONDARY_PML: Final = 1 << 17

EXIT_ACK_INTR_ON_EXIT: Final = 1 << 15
EXIT_SAVE_PREEMPTION_TIMER: Final = 1 << 22

ENTRY_TO_SMM: Final = 1 << 10

WINDOW_CONTROLS: Final = CPU_INTR_WINDOW_EXITING | CPU_NMI_WINDOW_EXITING


class Control(NamedTuple):
    """One control bit that a scenario may switch: its name in the text form, the field, the bit mask."""

    name: str
    field: int
    bit: int


# The order is part of the byte form of a scenario: append only.
CONTROLS: Final[tuple[Control, ...]] = (
    Control("external-interrupt-exiting", PIN_BASED, PIN_EXT_INTR_EXITING),
    Control("nmi-exiting", PIN_BASED, PIN_NMI_EXITING),
    Control("virtual-nmis", PIN_BASED, PIN_VIRTUAL_NMIS),
    Control("preemption-timer", PIN_BASED, PIN_PREEMPTION_TIMER),
    Control("posted-interrupts", PIN_BASED, PIN_POSTED_INTR),
    Control("interrupt-window-exiting", CPU_BASED, CPU_INTR_WINDOW_EXITING),
    Control("nmi-window-exiting", CPU_BASED, CPU_NMI_WINDOW_EXITING),
    Control("hlt-exiting", CPU_BASED, CPU_HLT_EXITING),
    Control("invlpg-exiting", CPU_BASED, CPU_INVLPG_EXITING),
    Control("mwait-exiting", CPU_BASED, CPU_MWAIT_EXITING),
    Control("rdpmc-exiting", CPU_BASED, CPU_RDPMC_EXITING),
    Control("rdtsc-exiting", CPU_BASED, CPU_RDTSC_EXITING),
    Control("cr8-load-exiting", CPU_BASED, CPU_CR8_LOAD_EXITING),
    Control("tpr-shadow", CPU_BASED, CPU_TPR_SHADOW),
    Control("mov-dr-exiting", CPU_BASED, CPU_MOV_DR_EXITING),
    Control("unconditional-io-exiting", CPU_BASED, CPU_UNCOND_IO_EXITING),
    Control("monitor-trap-flag", CPU_BASED, CPU_MONITOR_TRAP_FLAG),
    Control("monitor-exiting", CPU_BASED, CPU_MONITOR_EXITING),
    Control("pause-exiting", CPU_BASED, CPU_PAUSE_EXITING),
    Control("virtualize-apic-accesses", SECONDARY, SECONDARY_VIRTUALIZE_APIC_ACCESSES),
    Control("wbinvd-exiting", SECONDARY, SECONDARY_WBINVD_EXITING),
    Control("virtual-interrupt-delivery", SECONDARY, SECONDARY_VIRTUAL_INTR_DELIVERY),
    Control("pml", SECONDARY, SECONDARY_PML),
    Control("acknowledge-interrupt-on-exit", EXIT_CONTROLS, EXIT_ACK_INTR_ON_EXIT),
    Control("save-preemption-timer", EXIT_CONTROLS, EXIT_SAVE_PREEMPTION_TIMER),
    Control("entry-to-smm", ENTRY_CONTROLS, ENTRY_TO_SMM),
    Control("cr3-load-exiting", CPU_BASED, CPU_CR3_LOAD_EXITING),
)

CONTROL_INDEX: Final[dict[str, int]] = {
    control.name: index for index, control in enumerate(CONTROLS)
}


def _all_bits(field: int) -> int:
    return sum(control.bit for control in CONTROLS if control.field == field)


# Allowed-1 settings of the model's processors; EPT and unrestricted guest follow the capabilities.
PIN_ALLOWED: Final = _all_bits(PIN_BASED)
CPU_ALLOWED: Final = _all_bits(CPU_BASED) | CPU_SECONDARY_CONTROLS
SECONDARY_ALLOWED: Final = _all_bits(SECONDARY)
EXIT_ALLOWED: Final = _all_bits(EXIT_CONTROLS)
ENTRY_ALLOWED: Final = _all_bits(ENTRY_CONTROLS)

assert len(CONTROL_INDEX) == len(CONTROLS)
