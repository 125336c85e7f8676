"""Compiles the model: `scripts/build-fast`.

With clang (CC names it, or it is on PATH) L0 gets libFuzzer's branch counters; with another compiler the
build has none. ``feedback.py`` hands them to libFuzzer.

The build appears in its place when it is whole: it is made under another name and renamed, the digest of
its sources last. Exit status 2 when something is missing or the compiler fails.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from nvmx_fuzz import CODE_UNDER_TEST
from nvmx_fuzz.core_choice import (
    COUNTERS_NAME,
    DIGEST_NAME,
    ROOT,
    compiled_folder,
    sources_digest,
    why_not_compiled,
)

_CFLAGS: Final = "-fno-semantic-interposition"
_CLANG_SUFFIXES: Final = tuple(f"-{version}" for version in range(25, 10, -1))
_COUNTERS: Final = "-fsanitize-coverage=inline-8bit-counters,pc-table"

# mypyc names the C file of a package's module so; the shims and mypyc's own library are not counted.
_COUNTED: Final = (
    "".join(f"src:*/__native_{name.replace('.', '___')}___*\n" for name in CODE_UNDER_TEST)
    + "fun:*\n"
)


def compiler() -> str:
    """CC, else the newest clang on PATH, else "": setuptools knows one."""
    clang = (shutil.which(f"clang{suffix}") for suffix in ("", *_CLANG_SUFFIXES))
    return os.environ.get("CC") or next((Path(path).name for path in clang if path), "")


def is_clang(command: str) -> bool:
    """Whether *command* is a clang, whatever it is called."""
    try:
        said = subprocess.run(
            [*shlex.split(command), "--version"], capture_output=True, text=True, check=False
        )
    except (OSError, IndexError):
        return False
    return "clang" in said.stdout


def main() -> int:
    """Build unless an up-to-date build is there."""
    if not (ROOT / "setup.py").is_file():
        sys.stderr.write("build-fast: needs a checkout; this is an installed package\n")
        return 2
    if not why_not_compiled():
        sys.stdout.write(f"{compiled_folder()} is up to date\n")
        return 0
    digest = sources_digest()
    target = compiled_folder()
    target.parent.mkdir(exist_ok=True)
    cc = compiler()
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as draft:
        log = Path(draft) / "log"
        flags = [os.environ.get("CFLAGS", ""), _CFLAGS]
        has_counters = is_clang(cc)
        if has_counters:
            allowed = Path(draft) / "counted"
            allowed.write_text(_COUNTED)
            flags += [_COUNTERS, f"-fsanitize-coverage-allowlist={allowed}"]
        with log.open("wb") as output:
            counters = "with" if has_counters else "without"
            sys.stderr.write(
                f"compiling the model {counters} branch counters (takes two to three minutes)\n"
            )
            finished = subprocess.run(
                [
                    *(sys.executable, "setup.py", "-q", "build_ext"),
                    *("--build-lib", f"{draft}/lib", "--build-temp", f"{draft}/temp"),
                ],
                cwd=ROOT,
                env={
                    **os.environ,
                    "NVMX_COMPILE": "1",
                    "NVMX_COMPILE_DIR": f"{draft}/c",
                    "CFLAGS": " ".join(flags),
                    **({"CC": cc} if cc else {}),
                },
                stdout=output,
                stderr=output,
                check=False,
            )
        if finished.returncode:
            sys.stderr.write(log.read_text(errors="replace"))
            sys.stderr.write("build-fast: compiling failed; the output is above\n")
            return 2
        if has_counters:
            (Path(draft) / "lib" / COUNTERS_NAME).touch()
        (Path(draft) / "lib" / DIGEST_NAME).write_text(f"{digest}\n")
        shutil.rmtree(target, ignore_errors=True)
        (Path(draft) / "lib").rename(target)
    sys.stdout.write(f"{target} is ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
