"""What `scripts/kvm` and `scripts/from-debian` say, and what they leave behind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nvmx_fuzz import BAD_INPUT

ROOT = Path(__file__).resolve().parents[2]


def complaint(*command: str) -> str:
    """What a script says that ends with status 2, in one line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == BAD_INPUT
    (line,) = done.stderr.splitlines()
    return line


needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="not on Debian")


@needs_apt
def test_a_folder_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    said = complaint("scripts/from-debian", "trixie", str(tmp_path), "bochs")
    assert said == f"nvmx-fuzz: {tmp_path} is there already"
    assert not list(tmp_path.iterdir())


def test_packages_have_to_be_named(tmp_path: Path) -> None:
    said = complaint("scripts/from-debian", "trixie", str(tmp_path / "new"))
    assert said == "nvmx-fuzz: usage: scripts/from-debian SUITE FOLDER PACKAGE..."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kernel",), "--kernel needs a release of Debian or a folder"),
        (("--kernel", "--findings"), "--kernel needs a release of Debian or a folder"),
        (("--bochs", "-x"), "--bochs needs a release of Debian or a folder"),
        (("--kernel", "./no such folder", "--findings"), "./no such folder is no folder"),
        (("--bochs", "/no/such/folder"), "/no/such/folder is no folder"),
    ],
)
def test_a_folder_that_is_not_there_is_named(arguments: tuple[str, ...], said: str) -> None:
    assert complaint("scripts/kvm", *arguments) == f"nvmx-fuzz: {said}"


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_the_script_says_what_it_does(option: str) -> None:
    done = subprocess.run(
        ["scripts/kvm", option], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Run scenarios on a real Linux KVM")
    assert any(line.startswith("  --bochs RELEASE|FOLDER") for line in lines)
    assert not any(line.startswith(("#", "set ")) for line in lines)


def from_debian(folder: Path, tools: Path, **scripts: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a folder where these programs are others."""
    for name, text in scripts.items():
        path = tools / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    command = ["scripts/from-debian", "trixie", str(folder), "bochs"]
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


NOBODY = "127.0.0.1:1"
ARCHIVE = "debian"
"""What the address of a mirror has to end with."""
MIRROR = f"[ $1 = indextargets ] && exec echo http://{NOBODY}/{ARCHIVE} trixie"


@needs_apt
def test_without_a_network_the_lists_are_to_blame(tmp_path: Path) -> None:
    real = shutil.which("apt-get")
    done = from_debian(
        tmp_path / "new", tmp_path, apt_get=f'{MIRROR}; exec {real} -o Acquire::Retries=0 "$@"'
    )
    assert done.returncode == BAD_INPUT
    (line,) = done.stderr.splitlines()
    assert line.startswith("nvmx-fuzz: the lists of trixie cannot be had: Failed to fetch http")
    assert [path.name for path in tmp_path.iterdir()] == ["apt-get"]


@needs_apt
def test_a_folder_that_another_one_has_made_in_the_meantime_stays(tmp_path: Path) -> None:
    tools, folder = tmp_path / "tools", tmp_path / "new"
    tools.mkdir()
    apt_get = f'{MIRROR}; case "$*" in *download*) touch bochs.deb ;; esac'
    other = f'mkdir "{folder}"; echo theirs >"{folder}/file"; echo ours >"$3/file"'
    done = from_debian(folder, tools, apt_get=apt_get, apt_cache="", dpkg_deb=other)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "file").read_text() == "theirs\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "tools"]


@needs_apt
def test_what_is_unpacked_appears_whole(tmp_path: Path) -> None:
    tools, folder = tmp_path / "tools", tmp_path / "new"
    tools.mkdir()
    apt_get = f'{MIRROR}; case "$*" in *download*) touch bochs.deb ;; esac'
    done = from_debian(
        folder, tools, apt_get=apt_get, apt_cache="", dpkg_deb='echo ours >"$3/file"'
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "file").read_text() == "ours\n"
