"""A model VMCS as a real one: which fields L1 writes, with which values.

The model has the bits that take part in event handling; a real VMCS has the default-1 bits, the register
state and the addresses besides.
"""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_ALLOWED,
    ENTRY_ALLOWED,
    EXIT_ALLOWED,
    PIN_ALLOWED,
    SECONDARY_ALLOWED,
    SECONDARY_EPT,
    SECONDARY_PML,
    SECONDARY_UNRESTRICTED_GUEST,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_CONTROLS,
    ENTRY_MSR_LOAD_BAD,
    EOI_EXIT_BITMAP,
    EXIT_CONTROLS,
    FIELDS,
    GUEST_CR0,
    GUEST_RSP,
    GUEST_SS_DPL,
    HOST_RIP,
    PIN_BASED,
    POSTED_INTR_DESC_ADDR,
    SECONDARY,
    VMCS_LINK_POINTER,
)
from nvmx_core.arch.state import CANONICAL_LIMIT, CR0_PE, LINK_POINTER_NONE
from nvmx_core.guests.memory import GDT, STACK, TSS, page_address
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.image import KERNEL_STACK, L2_IDT, LAST_LOADED_MSR, USER_STACK
from nvmx_fuzz.realise.l1_program import l1_program

PIN_DEFAULT_1: Final = 0x16
CPU_DEFAULT_1: Final = 0x04006172
EXIT_DEFAULT_1: Final = 0x00036DFB
ENTRY_DEFAULT_1: Final = 0x000011FB
EXIT_HOST_64: Final = 1 << 9
SECONDARY_RDTSCP: Final = 1 << 3
SECONDARY_NOT_OFFERED: Final = 1 << 28
"""A secondary control that no processor has."""

L2_CR0: Final = 0x80000038
"""PG, NE, ET, TS (for #NM); PE comes from the model."""
L2_CR4: Final = 0x42020
"""PAE; VMXE, which VMX operation wants; OSXSAVE, without which XSETBV is #UD."""
L1_CR0: Final = 0x80010033
L1_CR4: Final = 0x2620
L1_EFER: Final = 0xD01
DR6_FIXED: Final = 0xFFFF0FF0
NOT_CANONICAL: Final = 1 << 47

EPT_POINTER: Final = layout.EPT_PML4 | 3 << 3 | 6
EPT_POINTER_DIRTY: Final = EPT_POINTER | 1 << 6


class NotRealisableError(Exception):
    """A scenario asks for something that this realiser cannot build; ``reason`` is a name for statistics."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: Final = reason


_CONTROLS: Final = {
    PIN_BASED: (PIN_ALLOWED, PIN_DEFAULT_1),
    CPU_BASED: (CPU_ALLOWED, CPU_DEFAULT_1),
    EXIT_CONTROLS: (EXIT_ALLOWED, EXIT_DEFAULT_1 | EXIT_HOST_64),
    ENTRY_CONTROLS: (ENTRY_ALLOWED, ENTRY_DEFAULT_1),
}

_DIRECT: Final = frozenset(field.place for field in FIELDS if field.group != "exit") - {
    *_CONTROLS, SECONDARY, HOST_RIP, GUEST_CR0, GUEST_SS_DPL, GUEST_RSP, ENTRY_MSR_LOAD_BAD,
    POSTED_INTR_DESC_ADDR,
}  # fmt: skip
"""Fields whose value goes into the real VMCS as it is."""


def real_fields(place: int, value: int) -> tuple[tuple[int, int], ...]:
    """The (encoding, value) pairs that L1 writes for one field of the model.

    GUEST_RSP is not here: the model counts frames, see ``script.py``.
    Raises: NotRealisableError.
    """
    if place in _DIRECT:
        return ((FIELDS[place].encoding, value & _mask(FIELDS[place].width)),)
    if place in _CONTROLS:
        allowed, default = _CONTROLS[place]
        if value & ~allowed:
            default = 0  # a control that the model's processors do not offer: one that no processor accepts
        return ((FIELDS[place].encoding, value & allowed | default),)
    if place == SECONDARY:
        return _secondary(value)
    if place == HOST_RIP:
        rip = l1_program().labels["exited"] if value < CANONICAL_LIMIT else NOT_CANONICAL
        return ((FIELDS[place].encoding, rip),)
    if place == GUEST_CR0:
        if value != CR0_PE:
            raise NotRealisableError("real-mode" if not value else "cr0-bits")
        return ((FIELDS[place].encoding, L2_CR0 | value),)
    if place == GUEST_SS_DPL:
        return _privilege(value)
    if place == ENTRY_MSR_LOAD_BAD:
        return _msr_list(value)
    if place == POSTED_INTR_DESC_ADDR:
        return ((0x2016, layout.POSTED_INTERRUPT_DESCRIPTOR | value & 63),)
    return ()


def _mask(width: int) -> int:
    return (1 << min(width, 64)) - 1


def _secondary(value: int) -> tuple[tuple[int, int], ...]:
    allowed = SECONDARY_ALLOWED | SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST
    real = value & allowed | SECONDARY_RDTSCP
    if value & ~allowed:
        real |= SECONDARY_NOT_OFFERED
    pointer = EPT_POINTER_DIRTY if value & SECONDARY_PML else EPT_POINTER
    # The processor reads the page-directory-pointer entries with CR3 where there is no EPT.
    entry = layout.L2_PAGE_DIRECTORY | 1 if value & SECONDARY_EPT else 0
    return ((0x401E, real), (0x201A, pointer), (0x280A, entry))


def _privilege(dpl: int) -> tuple[tuple[int, int], ...]:
    """Selector and access rights of CS and SS at CPL 0 or 3."""
    if dpl == 0:
        return (
            (0x0802, layout.L2_CODE_SELECTOR), (0x4816, 0xC09B),
            (0x0804, layout.L2_STACK_SELECTOR), (0x4818, 0x4093),
        )  # fmt: skip
    if dpl == 3:
        return (
            (0x0802, layout.L2_USER_CODE_SELECTOR), (0x4816, 0xC0FB),
            (0x0804, layout.L2_USER_DATA_SELECTOR), (0x4818, 0x40F3),
        )  # fmt: skip
    raise NotRealisableError("privilege")


def _msr_list(bad: int) -> tuple[tuple[int, int], ...]:
    """The VM-entry MSR-load list whose entry number *bad* fails; 0 for none."""
    if bad > LAST_LOADED_MSR:
        raise NotRealisableError("msr-list-length")
    first = LAST_LOADED_MSR + 1 - bad
    return ((0x4014, bad), (0x200A, layout.MSR_LOAD_LIST + 16 * first))


def default_stack(dpl: int) -> int:
    """Where L2's stack pointer starts at a privilege level."""
    return page_address(STACK) + (USER_STACK if dpl == 3 else KERNEL_STACK)


