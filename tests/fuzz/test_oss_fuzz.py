"""The table of fuzz targets, and what OSS-Fuzz gets beside each packaged target."""

import configparser
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nvmx_fuzz import oss_fuzz
from nvmx_fuzz.codec import HEADER_SIZE, RECORD_SIZE, canonical_bytes, decode
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.scenario_files import load
from nvmx_fuzz.targets import BYTES_LEN_MAX, TARGET_BY_NAME, TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "corpus"

each_target = pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])


def test_the_table_lists_every_target_file_once() -> None:
    files = sorted(path.stem for path in (ROOT / "fuzz").glob("fuzz_*.py"))
    assert sorted(target.name for target in TARGETS) == files


def test_the_table_prints_its_names_without_the_model() -> None:
    code = "import runpy, sys; runpy.run_module('nvmx_fuzz.targets', run_name='__main__');"
    code += "assert 'nvmx_core' not in sys.modules"
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout.split() == [target.name for target in TARGETS]


def test_the_usual_length_is_a_whole_number_of_steps() -> None:
    assert (BYTES_LEN_MAX - HEADER_SIZE) % RECORD_SIZE == 0


@each_target
def test_a_target_is_an_executable_file_with_a_shebang(target: Target) -> None:
    path = ROOT / "fuzz" / f"{target.name}.py"
    assert path.read_text().startswith("#!/usr/bin/env python3\n")
    assert path.stat().st_mode & stat.S_IXUSR


@each_target
def test_every_seed_is_in_the_archive_and_means_what_its_text_says(
    target: Target, tmp_path: Path
) -> None:
    oss_fuzz.write_extras(target, tmp_path)
    suffix = "trace" if target.form == "trace" else "scn"
    texts = {path.stem: path for path in (CORPUS / target.seeds).glob(f"*.{suffix}")}
    with zipfile.ZipFile(tmp_path / f"{target.name}_seed_corpus.zip") as archive:
        assert sorted(archive.namelist()) == sorted(texts)
        for name, path in texts.items():
            content = archive.read(name)
            assert len(content) <= target.len_max, name
            if target.form != "bytes":
                assert content == path.read_bytes()
            else:
                assert decode(content) == load(str(path)).scenario
                assert canonical_bytes(content) == content


@each_target
def test_options_are_those_that_libfuzzer_takes(target: Target, tmp_path: Path) -> None:
    oss_fuzz.write_extras(target, tmp_path)
    parser = configparser.ConfigParser()
    parser.read(tmp_path / f"{target.name}.options")
    assert parser.sections() == ["libfuzzer"]
    assert dict(parser["libfuzzer"]) == {"max_len": str(target.len_max), "len_control": "0"}


@each_target
def test_the_dictionary_has_the_form_of_libfuzzer(target: Target, tmp_path: Path) -> None:
    oss_fuzz.write_extras(target, tmp_path)
    lines = (tmp_path / f"{target.name}.dict").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    assert len(entries) > 10
    for entry in entries:
        assert re.fullmatch(r'"(\\x[0-9a-f]{2}|[ !#-\[\]-~])+"', entry), entry


def test_the_same_seeds_make_the_same_archive(tmp_path: Path) -> None:
    archives = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        oss_fuzz.write_extras(TARGETS[0], folder)
        archives.append((folder / f"{TARGETS[0].name}_seed_corpus.zip").read_bytes())
    assert archives[0] == archives[1]


def test_a_folder_without_seeds_is_refused() -> None:
    with pytest.raises(BadFile, match="holds no seeds"):
        oss_fuzz.seeds_of(TARGETS[0]._replace(seeds="nowhere"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "usage: python -m nvmx_fuzz.oss_fuzz TARGET FOLDER"),
        (["fuzz_x", "."], f"oss_fuzz: there is no target 'fuzz_x'; there are {', '.join(TARGET_BY_NAME)}"),
        ([TARGETS[0].name, "missing"], "oss_fuzz: missing: no such file or directory"),
    ],
)  # fmt: skip
def test_bad_arguments_get_one_line_and_status_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert oss_fuzz.main(arguments) == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_both_kinds_of_job_build_by_one_script() -> None:
    script = ROOT / "scripts" / "oss-fuzz" / "build.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert (
        "COPY scripts/oss-fuzz/build.sh $SRC/"
        in (ROOT / ".clusterfuzzlite" / "Dockerfile").read_text()
    )
    assert "COPY build.sh $SRC/" in (ROOT / "scripts" / "oss-fuzz" / "Dockerfile").read_text()
    assert not list((ROOT / ".clusterfuzzlite").glob("*.sh"))


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github").rglob("cflite_*.yml")), ids=lambda p: p.name
)
def test_every_job_of_clusterfuzzlite_says_language_and_sanitizer(path: Path) -> None:
    steps = path.read_text().split("- name: ")[1:]
    assert steps
    for step in steps:
        assert re.search(r"uses: google/clusterfuzzlite/actions/(build|run)_fuzzers@v1\n", step)
        assert "language: python\n" in step
        assert re.search(r"sanitizer: (address|coverage)\n", step)


def test_clusterfuzzlite_fuzzes_prunes_and_reports_coverage() -> None:
    workflows = (ROOT / ".github" / "workflows").glob("cflite_*.yml")
    modes = {mode for path in workflows for mode in re.findall(r"mode: (\S+)", path.read_text())}
    assert modes == {"code-change", "batch", "prune", "coverage"}
