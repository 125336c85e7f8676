"""Reading and writing of files for people: one line when it fails, nothing half-written.

A file appears under its name only when it is whole: it is written under a temporary name in the
same folder, forced to the disk, and renamed. Whoever is killed in between leaves the old file.
"""

import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from nvmx_fuzz.wording import printable

SIZE_MAX: Final = 1 << 18
"""No scenario comes near; whatever is larger is not one."""

IS_A_LINK: Final = "is a link, and nothing is written behind one"

_SCENARIO: Final = "no scenario"
_CONTENT_NAME: Final = re.compile("[0-9a-f]{40}")

STANDARD_INPUT: Final = "-"
STANDARD_OUTPUT: Final = "-"


class BadFile(Exception):  # noqa: N818 - it is the file that is bad
    """A file that cannot be used; the text names it, and the line where there is one."""

    def __init__(self, name: str | Path, message: str, line: int = 0) -> None:
        """Say *message* about the file *name*, at *line* (from 1) unless that is 0."""
        self.name: Final = str(name)
        self.message: Final = message
        self.line: Final = line
        place = f"{self.name}:{line}" if line else self.name
        super().__init__(printable(f"{place}: {message}"))


class MissingLibraryError(Exception):
    """A library of an extra is not installed; the text is for the person who asked."""

    def __init__(self, library: str, extra: str = "report") -> None:
        """Say how to get *library*, which *extra* brings."""
        super().__init__(f"{library} is not installed; try: pip install -e '.[{extra}]'")


def read_small_file(name: str) -> bytes:
    """Read a regular file of at most SIZE_MAX bytes, or standard input for ``-``.

    Raises BadFile for everything else, without waiting on what is no regular file.
    """
    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise BadFile("standard input", "is closed")
        return _limited(name, sys.stdin.buffer.read(SIZE_MAX + 1), SIZE_MAX, _SCENARIO)
    return read_file(name, SIZE_MAX, _SCENARIO)


def read_file(name: str, size_max: int, kind: str) -> bytes:
    """Read a regular file of at most *size_max* bytes, or it is *kind*; raises BadFile."""
    try:
        # Opening a named pipe would wait for its other end, so not even that.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            require_regular(name, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return _limited(name, file.read(size_max + 1), size_max, kind)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BadFile(name, reason_of(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise BadFile(name, str(error)) from None


def write_whole(path: Path, content: bytes, *, is_lasting: bool = True) -> None:
    """Write a file so that it is there whole or not at all; raises BadFile.

    Without *is_lasting* that holds for whoever is killed, but not where the machine goes down.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            if is_lasting:
                os.fsync(file.fileno())
        if path.exists():
            draft.chmod(stat.S_IMODE(path.stat().st_mode))
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise BadFile(path, reason_of(error)) from None


def open_own(path: Path) -> IO[bytes]:
    """Open a file of ours for writing, empty, and make it if it is not there.

    Raises BadFile for a link and for what is no regular file, without waiting on it.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with about(path):
        if path.is_symlink():
            raise BadFile(path, IS_A_LINK)
        descriptor = os.open(path, flags, 0o666)
        file = os.fdopen(descriptor, "wb")
        try:
            require_regular(path, os.fstat(descriptor))
            file.truncate(0)
        except BaseException:
            file.close()
            raise
        return file


def content_name(content: bytes) -> str:
    """The name that libFuzzer gives a file with this content, behind any prefix."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def is_of_content(name: str) -> bool:
    """Whether a name is one that a file has after its content."""
    return _CONTENT_NAME.fullmatch(name) is not None


def is_draft(name: str) -> bool:
    """Whether a name is that of a file which `write_whole` had not finished."""
    return name.startswith(".") and name.endswith(".new")


def is_kept(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a file, and no draft of one."""
    return entry.is_file() and not entry.name.startswith(".")


def is_whole(name: str, content: bytes) -> bool:
    """Whether this can be all of a file with that name: one that is called after its content tells.

    libFuzzer writes the files of a corpus under their names at once; one that is killed leaves a part.
    """
    return not is_of_content(name) or name == content_name(content)


def write_output(name: str, content: bytes) -> None:
    """Write the file that a person named, whole or not at all; a link stays a link.

    Raises BadFile, also for what is there and is no regular file or must not be written.
    """
    path = Path(os.path.realpath(name))
    if path.exists():
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise BadFile(name, f"is {file_kind(mode)}, not a file; - is standard output")
        if not os.access(path, os.W_OK):
            raise BadFile(name, "permission denied")
    write_whole(path, content)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there; raises BadFile."""
    with about(path):
        if path.exists() and not path.is_dir():
            raise BadFile(path, "is not a directory")
        path.mkdir(parents=True, exist_ok=True)


def check_folder(path: Path) -> None:
    """Raise BadFile unless *path* is a folder."""
    with about(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise BadFile(path, "does not exist") from None
    if not stat.S_ISDIR(mode):
        raise BadFile(path, "is not a directory")


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a BadFile about *path*."""
    try:
        yield
    except OSError as error:
        raise BadFile(path, reason_of(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise BadFile(path, str(error)) from None


def _limited(name: str, content: bytes, size_max: int, kind: str) -> bytes:
    if len(content) > size_max:
        raise BadFile(name, f"is larger than {size_max} bytes, so it is {kind}")
    return content


def require_regular(name: str | Path, status: os.stat_result) -> None:
    """Raise BadFile for what is no regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise BadFile(name, f"is {file_kind(status.st_mode)}, not a file")


def file_kind(mode: int) -> str:
    """What a file is that is no regular one, for a message."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def reason_of(error: OSError) -> str:
    """What the system says is wrong, in small letters."""
    return (error.strerror or str(error)).lower()


def file_and_reason(error: OSError) -> str:
    """With which file something is wrong, standard output if it is not told, and what."""
    return f"{error.filename or 'standard output'}: {reason_of(error)}"
