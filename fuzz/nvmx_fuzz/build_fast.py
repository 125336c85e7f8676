"""Compiles the model: `scripts/build-fast`.

The build appears in its place when it is whole: it is made under another name and renamed, the digest of
its sources last. Exit status 2 when something is missing or the compiler fails.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from nvmx_fuzz.core_choice import (
    DIGEST_NAME,
    ROOT,
    compiled_folder,
    sources_digest,
    why_not_compiled,
)

_CFLAGS: Final = "-fno-semantic-interposition"


def main() -> int:
    """Build unless an up-to-date build is there."""
    if not why_not_compiled():
        sys.stdout.write(f"{compiled_folder()} is up to date\n")
        return 0
    digest = sources_digest()
    target = compiled_folder()
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as draft:
        log = Path(draft) / "log"
        with log.open("wb") as output:
            sys.stderr.write("compiling the model (takes two to three minutes)\n")
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
                    "CFLAGS": f"{os.environ.get('CFLAGS', '')} {_CFLAGS}".strip(),
                },
                stdout=output,
                stderr=output,
                check=False,
            )
        if finished.returncode:
            sys.stderr.write(log.read_text(errors="replace"))
            sys.stderr.write("build-fast: compiling failed; the output is above\n")
            return 2
        (Path(draft) / "lib" / DIGEST_NAME).write_text(f"{digest}\n")
        shutil.rmtree(target, ignore_errors=True)
        (Path(draft) / "lib").rename(target)
    sys.stdout.write(f"{target} is ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
