"""A batch on a machine that hangs, is cut short or refuses: one reason each, and the rest goes on."""

import struct
from collections.abc import Callable

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz.boot import places
from nvmx_fuzz.boot.batch import LAST_LINE, Batch, BootError, with_first
from nvmx_fuzz.boot.emulator import STANDS_STILL, Ended
from nvmx_fuzz.boot.image import boot_image
from nvmx_fuzz.boot.wire import checksum
from nvmx_fuzz.realise.l1_program import END
from nvmx_fuzz.realise.script import Operation

SCRIPTS: list[list[Operation]] = [[(END, 0, 0, 0)]] * 5


def line(body: str) -> str:
    return f"{body} *{checksum(body.encode()):x}\n"


def first_of(image: bytes) -> int:
    place = places.PARAMETERS - places.IMAGE + places.PARAMETER_FIRST
    number: int = struct.unpack_from("<Q", image, place)[0]
    return number


def machine(fate: Callable[[int], str]) -> Batch:
    """A machine on which *fate* says what becomes of a scenario: "" well, "hangs", "cut"."""

    def start(image: bytes) -> Ended:
        text = line("@m 0:1")
        for number in range(first_of(image), len(SCRIPTS)):
            if fate(number) == "cut":
                text += line(f"#{number:x} z")[:-4] + "\n"
            elif fate(number):
                return Ended(text, fate(number))
            else:
                text += line(f"#{number:x} z")
        return Ended(text + line("$"), "")

    return Batch(start)


def reasons(batch: Batch) -> list[str]:
    return [answer.reason for answer in batch.run(SCRIPTS)]


def test_all_answer() -> None:
    batch = machine(lambda _number: "")
    assert reasons(batch) == [""] * 5
    assert batch.boots == 1


@pytest.mark.parametrize("lost", range(5))
def test_what_hangs_is_noted_and_the_rest_goes_on(lost: int) -> None:
    batch = machine(lambda number: "hangs" if number == lost else "")
    assert reasons(batch) == ["hangs" if number == lost else "" for number in range(5)]


def test_what_comes_after_a_cut_line_is_kept() -> None:
    assert reasons(machine(lambda number: "cut" if number == 2 else "")) == [
        "",
        "",
        "its line was cut",
        "",
        "",
    ]


def test_a_batch_may_end_with_a_cut_line() -> None:
    assert reasons(machine(lambda number: "cut" if number == 4 else ""))[4] == "its line was cut"


def test_a_monitor_goes_on_by_itself() -> None:
    def start(image: bytes) -> Ended:
        assert first_of(image) == 0
        return Ended(
            "".join(line(f"#{n:x} z") if n != 1 else "%1 triple-faults\n" for n in range(5)), ""
        )

    batch = Batch(start)
    assert reasons(batch) == ["", "triple-faults", "", "", ""]
    assert batch.boots == 1


def test_a_machine_that_brings_nothing_is_given_up() -> None:
    with pytest.raises(
        BootError, match="brings nothing 3 times: does not start; its serial port says: GRUB"
    ):
        Batch(lambda _image: Ended("GRUB", "does not start")).run(SCRIPTS)


def test_many_that_hang_in_a_row_are_no_reason_to_give_up() -> None:
    batch = machine(lambda _number: "hangs")
    assert reasons(batch) == ["hangs"] * 5
    assert batch.boots == 5


def test_a_processor_without_vmx_is_named() -> None:
    with pytest.raises(BootError, match="has no VMX; turn on nested"):
        Batch(lambda _image: Ended(line("! 1"), "")).run(SCRIPTS)


def test_a_monitor_without_kvm_is_named() -> None:
    with pytest.raises(BootError, match="/dev/kvm: No such device"):
        Batch(lambda _image: Ended("%! /dev/kvm: No such device\n", "")).run(SCRIPTS)


def test_capabilities_come_from_the_first_line() -> None:
    assert machine(lambda _number: "").capabilities().msrs[0] == 1


def test_a_machine_that_does_not_greet_has_no_capabilities() -> None:
    with pytest.raises(
        BootError, match="does not run: does not start; its serial port says nothing"
    ):
        Batch(lambda _image: Ended("\n", "does not start")).capabilities()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("one\ntwo\n", "says: two"),
        ("Kernel panic - not syncing: VFS\nCPU: 0\n---[ end\n", "says: Kernel panic - not syncing: VFS"),
        ("\x1b[2J\n" + "x" * 999, f"says: {'x' * 200}"),
    ],
)  # fmt: skip
def test_what_a_kernel_that_does_not_boot_said_is_told(text: str, told: str) -> None:
    with pytest.raises(BootError) as caught:
        Batch(lambda _image: Ended(text, "does not start")).capabilities()
    assert str(caught.value).endswith(told)


def test_an_image_can_begin_anywhere() -> None:
    assert first_of(with_first(boot_image(SCRIPTS), 3)) == 3


def test_the_last_line_is_what_the_image_prints() -> None:
    assert line("$") == f"{LAST_LINE}\n"


def test_what_an_emulator_that_stands_still_was_at_runs_again() -> None:
    firsts: list[int] = []

    def start(image: bytes) -> Ended:
        firsts.append(first_of(image))
        end = 3 if firsts == [0] else 5
        lines = [line(f"#{number:x} z") for number in range(firsts[-1], end)]
        return Ended("".join(lines), STANDS_STILL if end == 3 else "")

    assert reasons(Batch(start)) == [""] * 5
    assert firsts == [0, 3]


@pytest.mark.parametrize("reason", ["the emulator gives up: soft power off", "powers off early"])
def test_what_a_machine_that_ends_by_itself_was_at_runs_once_more(reason: str) -> None:
    batch = machine(lambda number: reason if number == 2 and batch.boots == 1 else "")
    assert reasons(batch) == [""] * 5
    assert batch.boots == 2
    batch = machine(lambda number: reason if number == 2 else "")
    assert reasons(batch) == ["", "", reason, "", ""]
    assert batch.boots == 3


def test_an_emulator_that_always_stands_still_is_given_up() -> None:
    with pytest.raises(BootError, match="brings nothing 3 times: stands still"):
        Batch(lambda _image: Ended("", STANDS_STILL)).run(SCRIPTS)
