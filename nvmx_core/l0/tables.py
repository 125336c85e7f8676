"""L0's own page tables for L2: EPT02 or shadow tables, their repair, and the walk of what lies above them.

Source: Linux, arch/x86/kvm/mmu/, nested_ept_inject_page_fault.
"""

from typing import Final

from nvmx_core.arch.controls import SECONDARY_PML
from nvmx_core.arch.exits import EPT_MISCONFIG, EPT_VIOLATION, EPT_WRITE, PML_FULL
from nvmx_core.arch.fields import SECONDARY
from nvmx_core.guests.memory import ALL_PAGES
from nvmx_core.l0.log import REPAIR
from nvmx_core.l0.vcpu import Vcpu

L0_REPAIRS: Final = 0


class Tables(Vcpu):
    """The layer that knows who lacks a page."""

    __slots__ = ()

    def load_tables(self) -> None:
        """Give the processor the tables that L0 built for L2.

        EPT02 lacks what EPT12 lacks or L0 dropped, and is read-only while L1's page-modification log is
        full; shadow tables lack what L2's tables lack or L0 dropped.
        """
        memory = self.memory
        if not self.config.l0_ept:
            self.cpu.load_tables(memory.l2_absent | memory.l0_absent, 0, 0, 0)
            return
        absent = memory.l0_absent
        read_only = 0
        if self.config.l1_ept:
            absent |= memory.ept12_absent | memory.ept12_misconfigured
            if memory.pml_full and self.vmcs12[SECONDARY] & SECONDARY_PML:
                read_only = ALL_PAGES
        self.cpu.load_tables(memory.l2_absent, absent, 0, read_only)

    def repair_page(self, page: int) -> None:
        """Put a page back that L0 had dropped."""
        self.memory.l0_absent &= ~(1 << page)
        self.load_tables()
        self.log.append((REPAIR, len(self.journal), page))

    def walk_ept12(self, page: int, access: int) -> int:
        """The exit that L1's EPT asks for on this access, or L0_REPAIRS."""
        if self.config.l1_ept:
            memory = self.memory
            bit = 1 << page
            if memory.ept12_misconfigured & bit:
                return EPT_MISCONFIG
            if memory.ept12_absent & bit:
                return EPT_VIOLATION
            if access & EPT_WRITE and memory.pml_full and self.vmcs12[SECONDARY] & SECONDARY_PML:
                return PML_FULL
        return L0_REPAIRS
