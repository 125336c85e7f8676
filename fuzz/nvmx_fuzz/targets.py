"""The fuzz targets: one table that the build script of OSS-Fuzz and the tests read.

``python -m nvmx_fuzz.targets`` prints the names. Nothing here imports the model.
"""

import re
import sys
from pathlib import Path
from typing import Final, Literal, NamedTuple

Form = Literal["bytes", "text", "trace"]


class Target(NamedTuple):
    """One file ``fuzz/NAME.py``.

    Attributes:
        name: of the file and of the program that is built from it.
        asks: what the target asks of an input, in one sentence.
        seeds: the folder below ``corpus/`` whose files are its seeds: ``.scn``, of traces ``.trace``.
        form: what an input is: a scenario in the byte form of ``codec.py``, as text, or a trace of KVM.
        dictionary: the libFuzzer dictionary beside the target file.
        len_max: the longest input that libFuzzer makes, in bytes.
    """

    name: str
    asks: str
    seeds: str
    form: Form
    dictionary: str
    len_max: int


BYTES_LEN_MAX: Final = 520
"""The header and 64 steps of the byte form; longer scenarios only cost time."""

TARGETS: Final[tuple[Target, ...]] = (
    Target(
        "fuzz_nested_events",
        "Does every oracle hold when events for L1 and L2 meet in L0?",
        seeds="nested_events",
        form="bytes",
        dictionary="fuzz_nested_events.dict",
        len_max=BYTES_LEN_MAX,
    ),
    Target(
        "fuzz_transparency",
        "Do L1 and L2 see on `nested` exactly what they see on `bare`?",
        seeds="nested_events",
        form="bytes",
        dictionary="fuzz_nested_events.dict",
        len_max=BYTES_LEN_MAX,
    ),
    Target(
        "fuzz_entry_checks",
        "Do the checks of one VM entry say what a second reading of the rules says?",
        seeds="entry_checks",
        form="bytes",
        dictionary="fuzz_nested_events.dict",
        len_max=BYTES_LEN_MAX,
    ),
    Target(
        "fuzz_scenario_text",
        "Is every text read, or refused in one line, and does what is read survive being written?",
        seeds="nested_events",
        form="text",
        dictionary="fuzz_scenario_text.dict",
        len_max=4096,
    ),
    Target(
        "fuzz_trace_reader",
        "Is every trace checked, or refused, the same way in whatever pieces and spelling it comes?",
        seeds="trace_reader",
        form="trace",
        dictionary="fuzz_trace_reader.dict",
        len_max=8192,
    ),
)

TARGET_BY_NAME: Final[dict[str, Target]] = {target.name: target for target in TARGETS}

_TARGET_IN_NAME: Final = re.compile(
    rf"(?<![A-Za-z0-9])({'|'.join(TARGET_BY_NAME)})(?![A-Za-z0-9_])"
)


def target_in_name(path: str) -> Target | None:
    """The target that a file is a testcase of, as far as the name tells.

    ClusterFuzz offers ``clusterfuzz-testcase-minimized-TARGET-5432`` for download; ClusterFuzzLite calls an
    artifact ``TARGET-address-crash-0123``. The name of a scenario as text (``.scn``) says nothing.
    """
    name = Path(path).name
    match = None if name.endswith(".scn") else _TARGET_IN_NAME.search(name)
    return TARGET_BY_NAME[match[1]] if match else None


if __name__ == "__main__":
    sys.stdout.write("".join(f"{target.name}\n" for target in TARGETS))
