"""The tables of fields, controls, states and instructions agree with themselves."""

import pytest

from nvmx_core.arch.controls import (
    CONTROL_INDEX,
    CONTROLS,
    CPU_NMI_WINDOW_EXITING,
    PIN_VIRTUAL_NMIS,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
)
from nvmx_core.arch.exits import EXIT_NAMES, INSTRUCTION_EXITS
from nvmx_core.arch.fields import (
    CONTROL_FIELDS,
    CPU_BASED,
    ENTRY_INTR_INFO,
    EXIT_CONTROLS,
    FIELD_BY_NAME,
    FIELD_COUNT,
    FIELDS,
    GUEST_ACTIVITY,
    GUEST_CHECK_FIELDS,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    IDT_VECTORING_INFO,
    LAUNCH_STATE,
    PIN_BASED,
    SECONDARY,
)
from nvmx_core.arch.instructions import (
    ALWAYS,
    EMULATED_BY_REASON,
    INSTRUCTION_INDEX,
    INSTRUCTIONS,
    NEVER,
    Instruction,
)
from nvmx_core.arch.state import (
    ACTIVITY_NAMES,
    PENDING_DBG_BS,
    PENDING_DBG_ENABLED_BP,
    PENDING_DBG_RESERVED,
    WAIT_FOR_SIPI,
    debug_conditions,
    pending_dbg_of,
)

WIDTH_OF_CODE = {0: 16, 1: 64, 2: 32, 3: 64}
"""Bits 14:13 of an encoding; natural width is 64 bits here."""

GROUP_OF_CODE = {0: "control", 1: "exit", 2: "guest", 3: "host"}
"""Bits 11:10 of an encoding."""


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: str(field.name))
def test_width_and_group_agree_with_the_encoding(field: object) -> None:
    assert isinstance(field, type(FIELDS[0]))
    if field.name == "EOI_EXIT_BITMAP":
        assert field.width == 256  # four 64-bit fields in one
        return
    assert field.width == WIDTH_OF_CODE[field.encoding >> 13 & 3]
    assert field.group == GROUP_OF_CODE[field.encoding >> 10 & 3]


def test_fields_have_the_manuals_encodings() -> None:
    encodings = {FIELDS[position].encoding for position in (ENTRY_INTR_INFO, IDT_VECTORING_INFO)}
    assert encodings == {0x4016, 0x4408}
    assert FIELDS[GUEST_INTERRUPTIBILITY].encoding == 0x4824
    assert FIELDS[GUEST_ACTIVITY].encoding == 0x4826
    assert FIELDS[GUEST_PENDING_DBG].encoding == 0x6822


def test_fields_are_found_by_name() -> None:
    assert FIELD_BY_NAME["PIN_BASED"] == FIELDS[PIN_BASED]
    assert len(FIELD_BY_NAME) == len(FIELDS) == LAUNCH_STATE == FIELD_COUNT - 1


def test_runs_of_fields_hold_what_the_checks_read() -> None:
    vmcs = list(range(FIELD_COUNT))
    assert {PIN_BASED, CPU_BASED, SECONDARY, EXIT_CONTROLS} <= set(vmcs[CONTROL_FIELDS])
    guest = set(vmcs[GUEST_CHECK_FIELDS])
    assert {ENTRY_INTR_INFO, GUEST_ACTIVITY, GUEST_PENDING_DBG} <= guest
    assert PIN_BASED not in guest


def test_controls_are_single_bits_of_their_own() -> None:
    places = {(control.field, control.bit) for control in CONTROLS}
    assert len(places) == len(CONTROLS)
    assert all(control.bit & (control.bit - 1) == 0 for control in CONTROLS)


@pytest.mark.parametrize(
    ("name", "field", "bit"),
    [
        ("virtual-nmis", PIN_BASED, PIN_VIRTUAL_NMIS),
        ("nmi-window-exiting", CPU_BASED, CPU_NMI_WINDOW_EXITING),
        ("virtual-interrupt-delivery", SECONDARY, SECONDARY_VIRTUAL_INTR_DELIVERY),
    ],
)
def test_controls_are_found_by_name(name: str, field: int, bit: int) -> None:
    control = CONTROLS[CONTROL_INDEX[name]]
    assert (control.field, control.bit) == (field, bit)


def test_activity_states_have_names() -> None:
    assert ACTIVITY_NAMES[WAIT_FOR_SIPI] == "wait-for-sipi"


@pytest.mark.parametrize("conditions", [0, 1, 0xF, PENDING_DBG_BS, PENDING_DBG_BS | 4])
def test_o6_conditions_survive_the_way_into_the_field_and_back(conditions: int) -> None:
    field = pending_dbg_of(conditions)
    assert debug_conditions(field) == conditions
    assert field & PENDING_DBG_RESERVED == 0
    assert bool(field & PENDING_DBG_ENABLED_BP) == bool(conditions & 0xF)


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda entry: str(entry.name))
def test_an_instruction_exits_with_a_known_reason(instruction: object) -> None:
    assert isinstance(instruction, Instruction)
    assert 1 <= instruction.length <= 15
    if instruction.exit_field == NEVER:
        assert not instruction.emulated
        return
    assert instruction.exit_reason in INSTRUCTION_EXITS
    assert instruction.exit_reason in EXIT_NAMES
    if instruction.exit_field != ALWAYS:
        assert instruction.exit_field in {CPU_BASED, SECONDARY}
        assert instruction.exit_bit


def test_instructions_are_found_by_name() -> None:
    assert INSTRUCTIONS[INSTRUCTION_INDEX["hlt"]].name == "hlt"


def test_instructions_that_l0_emulates_are_told_apart_by_reason_and_length() -> None:
    for reason, emulated in EMULATED_BY_REASON.items():
        others = [entry for entry in INSTRUCTIONS if entry.exit_reason == reason]
        assert {entry.length for entry in others} == {emulated.length}
