"""Machine code of an assembler text: the one place that calls Keystone.

Keystone 0.9.2 reads a decimal number by a radix that it never sets (`ks_open`): what it takes 4096 for
depends on what lay in its memory before. Hexadecimal numbers do not go that way, so it is given no others.
"""

import re
from typing import Final

from keystone import KS_ARCH_X86, KS_MODE_32, KS_MODE_64, Ks, KsError

_DECIMAL: Final = re.compile(r"(?<![\w.])\d+(?!\w)")


class AssemblyError(Exception):
    """A text does not assemble: a bug of ours, or an assembler that does not know VMX."""


def machine_code(source: str, origin: int, *, long_mode: bool = True) -> bytes:
    """The code of *source* at the address *origin*, for 64-bit mode or for 32-bit mode.

    Raises: AssemblyError.
    """
    text = _DECIMAL.sub(lambda number: hex(int(number[0])), source)
    try:
        encoded, _count = Ks(KS_ARCH_X86, KS_MODE_64 if long_mode else KS_MODE_32).asm(text, origin)
    except KsError as error:
        raise AssemblyError(f"a text does not assemble: {error}") from error
    return bytes(encoded)
