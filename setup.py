"""Builds of native code: the branch callback, and on request the compiled core.

Everything else is declared in ``pyproject.toml``. Without a compiler the callback only prints a
warning, and ``nvmx_fuzz.feedback`` falls back to atheris's own. With ``NVMX_COMPILE=1`` the modules of
the hot path are compiled by mypyc from the same source (needs mypy and a C compiler); use
``scripts/build-fast``, which puts the result where ``nvmx_fuzz.core_choice`` finds it.
"""

import os
import sys
from glob import glob
from pathlib import Path
from runpy import run_path

from setuptools import Extension, setup


def compiled_core() -> list[Extension]:
    """The modules that `nvmx_fuzz.core_choice` names."""
    from mypyc.build import mypycify  # noqa: PLC0415 - needed for this build only

    root = Path(__file__).resolve().parent
    sys.path.insert(0, str(root / "fuzz"))
    from nvmx_fuzz.core_choice import sources  # noqa: PLC0415 - not on the path before

    names = [str(path.relative_to(root)) for path in sources()]
    extensions = mypycify(
        names, opt_level="3", multi_file=True, target_dir=os.environ.get("NVMX_COMPILE_DIR")
    )
    for extension in extensions:
        if extension.name.endswith("__mypyc"):  # the one that holds the code
            extension.sources.append("fuzz/nvmx_fuzz/_counters.c")
    return extensions


branch = Extension(
    "nvmx_fuzz._branch",
    sources=["fuzz/nvmx_fuzz/_branch.c"],
    extra_compile_args=["-O2"],
    optional=True,
)


def helper_source() -> str:
    """The digest of the helper's source, by the file that will look at it."""
    path = Path(__file__).resolve().parent / "fuzz/nvmx_fuzz/bochs/helper_source.py"
    return str(run_path(str(path))["source_digest"]())


# No module of Python: a library that `nvmx_fuzz.bochs.helper` loads.
helper = Extension(
    "nvmx_fuzz.bochs._helper",
    sources=["fuzz/nvmx_fuzz/bochs/_helper.c"],
    depends=glob("fuzz/nvmx_fuzz/bochs/_helper_*.h"),
    define_macros=[("NVMX_SOURCE", f'"{helper_source()}"')],
    extra_compile_args=["-O2"],
    libraries=["dl"],
    optional=True,
)

setup(ext_modules=compiled_core() if os.environ.get("NVMX_COMPILE") == "1" else [branch, helper])
