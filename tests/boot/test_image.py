"""The image: what a boot loader reads of it, and what stands where."""

import re
import struct
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.guests.memory import CODE_BASE
from nvmx_fuzz.boot import linux, places, stops
from nvmx_fuzz.boot.image import MULTIBOOT_MAGIC, boot_image, pristine_memory
from nvmx_fuzz.boot.program import (
    RESTART,
    boot_program,
    entry_code,
    operation_table,
    while_recording,
)
from nvmx_fuzz.realise import layout
from nvmx_fuzz.realise.l1_program import END, VMPTRLD, l1_program
from nvmx_fuzz.realise.script import Operation, pointer_to

SCRIPT: list[Operation] = [(VMPTRLD, pointer_to(0), 0, 0), (END, 0, 0, 0)]


def words(image: bytes, address: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}Q", image, address - places.IMAGE)


def test_the_multiboot_header_adds_up() -> None:
    image = boot_image([SCRIPT])
    magic, flags, checksum, header, start, end, _bss_end, entry = struct.unpack_from("<8I", image)
    assert magic == MULTIBOOT_MAGIC
    assert (magic + flags + checksum) & 0xFFFFFFFF == 0
    assert (header, start, end - start, entry) == (
        places.IMAGE,
        places.IMAGE,
        len(image),
        places.ENTRY,
    )


def test_the_entry_does_not_run_into_the_table_pointers() -> None:
    assert places.ENTRY + len(entry_code()) <= places.GDT_POINTER


def test_each_scenario_has_its_script() -> None:
    image = boot_image([SCRIPT, SCRIPT, SCRIPT])
    magic, first, end, doorbell, table, count = words(image, places.PARAMETERS, 6)
    assert (magic, first, end, doorbell, count) == (places.MAGIC, 0, 3, 0, 3)
    addresses = words(image, table, 3)
    assert len(set(addresses)) == 3
    assert all(places.SCRIPTS <= address < table for address in addresses)


def test_a_sweep_restarts_behind_it() -> None:
    image = boot_image([SCRIPT], sweep=True)
    table = words(image, places.PARAMETERS, 6)[4]
    (address,) = words(image, table, 1)
    assert words(image, address + 32, 1) == (RESTART,)


def test_a_doorbell_is_asked_for_in_the_parameters() -> None:
    assert words(boot_image([], doorbell=True), places.PARAMETERS, 4)[3] == 1


def test_too_many_scenarios_are_refused() -> None:
    long: list[Operation] = [(VMPTRLD, pointer_to(0), 0, 0)] * 500_000
    with pytest.raises(ValueError, match="3 scenarios do not fit"):
        boot_image([[*long, (END, 0, 0, 0)]] * 3)


def test_the_same_scripts_give_the_same_image() -> None:
    assert boot_image([SCRIPT]) == boot_image([SCRIPT])


def test_exits_arrive_in_this_program_and_not_in_the_other() -> None:
    image = boot_image([SCRIPT])
    theirs = struct.pack("<4Q", 1, 0x6C16, l1_program().labels["exited"], 0)
    ours = struct.pack("<4Q", 1, 0x6C16, boot_program().labels["exited"], 0)
    assert theirs not in image
    assert ours in image


def test_the_operations_fit_between_their_neighbours() -> None:
    table = operation_table(boot_program().labels)
    assert layout.OPERATION_TABLE + len(table) <= 0x400


def test_l2_finds_an_instruction_that_exits_wherever_it_runs_away_to() -> None:
    memory = pristine_memory()
    assert memory[CODE_BASE : CODE_BASE + 16] == bytes.fromhex("0F01C1" * 5 + "90")


def test_places_of_the_recording_are_told_from_others() -> None:
    labels = boot_program().labels
    recording = ("exited", "read_field", "record", "emit_hex", "emit_stack")
    assert all(while_recording(labels[name]) for name in recording)
    assert not any(
        while_recording(labels[name]) for name in ("drain", "op_open", "op_iret", "next")
    )


def test_the_monitor_knows_the_same_places() -> None:
    source = Path(linux.MONITOR_SOURCES[0]).read_text()
    numbers = {name: int(value, 16) for name, value in re.findall(r"(\w+) = (0x[0-9A-F]+)", source)}
    wanted = {
        "IMAGE": places.IMAGE, "ENTRY": places.ENTRY - places.IMAGE,
        "PARAMETERS": places.PARAMETERS - places.IMAGE, "OUTPUT": places.OUTPUT,
        "MEMORY": places.MEMORY_SIZE, "DOORBELL": places.DOORBELL_PORT, "STOP_PORT": places.STOP_PORT,
        "MAGIC": places.MAGIC, "SMM_PORT": stops.SMM_PORT,
    }  # fmt: skip
    assert {name: numbers[name] for name in wanted} == wanted
    assert (places.PARAMETER_FIRST, places.PARAMETER_END, places.PARAMETER_DOORBELL) == (8, 16, 24)


def test_an_initramfs_is_in_the_form_that_the_kernel_reads() -> None:
    archive = linux.cpio([("init", b"#!", 0o100755), ("dev", b"", 0o40755)])
    assert archive[:6] == b"070701"
    assert archive[110:115] == b"init\0"
    assert archive[116:118] == b"#!"
    assert len(archive) % 4 == 0
    assert b"TRAILER!!!" in archive
