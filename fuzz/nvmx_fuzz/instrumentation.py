"""Branch probes in the bytecode of imported modules, and a cache of the result.

A probe is a call of `_trace_branch(number)` at the start of each basic block. atheris inserts it;
this module decides where (functions only), numbers the probes, chooses whose `_trace_branch` they
call, and keeps instrumented bytecode beside the ordinary one.

Instrumenting takes 0.1 to 0.2 ms a line, about a second for the whole model; the cache makes it
some milliseconds. What is stored is independent of other modules, so that an edit costs only its
own module: probes are numbered from 0 and marked, and get their final numbers when loaded.

The numbers follow from the source alone. libFuzzer knows a probe by its number, and what it draws depends on
it: only so is one seed one search on every machine, and -fork and -merge, whose processes may each instrument
for themselves, mean the same branches.
"""

import importlib.machinery
import importlib.util
import marshal
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import CO_OPTIMIZED
from itertools import count
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final, cast

import atheris
import atheris.instrument_bytecode

# Stands in cached code for the module whose `_trace_branch` a probe calls: modules do not marshal.
_PROBE_MARK: Final = "\0nvmx-probe\0"
_CACHE_VERSION: Final = 3

_CacheKey = tuple[int | str | bytes, ...]


@dataclass
class Numbering:
    """Hands out the numbers of probes.

    Attributes:
        used: how many are taken; the next one is this number.
    """

    used: int = 0

    def take(self, amount: int) -> int:
        """Reserve `amount` consecutive numbers and return the first."""
        first = self.used
        self.used += amount
        return first


class InstrumentingFinder:
    """Finds modules of some packages and has them loaded with probes (for `sys.meta_path`)."""

    def __init__(
        self, packages: frozenset[str], probe_module: ModuleType | None, numbering: Numbering
    ) -> None:
        """Instrument `packages`, which may have dots; probes call `probe_module._trace_branch(number)`."""
        self._packages = packages
        self._probe_module = probe_module
        self._numbering = numbering

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec that the other finders give, with an instrumenting loader."""
        if not is_within(name, self._packages):
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec and finder is not self else None
            if spec is not None:
                # Compiled modules carry counters of their own, or none; they load as they are.
                if type(spec.loader) is importlib.machinery.SourceFileLoader:
                    spec.loader = _InstrumentingLoader(
                        name, spec.loader.path, self._probe_module, self._numbering
                    )
                return cast("importlib.machinery.ModuleSpec", spec)
        return None


class _InOrder(dict[object, None]):
    """What atheris needs of a set, in the order in which it was filled."""

    def add(self, element: object) -> None:
        self[element] = None


@contextmanager
def numbered_in_order() -> Iterator[None]:
    """Have atheris insert the probes of a function in the order in which it finds their blocks.

    It collects the blocks in a set, where they lie by their addresses, and numbers them in the order in which
    they come out. Here the name `set` means something else to it.
    """
    vars(atheris.instrument_bytecode)["set"] = _InOrder
    try:
        yield
    finally:
        del vars(atheris.instrument_bytecode)["set"]


def is_within(name: str, packages: Collection[str]) -> bool:
    """Whether the module `name` is one of `packages` or in one of them."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


class _InstrumentingLoader(importlib.machinery.SourceFileLoader):
    """Loads a source file with probes, from the cache if possible."""

    def __init__(
        self, name: str, path: str, probe_module: ModuleType | None, numbering: Numbering
    ) -> None:
        super().__init__(name, path)
        self._probe_module = probe_module
        self._numbering = numbering

    def get_code(self, fullname: str) -> CodeType | None:
        key = self._cache_key()
        cache = Path(importlib.util.cache_from_source(self.path, optimization="nvmxprobes"))
        found = _read_cache(cache, key)
        if found is None:
            plain = super().get_code(fullname)
            if plain is None:
                return None
            found = _instrument_functions(plain)
            _write_cache(cache, key, *found)
        probes, code = found
        return _bind(code, self._probe_module, self._numbering.take(probes))

    def _cache_key(self) -> _CacheKey:
        instrumentor = Path(atheris.instrument_bytecode.__file__).stat()
        return (
            _CACHE_VERSION,
            importlib.util.MAGIC_NUMBER,
            instrumentor.st_mtime_ns,
            instrumentor.st_size,
            self.path,
            importlib.util.source_hash(self.get_data(self.path)),
        )


class _ProbeNumber(int):
    """A probe's number while it is being inserted, told apart from the model's own integers."""


def _instrument_functions(code: CodeType) -> tuple[int, CodeType]:
    """Return (number of probes, marked code) of a module.

    Bodies of modules and classes stay as they are: they run once, before fuzzing begins.
    """
    numbers = count()

    def marked(constant: object) -> object:
        if constant is atheris:
            return _PROBE_MARK
        return (_PROBE_MARK, int(constant)) if type(constant) is _ProbeNumber else constant

    def instrumented(part: CodeType) -> CodeType:
        if part.co_flags & CO_OPTIMIZED:
            patched: CodeType = atheris.patch_code(part, False)
            return _map_constants(patched, marked)
        inner = (instrumented(c) if isinstance(c, CodeType) else c for c in part.co_consts)
        return part.replace(co_consts=tuple(inner))

    # patch_code() asks this function for the number of each probe.
    reserve = atheris._reserve_counter  # noqa: SLF001
    atheris._reserve_counter = lambda: _ProbeNumber(next(numbers))  # noqa: SLF001
    try:
        with numbered_in_order():
            result = instrumented(code)
    finally:
        atheris._reserve_counter = reserve  # noqa: SLF001
    return next(numbers), result


def _bind(code: CodeType, probe_module: ModuleType | None, first: int) -> CodeType:
    """Return marked code with its final probe numbers, starting at `first`, and its callback."""

    def bound(constant: object) -> object:
        if constant == _PROBE_MARK:
            return probe_module
        if isinstance(constant, tuple) and len(constant) == 2 and constant[0] == _PROBE_MARK:
            return first + cast("int", constant[1])
        return constant

    return _map_constants(code, bound)


def _read_cache(cache: Path, key: _CacheKey) -> tuple[int, CodeType] | None:
    """Return (number of probes, code) if `cache` holds them for `key`."""
    try:
        stored_key, probes, code = marshal.loads(cache.read_bytes())
    except (OSError, EOFError, TypeError, ValueError):
        return None  # absent, or cut short: made anew
    return (probes, code) if stored_key == key else None


def _write_cache(cache: Path, key: _CacheKey, probes: int, code: CodeType) -> None:
    """Store (number of probes, code) for `key`; a place that cannot be written costs only time."""
    draft = cache.with_name(f"{cache.name}.{os.getpid()}")
    with suppress(OSError):
        cache.parent.mkdir(exist_ok=True)
        draft.write_bytes(marshal.dumps((key, probes, code)))
        draft.replace(cache)


def _map_constants(code: CodeType, change: Callable[[object], object]) -> CodeType:
    """Return `code` with each constant changed, in nested functions and classes too."""

    def changed(constant: object) -> object:
        if isinstance(constant, CodeType):
            return _map_constants(constant, change)
        return change(constant)

    return code.replace(co_consts=tuple(changed(constant) for constant in code.co_consts))
