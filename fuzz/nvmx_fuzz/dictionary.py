"""The libFuzzer dictionaries: typical steps as records of the byte form, lines and words of the text form.

``python -m nvmx_fuzz.dictionary FORM`` prints one (``bytes``, ``text`` or ``trace``). The mutator of the
scenario targets draws from the same steps and does not read the dictionary; it serves engines that bring
their own mutations, and the text target, which has no mutator of ours.
"""

import sys
from collections.abc import Iterator
from typing import Final

from nvmx_core.scenario.config import FLAGS
from nvmx_core.scenario.expect import FIELD_SLUGS, KINDS
from nvmx_core.scenario.step_text import format_step
from nvmx_core.scenario.words import EXCEPTION_VECTORS, INVALID, NONE, REASON_BY_NAME, UNDEFINED
from nvmx_fuzz.codec import encode_step
from nvmx_fuzz.palette import typical_steps
from nvmx_fuzz.targets import Form
from nvmx_fuzz.trace.formats import SPELLINGS
from nvmx_fuzz.trace.reasons import REASONS

_HEADS: Final[dict[Form, str]] = {
    "bytes": """\
# Typical steps of a scenario, one 8-byte record each (see nvmx_fuzz/codec.py).
# Generated: python -m nvmx_fuzz.dictionary bytes > fuzz/fuzz_nested_events.dict
""",
    "trace": """\
# Words of KVM's trace events (see nvmx_fuzz/trace/formats.py).
# Generated: python -m nvmx_fuzz.dictionary trace > fuzz/fuzz_trace_reader.dict
""",
    "text": """\
# Lines and words of the text form of a scenario (see nvmx_core/scenario/text.py).
# Generated: python -m nvmx_fuzz.dictionary text > fuzz/fuzz_scenario_text.dict
""",
}


def dictionary_text(form: Form = "bytes") -> str:
    """The whole file of a form."""
    if form != "bytes":
        entries = _text_entries() if form == "text" else _trace_entries()
        return _HEADS[form] + "".join(f"{_quoted(entry)}\n" for entry in dict.fromkeys(entries))
    lines = [_HEADS[form]]
    for name, step in typical_steps():
        escaped = "".join(f"\\x{byte:02x}" for byte in encode_step(step))
        lines.append(f'# {name}\n"{escaped}"\n')
    return "".join(lines)


def _text_entries() -> Iterator[str]:
    """Whole lines, each with the line feed before it, then words."""
    yield "version 1\n"
    for _name, step in typical_steps():
        yield f"\n{format_step(step, compact=True)}"
    for name, default in FLAGS:
        yield f"\nconfig {name}={'off' if default else 'on'}"
    for name, kind in KINDS.items():
        yield f"\nexpect {name}"
        yield f"\nexpect no-{name}"
        yield from (f" {slug}=" for slug in FIELD_SLUGS[kind])
    yield "\nexpect nothing"
    yield from REASON_BY_NAME
    yield from EXCEPTION_VECTORS
    yield from (
        INVALID,
        NONE,
        UNDEFINED,
        "any",
        "0x",
        "# ",
        "exceptions=",
        "l0-exceptions=",
        "pf-filter=",
    )


def _trace_entries() -> Iterator[str]:
    """Events, exit reasons, and the words that a reader looks for."""
    yield from (f": {name.decode()}: " for name in SPELLINGS)
    yield from (f" {name.decode()}" for name in REASONS)
    yield from (
        "\nCPU:0 [LOST 3 EVENTS]\n",
        "\n##### CPU 1 buffer started ####\n",
        "\n# tracer: nop\n",
    )
    yield from ("vcpu 0", ", rip 0x1000", "[immediate exit]", " [reinjected]", " FAILED_VMENTRY")
    yield from (
        " info1 0x",
        " info2 0x",
        " intr_info 0x",
        " error_code 0x",
        " info 0 ",
        "reason ",
        "reason: ",
    )
    yield from (
        " ext_inf1: 0x",
        " ext_inf2: 0x",
        " ext_int: 0x",
        " ext_int_err: 0x",
        " event_inj: 0x",
    )
    yield from ("80000040", "80000051", "80000202", "80000b0e", "80000b08", "80000603", "80000100")
    yield from (
        "IRQ 0x40",
        "Soft/INTn 0x40",
        "irq 64",
        "#PF (0x2)",
        "#DF",
        "apicid 0 vec 81 (Fixed|edge)",
    )


def _quoted(entry: str) -> str:
    """An entry as libFuzzer reads it: in double quotes, anything unusual as a hexadecimal escape."""
    plain = "".join(
        sign if sign.isalnum() or sign in " -_=#" else f"\\x{ord(sign):02x}" for sign in entry
    )
    return f'"{plain}"'


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in _HEADS:
        sys.stderr.write(f"usage: python -m nvmx_fuzz.dictionary {'|'.join(_HEADS)}\n")
        sys.exit(2)
    sys.stdout.write(dictionary_text(next(form for form in _HEADS if form == sys.argv[1])))
