"""Interruption-information words and the classes of exceptions (facts of E, F and X4)."""

import pytest

from nvmx_core.arch.events import (
    BENIGN,
    CONTRIBUTORY,
    DF,
    DOUBLE_FAULT,
    DOUBLE_FAULT_INFO,
    ERROR_CODE_VALID,
    EXCEPTION_CLASS,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_INFO,
    NMI_UNBLOCKING_BY_IRET,
    OTHER_EVENT,
    PAGE_FAULT,
    PF,
    RESERVED_TYPE,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    TYPE_NAMES,
    VALID,
    VECTOR_MASK,
    VECTORS_WITH_ERROR_CODE,
    event_class,
    info_text,
    interruption_info,
    is_vectoring,
    merges_to_double_fault,
    vector_name,
)


def test_layout_of_an_information_word() -> None:
    info = interruption_info(HARDWARE_EXCEPTION, GP, has_error_code=True)
    assert info == 0x80000B0D
    assert info & VECTOR_MASK == GP
    assert interruption_info(NMI, 2, has_error_code=False) == NMI_INFO == 0x80000202


def test_f5_the_information_of_a_double_fault() -> None:
    assert interruption_info(HARDWARE_EXCEPTION, DF, has_error_code=True) == DOUBLE_FAULT_INFO


def test_e5_vectors_with_an_error_code() -> None:
    vectors = [vector for vector in range(32) if VECTORS_WITH_ERROR_CODE >> vector & 1]
    assert vectors == [8, 10, 11, 12, 13, 14, 17]


@pytest.mark.parametrize(
    ("event_type", "expected"),
    [(0, True), (1, False), (2, True), (3, True), (4, True), (5, True), (6, True), (7, False)],
)
def test_o2_what_is_vectoring(event_type: int, expected: bool) -> None:
    info = interruption_info(event_type, 0, has_error_code=False)
    assert is_vectoring(info) == expected
    assert not is_vectoring(info & ~VALID)


def test_f1_classes_of_vectors() -> None:
    contributory = [vector for vector in range(32) if EXCEPTION_CLASS[vector] == CONTRIBUTORY]
    assert contributory == [0, 10, 11, 12, 13]
    assert [v for v in range(256) if EXCEPTION_CLASS[v] == PAGE_FAULT] == [PF]
    assert [v for v in range(256) if EXCEPTION_CLASS[v] == DOUBLE_FAULT] == [DF]


@pytest.mark.parametrize(
    "event_type", [EXTERNAL_INTERRUPT, NMI, SOFTWARE_INTERRUPT, SOFTWARE_EXCEPTION]
)
def test_f1_only_hardware_exceptions_have_a_class(event_type: int) -> None:
    info = interruption_info(event_type, GP, has_error_code=False)
    assert event_class(info) == BENIGN
    assert event_class(interruption_info(HARDWARE_EXCEPTION, GP, True)) == CONTRIBUTORY


@pytest.mark.parametrize(
    ("first", "second", "merges"),
    [
        (BENIGN, BENIGN, False),
        (BENIGN, CONTRIBUTORY, False),
        (BENIGN, PAGE_FAULT, False),
        (CONTRIBUTORY, BENIGN, False),
        (CONTRIBUTORY, CONTRIBUTORY, True),
        (CONTRIBUTORY, PAGE_FAULT, False),
        (PAGE_FAULT, BENIGN, False),
        (PAGE_FAULT, CONTRIBUTORY, True),
        (PAGE_FAULT, PAGE_FAULT, True),
    ],
)
def test_f1_the_double_fault_table(first: int, second: int, merges: bool) -> None:
    assert merges_to_double_fault(first, second) == merges


def test_every_type_has_a_name() -> None:
    assert len(TYPE_NAMES) == OTHER_EVENT + 1
    assert TYPE_NAMES[RESERVED_TYPE] == "reserved"


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (0x0000020E, "invalid"),
        (interruption_info(HARDWARE_EXCEPTION, PF, True), "hardware-exception #PF, error code"),
        (interruption_info(EXTERNAL_INTERRUPT, 0x40, False), "external-interrupt 0x40"),
        (interruption_info(SOFTWARE_INTERRUPT, PF, False), "software-interrupt 0x0e"),
        (NMI_INFO, "nmi NMI"),
        (
            interruption_info(HARDWARE_EXCEPTION, GP, False) | NMI_UNBLOCKING_BY_IRET,
            "hardware-exception #GP, NMI unblocking by IRET",
        ),
    ],
)
def test_words_are_decoded_for_people(info: int, text: str) -> None:
    assert info_text(info) == text


def test_vectors_without_a_mnemonic_are_numbers() -> None:
    assert vector_name(PF) == "#PF"
    assert vector_name(0x80) == "0x80"


def test_bits_of_the_word_do_not_overlap() -> None:
    parts = (VECTOR_MASK, 7 << 8, ERROR_CODE_VALID, NMI_UNBLOCKING_BY_IRET, VALID)
    assert sum(parts) == VECTOR_MASK | 7 << 8 | ERROR_CODE_VALID | NMI_UNBLOCKING_BY_IRET | VALID
