"""The committed libFuzzer dictionary is the one that the palette gives."""

import ast
import re
from pathlib import Path

from nvmx_core.scenario.steps import OPERATIONS
from nvmx_fuzz.codec import canonical_bytes, decode
from nvmx_fuzz.dictionary import dictionary_text

DICTIONARY = Path(__file__).resolve().parents[2] / "fuzz" / "fuzz_nested_events.dict"


def test_the_dictionary_is_current() -> None:
    assert DICTIONARY.read_text() == dictionary_text(), (
        "run: python -m nvmx_fuzz.dictionary > fuzz/fuzz_nested_events.dict"
    )


def test_every_entry_is_a_canonical_record_and_every_operation_has_one() -> None:
    seen: set[int] = set()
    for line in dictionary_text().splitlines():
        if line.startswith("#"):
            continue
        assert re.fullmatch(r'"(\\x[0-9a-f]{2}){8}"', line), line
        data = b"\x01" + bytes(7) + ast.literal_eval(f"b{line}")
        assert canonical_bytes(data) == data
        seen.add(decode(data).steps[0][0])
    assert seen == set(range(len(OPERATIONS)))
