"""What a processor offers, read from its VMX capability MSRs, in terms of a scenario's configuration."""

from typing import Final, NamedTuple

from nvmx_core.arch.controls import (
    CPU_ALLOWED,
    CPU_MONITOR_TRAP_FLAG,
    ENTRY_ALLOWED,
    EXIT_ACK_INTR_ON_EXIT,
    EXIT_ALLOWED,
    PIN_ALLOWED,
    SECONDARY_ALLOWED,
    SECONDARY_EPT,
    SECONDARY_UNRESTRICTED_GUEST,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_CONTROLS,
    EXIT_CONTROLS,
    PIN_BASED,
    SECONDARY,
    Vmcs,
)
from nvmx_core.scenario.config import (
    ERROR_CODE_OPTIONAL,
    HLT_ACTIVITY,
    MTF_OFFERED,
    SHUTDOWN_ACTIVITY,
    STI_BLOCKS_NMI,
    WFS_ACTIVITY,
    ZERO_LENGTH,
)
from nvmx_fuzz.boot.places import FIRST_CAPABILITY_MSR

_BASIC, _MISC, _SECONDARY, _EPT = 0x480, 0x485, 0x48B, 0x48C
_TRUE_CONTROLS: Final = 1 << 55
_CONTROLS: Final = (
    (PIN_BASED, 0x481, PIN_ALLOWED),
    (CPU_BASED, 0x482, CPU_ALLOWED & ~CPU_MONITOR_TRAP_FLAG),
    (EXIT_CONTROLS, 0x483, EXIT_ALLOWED),
    (ENTRY_CONTROLS, 0x484, ENTRY_ALLOWED),
    (SECONDARY, _SECONDARY, SECONDARY_ALLOWED | SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST),
)
"""A field of controls, the MSR that says what is allowed, and what the model takes for offered.

A monitor trap flag that is not offered is in the configuration: the model refuses it too.
"""
_EPT_WANTED: Final = 1 << 6 | 1 << 14 | 1 << 20 | 1 << 26
"""Four levels, write-back, INVEPT, of all contexts."""
EPT_ACCESSED_DIRTY: Final = 1 << 21


class Capabilities(NamedTuple):
    """The MSRs from IA32_VMX_BASIC on, by their distance from it, and what no MSR tells.

    ``sti_blocks_nmi``: a choice that the manual leaves open (G7, B6); ``saves_rf``: exits save RFLAGS.RF as
    the manual says (X8, Y3), so that it can be compared; ``has_counters``: RDPMC reads one, where nobody
    intercepts it; ``has_monitor``: our monitor is below L0 and makes stops (``stops.py``).
    """

    msrs: tuple[int, ...]
    sti_blocks_nmi: bool = False
    saves_rf: bool = True
    has_counters: bool = True
    has_monitor: bool = False

    def with_habits(self, *, on_bochs: bool, has_l0: bool) -> "Capabilities":
        """The same for a processor of Bochs or another, and with a KVM on it or none."""
        return self._replace(
            saves_rf=not on_bochs, sti_blocks_nmi=on_bochs, has_counters=not has_l0
        )

    def msr(self, number: int) -> int:
        """The value of one; 0 for one that was not read."""
        index = number - FIRST_CAPABILITY_MSR
        return self.msrs[index] if index < len(self.msrs) else 0

    def flags(self) -> int:
        """The flags of a configuration that describe the processor (``realiser.CAPABILITY_FLAGS``)."""
        misc = self.msr(_MISC)
        pairs = (
            (ERROR_CODE_OPTIONAL, self.msr(_BASIC) >> 56 & 1),
            (ZERO_LENGTH, misc >> 30 & 1),
            (HLT_ACTIVITY, misc >> 6 & 1),
            (SHUTDOWN_ACTIVITY, misc >> 7 & 1),
            (WFS_ACTIVITY, misc >> 8 & 1),
            (MTF_OFFERED, self._offers(CPU_BASED, CPU_MONITOR_TRAP_FLAG)),
            (STI_BLOCKS_NMI, self.sti_blocks_nmi),
        )
        return sum(flag for flag, offered in pairs if offered)

    def missing(self, vmcs: Vmcs) -> tuple[int, int]:
        """A field of controls and the bits that *vmcs* turns on in it and the processor lacks, or (0, 0).

        What the model refuses as well is left out.
        """
        for place, msr, model in _CONTROLS:
            lacking = vmcs[place] & model & ~(self.msr(msr) >> 32)
            if lacking:
                return place, lacking
        return 0, 0

    def suffices(self) -> str:
        """Why no scenario can run here; "" if they can."""
        if not self._offers(SECONDARY, SECONDARY_EPT) or ~self.msr(_EPT) & _EPT_WANTED:
            return "the processor has no EPT with four levels, write-back and INVEPT"
        if not self._offers(EXIT_CONTROLS, EXIT_ACK_INTR_ON_EXIT):
            return "the processor cannot acknowledge interrupts on exit"
        return ""

    def _offers(self, place: int, bit: int) -> int:
        msr = next(number for field, number, _model in _CONTROLS if field == place)
        return self.msr(msr) >> 32 & bit
