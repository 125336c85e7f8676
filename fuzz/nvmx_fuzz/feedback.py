"""What libFuzzer sees of a run: branch counters of the model, and counters of our own.

libFuzzer keeps an input when a byte of a registered counter array takes a value class (1, 2, 3,
4-7, 8-15, 16-31, 32-127, 128-255) that no earlier input gave it; it clears all arrays before each
execution. Whoever has such an array therefore has coverage feedback. There are two kinds here:

- `ExtraCounters`: an array that the target writes itself, for states and situations.
- branch counters: one per basic block of the instrumented packages, written by a probe that
  atheris's bytecode instrumentation inserts. Most of the cost of a campaign in plain Python is this
  probe, so there are several ways to have it (`Mode`).

| mode       | probe                                   | comparisons | instrumented bytecode |
|------------|-----------------------------------------|-------------|-----------------------|
| `fast`     | `_branch.c`, called without conversions | not traced  | cached                |
| `branches` | atheris's own                           | not traced  | cached                |
| `stock`    | atheris's own                           | traced      | made at each start    |
| `states`   | none; only `ExtraCounters` give feedback | not traced | none                  |

A compiled core brings counters of its own for the mode `fast`, if clang made it (`build_fast.py`), and
no probes are inserted into it.

The environment variable `NVMX_FEEDBACK` chooses one. Its default, `auto`, is `fast` where the
native helper was built, `branches` where it was not, and `stock` inside a frozen program, whose
modules have no source files.

Order matters and `setup` keeps it: libFuzzer binds a custom mutator at the moment it is loaded, and
counters can be registered only after that. So a target reads::

    with instrument(["nvmx_core.l0"]) as probes:
        from nvmx_core import machines
    setup(sys.argv, test_one_input, probes=probes, counters=[states], custom_mutator=mutate)
    atheris.Fuzz()
"""

import ctypes
import gc
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Final, Literal, cast, get_args

import atheris
import atheris.native

from nvmx_fuzz import FEEDBACK_VARIABLE
from nvmx_fuzz.instrumentation import (
    InstrumentingFinder,
    Numbering,
    is_within,
    numbered_in_order,
)

Mode = Literal["fast", "branches", "stock", "states"]
TestOneInput = Callable[[bytes], None]
CustomMutator = Callable[[bytes, int, int], bytes]
CustomCrossover = Callable[[bytes, bytes, int, int], bytes]

# libFuzzer keeps raw pointers for the life of the process; what they point to must stay.
_registered: Final[list[object]] = []

_GC_THRESHOLD: Final = 50_000
"""Objects made between two looks of the cyclic garbage collector; Python's own default is 700."""


class ExtraCounters:
    """Counters that the target itself writes and that libFuzzer takes for coverage.

    Attributes:
        buffer: one byte per counter, 0 at the start of each execution. It must never be resized
            (an attempt raises BufferError). Write values up to 255; a plain `buffer[i] = 1` marks
            a situation as reached, a saturating count tells how often.
    """

    __slots__ = ("_is_registered", "buffer")

    def __init__(self, size: int) -> None:
        """Make `size` counters (at least 1; ValueError otherwise), not yet known to libFuzzer."""
        if size < 1:
            raise ValueError(f"size is {size}, but there must be at least one counter")
        self.buffer: Final = bytearray(size)
        self._is_registered = False

    def register(self) -> None:
        """Hand the buffer to libFuzzer, once; later calls do nothing. See `load_libfuzzer`."""
        if self._is_registered:
            return
        size = len(self.buffer)
        counters = (ctypes.c_ubyte * size).from_buffer(self.buffer)
        # libFuzzer demands a table of (pc, flags) beside the counters. It identifies a counter by
        # its place in this table, so zeros will do; flags of 0 keep it from looking for symbols.
        pc_table = (ctypes.c_size_t * (2 * size))()
        _registered.extend((counters, pc_table))
        first, pcs = ctypes.addressof(counters), ctypes.addressof(pc_table)
        _register(first, first + size, pcs, pcs + ctypes.sizeof(pc_table))
        self._is_registered = True


