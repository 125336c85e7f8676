"""Building a script for L1 while the model machine runs: what L1 has to write before each entry.

L1's writes are collected at the entry, as the difference between what the model's VMCS and tables hold and
what the
real ones hold by then: their order among each other cannot be seen.
"""

import struct
from typing import Final

from nvmx_core.arch.controls import SECONDARY_PML
from nvmx_core.arch.events import is_vectoring
from nvmx_core.arch.fields import (
    ENTRY_INTR_INFO,
    GUEST_RFLAGS,
    GUEST_RSP,
    GUEST_SS_DPL,
    SECONDARY,
    VM_INSTRUCTION_ERROR,
    Vmcs,
)
from nvmx_core.arch.state import RFLAGS_RF
from nvmx_core.guests.memory import NO_PAGE, PAGE_COUNT, L2Memory, page_address
from nvmx_core.scenario.config import DEFAULT_CONFIG
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.code import REGISTER_VALUES
from nvmx_fuzz.realise.image import (
    ept_entry,
    ept_entry_address,
    gate_address,
    gate_words,
    l2_page_entry,
    l2_page_entry_address,
)
from nvmx_fuzz.realise.l1_program import (
    END,
    INVEPT,
    REGISTERS,
    STORE32,
    STORE64,
    VMCLEAR,
    VMPTRLD,
    VMWRITE,
)
from nvmx_fuzz.realise.vmcs import constant_fields, default_stack, real_fields

Operation = tuple[int, int, int, int]

WRITTEN_FIELDS: Final = VM_INSTRUCTION_ERROR
"""Places below this one are L1's to write."""

REGISTERS_ADDRESS: Final = layout.VARIABLES + 0x400
PML_INDEX: Final = 0x0812
PML_INDEX_FULL: Final = 0xFFFF
PML_INDEX_EMPTY: Final = 0x1FF
APIC_ACCESS_ADDRESS: Final = 0x2014
_VIRTUAL_TPR: Final = layout.VIRTUAL_APIC_PAGE + 0x80
_VIRTUAL_ISR: Final = layout.VIRTUAL_APIC_PAGE + 0x100
_VIRTUAL_IRR: Final = layout.VIRTUAL_APIC_PAGE + 0x200
_POSTED_ON: Final = layout.POSTED_INTERRUPT_DESCRIPTOR + 32


def pointer_to(region: int) -> int:
    """Where L1 finds the address of a VMCS region."""
    return layout.VARIABLES + layout.VMCS_POINTERS + 8 * region


def encode(operations: list[Operation]) -> bytes:
    """The script as it stands in memory."""
    return b"".join(struct.pack("<4Q", *operation) for operation in operations)


def preparation() -> list[Operation]:
    """What L1 does once, before any scenario: both VMCSs get what no scenario or the default one has."""
    operations: list[Operation] = []
    for region in range(len(layout.VMCS_REGIONS)):
        operations += preparation_of(region)
    return [*operations, *registers(), (END, 0, 0, 0)]


def preparation_of(region: int) -> list[Operation]:
    """The part of it for one VMCS, which is clear behind it."""
    fields = list(constant_fields())
    for place in range(WRITTEN_FIELDS):
        fields += real_fields(place, DEFAULT_CONFIG.initial_vmcs[place])
    fields.append((0x681C, default_stack(0)))
    operations = [(VMCLEAR, pointer_to(region), 0, 0), (VMPTRLD, pointer_to(region), 0, 0)]
    operations += [(VMWRITE, encoding, value, 0) for encoding, value in fields]
    return [*operations, (VMCLEAR, pointer_to(region), 0, 0)]


def registers() -> list[Operation]:
    """The values that L2's general registers have at every entry."""
    return [
        (STORE32, REGISTERS_ADDRESS + 4 * index, REGISTER_VALUES[name], 0)
        for index, name in enumerate(REGISTERS)
    ]