def constant_fields() -> tuple[tuple[int, int], ...]:
    """The part of a VMCS that no scenario changes."""
    return (*_host_state(), *_guest_segments(), *_guest_registers(), *_addresses())


def _host_state() -> tuple[tuple[int, int], ...]:
    data = tuple(
        (encoding, layout.L1_DATA_SELECTOR) for encoding in (0xC00, 0xC04, 0xC06, 0xC08, 0xC0A)
    )
    return (
        *data,
        (0xC02, layout.L1_CODE_SELECTOR),
        (0xC0C, layout.L1_TSS_SELECTOR),
        (0x6C00, L1_CR0), (0x6C02, layout.L1_PML4), (0x6C04, L1_CR4),
        (0x6C0A, layout.L1_TSS), (0x6C0C, layout.L1_GDT), (0x6C0E, layout.L1_IDT),
        (0x6C14, layout.L1_STACK_TOP),
        (0x2C02, L1_EFER),
    )  # fmt: skip


def _guest_segments() -> tuple[tuple[int, int], ...]:
    fields: list[tuple[int, int]] = []
    for number in (0, 3, 4, 5):  # ES, DS, FS, GS
        fields += [
            (0x0800 + 2 * number, layout.L2_USER_DATA_SELECTOR), (0x4800 + 2 * number, layout.L2_DATA_LIMIT),
            (0x4814 + 2 * number, 0x40F3), (0x6806 + 2 * number, 0),
        ]  # fmt: skip
    return (
        *fields,
        (0x4802, 0xFFFFFFFF), (0x6808, 0), (0x4804, layout.L2_DATA_LIMIT), (0x680A, 0),
        (0x080C, 0), (0x480C, 0), (0x4820, 0x10000), (0x6812, 0),
        (0x080E, layout.L2_TSS_SELECTOR), (0x480E, layout.L2_TSS_LIMIT), (0x4822, 0x8B),
        (0x6814, page_address(TSS)),
        (0x6816, page_address(GDT)), (0x4810, 0x4F), (0x6818, L2_IDT), (0x4812, 256 * 8 - 1),
    )  # fmt: skip


def _guest_registers() -> tuple[tuple[int, int], ...]:
    return (
        (0x6802, layout.L2_DIRECTORY_POINTERS), (0x280C, 0), (0x280E, 0), (0x2810, 0),
        (0x6804, L2_CR4), (0x681A, 0x400), (0x2802, 0), (0x482A, 0), (0x6824, 0), (0x6826, 0),
        (0x2800, LINK_POINTER_NONE),
    )  # fmt: skip


def _addresses() -> tuple[tuple[int, int], ...]:
    return (
        (0x2012, layout.VIRTUAL_APIC_PAGE), (0x2014, layout.SPARE_APIC_PAGE),
        (0x2016, layout.POSTED_INTERRUPT_DESCRIPTOR), (0x200E, layout.PML_PAGE), (0x0812, 0x1FF),
        (0x400A, 0), (0x400E, 0), (0x4010, 0), (0x4014, 0),
        (0x6000, 0), (0x6002, 0), (0x6004, L2_CR0 | CR0_PE), (0x6006, 0),
        (0x201E, 0), (0x2020, 0), (0x2022, 0),
    )  # fmt: skip


assert VMCS_LINK_POINTER in _DIRECT
assert EOI_EXIT_BITMAP in _DIRECT