@dataclass
class Probes:
    """The branch probes of one `instrument` block.

    Attributes:
        mode: how branches are counted.
        numbering: the numbers given to probes; it stays at 0 in the modes `stock`, where atheris
            keeps count, and `states`.
    """

    mode: Mode
    numbering: Numbering = field(default_factory=Numbering)

    @property
    def count(self) -> int:
        """Return the number of probes inserted."""
        return self.numbering.used


def has_native_probe() -> bool:
    """Say whether the native helper was built for this interpreter."""
    return _native_probe() is not None


def choose_mode(wanted: str | None = None) -> Mode:
    """Decide how to count branches.

    Args:
        wanted: a `Mode`, "auto", or None for the value of `NVMX_FEEDBACK` (default "auto").

    Returns:
        The mode; `fast` becomes `branches` where the native helper is missing.

    Raises:
        ValueError: the name is not a mode; the message lists them.
    """
    name = wanted if wanted is not None else os.environ.get(FEEDBACK_VARIABLE) or "auto"
    if name != "auto" and name not in get_args(Mode):
        choices = ", ".join(("auto", *get_args(Mode)))
        raise ValueError(f"{FEEDBACK_VARIABLE} is {name!r}, but must be one of {choices}")
    if name == "auto":
        name = "stock" if getattr(sys, "frozen", False) else "fast"
    if name == "fast" and not has_native_probe():
        name = "branches"
    return cast("Mode", name)


@contextmanager
def instrument(packages: Sequence[str], mode: str | None = None) -> Iterator[Probes]:
    """Insert probes into every module of `packages` that is imported inside the block.

    Args:
        packages: names of packages; `package.part` leaves the rest of it alone, except in the mode
            `stock`, since atheris itself knows whole packages only.
        mode: see `choose_mode`.

    Yields:
        The probes, to be given to `setup` after the block.

    Raises:
        RuntimeError: a module of `packages` is imported already and would stay without probes.
        ValueError: see `choose_mode`.
    """
    probes = Probes(choose_mode(mode))
    if probes.mode == "states":
        yield probes
        return
    early = sorted(name for name in sys.modules if is_within(name, packages))
    if early:
        raise RuntimeError(f"imported before instrument(), so without probes: {', '.join(early)}")
    if probes.mode == "stock":
        whole = sorted({name.partition(".")[0] for name in packages})
        with numbered_in_order(), atheris.instrument_imports(include=whole):
            yield probes
        return
    # `fast` calls the helper, `branches` whatever atheris puts in place when fuzzing begins.
    probe_module = _native_probe() if probes.mode == "fast" else atheris
    finder = InstrumentingFinder(frozenset(packages), probe_module, probes.numbering)
    sys.meta_path.insert(0, finder)
    try:
        yield probes
    finally:
        sys.meta_path.remove(finder)
    if probes.mode == "branches":
        for _ in range(probes.count):
            atheris._reserve_counter()  # noqa: SLF001 - atheris has no other way to be told


def load_libfuzzer(*, custom_mutator: bool = False, custom_crossover: bool = False) -> None:
    """Load atheris's libFuzzer, so that counters can be registered before the first execution.

    Args:
        custom_mutator: a custom mutator will be given to `atheris.Setup`. libFuzzer looks for one
            while it is being loaded, so it is too late to change this afterwards.
        custom_crossover: the same for a custom crossover.
    """
    if atheris.native.libfuzzer_is_loaded():
        return  # preloaded together with a sanitizer; its symbols are global already
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_GLOBAL)
    try:
        if custom_mutator:
            importlib.import_module("atheris.custom_mutator")
        if custom_crossover:
            importlib.import_module("atheris.custom_crossover")
    finally:
        sys.setdlopenflags(flags)
    importlib.import_module("atheris.core_with_libfuzzer")


