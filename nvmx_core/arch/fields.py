"""VMCS fields: one table from which position, encoding, width and printing derive.

A VMCS is a flat ``list[int]``; ``vmcs[GUEST_RIP]`` reads like VMREAD. Fields that are copied or checked
together stand next to each other, so that one slice moves a whole group: the nested entry and exit of L0
are then a handful of slices instead of forty stores.

Source: SDM, "Field Encoding in VMCS"; only the fields that take part in event handling are modelled.
"""

from typing import Final, NamedTuple

Vmcs = list[int]

POISON: Final = -1
"""The value of a field that the manual leaves undefined. No defined field is negative."""

# -- controls: what the VM-entry checks on controls read, in one run ------------------------------------
PIN_BASED: Final = 0
CPU_BASED: Final = 1
SECONDARY: Final = 2
EXIT_CONTROLS: Final = 3
ENTRY_CONTROLS: Final = 4
TPR_THRESHOLD: Final = 5
POSTED_INTR_NV: Final = 6
POSTED_INTR_DESC_ADDR: Final = 7
ENTRY_INTR_INFO: Final = 8
ENTRY_ERROR_CODE: Final = 9
ENTRY_INSTRUCTION_LEN: Final = 10
HOST_RIP: Final = 11
GUEST_CR0: Final = 12
# -- guest state that the VM-entry checks read; with the injected event and CR0, in one run -------------
GUEST_RFLAGS: Final = 13
GUEST_SS_DPL: Final = 14
GUEST_INTERRUPTIBILITY: Final = 15
GUEST_ACTIVITY: Final = 16
GUEST_PENDING_DBG: Final = 17
VMCS_LINK_POINTER: Final = 18
ENTRY_MSR_LOAD_BAD: Final = 19
# -- guest state that no check reads --------------------------------------------------------------------
GUEST_RIP: Final = 20
GUEST_RSP: Final = 21
GUEST_PREEMPTION_TIMER: Final = 22
GUEST_INTR_STATUS: Final = 23
# -- controls that no check reads -----------------------------------------------------------------------
EXCEPTION_BITMAP: Final = 24
PF_ERROR_MASK: Final = 25
PF_ERROR_MATCH: Final = 26
EOI_EXIT_BITMAP: Final = 27
# -- VM-exit information, read-only for the host --------------------------------------------------------
VM_INSTRUCTION_ERROR: Final = 28
EXIT_REASON: Final = 29
EXIT_QUALIFICATION: Final = 30
EXIT_INTR_INFO: Final = 31
EXIT_INTR_ERROR_CODE: Final = 32
IDT_VECTORING_INFO: Final = 33
IDT_VECTORING_ERROR_CODE: Final = 34
EXIT_INSTRUCTION_LEN: Final = 35
GUEST_LINEAR_ADDRESS: Final = 36
GUEST_PHYSICAL_ADDRESS: Final = 37
# -- data of the VMCS region that no field names --------------------------------------------------------
LAUNCH_STATE: Final = 38

FIELD_COUNT: Final = 39

CONTROL_FIELDS: Final = slice(PIN_BASED, POSTED_INTR_DESC_ADDR + 1)
GUEST_CHECK_FIELDS: Final = slice(ENTRY_INTR_INFO, ENTRY_MSR_LOAD_BAD + 1)
GUEST_STATE_FIELDS: Final = slice(GUEST_CR0, GUEST_INTR_STATUS + 1)
EXIT_INFO_FIELDS: Final = slice(EXIT_REASON, GUEST_PHYSICAL_ADDRESS + 1)


class Field(NamedTuple):
    """One VMCS field: the place in the list, the manual's encoding, the width in bits, the group."""

    place: int
    name: str
    encoding: int
    width: int
    group: str


