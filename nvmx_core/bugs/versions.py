"""Which L0 a name stands for: ``fixed``, a bug, a planted bug, a version of KVM, or a list of bugs.

A version is the set of catalogued bugs that were in it, as far as their first and last versions are known.
Several bugs in one L0 are a class with several bases; that needs the Python build, because compiled classes
have one base each. Bugs go together when each of two that touch one method calls the other's through
``super()``, or when they touch different ones; and unless one takes away what the other needs (HIDDEN_BY).
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Final

from nvmx_core.bugs.catalogue import ABOUT, AFTER, BUG_BY_NAME, CATALOGUE, UNEXPRESSED, UNKNOWN, Bug
from nvmx_core.bugs.planted import PLANTED
from nvmx_core.l0.kvm import Kvm

FIXED: Final = "fixed"
VERSIONS: Final = (
    "3.1", "3.4", "3.10", "3.15", "4.0", "4.4", "4.9", "4.11", "4.14", "4.17", "4.19", "5.0", "5.4", "5.8",
    "5.10", "5.13", "5.15", "5.17", "6.1", "6.3", "6.6", "6.11", "6.12",
)  # fmt: skip
"""Versions worth a name; any other "kvm-X.Y" works too."""

L0_BY_NAME: Final[dict[str, type[Kvm]]] = {FIXED: Kvm} | {bug.name: bug.l0 for bug in CATALOGUE}

HIDDEN_BY: Final[dict[str, tuple[str, ...]]] = {
    # bug4 looks at nothing while there is an event to re-inject; bug2 leaves L2 before that.
    "bug1": ("bug2", "bug4"),
    "bug2": ("bug4",),
    "bug21": ("bug8",),  # what the queues held is overwritten anyway
    # An immediate exit too many is none, or a late one, without them.
    "bug23": ("bug3", "bug4", "bug30"),
    "bug32": ("bug31",),  # some of the checks that are left out are all of them
    "bug38": ("bug37",),  # L2 that is never woken is not woken wrongly either
    "bug40b": ("bug37",),
    "bug44": ("bug37",),
    "bug44b": ("bug37", "bug44"),  # the exit for a stale SIPI comes as little as that for a new one
    "bug46": ("bug16",),  # what is pending at the entry is not looked at, whatever it is
    "bug48": ("bug3", "bug30"),
    "bug50b": ("bug50",),  # an MTF exit that is never owed is not kept too long
    "bug59": ("bug8",),
    "res1": ("bug3",),  # nothing follows an immediate exit that is not made
    "res7b": ("bug27", "res7"),  # the MTF exit has come before the SMI
}
"""Bugs of which nothing is seen in an L0 that has one of the others too: it shows what it shows without them.

A list of a person is refused then. A version has what it had: it keeps both, and shows only the other.
"""

_VERSION: Final = re.compile(r"kvm-([1-9]\d{0,2})\.(0|[1-9]\d{0,2})")
_FIRST: Final = (3, 1)
_LAST: Final = (6, 12)
_LAST_OF_SERIES: Final = {3: 19, 4: 20, 5: 19}


class UnknownL0Error(Exception):
    """No L0 has that name: the part of it that is unknown, and a sentence why, "" when it is just no name."""

    def __init__(self, part: str, reason: str = "") -> None:
        super().__init__(part, reason)
        self.part: Final = part
        self.reason: Final = reason


class CombinationError(Exception):
    """Bugs that cannot be in one L0, with a sentence that says why."""


def l0_class(name: str) -> type[Kvm]:
    """The L0 that *name* stands for; names are joined by commas.

    Raises:
        UnknownL0Error: there is none of that name.
        CombinationError: two of the bugs replace the same decision, one that was named hides another or is
            hidden, or the build is compiled.
    """
    if name in L0_BY_NAME:
        return L0_BY_NAME[name]
    if name in PLANTED:
        return PLANTED[name]
    named, of_versions = _parts(name)
    bugs = _in_order(named | of_versions)
    for hidden, hider in hidden_in(bugs):
        if hidden in named or not {hidden, hider} <= of_versions:
            raise CombinationError(
                f"{hider} takes away what {hidden} needs, so nothing of it would show; name one of them"
            )
    return combine(tuple(bug.name for bug in bugs))


def numbers_of_release(release: str) -> tuple[int, int] | None:
    """The first two numbers of how a kernel calls itself ("6.1.0-56-cloud-amd64"); None if it has none."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def version_of_release(release: str) -> str:
    """The version that a kernel of that release is of, or the newest that the catalogue has."""
    major, minor = min(max(numbers_of_release(release) or _LAST, _FIRST), _LAST)
    return f"kvm-{major}.{minor}"


