"""A line as a journal: what L1 saw, what L2's stack tells, and what cannot be seen."""

from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.arch.fields import POISON
from nvmx_core.arch.state import RFLAGS_RF
from nvmx_core.journal import (
    DELIVER,
    END,
    EXIT,
    L1_INTERRUPT,
    L1_NMI,
    RECORD_FIELDS,
    RETIRE,
    VMFAIL,
    Record,
)
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.boot.program import boot_program
from nvmx_fuzz.boot.reading import journal_of, visible
from nvmx_fuzz.boot.wire import Line
from nvmx_fuzz.corpus_files import files_of
from nvmx_fuzz.realise.vmcs import NotRealisableError
from nvmx_fuzz.scenario_files import load
from tests.boot.support import KVM_ON_BOCHS, perfect_line, printed, standing

ROOT = Path(__file__).resolve().parents[2]


def seen(text: str, line: Line) -> list[Record]:
    return visible(journal_of(line, standing(text)))


def kinds(journal: list[Record]) -> list[int]:
    return [record[0] for record in journal]


def test_instructions_that_complete_are_left_out() -> None:
    journal = standing("L1 enter\nL2 nop\nL2 cpuid\n").realised.journal
    assert RETIRE in kinds(journal)
    assert RETIRE not in kinds(visible(journal))


def test_cr2_and_dr6_of_a_delivery_are_left_out_and_those_of_an_exit_are_not() -> None:
    delivery = (DELIVER, 14, 2, 0x16000, 0x202, 0x15000, 1)
    exited = (EXIT, *range(1, 24))
    assert visible([delivery, exited]) == [(DELIVER, 14, 2, 0x16000, 0x202, 0, 0), exited]


def test_whether_nmis_are_blocked_at_the_end_is_left_out() -> None:
    end = (END, 0, 1, 2, 1, 1, 0, 0, 0, 0, 0, 0)
    assert visible([end]) == [(END, 0, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0)]


def test_rf_of_exits_is_left_out_where_it_means_nothing() -> None:
    exited = [EXIT, *[0] * 23]
    exited[12] = RFLAGS_RF | 0x202
    assert visible([tuple(exited)], has_rf=False)[0][12] == 0x202
    assert visible([tuple(exited)])[0][12] == RFLAGS_RF | 0x202


def corpus_that_stands_alone() -> list[str]:
    names = []
    for name in files_of([str(ROOT / "corpus")]):
        try:
            stand_alone_moved(load(name).scenario, KVM_ON_BOCHS)
        except NotRealisableError:
            continue
        names.append(name)
    return names


def test_a_machine_that_shows_what_the_model_does_is_read_as_equal() -> None:
    names = corpus_that_stands_alone()
    assert len(names) > 280
    for name in names:
        expected = stand_alone_moved(load(name).scenario, KVM_ON_BOCHS)
        shown = visible(journal_of(perfect_line(expected), expected))
        assert shown == visible(expected.realised.journal), name


# The line as Linux 6.1 on Bochs showed it.
_REAL = (
    "#1 x 0:a 6:2 7:17400 9:17400 a:147f4 b:2 c:4093 10:64 12:40 16:ffff0ff0 s fd:16000 fe:8 ff:202 "
    "x 0:12 6:3 7:17400 9:17402 a:147f4 b:2 c:4093 10:64 12:40 16:ffff0ff0 z"
)
_INJECTS = "L1 inject external-interrupt 0x40\nL1 enter\nL2 cpuid\nL1 enter\n"


def test_a_real_line_is_the_journal_of_the_model() -> None:
    assert seen(_INJECTS, printed(_REAL)) == visible(standing(_INJECTS).realised.journal)


def test_a_delivery_without_its_frame_has_not_happened() -> None:
    without = _REAL.replace(" s fd:16000 fe:8 ff:202", "")
    assert DELIVER not in kinds(seen(_INJECTS, printed(without)))


def test_a_return_address_is_what_stands_on_the_stack() -> None:
    journal = seen(_INJECTS, printed(_REAL.replace("fd:16000", "fd:16007")))
    assert next(record for record in journal if record[0] == DELIVER)[3] == 0x16007


def test_a_handler_that_l2_stands_in_tells_the_vector() -> None:
    journal = seen(_INJECTS, printed(_REAL.replace("9:17400 a", "9:17510 a")))
    assert next(record for record in journal if record[0] == DELIVER)[1] == 0x51


def test_a_frame_that_nobody_expects_is_a_delivery_too() -> None:
    text = "L1 enter\nL2 cpuid\n"
    line = printed("#0 x 0:a 6:2 9:17060 a:147f4 b:2 c:4093 10:64 s fd:16000 fe:8 ff:202 z")
    journal = seen(text, line)
    assert (DELIVER, 6, POISON, 0x16000, 0x202, 0, 0) in journal


def test_an_exit_that_is_not_the_stop_is_an_exit() -> None:
    journal = seen("L1 enter\nL2 nop\n", printed("#0 x 0:30 9:16001 a:14800 b:202 c:4093 10:64 z"))
    assert kinds(journal)[-2:] == [EXIT, END]
    assert journal[-1][1] == 0


def test_a_stop_elsewhere_shows_where_l2_was() -> None:
    journal = seen("L1 enter\nL2 nop\n", printed("#0 x 0:12 9:16010 a:14800 b:202 c:4093 10:64 z"))
    assert journal[-1][0] == END
    assert journal[-1][8] == 0x16010


def test_a_vmfail_instead_of_an_exit_is_shown() -> None:
    assert VMFAIL in kinds(seen("L1 enter\nL2 cpuid\n", printed("#0 v 0:7 z")))


@pytest.mark.parametrize(("label", "place"), [("op_open", 1), ("exited", 0), ("emit_hex", 0)])
def test_what_l1_takes_comes_behind_the_record_that_it_was_writing(label: str, place: int) -> None:
    rip = boot_program().labels[label]
    line = printed(f"#0 x 0:a 6:2 9:16000 a:14800 b:202 c:4093 10:64 z n 0:2 1:{rip:x} 2:{place:x}")
    journal = seen("config nmi-exiting=off virtual-nmis=off\nL1 enter\nL2 cpuid\nL1 eoi\n", line)
    assert kinds(journal)[-3:] == [EXIT, L1_NMI, END]


def test_what_comes_when_l1_drains_was_pending() -> None:
    rip = boot_program().labels["drain"]
    line = printed(
        f"#0 x 0:a 6:2 9:16000 a:14800 b:202 c:4093 10:64 z 2:20000 i 0:51 1:{rip:x} 2:2 n 0:2 1:{rip:x} 2:2"
    )
    journal = seen("L1 enter\nL2 cpuid\n", line)
    assert L1_INTERRUPT not in kinds(journal)
    assert journal[-1][2] == 1 << 0x51
    assert journal[-1][4] == 1


@pytest.mark.parametrize(("left", "shown"), [(0xFFFFF000, 0x10), (5, 5)])
def test_a_timer_that_has_only_counted_shows_its_start(left: int, shown: int) -> None:
    text = "config preemption-timer=on save-preemption-timer=on\nL1 vmwrite GUEST_PREEMPTION_TIMER 0x10\n"
    line = printed(f"#0 x 0:a 6:2 9:16000 a:14800 b:202 c:4093 10:{left:x} z")
    journal = seen(f"{text}L1 enter\nL2 cpuid\n", line)
    exited = next(record for record in journal if record[0] == EXIT)
    assert exited[1 + RECORD_FIELDS[EXIT].index("preemption timer")] == shown
