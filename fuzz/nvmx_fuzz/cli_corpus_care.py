"""`nvmx-fuzz corpus add, merge, minimize, stats, pack`: grow a corpus, and keep it small.

None of them removes or changes a file that was there; what they write is there whole or not at all.
"""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from nvmx_core.l0.reach import REACH_NAMES
from nvmx_core.scenario.text import format_file, format_scenario
from nvmx_fuzz import BAD_INPUT
from nvmx_fuzz.cli_options import complete_path, json_option
from nvmx_fuzz.codec import encode
from nvmx_fuzz.corpus_features import (
    HAS_EDGES,
    KINDS,
    FeatureMeter,
    Measured,
    additions,
    counts,
    cover,
    reached,
    union,
)
from nvmx_fuzz.corpus_files import files_in, files_of, findings_of, pack, scenarios_in
from nvmx_fuzz.files import BadFile, about, content_name, make_folder, write_output, write_whole
from nvmx_fuzz.scenario_files import TEXT_SUFFIX, Loaded, load
from nvmx_fuzz.seeds import seed_folder
from nvmx_fuzz.wording import as_argument, counted, printable

REFUSED: Final = 1
UNREAD_NAMED_MAX: Final = 5
"""So many bad files of a folder are named where the other files are what somebody wants to know about."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_to = click.option("--to", "target", required=True, type=click.Path(path_type=Path), metavar="DIR",
                   help="Where the result goes; what is there stays.")  # fmt: skip


@click.command("add", short_help="Add scenarios that show something new, as text.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=complete_path)
@click.option("--to", "target", type=click.Path(path_type=Path), metavar="DIR",
              help="Which corpus (default: our own seeds).")  # fmt: skip
@click.option(
    "--force", is_flag=True, help="Also what adds nothing; never the same scenario twice."
)
@json_option
def add_command(files: tuple[str, ...], target: Path | None, force: bool, as_json: bool) -> int:
    """Add scenarios to a corpus, as text, and say what each adds to what is there.

    Exit status 1: something was refused, because it is there already or adds nothing.
    """
    folder = target or seed_folder()
    if folder is None:
        raise BadFile("corpus", "there are no seeds beside this installation; give --to DIR")
    meter = FeatureMeter()
    there, status = _measured(meter, _files_there(folder))
    known = union(there)
    names = {one.data: one.name for one in there}
    rows: list[dict[str, Any]] = []
    for name in files:
        try:
            loaded = load(name)
            one = meter.measure(name, loaded.scenario)
            row = _add(loaded, one, folder, names, known, force)
        except BadFile as error:
            click.echo(f"nvmx-fuzz: {error}", err=True)
            status = BAD_INPUT
            continue
        rows.append(row)
        if row["added as"]:
            known |= one.features
            names[one.data] = row["added as"]
        else:
            status = max(status, REFUSED)
    _show(rows, as_json)
    return status


def _add(
    loaded: Loaded,
    one: Measured,
    folder: Path,
    names: dict[bytes, str],
    known: set[Any],
    force: bool,
) -> dict[str, Any]:
    """Add one scenario, unless it is there or adds nothing; what came of it."""
    new = counts(one.features - known)
    row: dict[str, Any] = {"file": loaded.name, "added as": "", "refused": "", "adds": new}
    if one.data in names:
        row["refused"] = f"the same scenario as {names[one.data]}"
    elif not any(new.values()) and not force:
        row["refused"] = "adds nothing to what is there; --force adds it all the same"
    else:
        path = folder / f"{_safe_stem(loaded.name, one.data)}{TEXT_SUFFIX}"
        with about(path):
            if os.path.lexists(path):
                raise BadFile(loaded.name, f"{path} is there and is another scenario")
        make_folder(folder)
        text = format_file(loaded.text) if loaded.text else format_scenario(loaded.scenario)
        write_whole(path, text.encode())
        row["added as"] = str(path)
    return row


def _safe_stem(name: str, data: bytes) -> str:
    """A file name of one part: that of the file, or of the content where that is no plain name."""
    stem = Path(name).name.removesuffix(TEXT_SUFFIX)
    return stem if _NAME.fullmatch(stem) else content_name(data)


@click.command("merge", short_help="Bring corpora together in one folder.")
@click.argument(
    "sources", nargs=-1, required=True, metavar="FILE_OR_DIR...", shell_complete=complete_path
)
@_to
@click.option("--all", "keeps_all", is_flag=True, help="Keep every different scenario.")
@json_option
def merge_command(sources: tuple[str, ...], target: Path, keeps_all: bool, as_json: bool) -> int:
    """Bring corpora together in one folder, as bytes: what adds something, the smallest first.

    Every situation and transition of the sources is in the result; with NVMX_CORE=python every edge too.
    The output folder of a campaign stands for its seeds, its corpus and its findings, which are kept whatever
    they add. Exit status 2: some file could not be read; the others are merged.
    """
    meter = FeatureMeter()
    findings, bad_findings = _measured(meter, map(Path, findings_of(sources)))
    found, status = _measured(meter, map(Path, files_of(sources)))
    found, status = findings + found, max(status, bad_findings)
    if not found and not status:
        raise BadFile(sources[0], "holds no scenarios; nothing is merged")
    if not found:
        return status
    there, bad = _measured(meter, _files_there(target))
    make_folder(target)
    known = union(there)
    names = {one.data for one in there}
    different = list({one.data: one for one in found if one.data not in names}.values())
    always = {one.data: one for one in findings if one.data not in names}
    rest = [one for one in different if one.data not in always]
    known |= union(list(always.values()))
    kept = [*always.values(), *(rest if keeps_all else additions(rest, known))]
    _write_all(kept, target)
    _show_result("merged", found, kept, target, as_json)
    return max(status, bad)


@click.command("minimize", short_help="Find few scenarios that show all that many show.")
@click.argument("source", metavar="DIR", shell_complete=complete_path)
@_to
@json_option
def minimize_command(source: str, target: Path, as_json: bool) -> int:
    """Write few scenarios of DIR that together show all that DIR shows into another folder, as bytes."""
    if _files_there(target):
        raise BadFile(target, "is not empty; minimize writes into a folder of its own")
    found, status = _measured(FeatureMeter(), scenarios_in(Path(source)), source)
    if not found and not status:
        raise BadFile(source, "holds no scenarios")
    if not found:
        return status
    make_folder(target)
    kept = cover(found)
    _write_all(kept, target)
    _show_result("minimized", found, kept, target, as_json)
    return status


@click.command("stats", short_help="Say what a corpus shows, and what it lacks.")
@click.argument("folder", metavar="DIR", shell_complete=complete_path)
@json_option
def stats_command(folder: str, as_json: bool) -> int:
    """Say what a corpus shows: features, lengths, situations and which are missing."""
    paths = scenarios_in(Path(folder))
    if not paths:
        raise BadFile(folder, "holds no scenarios")
    found, status = _measured(FeatureMeter(), paths, folder)
    if not found:
        return status
    total = union(found)
    situations = Counter(name for one in found for name in reached(one.features))
    lengths = sorted(len(one.data) for one in found)
    missing = [name for name in REACH_NAMES if name not in situations]
    result: dict[str, Any] = {
        "scenarios": len(found),
        "unread": len(paths) - len(found),
        "different": len({one.data for one in found}),
        "bytes": {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]},
        "features": counts(total),
        "needed": len(cover(found)),
        "situations": dict(sorted(situations.items())),
        "missing": missing,
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return status
    click.echo(
        f"{counted(len(found), 'scenario')}, {result['different']} different;"
        f" {result['needed']} of them show all that all show"
    )
    if result["unread"]:
        click.echo(f"not read: {counted(result['unread'], 'file')}")
    click.echo(f"bytes: {lengths[0]} to {lengths[-1]}, {lengths[len(lengths) // 2]} in the middle")
    click.echo(f"features: {_features(counts(total))}")
    click.echo(f"situations: {len(situations)} of {len(REACH_NAMES)}")
    for name, count in sorted(situations.items(), key=lambda item: (item[1], item[0]))[:10]:
        click.echo(f"  {name}: {counted(count, 'scenario')}")
    if missing:
        click.echo(f"missing: {', '.join(missing)}")
    return status


@click.command("pack", short_help="Pack a corpus for a fuzzing job.")
@click.argument("folder", metavar="DIR", shell_complete=complete_path)
@click.argument("archive", metavar="OUT.zip", shell_complete=complete_path)
@json_option
def pack_command(folder: str, archive: str, as_json: bool) -> int:
    """Pack a corpus for a fuzzing job: a zip of bytes, the same for the same scenarios."""
    contents = {
        content_name(data): data
        for data in (encode(load(str(path)).scenario) for path in scenarios_in(Path(folder)))
    }
    if not contents:
        raise BadFile(folder, "holds no scenarios")
    write_output(archive, pack(contents))
    if as_json:
        click.echo(json.dumps({"to": archive, "scenarios": len(contents)}))
    else:
        click.echo(f"{archive}: {counted(len(contents), 'scenario')}")
    return 0


def _files_there(folder: Path) -> list[Path]:
    """What is in a folder that need not exist; raises BadFile for what is there and is none."""
    with about(folder):
        return files_in(folder) if os.path.lexists(folder) else []


def _measured(
    meter: FeatureMeter, paths: Iterable[Path], folder: str = ""
) -> tuple[list[Measured], int]:
    """The scenarios of *paths*, and the exit status: 2 when one could not be read.

    Each of those is named; with *folder*, where they all are, the first few and how to have all named.
    """
    unread = 0
    found = []
    for path in paths:
        try:
            found.append(meter.measure(str(path), load(str(path)).scenario))
        except BadFile as error:
            unread += 1
            if not folder or unread <= UNREAD_NAMED_MAX:
                click.echo(f"nvmx-fuzz: {error}", err=True)
    if folder and unread > UNREAD_NAMED_MAX:
        more = f"{counted(unread - UNREAD_NAMED_MAX, 'more file')} cannot be read"
        command = f"nvmx-fuzz corpus check {shlex.quote(as_argument(folder))}"
        click.echo(f"nvmx-fuzz: {printable(folder)}: {more}; try: {printable(command)}", err=True)
    return found, BAD_INPUT if unread else 0


def _write_all(kept: Sequence[Measured], target: Path) -> None:
    for one in kept:
        write_whole(target / content_name(one.data), one.data)


def _features(found: dict[str, int]) -> str:
    kinds = [kind for kind in KINDS if HAS_EDGES or found[kind]]
    text = ", ".join(_feature(found[kind], kind) for kind in kinds)
    return text if HAS_EDGES else f"{text} (edges: with NVMX_CORE=python)"


def _feature(number: int, kind: str) -> str:
    return f"{number} {kind.removesuffix('s') if number == 1 else kind}"


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        if row["refused"]:
            click.echo(f"{row['file']}: refused, {row['refused']}")
        else:
            click.echo(f"{row['file']}: added as {row['added as']}; new: {_features(row['adds'])}")


def _show_result(
    done: str, found: Sequence[Measured], kept: Sequence[Measured], target: Path, as_json: bool
) -> None:
    features = counts(union(found))
    if as_json:
        result = {"to": str(target), "read": len(found), "written": len(kept), "features": features}
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{target}: {done} {counted(len(found), 'scenario')}, wrote {len(kept)}; {_features(features)}"
    )