def bugs_of(name: str) -> list[Bug]:
    """The catalogued bugs that *name* stands for, in the order of the catalogue; raises UnknownL0Error."""
    named, of_versions = _parts(name)
    return _in_order(named | of_versions)


def hidden_in(bugs: Iterable[Bug]) -> list[tuple[str, str]]:
    """Each bug that another one of them hides, and that one."""
    names = [bug.name for bug in bugs]
    return [
        (hidden, hider) for hidden in names for hider in HIDDEN_BY.get(hidden, ()) if hider in names
    ]


def _in_order(names: set[str]) -> list[Bug]:
    return [bug for bug in CATALOGUE if bug.name in names]


def _parts(name: str) -> tuple[set[str], set[str]]:
    """The bugs that *name* names, and those that its versions had."""
    named: set[str] = set()
    of_versions: set[str] = set()
    for part in name.split(","):
        version = _VERSION.fullmatch(part)
        if version:
            number = (int(version[1]), int(version[2]))
            _require_version(part, number)
            of_versions.update(bug.name for bug in bugs_in(number))
        elif part in BUG_BY_NAME:
            named.add(part)
        elif part != FIXED:
            raise UnknownL0Error(part, _why_unknown(part))
    return named, of_versions


def _require_version(part: str, number: tuple[int, int]) -> None:
    major, minor = number
    last = _LAST_OF_SERIES.get(major, minor)
    if number > _LAST:
        reason = f"{part} is newer than the catalogue, which ends with kvm-{_LAST[0]}.{_LAST[1]}"
    elif number < _FIRST:
        reason = f"{part} has no nested VMX, which came with kvm-{_FIRST[0]}.{_FIRST[1]}"
    elif minor > last:
        reason = f"there was no {part}: the last of that series is kvm-{major}.{last}"
    else:
        return
    raise UnknownL0Error(part, reason)


def _why_unknown(part: str) -> str:
    if not part:
        return "a name is empty: commas go between names"
    if part in PLANTED:
        return f"{part} is planted, no bug of KVM, and is chosen alone"
    for entry in UNEXPRESSED:
        if entry.name == part:
            return f"{part} is known, but not expressed: {entry.reason}"
    return ""


def bugs_in(version: tuple[int, int]) -> list[Bug]:
    """The bugs that were in a version, of those whose fix, or one version that had them, is known."""
    return [bug for bug in CATALOGUE if _is_in(bug, version)]


def _is_in(bug: Bug, version: tuple[int, int]) -> bool:
    if bug.fixed_in == UNKNOWN or version < _number(bug.introduced, _FIRST):
        return False
    if bug.fixed_in.startswith(AFTER):
        return version <= _number(bug.fixed_in, _LAST)
    return version < _number(bug.fixed_in, (_LAST[0] + 1, 0))


def _number(version: str, default: tuple[int, int]) -> tuple[int, int]:
    if not version:
        return default
    major, minor = version.lstrip(f"{ABOUT}{AFTER}").split(".")
    return int(major), int(minor)


@cache
def combine(names: tuple[str, ...]) -> type[Kvm]:
    """One L0 with several bugs. Raises CombinationError."""
    bugs = [BUG_BY_NAME[name] for name in names]
    # A class that another one is made from is there already; those that replace come behind those that ask.
    chosen = [
        bug
        for bug in bugs
        if not any(bug is not two and issubclass(two.l0, bug.l0) for two in bugs)
    ]
    chosen.sort(key=lambda bug: bool(_replaced(bug)))
    _require_that_nothing_is_hidden(chosen)
    if len(chosen) < 2:
        return chosen[0].l0 if chosen else Kvm
    try:
        return type("+".join(names), tuple(bug.l0 for bug in chosen), {"__slots__": ()})
    except TypeError as error:
        raise CombinationError(
            "several bugs at once need the Python build of the model (--core python)"
        ) from error


def _decisions(bug: Bug) -> dict[str, bool]:
    """The methods that a bug has its own of, and whether it asks the L0 below it as well."""
    return {
        name: "super" in function.__code__.co_names
        for name, function in vars(bug.l0).items()
        if hasattr(function, "__code__") and hasattr(Kvm, name) and name != "__init__"
    }


def _replaced(bug: Bug) -> list[str]:
    return [name for name, asks in _decisions(bug).items() if not asks]


def _require_that_nothing_is_hidden(bugs: list[Bug]) -> None:
    """Raise CombinationError if a bug that replaces a decision stands before another that touches it."""
    for place, bug in enumerate(bugs):
        for name in _replaced(bug):
            for hidden in bugs[place + 1 :]:
                if name in _decisions(hidden):
                    raise CombinationError(
                        f"{bug.name} and {hidden.name} both replace {name}(); name one of them"
                    )