def setup(
    argv: Sequence[str],
    test_one_input: TestOneInput,
    *,
    probes: Probes | None = None,
    counters: Iterable[ExtraCounters] = (),
    custom_mutator: CustomMutator | None = None,
    custom_crossover: CustomCrossover | None = None,
) -> list[str]:
    """Do what `atheris.Setup` does, with all counters registered; `atheris.Fuzz()` comes next.

    Args:
        argv: the program's arguments, `argv[0]` being the path of the target; libFuzzer starts it
            again for -fork, -jobs, -merge and -minimize_crash.
        test_one_input: called with each input.
        probes: from `instrument`.
        counters: further counters of the target.
        custom_mutator: (input, size limit in bytes, seed) -> new input.
        custom_crossover: (input, other input, size limit in bytes, seed) -> new input.

    Returns:
        The arguments that are not libFuzzer's.
    """
    load_libfuzzer(
        custom_mutator=custom_mutator is not None, custom_crossover=custom_crossover is not None
    )
    if probes is not None and probes.mode == "fast" and probes.count:
        branches = ExtraCounters(probes.count)
        branches.register()
        native = _native_probe()
        assert native is not None, "mode fast was chosen without the native helper"
        native.bind(branches.buffer)
    if probes is not None and probes.mode == "fast":
        _register_compiled_counters()
    for extra in counters:
        extra.register()
    rest: list[str] = atheris.Setup(
        [_restart_command(argv[0]), *argv[1:]],
        test_one_input,
        custom_mutator=custom_mutator,
        custom_crossover=custom_crossover,
    )
    _keep_what_is_loaded()
    return rest


def _keep_what_is_loaded() -> None:
    """Have the cyclic garbage collector leave alone what exists, and look at the rest seldom.

    Runs leave no cycles behind, and everything loaded by now stays: walking it again and again took a
    tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


def _register(start: int, stop: int, pcs_start: int, pcs_stop: int) -> None:
    """Tell libFuzzer of counters from address *start* to *stop*, and of their table."""
    library = _libfuzzer_symbols()
    address = ctypes.c_void_p
    library["__sanitizer_cov_8bit_counters_init"](address(start), address(stop))
    library["__sanitizer_cov_pcs_init"](address(pcs_start), address(pcs_stop))


def _register_compiled_counters() -> None:
    """Hand over the counters of modules that were compiled with some (`_counters.c`)."""
    for name, module in sorted(sys.modules.items()):
        if not name.endswith("__mypyc") or module.__file__ is None:
            continue
        library = ctypes.CDLL(module.__file__)
        if not hasattr(library, "nvmx_counter_range"):
            continue
        addresses = (ctypes.c_void_p * 4)()
        number = 0
        while library.nvmx_counter_range(ctypes.c_size_t(number), addresses):
            _register(*(address or 0 for address in addresses))
            number += 1


def _restart_command(program: str) -> str:
    """Return shell text that starts `program` again with this interpreter.

    libFuzzer joins its arguments with spaces and gives them to a shell. As it is, `argv[0]` would
    fail there for `python target.py`, and for a path with a space in it.
    """
    if Path(program).is_file() and not getattr(sys, "frozen", False):
        return shlex.join([sys.executable, str(Path(program).resolve())])
    return shlex.quote(program)


def _native_probe() -> ModuleType | None:
    """Return the native helper's module, or None where it was not built."""
    try:
        return importlib.import_module("nvmx_fuzz._branch")
    except ImportError:
        return None


def _libfuzzer_symbols() -> ctypes.CDLL:
    """Return the library that holds libFuzzer; RuntimeError if none is loaded yet."""
    if atheris.native.libfuzzer_is_loaded():
        return ctypes.CDLL(None)
    core = sys.modules.get("atheris.core_with_libfuzzer")
    if core is None or core.__file__ is None:
        raise RuntimeError("libFuzzer is not loaded: call load_libfuzzer() or setup() first")
    return ctypes.CDLL(core.__file__)
