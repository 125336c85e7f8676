"""The libFuzzer dictionary: one entry for each typical step.

Print it with ``python -m nvmx_fuzz.dictionary``. The target's own mutator draws from the same steps
and does not read the dictionary; it serves engines that bring their own mutations.
"""

import sys
from typing import Final

from nvmx_fuzz.codec import encode_step
from nvmx_fuzz.palette import typical_steps

_HEAD: Final = """\
# Typical steps of a scenario, one 8-byte record each (see nvmx_fuzz/codec.py).
# Generated: python -m nvmx_fuzz.dictionary > fuzz/fuzz_nested_events.dict
"""


def dictionary_text() -> str:
    """The whole file: a head, then for each step a comment with its text form and its record."""
    lines = [_HEAD]
    for name, step in typical_steps():
        escaped = "".join(f"\\x{byte:02x}" for byte in encode_step(step))
        lines.append(f'# {name}\n"{escaped}"\n')
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(dictionary_text())
