"""Hunts bugs of the catalogue from an empty corpus: `nvmx-fuzz bugs --hunt`.

For each bug and method N independent runs, each until the first violation or a limit of CPU time. Methods
take turns over the same bug and seed, so that what the machine does meanwhile hits all of them. Results are
kept in a file of JSON lines as they come: a hunt that was cut off goes on where it stopped. What a run was
searched with, build and feedback, is part of it: runs of another setting are another hunt's.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

from nvmx_fuzz import bench_settings
from nvmx_fuzz.core_choice import why_not_compiled
from nvmx_fuzz.files import BadFile, about, read_file
from nvmx_fuzz.json_line import in_child
from nvmx_fuzz.version import revision

GUIDED: Final = "nvmx-fuzz"
METHODS: Final = (GUIDED, "random", "hypothesis", "hypofuzz", "atheris")
RECORD_SIZE_MAX: Final = 1 << 28
NOT_RECORDED: Final = "not recorded"

_BEGIN: Final = b'{"method": "'
"""How every line of a record begins."""

_IN_PYTHON: Final = ("hypofuzz", "atheris")
"""Guided by what they trace of Python code: a compiled core would leave them blind."""


def missing_for(method: str) -> bool:
    """Whether the library that a method needs is not installed."""
    return method not in (GUIDED, "random") and find_spec(method) is None


def setting_of(method: str) -> str:
    """What a method runs with here: the core, and for the guided search `CORE:FEEDBACK`."""
    if method == GUIDED:
        return bench_settings.campaign_setting()
    return "python" if method in _IN_PYTHON or why_not_compiled() else "compiled"


class Run(NamedTuple):
    """One run: what was searched how, whether it was found, executions and CPU seconds, the input.

    ``setting`` is that of `setting_of`, ``revision`` that of the tree; older records have neither.
    """

    method: str
    bug: str
    seed: int
    limit: float
    found: bool
    executions: int
    seconds: float
    data: str
    setting: str = NOT_RECORDED
    revision: str = NOT_RECORDED


class Result(NamedTuple):
    """What N runs of one method came to for one bug; a run that found nothing counts with its limit.

    ``setting`` and ``revision`` are those of the runs, several of them joined by commas.
    """

    method: str
    bug: str
    runs: int
    found: int
    median_executions: float
    worst_executions: int
    median_seconds: float
    worst_seconds: float
    setting: str
    revision: str


def hunt(
    bugs: Sequence[str],
    methods: Sequence[str],
    runs: int,
    seconds: float,
    record: Path | None,
    jobs: int = 1,
) -> Iterator[Run]:
    """All runs, as they end; those that *record* holds already come first and are not repeated.

    One that was searched with another setting is; one that does not say counts as it is.

    Raises:
        BadFile: *record* is no record of a hunt.
    """
    cells = list(product(bugs, range(1, runs + 1), methods))
    settings = {method: (setting_of(method), NOT_RECORDED) for method in methods}
    known = {
        (run.bug, run.seed, run.method): run
        for run in _recorded(record)
        if run.limit == seconds and run.setting in settings.get(run.method, ())
    }
    yield from (known[cell] for cell in cells if cell in known)
    missing = [cell for cell in cells if cell not in known]
    with ThreadPoolExecutor(jobs) as pool:
        searches = [
            pool.submit(search, method, bug, seed, seconds) for bug, seed, method in missing
        ]
        for ended in _until_all_ended(searches):
            run = ended.result()
            if record is not None:
                with about(record), record.open("a") as stream:
                    stream.write(json.dumps(run._asdict()) + "\n")
            yield run


def _until_all_ended(searches: list[Future[Run]]) -> Iterator[Future[Run]]:
    """Each search when it ends: a slow one holds nobody back. Whoever stops early cancels the rest."""
    try:
        yield from as_completed(searches)
    finally:
        for one in searches:
            one.cancel()


def _recorded(record: Path | None) -> list[Run]:
    """The runs that are there already, after a look whether more can be written; raises BadFile."""
    if record is None:
        return []
    if not os.path.lexists(record):
        with about(record), record.open("a"):
            return []
    content = _content(record)
    whole = _without_cut_line(content)
    found = _parsed(record, whole)
    if not os.access(record, os.W_OK):
        raise BadFile(record, "cannot be written")
    if whole != content or not whole.endswith(b"\n"):
        with about(record), record.open("r+b") as stream:
            stream.truncate(len(whole))
            stream.seek(0, os.SEEK_END)
            stream.write(b"\n" if found and not whole.endswith(b"\n") else b"")
    return found


def read(record: Path) -> list[Run]:
    """The runs in a record, but for a last line that was cut off; raises BadFile."""
    return _parsed(record, _without_cut_line(_content(record)))


def latest(runs: Iterable[Run]) -> list[Run]:
    """One run for each bug, seed and method, the last of them, in the order of their first appearance."""
    return list({(run.bug, run.seed, run.method): run for run in runs}.values())


def _content(record: Path) -> bytes:
    return read_file(str(record), RECORD_SIZE_MAX, "no record of a hunt")


def _without_cut_line(content: bytes) -> bytes:
    """The lines of a record; a last one that is only the beginning of a run is left out."""
    end = content.rfind(b"\n") + 1
    last = content[end:]
    if last.startswith(_BEGIN) or (end and _BEGIN.startswith(last)):
        try:
            json.loads(last)
        except ValueError:
            return content[:end]
    return content


def _parsed(record: Path, content: bytes) -> list[Run]:
    try:
        return [_run(json.loads(line)) for line in content.splitlines()]
    except (ValueError, TypeError, RecursionError) as error:
        raise BadFile(record, f"is no record of a hunt: {error}") from None


def _run(fields: dict[str, Any]) -> Run:
    run = Run(**fields)
    for name, kind in Run.__annotations__.items():
        value = getattr(run, name)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise TypeError(f"{name} is {value!r}")
    return run


def search(method: str, bug: str, seed: int, seconds: float) -> Run:
    """One run in a process of its own."""
    setting = setting_of(method)
    if method == GUIDED:
        found = bench_settings.search(bug, seed, seconds, setting)
    else:
        found = in_child("nvmx_fuzz.hunt_child", method, bug, str(seed), str(seconds), setting)
    return Run(
        method,
        bug,
        seed,
        seconds,
        bool(found["found"]),
        int(found["executions"]),
        float(found["seconds"]),
        str(found["data"]),
        setting,
        revision(),
    )


def results(runs: Sequence[Run]) -> list[Result]:
    """The runs by bug and method, in the order of their first appearance."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.bug, run.method), []).append(run)
    return [_result(group) for group in groups.values()]


def _result(group: Sequence[Run]) -> Result:
    def over(value: Callable[[Run], Any]) -> list[Any]:
        return [value(run) for run in group]

    executions = over(lambda run: run.executions)
    seconds = over(lambda run: run.seconds)
    return Result(
        group[0].method,
        group[0].bug,
        len(group),
        sum(run.found for run in group),
        statistics.median(executions),
        max(executions),
        statistics.median(seconds),
        max(seconds),
        ", ".join(sorted({run.setting for run in group})),
        ", ".join(sorted({run.revision for run in group})),
    )
