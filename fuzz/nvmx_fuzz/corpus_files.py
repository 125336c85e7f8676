"""Folders of scenarios: seeds as text, corpora as bytes; and archives of them for fuzzing jobs."""

import io
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from nvmx_fuzz.codec import encode
from nvmx_fuzz.files import about, check_folder, content_name, write_whole
from nvmx_fuzz.scenario_files import TEXT_SUFFIX, load

TRACE_SUFFIX: Final = ".trace"
"""The seeds of `fuzz_trace_reader`: beside scenarios, but none."""

CAMPAIGN_PARTS: Final = ("seeds", "corpus")

_SEPARATORS: Final = str.maketrans("/,", "--")


def is_campaign(folder: Path) -> bool:
    """Whether this is the output folder of a campaign (`campaign.py`)."""
    return (folder / "progress.jsonl").is_file() and all(
        (folder / part).is_dir() for part in CAMPAIGN_PARTS
    )


def findings_of(names: Iterable[str]) -> list[str]:
    """The findings of those of *names* that are output folders of campaigns, as bytes."""
    return [
        str(path)
        for name in names
        if os.path.isdir(name) and is_campaign(Path(name)) and (Path(name) / "findings").is_dir()
        for path in files_in(Path(name) / "findings")
        if path.suffix == ".bin"
    ]


def files_in(folder: Path) -> list[Path]:
    """All files below *folder* in the order of their names, hidden ones and traces left out; raises BadFile.

    What is neither a file nor a folder is among them, so that whoever reads it is told: nothing is passed
    over in silence.
    """
    check_folder(folder)

    def complain(error: OSError) -> None:
        raise error

    found: list[Path] = []
    with about(folder):
        for place, folders, names in os.walk(folder, onerror=complain):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [
                Path(place, name)
                for name in names
                if not name.startswith(".") and not name.endswith(TRACE_SUFFIX)
            ]
    return sorted(found)


def scenarios_in(folder: Path) -> list[Path]:
    """The files that a folder of scenarios or the output folder of a campaign stands for; raises BadFile."""
    check_folder(folder)
    parts = CAMPAIGN_PARTS if is_campaign(folder) else ("",)
    return [path for part in parts for path in files_in(folder / part)]


def files_of(names: Iterable[str]) -> list[str]:
    """The files that *names* stand for: themselves, and what is in those that are folders.

    The output folder of a campaign stands for what the campaign started from and what it kept.
    """
    found: list[str] = []
    for name in names:
        if os.path.isdir(name):  # not that of pathlib, which raises for a name that is too long
            found += map(str, scenarios_in(Path(name)))
        else:
            found.append(name)
    return found


def read_seeds(source: Path | None) -> dict[str, bytes]:
    """The bytes of all scenarios below *source* (None: of none) by name; raises BadFile.

    Text seeds keep their name, with nothing in it that separates names, so that people know them; bytes, and
    what would get the name of another, get that of their content, as in any corpus.
    """
    contents: dict[str, bytes] = {}
    for path in files_in(source) if source else ():
        content = encode(load(str(path)).scenario)
        name = content_name(content)
        if source and path.suffix == TEXT_SUFFIX:
            own = str(path.relative_to(source).with_suffix("")).translate(_SEPARATORS)
            name = name if own in contents else own
        contents[name] = content
    return contents


def write_seeds(contents: Mapping[str, bytes], target: Path) -> None:
    """Fill the folder *target* with files; what it held before is removed. Raises BadFile."""
    with about(target):
        target.mkdir(parents=True, exist_ok=True)
        for old in target.iterdir():
            old.unlink()
    for name, content in contents.items():
        write_whole(target / name, content, is_lasting=False)


def pack(contents: Mapping[str, bytes]) -> bytes:
    """A zip of files by name, the same bytes for the same files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in sorted(contents):
            # The epoch of the format instead of a clock.
            packed.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), contents[name])
    return archive.getvalue()