class RealRegion:
    """What one real VMCS holds, in terms of the model."""

    def __init__(self) -> None:
        self.fields: Vmcs = DEFAULT_CONFIG.initial_vmcs[:WRITTEN_FIELDS]
        self.rsp: int = default_stack(0)
        self.apic_page: int = NO_PAGE

    def writes(self, vmcs: Vmcs, memory: L2Memory) -> list[Operation]:
        """L1's VMWRITEs that make the real VMCS what the model's is.

        Raises: NotRealisableError.
        """
        operations: list[Operation] = []
        for place in range(WRITTEN_FIELDS):
            if vmcs[place] != self.fields[place] and place != GUEST_RSP and place != GUEST_RFLAGS:
                for encoding, value in real_fields(place, vmcs[place]):
                    operations.append((VMWRITE, encoding, value, 0))
        rflags = vmcs[GUEST_RFLAGS]
        if not is_vectoring(vmcs[ENTRY_INTR_INFO]):
            rflags &= ~RFLAGS_RF  # the model loads RF with an injection only
        operations.append((VMWRITE, 0x6820, rflags, 0))
        dpl = vmcs[GUEST_SS_DPL]
        if dpl != self.fields[GUEST_SS_DPL] or abs(self.rsp - default_stack(dpl)) > 0x100:
            self.rsp = default_stack(dpl)
            operations.append((VMWRITE, 0x681C, self.rsp, 0))
        if vmcs[SECONDARY] & SECONDARY_PML:
            index = PML_INDEX_FULL if memory.pml_full else PML_INDEX_EMPTY
            operations.append((VMWRITE, PML_INDEX, index, 0))
        if memory.apic_page != self.apic_page:
            self.apic_page = memory.apic_page
            page = layout.SPARE_APIC_PAGE if self.apic_page < 0 else page_address(self.apic_page)
            operations.append((VMWRITE, APIC_ACCESS_ADDRESS, page, 0))
        self.fields = vmcs[:WRITTEN_FIELDS]
        return operations

    def follow(self, vmcs: Vmcs, rsp: int) -> None:
        """After an exit the processor has saved what the model's has."""
        self.fields = vmcs[:WRITTEN_FIELDS]
        self.rsp = rsp


class RealTables:
    """What the real tables and APIC structures hold, in terms of the model."""

    def __init__(self) -> None:
        self.l2_absent = self.ept_absent = self.ept_misconfigured = 0
        self.gates: dict[int, int] = {}
        self.vtpr = self.virr = self.visr = self.pir = 0

    def l2_changes(self, memory: L2Memory) -> list[tuple[int, int]]:
        """(address, value) of the 32-bit words of L2's page table and IDT that have to change."""
        words = []
        changed = self.l2_absent ^ memory.l2_absent
        for page in range(PAGE_COUNT):
            if changed >> page & 1:
                absent = memory.l2_absent >> page & 1 != 0
                words.append((l2_page_entry_address(page), l2_page_entry(page, absent)))
        self.l2_absent = memory.l2_absent
        for vector in sorted(self.gates.keys() | memory.gates.keys()):
            if self.gates.get(vector, 0) != memory.gate(vector):
                low, high = gate_words(vector, memory.gate(vector))
                words += [(gate_address(vector), low), (gate_address(vector) + 4, high)]
        self.gates = dict(memory.gates)
        return words

    def posted(self, memory: L2Memory) -> list[tuple[int, int]]:
        """The words of the posted-interrupt descriptor that have to change, ON last."""
        words = _vector_words(layout.POSTED_INTERRUPT_DESCRIPTOR, 4, self.pir, memory.pir)
        if memory.pir:
            words.append((_POSTED_ON, 1))
        self.pir = memory.pir
        return words

    def writes(self, memory: L2Memory, logs_writes: bool) -> list[Operation]:
        """L1's stores before an entry; *logs_writes*: clear the dirty flags of the EPT too."""
        words = self.l2_changes(memory)
        if memory.vtpr != self.vtpr:
            words.append((_VIRTUAL_TPR, memory.vtpr))
        words += _vector_words(_VIRTUAL_IRR, 16, self.virr, memory.virr)
        words += _vector_words(_VIRTUAL_ISR, 16, self.visr, memory.visr)
        self.vtpr, self.virr, self.visr = memory.vtpr, memory.virr, memory.visr
        operations: list[Operation] = [(STORE32, address, value, 0) for address, value in words]
        changed = (self.ept_absent ^ memory.ept12_absent) | (
            self.ept_misconfigured ^ memory.ept12_misconfigured
        )
        for page in range(PAGE_COUNT):
            if logs_writes or changed >> page & 1:
                absent = memory.ept12_absent >> page & 1 != 0
                misconfigured = memory.ept12_misconfigured >> page & 1 != 0
                entry = ept_entry(page, absent, misconfigured)
                operations.append((STORE64, ept_entry_address(page), entry, 0))
        if changed or logs_writes:
            operations.append((INVEPT, 0, 0, 0))
        self.ept_absent, self.ept_misconfigured = memory.ept12_absent, memory.ept12_misconfigured
        return operations

    def follow(self, memory: L2Memory) -> None:
        """After an exit: what the processor itself has moved."""
        self.virr, self.visr, self.pir, self.vtpr = (
            memory.virr,
            memory.visr,
            memory.pir,
            memory.vtpr,
        )


def _vector_words(base: int, stride: int, old: int, new: int) -> list[tuple[int, int]]:
    """The 32-bit registers of a 256-bit vector that differ."""
    return [
        (base + stride * index, new >> 32 * index & 0xFFFFFFFF)
        for index in range(8)
        if (old ^ new) >> 32 * index & 0xFFFFFFFF
    ]
