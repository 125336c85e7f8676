"""The text of the serial port: whole lines, cut ones, and what others write between them."""

import pytest

from nvmx_fuzz.boot.wire import checksum, remarks, system_management, whole_lines


def line(body: str) -> str:
    return f"{body} *{checksum(body.encode()):x}\n"


GREETING = line("@m 0:d8100011e57ed0 5:20000165")
ONE = line("#0 x 0:a 6:2 9:16001 a:14800 z 2:20000 i 0:51 1:1002f3 2:2")
TWO = line("#1 v 0:7 z")
END = line("$")


def numbers(text: str) -> list[int]:
    return [found.number for found in whole_lines(text) if found.kind == "#"]


def test_a_batch_is_read_in_order() -> None:
    lines = list(whole_lines(GREETING + ONE + TWO + END))
    assert [found.kind for found in lines] == ["@", "#", "#", "$"]
    assert numbers(ONE + TWO) == [0, 1]


def test_values_that_are_zero_are_not_printed() -> None:
    (found,) = whole_lines(ONE)
    exited, ended, interrupt = found.records
    assert (exited.letter, exited.values[0], exited.values[1], exited.values[9]) == (
        "x",
        0xA,
        0,
        0x16001,
    )
    assert ended.values[2] == 0x20000
    assert interrupt.values == (0x51, 0x1002F3, 2)


def test_words_of_the_stack_keep_their_index_although_zero() -> None:
    (found,) = whole_lines(line("#0 x 0:a s f9:0 fa:1740e z"))
    assert found.records[1].changes == ((0xF9, 0), (0xFA, 0x1740E))


@pytest.mark.parametrize("length", range(1, len(ONE) - 1))
def test_a_line_cut_anywhere_is_no_line(length: int) -> None:
    assert numbers(ONE[:length] + "\n" + TWO) == [1]


@pytest.mark.parametrize("place", range(1, len(ONE) - 1))
def test_a_letter_that_is_wrong_anywhere_is_noticed(place: int) -> None:
    wrong = "3" if ONE[place] != "3" else "4"
    assert numbers(ONE[:place] + wrong + ONE[place + 1 :]) == []


def test_a_line_without_its_end_has_not_arrived() -> None:
    assert numbers(ONE.rstrip("\n")) == []


def test_what_a_kernel_writes_between_lines_is_no_part_of_them() -> None:
    assert numbers(f"[ 1.5] booting *12\r\n{ONE}[   26.0] x: y\r\n{TWO}") == [0, 1]


def test_what_a_kernel_writes_into_a_line_spoils_that_line_only() -> None:
    assert numbers(f"{ONE[:20]}[   26.0] reboot: now\r\n{ONE[20:]}{TWO}") == [1]


def test_carriage_returns_do_no_harm() -> None:
    assert numbers((ONE + TWO).replace("\n", "\r\n")) == [0, 1]


def test_records_of_no_known_kind_are_no_line() -> None:
    assert list(whole_lines(line("#0 q 0:1"))) == []
    assert list(whole_lines(line("#0 v 9:1"))) == []
    assert list(whole_lines(line("#zz v 0:1"))) == []


def test_a_refusal_has_its_number() -> None:
    (found,) = whole_lines(line("! 3"))
    assert (found.kind, found.number) == ("!", 3)


def test_a_monitor_says_what_brought_nothing() -> None:
    text = f"{ONE}%1 hangs\r\n%a triple-faults\n%! /dev/kvm: No such device\n%x no\n"
    assert remarks(text) == {1: "hangs", 10: "triple-faults", -1: "/dev/kvm: No such device"}


def test_places_of_smis_are_read_by_scenario() -> None:
    text = "~0 1:17400 0:0\r\n" + line("#0 z") + "~1f 0:0\n~2 2:5\n"
    assert system_management(text) == {0: ((1, 0x17400), (0, 0)), 0x1F: ((0, 0),)}
