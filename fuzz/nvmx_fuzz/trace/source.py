"""A trace file as chunks of text: plain or compressed by gzip, a regular file or standard input."""

import os
import stat
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from nvmx_fuzz.files import STANDARD_INPUT, BadFile, file_kind, reason_of
from nvmx_fuzz.trace.check import Check, Watch
from nvmx_fuzz.trace.reader import NotATraceError

CHUNK_SIZE: Final = 1 << 20

_GZIP_MAGIC: Final = b"\x1f\x8b"
_TRACE_DAT_MAGIC: Final = b"\x17\x08Dtracing"
_GZIP_WINDOW: Final = 31
"""zlib: the largest window, with a header of gzip."""


def check_file(name: str, watch: Watch | None = None) -> Check:
    """Check the whole trace in a file, or on standard input for ``-``.

    Raises:
        BadFile: it cannot be read, is no text, or holds no event of KVM that says something about VMX.
    """
    check = Check(watch)
    check_into(check, name)
    return check


def check_into(check: Check, name: str) -> None:
    """The same; where it raises BadFile, *check* has what was found in front of the damage."""
    shown = "standard input" if name == STANDARD_INPUT else name
    try:
        for chunk in chunks_of(name):
            check.feed(chunk)
        check.finish()
    except NotATraceError as error:
        raise BadFile(shown, "is no text of a trace", error.line) from None
    require_events(shown, check)


def chunks_of(name: str) -> Iterator[bytes]:
    """The text of a trace in pieces of bounded size; raises BadFile."""
    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise BadFile("standard input", "is closed")
        yield from _text_of("standard input", sys.stdin.buffer)
        return
    try:
        # Opening a named pipe would wait for its other end, so not even that.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadFile(name, reason_of(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise BadFile(name, str(error)) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        hint = "" if stat.S_ISDIR(mode) else "; - reads standard input"
        raise BadFile(name, f"is {file_kind(mode)}, not a file{hint}")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield from _text_of(name, file)


def _text_of(name: str, file: BinaryIO) -> Iterator[bytes]:
    try:
        first = file.read(CHUNK_SIZE)
        if first.startswith(_TRACE_DAT_MAGIC):
            raise BadFile(
                name, "is a binary trace.dat; try: trace-cmd report -N -i trace.dat > trace.txt"
            )
        chunks = _pieces(first, file)
        yield from _unzipped(name, chunks) if first.startswith(_GZIP_MAGIC) else chunks
    except OSError as error:
        raise BadFile(name, reason_of(error)) from None


def _pieces(first: bytes, file: BinaryIO) -> Iterator[bytes]:
    while first:
        yield first
        first = file.read(CHUNK_SIZE)


def _unzipped(name: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What gzip made smaller; a file may have several members, one behind the other."""
    member = zlib.decompressobj(_GZIP_WINDOW)
    is_begun = False
    try:
        for chunk in chunks:
            rest = chunk
            while rest:
                if member.eof:
                    if not rest.startswith(_GZIP_MAGIC[: len(rest)]):
                        raise BadFile(name, "has something behind the end of its gzip data")
                    member = zlib.decompressobj(_GZIP_WINDOW)
                is_begun = True
                text = member.decompress(rest, CHUNK_SIZE)
                rest = member.unconsumed_tail or member.unused_data
                yield text
                while len(text) == CHUNK_SIZE and not member.eof and not rest:
                    text = member.decompress(b"", CHUNK_SIZE)
                    yield text
    except zlib.error:
        raise BadFile(name, "is damaged: its gzip data cannot be read") from None
    if is_begun and not member.eof:
        raise BadFile(name, "ends in the middle of its gzip data")


def require_events(name: str, check: Check) -> None:
    """Refuse what nothing can be said about; raises BadFile."""
    if not check.lines:
        raise BadFile(name, "is empty")
    if check.other_isa_line and not check.vcpus:
        raise BadFile(name, "is a trace of AMD's SVM; only VMX is judged", check.other_isa_line)
    if not check.vcpus and check.unread:
        problem = "holds no entry or exit of KVM in a known spelling; see docs/TRACES.md"
        raise BadFile(name, problem, check.unread_line)
    if not check.vcpus:
        raise BadFile(name, "holds no entry or exit of KVM; record with: trace-cmd record -e kvm")
