"""Sources stay small and speak of the project alone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

PYTHON_FOLDERS = ("nvmx_core", "fuzz", "tests")
DOT_FOLDERS = (".ci", ".clusterfuzzlite", ".github")
TEXT_FOLDERS = (*PYTHON_FOLDERS, *DOT_FOLDERS, "corpus", "docs", "scripts", "changelog.d")
TEXT_SUFFIXES = frozenset(
    {"", ".c", ".cfg", ".md", ".py", ".pyi", ".scn", ".sh", ".toml", ".txt", ".yaml", ".yml"}
)

# Written in parts, so that this file does not contain what it forbids.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
# A folder of somebody's machine, at the start of a path.
MACHINE_PATH = re.compile(r"(?<![\w./~}<-])/(work|home|root|Users|mnt|opt)/\w")
REGISTRY = re.compile(r"\b(py" + r"pi|python" + r"hosted|simple" + r"index)\b\.?", re.IGNORECASE)


# What would run what a file says.
RUNS_DATA = frozenset({"eval", "exec", "compile", "__import__"})
MAY_RUN_DATA = {
    # Compiled code beside its source, as Python's own .pyc files are.
    "fuzz/nvmx_fuzz/instrumentation.py": ("marshal",),
    # The name of a package, a constant.
    "fuzz/nvmx_fuzz/bochs/helper.py": ("__import__",),
    # For a checksum of a journal; nothing is loaded.
    "fuzz/nvmx_fuzz/bochs/worker.py": ("marshal",),
}
UNSAFE_MODULES = frozenset({"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"})


def python_files() -> list[Path]:
    """Return all Python sources, the build script included."""
    found = [path for folder in PYTHON_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted([*found, ROOT / "setup.py"])


def shipped_files() -> list[Path]:
    """Return the sources that users run."""
    return [path for path in python_files() if path.relative_to(ROOT).parts[0] != "tests"]


def text_files() -> list[Path]:
    """Return what people read: sources, scripts, seeds and documents."""
    folders = [path for folder in TEXT_FOLDERS for path in (ROOT / folder).rglob("*")]
    # In a worktree .git is a file, and holds a path of the machine.
    top = [path for path in ROOT.iterdir() if path.name not in ("LICENSE", ".git")]
    return sorted(
        path
        for path in {*folders, *top}
        if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts
    )


def relative(path: Path) -> str:
    """Name a file for a test's id and for messages."""
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (name, first line, number of lines) of each function, nested ones included."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            yield node.name, node.lineno, last - node.lineno + 1


@pytest.mark.parametrize("path", python_files(), ids=relative)
def test_file_is_short_enough_to_be_read_at_once(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= FILE_LINES_MAX, f"{relative(path)} has {lines} lines; split it by concept"


@pytest.mark.parametrize("path", python_files(), ids=relative)
def test_functions_fit_on_a_screen(path: Path) -> None:
    for name, line, lines in functions(path):
        assert lines <= FUNCTION_LINES_MAX, (
            f"{relative(path)}:{line}: {name}() has {lines} lines; move its parts into helpers"
        )


@pytest.mark.parametrize("path", text_files(), ids=relative)
def test_text_is_finished_and_speaks_of_the_project_alone(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        for pattern in (UNFINISHED, MACHINE_PATH, REGISTRY):
            match = pattern.search(line)
            assert match is None, f"{relative(path)}:{number}: {match.group()!r} has to go"


@pytest.mark.parametrize(
    "line",
    ["see /ho" + "me/someone/x", "`/wo" + "rk/main`", "index at py" + "pi.example", "TO" + "DO: x"],
)
def test_forbidden_text_is_recognised(line: str) -> None:
    assert any(pattern.search(line) for pattern in (UNFINISHED, MACHINE_PATH, REGISTRY))


def unsafe_uses(source: str) -> list[str]:
    """Names of what takes code or objects out of data, wherever they are called or imported."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] if node.func.id in RUNS_DATA else []
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in UNSAFE_MODULES:
            found.append(str(node.module))
    return found


@pytest.mark.parametrize("path", shipped_files(), ids=relative)
def test_no_data_is_ever_taken_for_code(path: Path) -> None:
    allowed = MAY_RUN_DATA.get(relative(path), ())
    assert [name for name in unsafe_uses(path.read_text()) if name not in allowed] == []


@pytest.mark.parametrize(
    "source", ["eval(x)", "import pickle", "from marshal import loads", "exec(text, {})"]
)
def test_unsafe_uses_are_recognised(source: str) -> None:
    assert unsafe_uses(source)
    assert not unsafe_uses("re.compile(x); session.eval(y); import json")
