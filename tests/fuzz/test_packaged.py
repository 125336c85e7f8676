"""The packaged fuzz target, built by scripts/oss-fuzz/build.sh as in the jobs and run from nothing but $OUT.

The base image's `compile_python_fuzzer` is replaced by one of our own that keeps its interface: a one-file
program NAME.pkg, which is not executable until the wrapper NAME starts it.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("atheris")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NAME = "fuzz_nested_events"
BRANCHES_MIN = 1500
"""What the seeds reach of the whole model; the state feedback beside is silent in this mode."""
RUN_SECONDS_MAX = 110

COMPILE = r"""#!/bin/bash -eu
path=$1
shift
name=$(basename -s .py "$path")
"$PYTHON" -m PyInstaller --log-level ERROR --onefile --distpath "$OUT" --workpath "$WORK/$name" \
    --name "$name.pkg" "$@" "$path"
chmod -x "$OUT/$name.pkg"
cat >"$OUT/$name" <<'END'
#!/bin/sh
# LLVMFuzzerTestOneInput
here=$(dirname "$0")
chmod +x $here/NAME.pkg
LD_PRELOAD=$here/sanitizer_with_fuzzer.so ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 $here/NAME.pkg $@
END
sed -i "s/NAME/$name/" "$OUT/$name"
chmod +x "$OUT/$name"
"""


def why_not() -> str:
    """What is missing to package a target; "" when nothing is."""
    tools = [tool for tool in ("objcopy", "strip", "ldd") if shutil.which(tool) is None]
    if find_spec("PyInstaller") is None:
        return "PyInstaller is missing; try: pip install pyinstaller"
    return f"binutils are missing: {', '.join(tools)}" if tools else ""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is left of a build: everything else is gone."""
    if reason := why_not():
        pytest.skip(reason)
    base = tmp_path_factory.mktemp("job")
    folders = {name: base / name.lower() for name in ("SRC", "OUT", "WORK", "TOOLS")}
    for folder in folders.values():
        folder.mkdir()
    checkout = folders["SRC"] / "nvmx-fuzz"
    for part in ("nvmx_core", "fuzz", "corpus", "scripts"):
        shutil.copytree(
            ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    compiler = folders["TOOLS"] / "compile_python_fuzzer"
    compiler.write_text(COMPILE)
    compiler.chmod(0o755)
    (folders["TOOLS"] / "python3").symlink_to(sys.executable)
    environment = {
        "PATH": f"{folders['TOOLS']}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(base),
        "PYTHON": sys.executable,
        "PYTHONDONTWRITEBYTECODE": "1",
        "SANITIZER": "address",
        "NVMX_TARGETS": NAME,
        **{name: str(folder) for name, folder in folders.items()},
    }
    build = subprocess.run(
        [checkout / "scripts" / "oss-fuzz" / "build.sh"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    after = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file()}
    assert after == before, "a build leaves the checkout as it was"
    for name in ("SRC", "WORK", "TOOLS"):
        shutil.rmtree(folders[name])
    return folders["OUT"]


def run_packaged(out: Path, folder: Path, *arguments: str) -> str:
    """Run the packaged target in *folder* with next to no environment; return what it printed."""
    finished = subprocess.run(
        [out / NAME, *arguments],
        cwd=folder,
        env={"PATH": os.defpath},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    assert "Uncaught" not in finished.stdout
    return finished.stdout


def test_only_what_the_jobs_know_is_left(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == [
        NAME,
        f"{NAME}.dict",
        f"{NAME}.options",
        f"{NAME}.pkg",
        f"{NAME}_seed_corpus.zip",
    ]
    wrapper = (out / NAME).read_text()
    assert "LLVMFuzzerTestOneInput" in wrapper
    assert "LD_PRELOAD" not in wrapper, "a preloaded libFuzzer knows no mutators of the target"


def test_four_executions_as_the_check_of_a_build_makes_them(out: Path, tmp_path: Path) -> None:
    output = run_packaged(out, tmp_path, "-seed=1337", "-runs=4")
    assert "Done 4 runs" in output
    assert "no interesting inputs were found" not in output


def test_ten_thousand_executions_end_well_and_use_our_mutator(out: Path, tmp_path: Path) -> None:
    output = run_packaged(out, tmp_path, "-seed=1", "-runs=10000", f"-dict={out}/{NAME}.dict")
    assert "Done 10000 runs" in output
    assert " Custom" in output
    assert list(tmp_path.iterdir()) == []


def test_the_whole_seed_corpus_runs(out: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(out / f"{NAME}_seed_corpus.zip") as archive:
        archive.extractall(tmp_path)
        seeds = len(archive.namelist())
    output = run_packaged(out, tmp_path, "-runs=0", str(tmp_path))
    assert f"{seeds} files found" in output
    covered = re.search(r"INITED cov: (\d+)", output)
    assert covered is not None, output
    assert int(covered[1]) >= BRANCHES_MIN, "the model is not instrumented"
    assert len(list(tmp_path.iterdir())) == seeds
