"""What OSS-Fuzz and ClusterFuzzLite want beside a packaged fuzz target: seeds, dictionary, options.

``scripts/oss-fuzz/build.sh`` calls ``python -m nvmx_fuzz.oss_fuzz TARGET FOLDER`` for each target. It writes

- ``TARGET_seed_corpus.zip``: the seeds, each under its name without the suffix;
- ``TARGET.dict``: the libFuzzer dictionary;
- ``TARGET.options``: an INI file whose section ``[libfuzzer]`` holds arguments without their dash.

The archive is a function of its content: no clock goes into it.
"""

import shutil
import sys
import zipfile
from pathlib import Path
from typing import Final

from nvmx_fuzz.codec import encode
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.corpus_files import TRACE_SUFFIX
from nvmx_fuzz.files import BadFile, about
from nvmx_fuzz.scenario_files import TEXT_SUFFIX, load
from nvmx_fuzz.targets import TARGET_BY_NAME, Target

_DATE: Final = (1980, 1, 1, 0, 0, 0)
_USAGE: Final = "usage: python -m nvmx_fuzz.oss_fuzz TARGET FOLDER"


def seeds_of(target: Target) -> dict[str, bytes]:
    """The seeds of a target as inputs: name -> content, in the order of the names.

    Raises:
        BadFile: the folder holds no seed, or one of them is no scenario.
    """
    folder = ROOT / "corpus" / target.seeds
    files = sorted(folder.glob(f"*{TRACE_SUFFIX if target.form == 'trace' else TEXT_SUFFIX}"))
    if not files:
        raise BadFile(folder, "holds no seeds")
    if target.form != "bytes":
        return {path.stem: path.read_bytes() for path in files}
    return {path.stem: encode(load(str(path)).scenario) for path in files}


def options_text(target: Target) -> str:
    """The options file of a target."""
    # The smallest scenario that does something has 16 bytes: no slow start from short inputs.
    options = {"max_len": target.len_max, "len_control": 0}
    lines = [f"{name} = {value}" for name, value in options.items()]
    return "\n".join(["[libfuzzer]", *lines]) + "\n"


def write_extras(target: Target, folder: Path) -> None:
    """Write the three files of a target into *folder*; raises BadFile."""
    seeds = seeds_of(target)
    with about(folder):
        with zipfile.ZipFile(folder / f"{target.name}_seed_corpus.zip", "w") as archive:
            for name, content in seeds.items():
                archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
        shutil.copyfile(ROOT / "fuzz" / target.dictionary, folder / f"{target.name}.dict")
        (folder / f"{target.name}.options").write_text(options_text(target))


def main(arguments: list[str]) -> int:
    """Write the extras of one target; 0, or 2 with one line when it cannot be done."""
    if len(arguments) != 2:
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    name, folder = arguments
    if name not in TARGET_BY_NAME:
        known = ", ".join(TARGET_BY_NAME)
        sys.stderr.write(f"oss_fuzz: there is no target {name!r}; there are {known}\n")
        return 2
    try:
        write_extras(TARGET_BY_NAME[name], Path(folder))
    except BadFile as error:
        sys.stderr.write(f"oss_fuzz: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
