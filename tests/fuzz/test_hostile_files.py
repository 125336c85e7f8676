"""Files that are none: every command refuses each with status 2 and one line, and changes nothing."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nvmx_fuzz import cli

GOOD = "version 1\noutside  interrupt 0x51\nL1       enter\n"


def garbage(path: Path) -> None:
    """Bytes that are no text; as bytes they would be a scenario, as any others."""
    path.write_bytes(bytes(range(256)) * 4)


def of_another_version(path: Path) -> None:
    """A text of the future."""
    path.write_text("version 99\nL1 enter\n")


def bytes_of_another_version(path: Path) -> None:
    """Bytes of the future; the name must not say that it is text."""
    path.write_bytes(b"\x02" + bytes(40))


def huge(path: Path) -> None:
    """A gibibyte, of which the disk holds nothing."""
    with path.open("wb") as file:
        file.truncate(1 << 30)


def pipe(path: Path) -> None:
    """A named pipe without another end."""
    os.mkfifo(path)


def loop(path: Path) -> None:
    """A link that leads to itself."""
    path.symlink_to(path.name)


def broken_link(path: Path) -> None:
    """A link that leads nowhere."""
    path.symlink_to("nowhere")


def listener(path: Path) -> None:
    """A socket; its name may be short only, so it is made from beside it."""
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.fchdir(before)
        os.close(before)


def device(path: Path) -> None:
    """What never ends."""
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], None]] = {
    "bad.scn": garbage,
    "new.scn": of_another_version,
    "new": bytes_of_another_version,
    "huge": huge,
    "huge.scn": huge,
    "pipe": pipe,
    "pipe.scn": pipe,
    "loop": loop,
    "broken.scn": broken_link,
    "listener": listener,
    "zero": device,
}

FILE_COMMANDS = (
    "replay FILE",
    "replay --journal FILE",
    "replay --at-step 1 FILE",
    "replay --json FILE",
    "explain FILE",
    "explain --format svg -o RESULT FILE",
    "explain --format html -o RESULT FILE",
    "export --format pytest -o RESULT FILE",
    "export --format hypothesis FILE",
    "export --format markdown FILE",
    "minimize --l0 bug3 FILE",
    "minimize --l0 bug3 --out RESULT FILE",
    "corpus encode FILE RESULT",
    "corpus decode FILE RESULT",
    "corpus check FILE",
    "corpus add --to TARGET FILE",
    "corpus merge --to TARGET FILE",
    "bugs --hunt --runs 1 --record FILE bug1",
)  # fmt: skip
FOLDER_COMMANDS = (
    "corpus list FOLDER",
    "corpus check FOLDER",
    "corpus stats FOLDER",
    "corpus pack FOLDER RESULT",
    "corpus merge --to TARGET FOLDER",
    "corpus minimize --to TARGET FOLDER",
    "run --runs 1 --corpus FOLDER --out TARGET",
)  # fmt: skip
NO_FOLDER_COMMANDS = (
    *FOLDER_COMMANDS[:1],
    *FOLDER_COMMANDS[2:4],
    "corpus minimize --to TARGET FOLDER",
    "run --runs 1 --corpus FOLDER --out TARGET",
    "run --runs 1 --out FOLDER",
    "report FOLDER",
    "corpus add --to FOLDER GOOD",
    "corpus merge --to FOLDER GOOD",
    "corpus minimize --to FOLDER CORPUS",
)


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that is in a folder: type, size, and the content of what is small."""
    found = {}
    for path in sorted(folder.rglob("*")):
        there = path.lstat()
        is_small = stat.S_ISREG(there.st_mode) and there.st_size < 1 << 20
        found[str(path)] = (there.st_mode, there.st_size, path.read_bytes() if is_small else b"")
    return found


