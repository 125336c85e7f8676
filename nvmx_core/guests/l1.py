"""L1, the guest hypervisor: its VMCSs, and what it sees after an exit.

What it does about an exit before the next entry are its manners, see ``manners.py``. L1 is one program for
all machines. What differs, the interrupt controller and the NMI blocking of its virtual processor, it
reaches through :class:`L1Platform`.
"""

from typing import Final

from nvmx_core.arch.controls import SECONDARY_VIRTUAL_INTR_DELIVERY
from nvmx_core.arch.events import (
    HARDWARE_EXCEPTION,
    TYPE_MASK,
    TYPE_SHIFT,
)
from nvmx_core.arch.exits import (
    BASIC_REASON_MASK,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    EXCEPTION_NMI,
    FAILED_ENTRY,
    INSTRUCTION_EXITS,
    KVM_VECTORING_EXPECTED,
    NO_EXIT,
    PML_FULL,
    Origin,
    exit_fields,
)
from nvmx_core.arch.fields import (
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    EXIT_REASON,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_INTR_STATUS,
    GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_DPL,
    LAUNCH_STATE,
    PIN_BASED,
    SECONDARY,
    Vmcs,
)
from nvmx_core.arch.state import RFLAGS_RF
from nvmx_core.arch.virtual_apic import with_request
from nvmx_core.errors import ModelError
from nvmx_core.guests.memory import L2Memory
from nvmx_core.journal import (
    EXIT,
    L1_INTERRUPT,
    L1_UNEXPECTED_VECTORING,
    Record,
)

NOTHING_OWED: Final = -1
OWED_VMFAIL: Final = -2


class L1Platform:
    """The virtual processor under L1, as L1 can work it."""

    def l1_take_interrupt(self) -> int:
        """L1's interrupts are open for a moment: the vector that arrives, now in service, or -1."""
        raise ModelError("a machine gives L1 its interrupts")

    def l1_end_interrupt(self) -> None:
        """L1 wrote the EOI register."""

    def l1_iret(self) -> None:
        """L1 executed IRET: NMIs are open again, and one that was latched arrives."""

    def l1_changed_tables(self) -> None:
        """L1 changed its EPT or repaired L2's tables."""


class L1:
    """L1's VMCSs, what it knows of the last exit, and what it still owes to it."""

    __slots__ = (
        "has_current",
        "in_mov_ss_shadow",
        "initial",
        "journal",
        "memory",
        "origins",
        "owed_reason",
        "regions",
        "vmcs",
    )

    def __init__(self, initial: Vmcs, memory: L2Memory, journal: list[Record]) -> None:
        self.initial: Final = initial
        self.memory: Final = memory
        self.journal: Final = journal
        self.vmcs: Vmcs = initial[:]
        self.regions: list[Vmcs] = [self.vmcs]
        self.has_current: bool = True
        self.in_mov_ss_shadow: bool = False
        self.origins: list[Origin] = [NO_EXIT]
        self.owed_reason: int = NOTHING_OWED

    def ask_for_highest_virtual_interrupt(self) -> None:
        """K4: L1 enters with RVI at the highest request of its virtual-APIC page, or above.

        With a lower one it could tell an exit of L0, because the entry behind it evaluates once more.
        """
        vmcs = self.vmcs
        if vmcs[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY and self.has_current:
            highest = self.memory.virr.bit_length() - 1
            vmcs[GUEST_INTR_STATUS] = with_request(vmcs[GUEST_INTR_STATUS], highest)

    # -- instructions of L1 ---------------------------------------------------------------------------

    def region(self, number: int) -> Vmcs:
        """VMCS region 0 or 1; the second one comes into being when it is first named."""
        if number and len(self.regions) == 1:
            self.regions.append(self.initial[:])
            self.origins.append(NO_EXIT)
        return self.regions[number]

    def _current(self) -> int:
        return 0 if self.vmcs is self.regions[0] else 1

    def origin(self) -> Origin:
        """The exit that the exit information of the current VMCS stems from."""
        return self.origins[self._current()]

    def vmptrld(self, number: int) -> None:
        """Make a region current."""
        self.vmcs = self.region(number)
        self.has_current = True
        self.owed_reason = NOTHING_OWED

    def vmclear(self, number: int) -> None:
        """Clear a region's launch state; a current one is current no more."""
        region = self.region(number)
        region[LAUNCH_STATE] = 0
        if region is self.vmcs:
            self.has_current = False

    def open_interrupts(self, platform: L1Platform, ends_them: bool = True) -> None:
        """L1 sets IF for a moment: every interrupt that its controller offers arrives in order."""
        vector = platform.l1_take_interrupt()
        while vector >= 0:
            self.journal.append((L1_INTERRUPT, vector))
            if ends_them:
                platform.l1_end_interrupt()
            vector = platform.l1_take_interrupt()

    # -- what L1 sees ---------------------------------------------------------------------------------

    def observe_exit(self, cr2: int, dr6: int) -> None:
        """Read the exit of the current VMCS into the journal, then make KVM's own check of it."""
        vmcs = self.vmcs
        current = self._current()
        reason = vmcs[EXIT_REASON] & BASIC_REASON_MASK
        failed = vmcs[EXIT_REASON] & FAILED_ENTRY != 0
        if not failed:
            self.origins[current] = reason, vmcs[PIN_BASED]
        (
            full_reason, qualification, interruption, error_code, vectoring, vectoring_error,
            length, linear, physical,
        ) = exit_fields(vmcs, self.origins[current])  # fmt: skip
        rflags = vmcs[GUEST_RFLAGS]
        if rflags & RFLAGS_RF and not _rf_is_defined(reason, interruption, vectoring):
            rflags &= ~RFLAGS_RF
        self.journal.append(
            (
                EXIT,
                full_reason,
                qualification,
                interruption,
                error_code,
                vectoring,
                vectoring_error,
                length,
                linear,
                physical,
                vmcs[GUEST_RIP],
                vmcs[GUEST_RSP],
                rflags,
                vmcs[GUEST_SS_DPL],
                vmcs[GUEST_INTERRUPTIBILITY],
                vmcs[GUEST_ACTIVITY],
                vmcs[GUEST_PENDING_DBG],
                vmcs[GUEST_PREEMPTION_TIMER],
                vmcs[GUEST_INTR_STATUS],
                vmcs[ENTRY_INTR_INFO],
                vmcs[ENTRY_ERROR_CODE],
                vmcs[ENTRY_INSTRUCTION_LEN],
                cr2,
                dr6,
            )
        )
        self.owed_reason = reason
        if vectoring and not failed and reason not in KVM_VECTORING_EXPECTED:
            self.journal.append((L1_UNEXPECTED_VECTORING, reason, vectoring))

    def observe_vmfail(self, error: int) -> None:
        """A VMLAUNCH or VMRESUME failed early; for errors 7 and 8 something in the VMCS is to be repaired."""
        self.owed_reason = OWED_VMFAIL if error in (7, 8) else NOTHING_OWED


def _rf_is_defined(reason: int, interruption: int, vectoring: int) -> bool:
    """Whether the RF bit of the saved RFLAGS is the same on every processor (X8, Y3).

    An exit that an L0 kept for itself leaves RF = 1 behind, and no software can tell where it came from;
    so RF counts only where the exit itself determines it.
    """
    if reason == EXCEPTION_NMI:
        return interruption & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
    if vectoring:
        return vectoring & TYPE_MASK == HARDWARE_EXCEPTION << TYPE_SHIFT
    return reason in INSTRUCTION_EXITS or reason in (EPT_VIOLATION, EPT_MISCONFIG, PML_FULL)
