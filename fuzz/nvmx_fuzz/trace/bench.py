"""How fast a trace is checked: ``python -m nvmx_fuzz.trace.bench SAMPLE [MEGABYTES]``.

The trace is made of SAMPLE, over and over, a megabyte at a time, the same on every machine: threads and
times go on, and in the harder of two runs every address is a new one, so that no text is met twice. Only
the checking is timed, in CPU seconds of this process; the peak of its memory is told beside it.
"""

import re
import resource
import sys
import time
from collections.abc import Iterator
from typing import Final

from nvmx_fuzz.files import BadFile, read_file
from nvmx_fuzz.trace.check import Check

_SAMPLE_SIZE_MAX: Final = 1 << 24
_MEGABYTES: Final = 256
_PIECE_SIZE: Final = 1 << 20
_THREADS: Final = 64
_MEGABYTE: Final = 1_000_000
_RIP: Final = re.compile(rb"rip:? 0x([0-9a-f]+)")
_TASK: Final = re.compile(rb"-(\d+) ( *)(\(|\[)")
_ADDRESS_MASK: Final = (1 << 47) - 1


def copies(sample: bytes, size: int, is_varied: bool) -> Iterator[bytes]:
    """Pieces of a trace of *size* bytes or more, of copies of *sample*; *is_varied*: no address twice."""
    made = number = 0
    while made < size:
        piece: list[bytes] = []
        while sum(map(len, piece)) < _PIECE_SIZE:
            piece.append(_copy(sample, number, is_varied))
            number += 1
        content = b"".join(piece)
        made += len(content)
        yield content


def _copy(sample: bytes, number: int, is_varied: bool) -> bytes:
    thread = b"%d" % (1000 + number % _THREADS)
    text = _TASK.sub(rb"-" + thread + rb" \g<2>\g<3>", sample)
    if not is_varied:
        return text
    lines = text.split(b"\n")
    for place, line in enumerate(lines):
        moved = (number * len(lines) + place) << 4
        lines[place] = _RIP.sub(lambda match, by=moved: _moved(match, by), line)  # type: ignore[misc]
    return b"\n".join(lines)


def _moved(match: re.Match[bytes], by: int) -> bytes:
    return b"%s0x%x" % (match[0].partition(b"0x")[0], int(match[1], 16) + by & _ADDRESS_MASK)


def measure(sample: bytes, megabytes: int, is_varied: bool) -> str:
    """Check that much; one line of figures."""
    check = Check()
    seconds = 0.0
    size = 0
    for piece in copies(sample, megabytes * _MEGABYTE, is_varied):
        started = time.process_time()
        check.feed(piece)
        seconds += time.process_time() - started
        size += len(piece)
    check.finish()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kind = "every text new" if is_varied else "texts repeat"
    return (
        f"{kind}: {check.lines:,} lines, {size / _MEGABYTE:,.0f} MB, {check.findings_count} violations, "
        f"{seconds:.1f} CPU s: {check.lines / seconds:,.0f} lines/s, {size / seconds / _MEGABYTE:,.0f} MB/s, "
        f"peak {peak:,.0f} MB"
    )


def main(arguments: list[str]) -> int:
    """Measure both kinds; 0, or 2 with one line."""
    is_good = 1 <= len(arguments) <= 2 and (len(arguments) < 2 or arguments[1].isdigit())
    if not is_good:
        sys.stderr.write("usage: python -m nvmx_fuzz.trace.bench SAMPLE [MEGABYTES]\n")
        return 2
    try:
        sample = read_file(arguments[0], _SAMPLE_SIZE_MAX, "no sample")
    except BadFile as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    megabytes = int(arguments[1]) if len(arguments) == 2 else _MEGABYTES
    for is_varied in (False, True):
        sys.stdout.write(f"{measure(sample, megabytes, is_varied)}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
