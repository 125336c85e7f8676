"""VM-entry checks on the event to inject, E1 to E8; each failure is VMfailValid 7.

Source: SDM, "Checks on VM-Entry Control Fields".
"""

from nvmx_core.arch.capabilities import Capabilities
from nvmx_core.arch.controls import SECONDARY_UNRESTRICTED_GUEST
from nvmx_core.arch.events import (
    ERROR_CODE_VALID,
    HARDWARE_EXCEPTION,
    INFO_RESERVED,
    NMI,
    NMI_VECTOR,
    OTHER_EVENT,
    RESERVED_TYPE,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    VECTORS_WITH_ERROR_CODE,
)
from nvmx_core.arch.exits import is_soft
from nvmx_core.arch.fields import (
    ENTRY_ERROR_CODE,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    GUEST_CR0,
    SECONDARY,
    Vmcs,
)
from nvmx_core.arch.state import CR0_PE


def injected_type(vmcs: Vmcs) -> int:
    """The type of the event that the entry injects, or -1 when it injects nothing."""
    info = vmcs[ENTRY_INTR_INFO]
    return (info & TYPE_MASK) >> TYPE_SHIFT if info & VALID else -1


def event_type_is_supported(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E1: type 1 is reserved; type 7 needs a processor with the monitor trap flag."""
    event_type = injected_type(vmcs)
    return event_type != RESERVED_TYPE and (event_type != OTHER_EVENT or caps.monitor_trap_flag)


def nmi_has_vector_2(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E2: an injected NMI has vector 2."""
    return injected_type(vmcs) != NMI or vmcs[ENTRY_INTR_INFO] & VECTOR_MASK == NMI_VECTOR


def exception_vector_is_below_32(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E3: an injected hardware exception has a vector of at most 31."""
    return injected_type(vmcs) != HARDWARE_EXCEPTION or vmcs[ENTRY_INTR_INFO] & VECTOR_MASK <= 31


def other_event_has_vector_0(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E4: type 7 has vector 0, the pending MTF exit."""
    return injected_type(vmcs) != OTHER_EVENT or vmcs[ENTRY_INTR_INFO] & VECTOR_MASK == 0


def error_code_is_delivered_iff_the_vector_has_one(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E5: bit 11 for exactly the vectors with an error code, in protected mode only."""
    event_type = injected_type(vmcs)
    if event_type < 0:
        return True
    info = vmcs[ENTRY_INTR_INFO]
    has_error_code = info & ERROR_CODE_VALID != 0
    unrestricted = vmcs[SECONDARY] & SECONDARY_UNRESTRICTED_GUEST
    protected = not unrestricted or vmcs[GUEST_CR0] & CR0_PE != 0
    if event_type != HARDWARE_EXCEPTION or not protected:
        return not has_error_code
    if caps.error_code_optional:
        return True
    return has_error_code == (VECTORS_WITH_ERROR_CODE >> (info & VECTOR_MASK) & 1 != 0)


def event_reserved_bits_are_clear(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E6: bits 30:12 of the entry interruption information are 0."""
    return injected_type(vmcs) < 0 or not vmcs[ENTRY_INTR_INFO] & INFO_RESERVED


def error_code_fits_16_bits(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E7: a delivered error code has no bit above 15."""
    return (
        injected_type(vmcs) < 0
        or not vmcs[ENTRY_INTR_INFO] & ERROR_CODE_VALID
        or not vmcs[ENTRY_ERROR_CODE] >> 16
    )


def soft_event_has_a_length(vmcs: Vmcs, caps: Capabilities) -> bool:
    """E8: types 4, 5, 6 need an instruction length of 1 to 15, or 0 where the processor allows it."""
    if injected_type(vmcs) < 0 or not is_soft(vmcs[ENTRY_INTR_INFO]):
        return True
    length = vmcs[ENTRY_INSTRUCTION_LEN]
    return length <= 15 and (length > 0 or caps.zero_length_injection)
