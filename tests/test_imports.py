"""Imports of the model point one way, and lead to nothing outside the model.

`docs/ARCHITECTURE.md` gives the order as a reading order. A room may import itself and rooms of
lower rows only.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "nvmx_core"

# From the ground up; rooms of one row may import one another. A file may stand apart from its room
# where it is vocabulary that lower rooms need too.
ROOMS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"arch"}),
    frozenset({"journal"}),
    frozenset({"guests"}),
    frozenset({"cpu"}),
    frozenset({"scenario"}),
    frozenset({"l0"}),
    frozenset({"bugs"}),
    frozenset({"machines"}),
    frozenset({"oracle"}),
)

# No clock, no randomness, no files: a scenario alone decides what a machine does.
STANDARD_LIBRARY = frozenset(
    {
        "__future__",
        "abc",
        "bisect",
        "collections",
        "collections.abc",
        "dataclasses",
        "enum",
        "functools",
        "itertools",
        "re",
        "struct",
        "types",
        "typing",
    }
)


def rank(module: str) -> int:
    """Return the row of a dotted name inside the model; the longest entry that fits decides."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for row, rooms in enumerate(ROOMS):
            if ".".join(parts[:length]) in rooms:
                return row
    pytest.fail(f"nvmx_core.{module} has no row in ROOMS (tests/test_imports.py)")


def module_of(path: Path) -> str:
    """Return a file's dotted name inside the model ("" for the package itself)."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) for each import, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "nvmx_core":
                yield from ((node.lineno, f"nvmx_core.{name.name}") for name in node.names)
            else:
                yield node.lineno, str(node.module)


MODEL_FILES = sorted(CORE.rglob("*.py"))


def relative(path: Path) -> str:
    """Name a file for a test's id and for messages."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODEL_FILES, ids=relative)
def test_rooms_import_only_what_stands_before_them(path: Path) -> None:
    module = module_of(path)
    for line, name in imports(path):
        package, _, imported = name.partition(".")
        if package != "nvmx_core":
            continue
        assert module, f"{relative(path)}:{line}: the package itself imports no room"
        assert rank(imported) <= rank(module), (
            f"{relative(path)}:{line}: {module} imports {imported}, which stands above it"
        )


@pytest.mark.parametrize("path", MODEL_FILES, ids=relative)
def test_model_imports_nothing_but_plain_library_modules(path: Path) -> None:
    for line, name in imports(path):
        inside = name.partition(".")[0] == "nvmx_core"
        assert inside or name in STANDARD_LIBRARY, f"{relative(path)}:{line}: imports {name}"


@pytest.mark.parametrize("path", MODEL_FILES, ids=relative)
def test_model_reads_and_prints_nothing(path: Path) -> None:
    forbidden = {"open", "print", "input", "exec", "eval", "id", "hash", "setattr", "__import__"}
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in forbidden, (
                f"{relative(path)}:{node.lineno}: calls {node.func.id}()"
            )
