"""A campaign on a real machine: what it chooses, what it keeps, and where it goes on."""

import signal
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz import BAD_INPUT
from nvmx_fuzz.boot import campaign, linux
from nvmx_fuzz.boot.batch import Batch
from nvmx_fuzz.boot.campaign import Chooser, report, run_again, run_batch, write_unlisted
from nvmx_fuzz.boot.emulator import Ended
from nvmx_fuzz.boot.journal_base import JournalBase, Row, require_database
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine
from nvmx_fuzz.boot.predictions import CONFIRMED, LEFT_OPEN, NOT_SHOWN, lines, predictions
from nvmx_fuzz.codec import encode
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.scenario_files import load
from tests.boot.support import KVM_ON_BOCHS, scenario

ROOT = Path(__file__).resolve().parents[2]
SIZE = 12


def machine_that_hangs() -> BootingMachine:
    """A machine on which every scenario hangs."""

    def start(_image: bytes) -> Ended:
        return Ended("".join(f"%{number:x} hangs\n" for number in range(SIZE)), "")

    started = BootingMachine(BOOTING["kvm-bochs"]._replace(batch=lambda: Batch(start)))
    started.__dict__["capabilities"] = KVM_ON_BOCHS
    return started


def test_batches_differ_and_go_on_in_another_process(tmp_path: Path) -> None:
    chosen = []
    for _ in range(2):  # each time as if started anew
        base = JournalBase(tmp_path / "x.sqlite", "kvm-bochs")
        machine = machine_that_hangs()
        choice = Chooser(base, machine, []).batch(SIZE)
        run_batch(base, machine, choice)
        chosen.append(choice.contents)
        base.close()
    assert [len(contents) for contents in chosen] == [SIZE, SIZE]
    assert not set(chosen[0]) & set(chosen[1])


def test_the_choice_depends_on_what_ran_alone(tmp_path: Path) -> None:
    choices = [
        Chooser(JournalBase(tmp_path / f"{number}.sqlite", "kvm"), machine_that_hangs(), []).batch(
            SIZE
        )
        for number in range(2)
    ]
    assert choices[0] == choices[1]


def test_what_shows_something_new_comes_first(tmp_path: Path) -> None:
    base = JournalBase(tmp_path / "x.sqlite", "kvm-bochs")
    first = Chooser(base, machine_that_hangs(), []).batch(SIZE)
    assert first.features
    assert first.next_number >= SIZE


def test_everything_is_kept_and_reported(tmp_path: Path) -> None:
    base = JournalBase(tmp_path / "x.sqlite", "kvm-bochs")
    machine = machine_that_hangs()
    run_batch(base, machine, Chooser(base, machine, []).batch(SIZE))
    lines = list(report(base))
    assert lines[0].startswith(f"{SIZE} scenarios, batches: 1")
    assert any("UNLISTED" in line and "hangs" in line for line in lines)
    (path,) = write_unlisted(base, tmp_path / "found")
    assert path.read_text().startswith("# hangs\n")
    load(str(path))


def test_what_cannot_be_realised_any_more_is_no_news(tmp_path: Path) -> None:
    base = JournalBase(tmp_path / "x.sqlite", "kvm-bochs")
    base.add_batch([Row(b"x", "not realisable", "", "", "smi-at-entry", "", 0)], [], 0, 1.0, 1, 1)
    assert list(report(base))[1] == f"  refused  {1:7}  smi-at-entry"
    assert not base.unlisted()


def test_what_nothing_was_known_of_runs_again(tmp_path: Path) -> None:
    base = JournalBase(tmp_path / "x.sqlite", "kvm-bochs")
    machine = machine_that_hangs()
    run_batch(base, machine, Chooser(base, machine, []).batch(SIZE))
    before, boots = base.kinds(), machine.boots
    run_again(base, machine)
    assert base.kinds() == before
    assert machine.boots == boots + 1


