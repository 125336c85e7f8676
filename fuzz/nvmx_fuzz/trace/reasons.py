"""Exit reasons as KVM's trace points print them.

Source: Linux, arch/x86/include/uapi/asm/vmx.h (VMX_EXIT_REASONS), from 4.8 on; what was renamed has both
names.
"""

from typing import Final

from nvmx_core.arch.exits import BASIC_REASON_MASK, EXIT_NAMES, FAILED_ENTRY

REASONS: Final[dict[bytes, int]] = {name.encode(): reason for reason, name in EXIT_NAMES.items()} | {
    b"PENDING_INTERRUPT": 7,
    b"VMCLEAR": 19,
    b"VMPTRLD": 21,
    b"VMPTRST": 22,
    b"VMREAD": 23,
    b"VMRESUME": 24,
    b"VMWRITE": 25,
    b"VMOFF": 26,
    b"VMON": 27,
    b"GDTR_IDTR": 46,
    b"LDTR_TR": 47,
    b"INVEPT": 50,
    b"INVVPID": 53,
    b"RDRAND": 57,
    b"INVPCID": 58,
    b"VMFUNC": 59,
    b"ENCLS": 60,
    b"RDSEED": 61,
    b"XSAVES": 63,
    b"XRSTORS": 64,
    b"UMWAIT": 67,
    b"TPAUSE": 68,
    b"BUS_LOCK": 74,
    b"NOTIFY": 75,
    b"SEAMCALL": 76,
    b"TDCALL": 77,
    b"MSR_READ_IMM": 84,
    b"MSR_WRITE_IMM": 85,
}  # fmt: skip

_NAMES: Final[dict[int, str]] = {number: name.decode() for name, number in REASONS.items()}
_NAMES[7] = "INTERRUPT_WINDOW"

_FAILED: Final = b"FAILED_VMENTRY"
_NUMBER_LENGTH_MAX: Final = 10


def read_reason(text: bytes) -> tuple[int, bool] | None:
    """The basic reason that *text* names and whether the entry failed; None if it is none of VMX.

    *text* is a name, a name and flags (``INVALID_STATE FAILED_VMENTRY``), the bare number that the kernel
    prints for what has no name, or ``UNKNOWN (57)``, which the plug-in of trace-cmd prints for it.
    """
    reason = REASONS.get(text)
    if reason is not None:
        return reason, False
    words = text.split()
    if not words:
        return None
    reason = REASONS.get(words[0])
    if reason is None:
        number = words[1].strip(b"()") if words[0] == b"UNKNOWN" and len(words) > 1 else words[0]
        value = _number(number)
        if value is None:
            return None
        return value & BASIC_REASON_MASK, value & FAILED_ENTRY != 0
    return reason, _FAILED in words[1:]


def reason_name(reason: int) -> str:
    """The name of a basic reason; the number where there is none."""
    return _NAMES.get(reason, f"reason {reason}")


def _number(text: bytes) -> int | None:
    is_hexadecimal = text.startswith(b"0x")
    digits = text[2:] if is_hexadecimal else text
    if not digits.isalnum() or len(digits) > _NUMBER_LENGTH_MAX:
        return None
    try:
        return int(digits, 16 if is_hexadecimal else 10)
    except ValueError:
        return None
