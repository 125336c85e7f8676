"""With whom a real KVM agrees: `bare`, our L0 of its version, both or neither."""

from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_core.bugs.versions import l0_class
from nvmx_fuzz.boot.agreement import BARE, BOTH, NEITHER, OURS, Shown, counted, lines
from nvmx_fuzz.boot.batch import Batch
from nvmx_fuzz.boot.emulator import Ended
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine
from nvmx_fuzz.boot.moved import fit_booting
from nvmx_fuzz.boot.predicted import journal_on_bare, journal_under, on_fresh_machine
from nvmx_fuzz.boot.reading import checksum
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.outcomes import DIFFERENT, INCIDENT, SAME
from nvmx_fuzz.scenario_files import load
from tests.boot.support import KVM_ON_BOCHS

ROOT = Path(__file__).resolve().parents[2]
RES4 = encode(load(str(ROOT / "corpus/bugs/res4.scn")).scenario)
QUIET = encode(load(str(ROOT / "corpus/bugs/bug1.scn")).scenario)


def machine() -> BootingMachine:
    kind = BOOTING["kvm-bochs"]._replace(
        batch=lambda: Batch(lambda _image: Ended("", "")), release=lambda: "6.1.0-test"
    )
    started = BootingMachine(kind)
    started.__dict__["capabilities"] = KVM_ON_BOCHS
    return started


def of_bare(content: bytes) -> int:
    return checksum(journal_on_bare(fit_booting(decode(content), KVM_ON_BOCHS), has_rf=False))


def of_our_l0(content: bytes) -> int:
    fresh = on_fresh_machine(fit_booting(decode(content), KVM_ON_BOCHS))
    journal = journal_under(fresh, l0_class("kvm-6.1"), has_rf=False)
    assert journal is not None
    return checksum(journal)


def test_each_journal_counts_for_whom_it_agrees_with() -> None:
    shown: list[Shown] = [
        ("a", QUIET, SAME, of_bare(QUIET)),
        ("a", RES4, SAME, of_bare(RES4)),
        ("a", RES4, DIFFERENT, of_our_l0(RES4)),
        ("b", RES4, DIFFERENT, 1),
        ("b", RES4, INCIDENT, 0),
    ]
    found = counted(machine(), shown)
    assert found == {"a": {BOTH: 1, BARE: 1, OURS: 1}, "b": {NEITHER: 1, INCIDENT: 1}}
    assert [line.split()[0] for line in lines(found)][1:] == ["a", "b"]
