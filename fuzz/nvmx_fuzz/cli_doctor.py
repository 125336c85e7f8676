"""`nvmx-fuzz doctor`: what is installed here, and what is used."""

import json
import platform
import shlex
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

import click

from nvmx_fuzz import core_choice
from nvmx_fuzz.cli_options import json_option
from nvmx_fuzz.seeds import seed_folder
from nvmx_fuzz.version import revision

_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
_REPORT_HINT: Final = "try: pip install -e '.[report]'"


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Say which Python, which libraries, which build of the model and which feedback are in use."""
    found = diagnosis()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return 0
    width = max(map(len, found))
    for name, value in found.items():
        click.echo(f"{name:{width}}  {value}")
    return 0


def diagnosis() -> dict[str, str]:
    """What there is, by name; each value is a sentence without its subject."""
    problem = core_choice.why_not_compiled()
    seeds = seed_folder()
    return {
        "nvmx-fuzz": revision(),
        "Python": platform.python_version(),
        "atheris": _version("atheris") or "missing, so nothing can be fuzzed; try: scripts/fuzz",
        "hypothesis": _version("hypothesis") or "missing",
        "core": f"{core_choice.decide()} is used",
        "compiled core": "ready" if not problem else f"{problem}; try: scripts/build-fast",
        "branch probe": "native" if find_spec("nvmx_fuzz._branch") else "atheris's own (slower)",
        "feedback": _feedback(),
        "C compiler": _compiler(),
        "pictures": _pictures(),
        "browser": _browser(),
        "bochs": _bochs(),
        "kvm-bochs": _kvm_bochs(),
        "baseline": _version("hypofuzz") or f"hypofuzz is missing; {_REPORT_HINT}",
        "mutants": _version("cosmic-ray") or "cosmic-ray is missing; scripts/mutation installs it",
        "seeds": str(seeds) if seeds else "missing: campaigns start from nothing",
    }


def _feedback() -> str:
    """The feedback that a campaign would have without further words."""
    if find_spec("atheris") is None:
        return "none"
    from nvmx_fuzz.feedback import choose_mode  # noqa: PLC0415 - atheris may be missing

    try:
        return choose_mode(core_choice.agree(None, None)[1])
    except ValueError as error:  # what the environment asks for
        return str(error)


def _compiler() -> str:
    """What builds the branch probe and the compiled core."""
    from nvmx_fuzz.build_fast import compiler  # noqa: PLC0415 - for this line only

    chosen, *_ = shlex.split(compiler()) or ["cc"]
    path = shutil.which(chosen)
    return path or f"{chosen} is missing; try: apt install gcc, or clang for branch counters"


def _pictures() -> str:
    """Whether diagrams and reports can be made."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} missing; {_REPORT_HINT}"
    return f"jinja2 {_version('jinja2')}, matplotlib {_version('matplotlib')}"


def _browser() -> str:
    """What could take a picture of a report; to look at one any browser will do."""
    found = [path for name in _BROWSERS if (path := shutil.which(name))]
    return (
        found[0]
        if found
        else "chromium is missing; for pictures of reports try: apt install chromium"
    )


def _bochs() -> str:
    """Whether the machine `bochs` can be used."""
    from nvmx_fuzz.bochs.helper import BochsUnavailableError, library_version  # noqa: PLC0415

    if find_spec("keystone") is None:
        return "keystone-engine is missing; try: pip install -e '.[bochs]'"
    try:
        return library_version()
    except BochsUnavailableError as error:
        return str(error)


def _kvm_bochs() -> str:
    """Which kernel the machine `kvm-bochs` boots, in which Bochs."""
    from nvmx_fuzz.boot import emulator, linux  # noqa: PLC0415 - for this line only
    from nvmx_fuzz.outcomes import UnavailableError  # noqa: PLC0415

    try:
        bochs = emulator.emulator().version
        release = linux.known_release()
    except UnavailableError as error:
        return str(error)
    return f"{release or 'a kernel that is fetched by scripts/kvm'}, in Bochs {bochs}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