# SS.DPL is bits 6:5 of the access rights; EOI_EXIT_BITMAP stands for the four 64-bit fields 201Ch-2022h;
# ENTRY_MSR_LOAD_BAD stands for the VM-entry MSR-load list: the number of the entry that fails, 0 for none.
FIELDS: Final[tuple[Field, ...]] = (
    Field(PIN_BASED, "PIN_BASED", 0x4000, 32, "control"),
    Field(CPU_BASED, "CPU_BASED", 0x4002, 32, "control"),
    Field(SECONDARY, "SECONDARY", 0x401E, 32, "control"),
    Field(EXIT_CONTROLS, "EXIT_CONTROLS", 0x400C, 32, "control"),
    Field(ENTRY_CONTROLS, "ENTRY_CONTROLS", 0x4012, 32, "control"),
    Field(TPR_THRESHOLD, "TPR_THRESHOLD", 0x401C, 32, "control"),
    Field(POSTED_INTR_NV, "POSTED_INTR_NV", 0x0002, 16, "control"),
    Field(POSTED_INTR_DESC_ADDR, "POSTED_INTR_DESC_ADDR", 0x2016, 64, "control"),
    Field(ENTRY_INTR_INFO, "ENTRY_INTR_INFO", 0x4016, 32, "control"),
    Field(ENTRY_ERROR_CODE, "ENTRY_ERROR_CODE", 0x4018, 32, "control"),
    Field(ENTRY_INSTRUCTION_LEN, "ENTRY_INSTRUCTION_LEN", 0x401A, 32, "control"),
    Field(HOST_RIP, "HOST_RIP", 0x6C16, 64, "host"),
    Field(GUEST_CR0, "GUEST_CR0", 0x6800, 64, "guest"),
    Field(GUEST_RFLAGS, "GUEST_RFLAGS", 0x6820, 64, "guest"),
    Field(GUEST_SS_DPL, "GUEST_SS_DPL", 0x4818, 32, "guest"),
    Field(GUEST_INTERRUPTIBILITY, "GUEST_INTERRUPTIBILITY", 0x4824, 32, "guest"),
    Field(GUEST_ACTIVITY, "GUEST_ACTIVITY", 0x4826, 32, "guest"),
    Field(GUEST_PENDING_DBG, "GUEST_PENDING_DBG", 0x6822, 64, "guest"),
    Field(VMCS_LINK_POINTER, "VMCS_LINK_POINTER", 0x2800, 64, "guest"),
    Field(ENTRY_MSR_LOAD_BAD, "ENTRY_MSR_LOAD_BAD", 0x4014, 32, "control"),
    Field(GUEST_RIP, "GUEST_RIP", 0x681E, 64, "guest"),
    Field(GUEST_RSP, "GUEST_RSP", 0x681C, 64, "guest"),
    Field(GUEST_PREEMPTION_TIMER, "GUEST_PREEMPTION_TIMER", 0x482E, 32, "guest"),
    Field(GUEST_INTR_STATUS, "GUEST_INTR_STATUS", 0x0810, 16, "guest"),
    Field(EXCEPTION_BITMAP, "EXCEPTION_BITMAP", 0x4004, 32, "control"),
    Field(PF_ERROR_MASK, "PF_ERROR_MASK", 0x4006, 32, "control"),
    Field(PF_ERROR_MATCH, "PF_ERROR_MATCH", 0x4008, 32, "control"),
    Field(EOI_EXIT_BITMAP, "EOI_EXIT_BITMAP", 0x201C, 256, "control"),
    Field(VM_INSTRUCTION_ERROR, "VM_INSTRUCTION_ERROR", 0x4400, 32, "exit"),
    Field(EXIT_REASON, "EXIT_REASON", 0x4402, 32, "exit"),
    Field(EXIT_QUALIFICATION, "EXIT_QUALIFICATION", 0x6400, 64, "exit"),
    Field(EXIT_INTR_INFO, "EXIT_INTR_INFO", 0x4404, 32, "exit"),
    Field(EXIT_INTR_ERROR_CODE, "EXIT_INTR_ERROR_CODE", 0x4406, 32, "exit"),
    Field(IDT_VECTORING_INFO, "IDT_VECTORING_INFO", 0x4408, 32, "exit"),
    Field(IDT_VECTORING_ERROR_CODE, "IDT_VECTORING_ERROR_CODE", 0x440A, 32, "exit"),
    Field(EXIT_INSTRUCTION_LEN, "EXIT_INSTRUCTION_LEN", 0x440C, 32, "exit"),
    Field(GUEST_LINEAR_ADDRESS, "GUEST_LINEAR_ADDRESS", 0x640A, 64, "exit"),
    Field(GUEST_PHYSICAL_ADDRESS, "GUEST_PHYSICAL_ADDRESS", 0x2400, 64, "exit"),
)

FIELD_BY_NAME: Final[dict[str, Field]] = {field.name: field for field in FIELDS}

assert [field.place for field in FIELDS] == list(range(LAUNCH_STATE))
assert len({field.encoding for field in FIELDS}) == len(FIELDS)
