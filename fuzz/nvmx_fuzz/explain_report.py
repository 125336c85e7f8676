"""What an explanation holds, as plain frozen records, and its JSON form.

Steps are counted from 1, as the report prints them. In every list the order is that of time.
"""

from dataclasses import asdict, dataclass
from typing import Final

REPORT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """Part 1: the violation, its step counted from 1. ``fields`` are names of journal fields."""

    oracle: str
    rule: str
    situation: str
    sentence: str
    step: int
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """Part 2: one thing that happened.

    ``step`` is the number of the scenario's step on its first line, else 0: what follows from that
    step. ``who`` is L0, L1, L2 or outside. ``hidden``: L0's own doing, which L1 and L2 must not
    notice. ``expected`` is what bare metal shows instead, or "". ``wrong``: the violation is here.
    ``needed`` is the action with ``any`` for each value that does not matter, or "" when all do.
    ``kind`` and ``arrow`` are for pictures, see ``explain_arrows``; ``record`` is the index in the
    journal of what L1 or L2 sees here, or -1.
    """

    step: int
    who: str
    action: str
    effect: str
    hidden: bool = False
    expected: str = ""
    wrong: bool = False
    needed: str = ""
    kind: str = ""
    arrow: tuple[str, ...] = ()
    record: int = -1


@dataclass(frozen=True, slots=True)
class BareLine:
    """Part 2 on bare metal: one record, at the ``step`` that it belongs to (the end: one more).

    ``differs``: the machine nested shows something else from here on; ``fields`` are the journal
    fields that differ, when it is a record of the same kind. The rest is as in ``Line``.
    """

    step: int
    who: str
    effect: str
    kind: str
    arrow: tuple[str, ...]
    record: int
    differs: bool
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """Part 3: one change of a variable.

    ``who`` is L0, L1, L2, outside or processor. ``variable`` is a field with its VMCS, or a variable
    of the vCPU by KVM's name. ``old`` and ``new`` are numbers in hexadecimal, ``-`` when undefined or
    not set yet; ``meaning`` is the new value decoded. ``by`` is what was being done.
    """

    step: int
    who: str
    variable: str
    old: str
    new: str
    meaning: str
    by: str


@dataclass(frozen=True, slots=True)
class FieldStory:
    """Part 3: one field, what was seen and what bare metal shows, and how its value came about."""

    field: str
    seen: str
    expected: str
    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True)
class RuleText:
    """Part 4: one rule. ``violated`` is False for the rules that it rests on."""

    id: str
    title: str
    text: str
    source: str
    violated: bool


@dataclass(frozen=True, slots=True)
class Report:
    """An explanation. Without a violation ``finding`` is None and ``fields`` is empty.

    ``setup`` says in words what the machine and L1 offer, ``l0_about`` what is wrong with the L0 by
    construction. ``others`` are the oracles and rules that this scenario breaks besides.
    ``bare`` is what bare metal shows.
    ``scenario`` is the scenario in text form, ``replay`` the command that runs it again,
    "" where that stands elsewhere.
    """

    l0: str
    l0_about: str
    setup: tuple[str, ...]
    finding: Finding | None
    others: tuple[str, ...]
    lines: tuple[Line, ...]
    bare: tuple[BareLine, ...]
    fields: tuple[FieldStory, ...]
    rules: tuple[RuleText, ...]
    replay: str
    revision: str
    scenario: str


def to_json(report: Report) -> dict[str, object]:
    """The report as JSON-able dictionaries and lists, with the version of this form."""
    return {"version": REPORT_VERSION} | {
        name: _plain(value) for name, value in asdict(report).items()
    }


def _plain(value: object) -> object:
    """Tuples become lists, so that what is written is what is read back."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
