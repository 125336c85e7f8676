"""Growing a corpus and keeping it small: nothing is lost, nothing comes twice, nothing is half-written."""

import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from nvmx_fuzz.cli import main
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.corpus_features import HAS_EDGES, FeatureMeter, additions, cover, union
from nvmx_fuzz.corpus_files import files_in
from nvmx_fuzz.generate import random_bytes
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.seeds import BUGS_FOLDER

ROOT = Path(__file__).resolve().parents[2]
LESSONS = ROOT / "corpus" / "lessons"
ONE = LESSONS / "window-after-shadow.scn"
OTHER = LESSONS / "kick-evaluates.scn"

Output = pytest.CaptureFixture[str]


def features(folder: Path) -> set[object]:
    meter = FeatureMeter()
    return set(
        union(meter.measure(str(path), load(str(path)).scenario) for path in files_in(folder))
    )


def fill(folder: Path, seeds: range) -> Path:
    folder.mkdir()
    for seed in seeds:
        (folder / str(seed)).write_bytes(random_bytes(seed))
    return folder


# -- add -------------------------------------------------------------------------------------------


def test_add_says_what_is_new(tmp_path: Path, capsys: Output) -> None:
    assert main(["corpus", "add", str(ONE), str(OTHER), "--to", str(tmp_path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["added as"] == str(tmp_path / ONE.name)
    assert first["adds"]["reach"] > 0
    assert first["adds"]["transitions"] > second["adds"]["transitions"] > 0
    assert (first["adds"]["edges"] > 0) == HAS_EDGES
    assert (tmp_path / ONE.name).read_text() == ONE.read_text()


def test_add_refuses_what_is_there_or_adds_nothing(tmp_path: Path, capsys: Output) -> None:
    into = ["--to", str(tmp_path / "corpus")]
    assert main(["corpus", "add", str(ONE), *into]) == 0
    copy = tmp_path / "copy.scn"
    copy.write_text(f"# the same\n{ONE.read_text()}")
    assert main(["corpus", "add", str(copy), "--force", *into]) == 1
    assert "refused, the same scenario as" in capsys.readouterr().out
    longer = tmp_path / "longer.scn"
    longer.write_text(ONE.read_text().replace("0x51", "0x52"))
    assert main(["corpus", "add", str(longer), *into]) == 1
    assert "refused, adds nothing" in capsys.readouterr().out
    assert main(["corpus", "add", str(longer), "--force", *into]) == 0
    assert sorted(path.name for path in files_in(tmp_path / "corpus")) == ["longer.scn", ONE.name]


def test_add_never_overwrites_another_scenario(tmp_path: Path, capsys: Output) -> None:
    corpus = tmp_path / "corpus"
    assert main(["corpus", "add", str(ONE), "--to", str(corpus)]) == 0
    clash = tmp_path / ONE.name
    clash.write_text(OTHER.read_text())
    assert main(["corpus", "add", str(clash), "--to", str(corpus)]) == 2
    assert "is another scenario" in capsys.readouterr().err
    assert (corpus / ONE.name).read_text() == ONE.read_text()


def test_add_takes_bytes_and_gives_them_a_plain_name(tmp_path: Path) -> None:
    hostile = tmp_path / "-rf *;$(id)"
    hostile.write_bytes(encode(load(str(ONE)).scenario))
    assert main(["corpus", "add", "--to", str(tmp_path / "corpus"), "--", str(hostile)]) == 0
    (added,) = files_in(tmp_path / "corpus")
    assert added.stem.isalnum()
    assert load(str(added)).scenario == load(str(ONE)).scenario


def test_add_goes_on_behind_a_bad_file(tmp_path: Path, capsys: Output) -> None:
    bad = tmp_path / "bad.scn"
    bad.write_text("version 1\nL1 entr\n")
    assert main(["corpus", "add", str(bad), str(ONE), "--to", str(tmp_path / "corpus")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert len(files_in(tmp_path / "corpus")) == 1


# -- merge and minimize ----------------------------------------------------------------------------


def test_merge_of_two_machines_loses_nothing(tmp_path: Path, capsys: Output) -> None:
    left, right = fill(tmp_path / "left", range(40)), fill(tmp_path / "right", range(30, 80))
    target = tmp_path / "merged"
    assert main(["corpus", "merge", str(left), str(right), "--to", str(target), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["read"] == 90
    assert said["written"] == len(files_in(target)) < 80
    assert features(target) == features(left) | features(right)
    assert main(["corpus", "merge", str(left), "--to", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 0


def test_merge_of_all_keeps_every_different_scenario(tmp_path: Path) -> None:
    left, right = fill(tmp_path / "left", range(5)), fill(tmp_path / "right", range(3, 9))
    target = tmp_path / "merged"
    assert main(["corpus", "merge", str(left), str(right), "--all", "--to", str(target)]) == 0
    assert {path.read_bytes() for path in files_in(target)} == {random_bytes(n) for n in range(9)}


def test_merge_of_nothing_is_an_error(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["corpus", "merge", str(tmp_path / "empty"), "--to", str(tmp_path / "to")]) == 2
    assert capsys.readouterr().err.endswith("holds no scenarios; nothing is merged\n")
    assert not (tmp_path / "to").exists()


def test_merge_reports_what_it_cannot_read_and_leaves_it(tmp_path: Path, capsys: Output) -> None:
    source = fill(tmp_path / "source", range(3))
    (source / "future").write_bytes(b"\x05" + bytes(15))
    assert main(["corpus", "merge", str(source), "--to", str(tmp_path / "to")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (source / "future").exists()
    assert features(tmp_path / "to") == union(
        FeatureMeter().measure("", decode(random_bytes(seed))) for seed in range(3)
    )


def test_a_killed_merge_leaves_whole_files_and_can_go_on(tmp_path: Path) -> None:
    source, target = fill(tmp_path / "source", range(60)), tmp_path / "to"
    words = [sys.executable, "-P", "-m", "nvmx_fuzz.cli", "corpus", "merge", str(source), "--all"]
    wanted = {random_bytes(seed) for seed in range(60)}
    for attempt in range(6):
        shutil.rmtree(target, ignore_errors=True)
        process = subprocess.Popen([*words, "--to", str(target)], stdout=subprocess.DEVNULL)
        while (
            attempt and process.poll() is None and not (target.exists() and any(target.iterdir()))
        ):
            time.sleep(0.001)
        process.kill()
        process.wait()
        if target.exists():
            assert {path.read_bytes() for path in files_in(target)} <= wanted
    assert main(["corpus", "merge", str(source), "--all", "--to", str(target)]) == 0
    assert {path.read_bytes() for path in files_in(target)} == wanted


def test_minimize_keeps_all_features_with_fewer_files(tmp_path: Path, capsys: Output) -> None:
    source, target = fill(tmp_path / "source", range(60)), tmp_path / "to"
    assert main(["corpus", "minimize", str(source), "--to", str(target)]) == 0
    assert 0 < len(files_in(target)) < 60
    assert features(target) == features(source)
    assert main(["corpus", "minimize", str(source), "--to", str(target)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_cover_is_never_larger_than_the_additions() -> None:
    meter = FeatureMeter()
    measured = [meter.measure(str(seed), decode(random_bytes(seed))) for seed in range(60)]
    small, quick = cover(measured), additions(measured, set())
    assert len(small) <= len(quick) < len(measured)
    assert union(small) == union(quick) == union(measured)


# -- stats and pack --------------------------------------------------------------------------------


def test_stats_name_what_is_missing(tmp_path: Path, capsys: Output) -> None:
    shutil.copy(ONE, tmp_path)
    assert main(["corpus", "stats", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["scenarios"], said["different"], said["needed"]) == (1, 1, 1)
    assert said["features"]["reach"] == len(said["situations"])
    assert len(said["missing"]) + len(said["situations"]) == 67
    assert main(["corpus", "stats", str(tmp_path)]) == 0
    assert "missing: " in capsys.readouterr().out


def test_stats_name_few_of_many_bad_files(tmp_path: Path, capsys: Output) -> None:
    for number in range(8):
        (tmp_path / f"bad{number}.scn").write_bytes(b"\xff")
    assert main(["corpus", "stats", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    shutil.copy(ONE, tmp_path)
    assert main(["corpus", "stats", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[:2] == [
        "1 scenario, 1 different; 1 of them show all that all show",
        "not read: 8 files",
    ]
    *named, last = said.err.splitlines()
    assert [line.partition(": ")[2] for line in named] == [
        f"{tmp_path}/bad{number}.scn:1: is not text in UTF-8: byte 0" for number in range(5)
    ]
    assert last == (
        f"nvmx-fuzz: {tmp_path}: 3 more files cannot be read; try: nvmx-fuzz corpus check {tmp_path}"
    )
    assert main(["corpus", "merge", str(tmp_path), "--to", str(tmp_path / "merged")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 8


def test_stats_of_nothing_are_none(tmp_path: Path, capsys: Output) -> None:
    assert main(["corpus", "stats", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"nvmx-fuzz: {tmp_path}: holds no scenarios\n"


def test_pack_is_the_same_for_the_same_scenarios(tmp_path: Path) -> None:
    archives = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for archive in archives:
        assert main(["corpus", "pack", str(BUGS_FOLDER), str(archive)]) == 0
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as packed:
        found = {packed.read(name) for name in packed.namelist()}
    assert found == {encode(load(str(path)).scenario) for path in files_in(BUGS_FOLDER)}


def test_traces_beside_scenarios_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.scn").write_bytes(b"version 1\nL1       enter\n")
    (tmp_path / "b.trace").write_bytes(b"# tracer: nop\n")
    assert [path.name for path in files_in(tmp_path)] == ["a.scn"]
