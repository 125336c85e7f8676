"""L2's address space: the eight pages that running and delivering events touch, and who lacks which.

Linear and guest-physical addresses of L2 are equal. A page is absent at one of three levels: in L2's own
tables (#PF for L2), in L1's EPT (EPT violation or misconfiguration for L1), in the tables of L0 (repaired
by L0, never seen by L1). Each level is a bit mask over the pages.
"""

from typing import Final

from nvmx_core.arch.fields import GUEST_INTR_STATUS, Vmcs
from nvmx_core.arch.virtual_apic import with_request

IDT_LOW: Final = 0
IDT_HIGH: Final = 1
GDT: Final = 2
TSS: Final = 3
STACK: Final = 4
DATA: Final = 5
CODE: Final = 6
HANDLER: Final = 7

PAGE_NAMES: Final = ("idt-low", "idt-high", "gdt", "tss", "stack", "data", "code", "handler")
PAGE_COUNT: Final = len(PAGE_NAMES)
ALL_PAGES: Final = (1 << PAGE_COUNT) - 1

PAGE_BASE: Final = 0x10000
PAGE_SHIFT: Final = 12
CODE_BASE: Final = PAGE_BASE + (CODE << PAGE_SHIFT)
HANDLER_BASE: Final = PAGE_BASE + (HANDLER << PAGE_SHIFT)
HANDLER_SHIFT: Final = 4

# Gates of L2's IDT; every present gate is an interrupt gate.
GATE_PRESENT: Final = 0
GATE_NOT_PRESENT: Final = 1
GATE_TASK: Final = 2
GATE_PRIVILEGED: Final = 3
GATE_NAMES: Final = ("present", "not-present", "task", "dpl-0")

# Selectors of TSSs in L2's GDT: a task gate wants a free one, an IRET that returns to a task a busy one.
TASK_GATE_SELECTOR: Final = 0x40
OLD_TASK_SELECTOR: Final = 0x48
NO_PAGE: Final = -1

Frame = tuple[int, int, int]
"""What a delivery pushes and IRET pops: return RIP, RFLAGS, CPL."""


def page_address(page: int) -> int:
    """The linear and guest-physical address of a page."""
    return PAGE_BASE + (page << PAGE_SHIFT)


def page_of(l2_gpa: int) -> int:
    """The page that an address of :func:`page_address` belongs to."""
    return (l2_gpa - PAGE_BASE) >> PAGE_SHIFT


def handler_rip(vector: int) -> int:
    """Where the handler of a vector starts."""
    return HANDLER_BASE + (vector << HANDLER_SHIFT)


class L2Memory:
    """L2's memory with the tables above it, and the APIC structures of L1 that the processor reads.

    ``frames`` is the stack; RSP counts its frames. ``vtpr``, ``virr``, ``visr`` are the virtual-APIC page
    (the interrupt registers as 256-bit integers), ``pir`` the posted-interrupt
    descriptor.
    """

    __slots__ = (
        "apic_page",
        "ept12_absent",
        "ept12_misconfigured",
        "frames",
        "gates",
        "l0_absent",
        "l2_absent",
        "pir",
        "pml_full",
        "virr",
        "visr",
        "vtpr",
    )

    def __init__(self) -> None:
        self.gates: dict[int, int] = {}
        self.frames: list[Frame] = []
        self.l2_absent: int = 0
        self.ept12_absent: int = 0
        self.ept12_misconfigured: int = 0
        self.l0_absent: int = 0
        self.apic_page: int = NO_PAGE
        self.pml_full: bool = False
        self.vtpr: int = 0
        self.virr: int = 0
        self.visr: int = 0
        self.pir: int = 0

    def gate(self, vector: int) -> int:
        """The kind of gate that L2's IDT holds for a vector."""
        return self.gates.get(vector, GATE_PRESENT)

    def post_interrupt(self, vector: int) -> None:
        """Set a vector in the posted-interrupt descriptor, as another processor of L1 does (K3)."""
        self.pir |= 1 << vector

    def take_posted_interrupts(self, vmcs: Vmcs) -> int:
        """K3: move the posted vectors into the virtual IRR, with RVI of *vmcs* at least the highest of them.

        Returns that vector, or -1 if none was posted.
        """
        posted = self.pir
        self.pir = 0
        self.virr |= posted
        highest = posted.bit_length() - 1
        vmcs[GUEST_INTR_STATUS] = with_request(vmcs[GUEST_INTR_STATUS], highest)
        return highest
