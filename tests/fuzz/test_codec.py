"""The byte form: total, canonical, stable."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAG_BIT
from nvmx_core.scenario.step_text import format_step, parse_step
from nvmx_core.scenario.steps import OPERATIONS, Scenario, canonical
from nvmx_core.scenario.text import STEPS_MAX, parse_scenario
from nvmx_fuzz import codec
from nvmx_fuzz.codec import (
    HEADER_SIZE,
    RECORD_SIZE,
    SIZE_MAX,
    CodecError,
    canonical_bytes,
    decode,
    encode,
    encode_step,
    require_version,
)
from nvmx_fuzz.strategies import scenarios

GOLDEN = [
    tuple(line.split("  ", 1))
    for line in (Path(__file__).parent / "byte_form_v1.txt").read_text().splitlines()
    if not line.startswith("#")
]
EMPTY = Scenario((DEFAULT_FLAGS, 0, 0, 0), ())
ENTER = bytes(RECORD_SIZE)


@given(scenarios(max_steps=30))
def test_a_scenario_survives_the_way_to_bytes_and_back(scenario: Scenario) -> None:
    assert decode(encode(scenario)) == scenario


@given(st.binary(max_size=SIZE_MAX + 20))
def test_all_bytes_decode_and_their_canonical_form_means_the_same(data: bytes) -> None:
    scenario = decode(data)
    assert len(scenario.steps) <= STEPS_MAX
    assert decode(canonical_bytes(data)) == scenario
    assert canonical_bytes(canonical_bytes(data)) == canonical_bytes(data)


@given(st.binary(min_size=HEADER_SIZE + 1, max_size=200))
def test_decoded_steps_are_canonical(data: bytes) -> None:
    for step in decode(data).steps:
        assert canonical(*step) == step


@pytest.mark.parametrize("data", [b"", b"\n", b"\x01", bytes(7), bytes(15)])
def test_a_short_input_is_the_default_configuration_without_steps(data: bytes) -> None:
    config, steps = decode(data)
    assert config == decode(data.ljust(HEADER_SIZE, b"\0")).config
    assert steps == ()


def test_nothing_at_all_is_the_default_configuration() -> None:
    assert decode(b"") == EMPTY
    assert encode(EMPTY) == b"\x01" + bytes(7)


def test_a_partial_last_record_does_not_count() -> None:
    whole = encode(EMPTY) + ENTER
    assert decode(whole + b"\x01\x02\x03") == decode(whole)


def test_steps_beyond_the_limit_are_cut_off() -> None:
    assert len(decode(encode(EMPTY) + ENTER * (STEPS_MAX + 1)).steps) == STEPS_MAX


def test_removing_a_record_leaves_the_other_steps_alone() -> None:
    records = [encode_step((op, 0, 0, 0)) for op in range(len(OPERATIONS))]
    steps = decode(encode(EMPTY) + b"".join(records)).steps
    del records[5]
    assert decode(encode(EMPTY) + b"".join(records)).steps == steps[:5] + steps[6:]


def test_a_flag_is_stored_as_difference_to_the_default() -> None:
    data = encode(Scenario((DEFAULT_FLAGS ^ FLAG_BIT["single-step"], 0x81, 0x10, 2), ()))
    assert int.from_bytes(data[1:5], "little") == FLAG_BIT["single-step"]
    assert data[5:] == b"\x81\x10\x02"


@pytest.mark.parametrize("version", range(2, 16))
def test_a_future_version_is_the_empty_scenario_and_refused_by_name(version: int) -> None:
    data = bytes((version,)) + b"\xff" * 7 + ENTER
    assert decode(data) == EMPTY
    with pytest.raises(CodecError, match=f"version {version} was made by a newer nvmx-fuzz"):
        require_version(data)


@pytest.mark.parametrize("first", [0, 1, *range(16, 0x100)])
def test_any_other_first_byte_is_version_1(first: int) -> None:
    data = bytes((first,)) + bytes(7) + ENTER
    require_version(data)
    assert len(decode(data).steps) == 1


def test_empty_input_has_no_version_to_refuse() -> None:
    require_version(b"")


@pytest.mark.parametrize(("expected", "text"), GOLDEN, ids=lambda value: value)
def test_the_bytes_of_version_1_keep_their_meaning(expected: str, text: str) -> None:
    data = bytes.fromhex(expected)
    if text.startswith("config"):
        scenario = parse_scenario(f"version 1\n{text}").scenario
        assert encode(scenario) == data
        assert decode(data) == scenario
    else:
        assert encode_step(parse_step(text.split())) == data
        (step,) = decode(encode(EMPTY) + data).steps
        assert format_step(step, compact=True) == text


def test_the_golden_bytes_hold_every_operation_and_every_flag() -> None:
    operations = {bytes.fromhex(code)[0] for code, text in GOLDEN if "config" not in text}
    assert operations == set(range(len(OPERATIONS)))
    flags = {text.removeprefix("config ").partition("=")[0] for _code, text in GOLDEN}
    assert set(FLAG_BIT) <= flags


def test_the_caches_stay_bounded_and_do_not_change_the_meaning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec, "_CACHED_STEPS_MAX", 8)
    monkeypatch.setattr(codec, "_CACHED_CONFIGS_MAX", 4)
    steps = codec._Steps()
    configs = codec._Configs()
    for number in range(100):
        record = 1 | 3 << 8 | number << 16
        assert steps[record] == canonical(1, 3, number, 0) == steps[record]
        assert configs[bytes((1, 0, 0, 0, 0, number, 0, 0))][1] == number
        assert len(steps) <= 8
        assert len(configs) <= 4
