"""Which build of the model runs: the Python source, or the same source compiled by mypyc.

``scripts/build-fast`` compiles into ``build/compiled-TAG`` of the checkout, beside a file that holds a
digest of the sources; a build whose sources have changed since is not used. The choice is made once in a
process, before the model is imported.

Nothing here imports the model.
"""

import hashlib
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Final

import nvmx_fuzz

VARIABLE: Final = "NVMX_CORE"
CHOICES: Final = ("auto", "python", "compiled")
DIGEST_NAME: Final = "sources.sha256"
COUNTERS_NAME: Final = "has-branch-counters"

_ENGINE: Final = (
    "codec",
    "generate",
    "idioms",
    "mutate",
    "mutations",
    "nested_events",
    "palette",
    "state_feedback",
)
ROOT: Final = Path(__file__).resolve().parents[2]
_COUNTERS: Final = ROOT / "fuzz" / "nvmx_fuzz" / "_counters.c"
_HINT: Final = "try: scripts/build-fast"


_COMBINATION: Final = re.compile(r"kvm-\d+\.\d+|[\w.-]+(?:,[\w.-]+)+")


class NoCompiledCoreError(Exception):
    """The compiled core was asked for and cannot be used; the text says why."""


def compiled_folder() -> Path:
    """Where the compiled core of this interpreter is, or would be."""
    return ROOT / "build" / f"compiled-{sys.implementation.cache_tag}"


def has_branch_counters() -> bool:
    """Whether the compiled core was built with libFuzzer's branch counters."""
    return (compiled_folder() / COUNTERS_NAME).is_file()


def sources() -> list[Path]:
    """What is compiled: the whole model, and the engine's part of an execution."""
    engine = ROOT / "fuzz" / "nvmx_fuzz"
    return [
        *sorted(ROOT.glob("nvmx_core/**/*.py")),
        *(engine / f"{name}.py" for name in _ENGINE),
    ]


@cache
def sources_digest() -> str:
    """A digest of all that goes into the compiled core, taken once in a process."""
    digest = hashlib.sha256()
    for path in (ROOT / "setup.py", _COUNTERS, *sources()):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def why_not_compiled() -> str:
    """Why the compiled core cannot be used; "" if it can."""
    if getattr(sys, "frozen", False):
        return "a packaged program holds the Python build alone"
    try:
        built_from = (compiled_folder() / DIGEST_NAME).read_text().strip()
    except OSError:
        return f"there is no compiled core for Python {sys.version_info[0]}.{sys.version_info[1]}"
    if built_from != sources_digest():
        return "the compiled core is older than its sources"
    return ""


def decide(wanted: str | None = None) -> str:
    """Decide which build of the model is wanted and can be used.

    Args:
        wanted: one of CHOICES; None for the value of NVMX_CORE (default "auto": compiled if it can be
            used). Pure Python is always there.

    Returns:
        "python" or "compiled".

    Raises:
        ValueError: there is no such choice; the message lists them.
        NoCompiledCoreError: "compiled" cannot be used.
    """
    name = wanted or os.environ.get(VARIABLE) or "auto"
    if name not in CHOICES:
        raise ValueError(f"{VARIABLE} is {name!r}, but must be one of {', '.join(CHOICES)}")
    if name == "python":
        return name
    problem = why_not_compiled()
    if problem and name == "compiled":
        raise NoCompiledCoreError(f"{problem}; {_HINT}")
    return "python" if problem else "compiled"


def choose(wanted: str | None = None) -> str:
    """Put the build of the model that `decide` names in front of all others, and return its name.

    Raises:
        ValueError, NoCompiledCoreError: see `decide`.
        RuntimeError: the other build was asked for and this one is imported already.
    """
    chosen = decide(wanted)
    if "nvmx_core" in sys.modules:
        found = in_use()
        if found != chosen and (wanted or os.environ.get(VARIABLE) or "auto") != "auto":
            raise RuntimeError(f"the model was imported as {found} already, not as {chosen}")
        return found
    if chosen == "compiled" and str(compiled_folder()) not in sys.path:
        sys.path.insert(0, str(compiled_folder()))
        nvmx_fuzz.__path__.insert(0, str(compiled_folder() / "nvmx_fuzz"))
    return chosen


def needs_python(l0_name: str) -> bool:
    """Whether an L0 is made of several bugs: compiled classes have one base each."""
    return _COMBINATION.fullmatch(l0_name) is not None


def agree(core: str | None, feedback: str | None, l0_name: str = "") -> tuple[str, str]:
    """Decide about core and feedback together: not every build counts branches in every way.

    Args:
        core: see `decide`.
        feedback: a mode of `feedback.py` or "auto"; None for the value of NVMX_FEEDBACK.
        l0_name: the L0 that will run; several bugs together run in the Python build.

    Returns:
        The core and the feedback.

    Raises:
        ValueError, NoCompiledCoreError: see `decide`; or what was asked for does not go together.
    """
    feedback = feedback or os.environ.get(nvmx_fuzz.FEEDBACK_VARIABLE) or "auto"
    core = core or os.environ.get(VARIABLE) or "auto"
    if needs_python(l0_name):
        if core == "compiled":
            raise ValueError(f"L0 {l0_name} is several bugs together: that needs --core python")
        core = "python"
    if feedback not in ("auto", "states") and not (feedback == "fast" and has_branch_counters()):
        if core == "compiled":
            hint = "; install clang and try: scripts/build-fast" if feedback == "fast" else ""
            raise ValueError(f"the compiled core has no counters for feedback {feedback!r}{hint}")
        core = "python"
    core = decide(core)
    return core, "states" if core == "compiled" and feedback == "auto" else feedback


def in_use() -> str:
    """Which build is imported; imports it if none is."""
    from nvmx_core import journal  # noqa: PLC0415 - to ask is to decide

    return "python" if str(journal.__file__).endswith(".py") else "compiled"
