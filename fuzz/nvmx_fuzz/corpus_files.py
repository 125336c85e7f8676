"""Folders of scenarios: seeds as text, corpora as bytes; and archives of them for fuzzing jobs."""

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from nvmx_fuzz.codec import encode
from nvmx_fuzz.files import BadFile, about, content_name
from nvmx_fuzz.scenario_files import TEXT_SUFFIX, load

TRACE_SUFFIX: Final = ".trace"
"""The seeds of `fuzz_trace_reader`: beside scenarios, but none."""


def files_in(folder: Path) -> list[Path]:
    """All files below *folder* by name, hidden ones and traces left out; raises BadFile."""
    if not folder.is_dir():
        raise BadFile(folder, "is not a directory" if folder.exists() else "does not exist")
    with about(folder):
        return sorted(
            path
            for path in folder.rglob("*")
            if path.is_file()
            and path.suffix != TRACE_SUFFIX
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )


def files_of(names: Iterable[str]) -> list[str]:
    """The files that *names* stand for: themselves, and what is in those that are folders."""
    found: list[str] = []
    for name in names:
        if Path(name).is_dir():
            found += [str(path) for path in files_in(Path(name))]
        else:
            found.append(name)
    return found


def encode_seeds(source: Path | None, target: Path) -> int:
    """Fill the folder *target* with the bytes of all scenarios below *source* (None: of none).

    Text seeds keep their name, so that libFuzzer's log names them; bytes get that of their content,
    as in any corpus. What *target* held before is removed.

    Returns:
        How many files there are now.

    Raises:
        BadFile: a seed is no scenario, or a folder cannot be used.
    """
    contents: dict[str, bytes] = {}
    for path in files_in(source) if source else ():
        content = encode(load(str(path)).scenario)
        if source and path.suffix == TEXT_SUFFIX:
            name = str(path.relative_to(source).with_suffix("")).replace("/", "-")
        else:
            name = content_name(content)
        contents[name] = content
    with about(target):
        target.mkdir(parents=True, exist_ok=True)
        for old in target.iterdir():
            old.unlink()
        for name, content in contents.items():
            (target / name).write_bytes(content)
    return len(contents)


def pack(contents: Mapping[str, bytes]) -> bytes:
    """A zip of files by name, the same bytes for the same files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in sorted(contents):
            # The epoch of the format instead of a clock.
            packed.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), contents[name])
    return archive.getvalue()
