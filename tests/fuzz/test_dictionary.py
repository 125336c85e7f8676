"""The committed libFuzzer dictionary is the one that the palette gives."""

import ast
import re
from pathlib import Path

import pytest

from nvmx_core.scenario.steps import OPERATIONS
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.codec import canonical_bytes, decode
from nvmx_fuzz.dictionary import dictionary_text
from nvmx_fuzz.targets import TARGETS, Form

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"
WORD_SIZE_MAX = 64
"""libFuzzer leaves out longer entries."""

FILES: dict[Form, str] = {
    "bytes": "fuzz_nested_events.dict",
    "text": "fuzz_scenario_text.dict",
    "trace": "fuzz_trace_reader.dict",
}


@pytest.mark.parametrize("form", FILES)
def test_the_dictionaries_are_current(form: Form) -> None:
    assert (FUZZ / FILES[form]).read_text() == dictionary_text(form), (
        f"run: python -m nvmx_fuzz.dictionary {form} > fuzz/{FILES[form]}"
    )


def test_the_targets_use_no_other_dictionary() -> None:
    assert {target.form: target.dictionary for target in TARGETS} == FILES


def test_every_line_of_the_text_dictionary_is_read() -> None:
    entries = [
        ast.literal_eval(f"b{line}").decode()
        for line in dictionary_text("text").splitlines()
        if not line.startswith("#")
    ]
    assert len(entries) == len(set(entries))
    assert max(map(len, entries)) <= WORD_SIZE_MAX
    steps = [entry for entry in entries if re.match(r"\n(L0|L1|L2|outside) ", entry)]
    assert len(steps) > len(OPERATIONS)
    for step in steps:
        assert len(parse_scenario(f"version 1{step}\n").scenario.steps) == 1


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