def words_of(command: str, **names: Path | str) -> list[str]:
    """The arguments for a command with these names in it."""
    return [str(names.get(word, word)) for word in command.split()]


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nvmx-fuzz: ")
    return line


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Names that commands speak of; a corpus with one good scenario is there."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "good.scn").write_text(GOOD)
    return {
        "CORPUS": corpus,
        "GOOD": corpus / "good.scn",
        "RESULT": tmp_path / "result",
        "TARGET": tmp_path / "target",
    }


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("command", [*FILE_COMMANDS, *NO_FOLDER_COMMANDS])
def test_such_a_file_in_place_of_a_file_or_folder(
    command: str,
    name: str,
    tmp_path: Path,
    places: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    KINDS[name](path)
    before = tree(tmp_path)
    line = refusal(words_of(command, FILE=path, FOLDER=path, **places), capsys)
    assert str(path) in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("command", FOLDER_COMMANDS)
def test_a_folder_with_such_a_file(
    command: str,
    name: str,
    tmp_path: Path,
    places: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    KINDS[name](folder / name)
    before = tree(folder)
    line = refusal(words_of(command, FOLDER=folder, **places), capsys)
    assert str(folder) in line
    assert tree(folder) == before
    assert not places["RESULT"].exists()


@pytest.mark.parametrize("command", [*FILE_COMMANDS, *FOLDER_COMMANDS, *NO_FOLDER_COMMANDS])
@pytest.mark.parametrize("name", ["a\0b", "", "\udcff", "x" * 300, "absent"])
def test_a_name_that_cannot_be(
    command: str,
    name: str,
    tmp_path: Path,
    places: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "absent" and ("--out FOLDER" in command or "--to FOLDER" in command):
        pytest.skip("it would be made")
    if name == "absent" and "--record" in command:
        pytest.skip("it would be made")
    before = tree(tmp_path)
    refusal(words_of(command, FILE=name, FOLDER=name, **places), capsys)
    assert tree(tmp_path) == before


# -- as somebody else, and without space -------------------------------------------------------------

NOBODY = 65534


def refused_there(arguments: list[str], folder: Path, *prefix: str) -> str:
    """The one line of a command that is started behind *prefix* in *folder*."""
    finished = subprocess.run(
        [*prefix, sys.executable, "-m", "nvmx_fuzz.cli", *arguments],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    errors = finished.stderr.decode()
    assert finished.returncode == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith("nvmx-fuzz: ")
    return line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv")
@pytest.mark.parametrize(
    "command",
    [
        *FILE_COMMANDS,
        *(c for c in FOLDER_COMMANDS if not c.startswith("run")),
        "run --runs 1 --corpus FOLDER --out OPEN",
        "run --runs 1 --out FOLDER",
        "report FOLDER",
        "corpus add --to FOLDER GOOD",
        "corpus encode GOOD UNWRITABLE",
        "explain -o UNWRITABLE GOOD",
        "minimize --l0 bug3 --out UNWRITABLE GOOD",
    ],
)
def test_what_another_user_may_not_touch(
    command: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("shared")
    for folder in (base, *base.parents[:-1]):
        if folder.stat().st_uid == os.geteuid() and str(folder) != "/tmp":
            folder.chmod(folder.stat().st_mode | 0o055)
    secret = base / "secret"
    secret.mkdir()
    (secret / "secret.scn").write_text(GOOD)
    (base / "secret.scn").write_text(GOOD)
    (base / "secret.scn").chmod(0o600)
    (base / "good.scn").write_text(GOOD)
    secret.chmod(0o700)
    home = base / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    before = tree(base)
    line = refused_there(
        words_of(
            command, FILE=base / "secret.scn", FOLDER=secret, GOOD=base / "good.scn",
            UNWRITABLE=base / "result", RESULT=home / "result", TARGET=home / "target",
            OPEN=home / "out",
        ),
        home, "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    )  # fmt: skip
    assert any(
        words in line for words in ("permission denied", "cannot be written", "not readable")
    )
    assert tree(base) == before


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system on which nothing more can be written."""
    place = tmp_path / "full"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    with suppress(OSError), (place / ".filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    "command",
    [
        "corpus encode GOOD FULL/result",
        "corpus decode GOOD FULL/result",
        "corpus pack CORPUS FULL/result",
        "corpus add --to FULL GOOD",
        "corpus add --to FULL/new GOOD",
        "corpus merge --to FULL/new CORPUS",
        "corpus minimize --to FULL/new CORPUS",
        "explain -o FULL/result GOOD",
        "explain --format svg -o FULL/result GOOD",
        "export --format pytest -o FULL/result GOOD",
        "minimize --l0 bug3 --out FULL/result.scn GOOD",
        "run --runs 1 --out FULL/out",
        "bugs --hunt --runs 1 --record FULL/record bug3",
    ],
)
def test_a_full_disk(command: str, full: Path, places: dict[str, Path]) -> None:
    before = tree(full)
    words = [word.replace("FULL", str(full)) for word in words_of(command, **places)]
    line = refused_there(words, full)
    assert "no space left" in line
    after = {name: what for name, what in tree(full).items() if stat.S_ISREG(what[0]) and what[1]}
    assert after == {name: what for name, what in before.items() if stat.S_ISREG(what[0])}


def test_a_bad_corpus_file_cannot_write_outside_of_the_folder(
    tmp_path: Path, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of corpus files are taken for nothing but to read them."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("..scn", "...scn", "-o", "a b", "x\ny.scn", "%2e%2e%2fz.scn", "..\\w.scn"):
        (source / name).write_text(GOOD + "L1 enter\n")
    (source / "deep").mkdir()
    (source / "deep" / "~.scn").write_text(GOOD)
    before = tree(tmp_path)
    target, out = tmp_path / "target", tmp_path / "out"
    for words in (
        ["corpus", "merge", "--all", str(source), "--to", str(target)],
        ["corpus", "add", "--force", "--to", str(out), *map(str, source.rglob("*.scn"))],
    ):
        cli.main(words)
    capsys.readouterr()
    made = {Path(name).parent for name in tree(tmp_path) if name not in before}
    assert made <= {tmp_path, target, out}
    assert {p.name for p in tmp_path.iterdir()} == {"corpus", "source", "target", "out"}
    del places