def test_what_was_named_once_runs_again_too(tmp_path: Path) -> None:
    base = JournalBase(tmp_path / "x.sqlite", "kvm-bochs")
    contents = [encode(scenario(f"L1 enter\nL2 popf 0x{number}\n")) for number in range(3)]
    verdicts = ("same", "different", "incident")
    rows = [
        Row(content, verdict, "key", "a row that is gone", "", "", 0)
        for content, verdict in zip(contents, verdicts, strict=True)
    ]
    base.add_batch(rows, [], 0, 1.0, 1, 5)
    machine = machine_that_hangs()
    run_again(base, machine)
    left = {content: known for content, _verdict, known in base.runs()}
    assert left == dict(zip(contents, ("a row that is gone", "", ""), strict=True))
    assert machine.boots == 1


def test_a_database_of_another_machine_is_refused(tmp_path: Path) -> None:
    JournalBase(tmp_path / "x.sqlite", "kvm").close()
    with pytest.raises(BadFile, match="is of the machine kvm; give another"):
        JournalBase(tmp_path / "x.sqlite", "kvm-bochs")


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_text("precious " * 200)
    with pytest.raises(BadFile, match="is no database of a campaign"):
        JournalBase(path, "kvm")
    assert path.read_text() == "precious " * 200


READS = pytest.mark.parametrize("option", ["--report", "--predictions"])


def status_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of the command with these arguments."""
    monkeypatch.setattr(signal, "signal", lambda *_arguments: None)
    monkeypatch.setattr("sys.argv", ["campaign", *words])
    return campaign.run()


@READS
def test_what_only_reads_a_database_makes_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    path = tmp_path / "new" / "x.sqlite"
    assert status_of(monkeypatch, option, "--database", str(path)) == BAD_INPUT
    says = f"scripts/kvm --campaign: {path}: no such file or directory\n"
    assert capsys.readouterr() == ("", says)
    assert not list(tmp_path.iterdir())


@READS
def test_what_only_reads_fetches_no_kernel(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    monkeypatch.setattr(linux, "FOLDER", tmp_path)
    monkeypatch.setattr(linux, "_fetch", lambda _root: pytest.fail("it fetches a kernel"))
    monkeypatch.delenv(linux.KERNEL_VARIABLE, raising=False)
    assert status_of(monkeypatch, option) == BAD_INPUT
    assert "no kernel has been fetched yet" in capsys.readouterr().err


def test_a_report_reads_a_database_of_whatever_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.sqlite"
    JournalBase(path, "kvm-bochs-1.2").close()
    monkeypatch.setattr(linux, "_fetch", lambda _root: pytest.fail("it fetches a kernel"))
    assert status_of(monkeypatch, "--report", "--database", str(path)) == 0
    assert capsys.readouterr().out == "0 scenarios, batches: 0\n"


def test_an_empty_file_is_no_database_to_read(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.touch()
    with pytest.raises(BadFile, match="is no database of a campaign"):
        require_database(path)


def test_predictions_are_counted_by_what_was_shown(tmp_path: Path) -> None:
    base = JournalBase(tmp_path / "x.sqlite", "kvm-bochs")
    content = encode(load(str(ROOT / "corpus/bugs/res4.scn")).scenario)
    rows = [
        Row(content, "different", "key", "KVM: res4", "", "", 0),
        Row(encode(load(str(ROOT / "corpus/bugs/res2.scn")).scenario), "same", "", "", "", "", 0),
    ]
    base.add_batch(rows, [], 0, 1.0, 1, 2)
    flags = KVM_ON_BOCHS.flags()
    found = predictions(base, flags, "kvm-6.1", has_rf=False)
    assert found["res4"] == {CONFIRMED: 1}
    assert found["res2"] == {NOT_SHOWN: 1}
    assert any("res4" in line and "1 confirmed" in line for line in lines(found))


def test_a_prediction_by_a_step_of_l0_that_is_not_shown_is_left_open(tmp_path: Path) -> None:
    """The step may have been left out; which one was is not asked of the verdict."""
    base = JournalBase(tmp_path / "x.sqlite", "kvm-bochs")
    content = encode(load(str(ROOT / "corpus/bugs/res11.scn")).scenario)
    base.add_batch([Row(content, "same", "", "", "", "", 0)], [], 0, 1.0, 1, 1)
    found = predictions(base, KVM_ON_BOCHS.flags(), "kvm-6.1", has_rf=False)
    assert found["res11"] == {LEFT_OPEN: 1}
