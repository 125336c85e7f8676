"""Two journals of one scenario: where they first differ, and how that is named.

A difference has a *key*, the same for all scenarios that show it in the same way, so that a campaign keeps
one scenario of each kind.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from nvmx_core.arch.capabilities import Capabilities
from nvmx_core.arch.exits import FAILED_ENTRY, NO_EXIT, Origin, exit_fields, exit_name
from nvmx_core.arch.fields import EXIT_QUALIFICATION, EXIT_REASON, FIELD_COUNT
from nvmx_core.arch.rules import RULES
from nvmx_core.journal import EXIT, L1_ENTRY, RECORD_FIELDS, RECORD_NAMES, Record
from nvmx_fuzz import entry_reading
from nvmx_fuzz.decode_words import record_word
from nvmx_fuzz.entry_reading import Row
from nvmx_fuzz.explain_records import record_text
from nvmx_fuzz.explain_rules import by_situation

_EVENT: Final = "what happens"
"""Stands for the fields of two records of different kinds."""


class Met(NamedTuple):
    """What came in a stay in L2, and is in no record: what predicates on a difference ask.

    ``executed``: the instructions that L2 began, a bit each; ``saved_at``, ``smi_at``: where L2 stood when a
    userspace saved and restored the processor, and when an SMI came, -1 for neither; ``smi_activity`` and
    ``smi_shadow``: its activity state then, and whether a shadow was in effect. Up to here in the scenario:
    ``second_nmi``: an NMI came while another one was pending; ``late_event``: an exit found one pending, or
    an interrupt, that came for L2; ``late_init``: an exit out of wait-for-SIPI found an INIT pending.
    """

    executed: int = 0
    saved_at: int = -1
    smi_at: int = -1
    smi_activity: int = 0
    smi_shadow: bool = False
    second_nmi: bool = False
    late_event: bool = False
    late_init: bool = False


class Entry(NamedTuple):
    """An entry of L1, with all that decides about it.

    ``rule`` is the rule that the model says it broke, or ""; ``vmcs``, ``vtpr`` and ``caps`` are the VMCS,
    the virtual TPR and the processor then, ``origin`` the exit that the exit information stems from.
    ``monitor_was_lost``: a TLB flush came between MONITOR and MWAIT in this stay in L2; ``met``: what else
    came in it.
    """

    rule: str = ""
    vmcs: tuple[int, ...] = (0,) * FIELD_COUNT
    vtpr: int = 0
    caps: Capabilities = Capabilities(*(False,) * len(Capabilities._fields))
    origin: Origin = NO_EXIT
    monitor_was_lost: bool = False
    met: Met = Met()

    def forbidden_by(self) -> tuple[Row, ...]:
        """What forbids it by the second reading of the checks, which asks nobody else."""
        return entry_reading.forbidden_by(self._read())

    def forbidden_guest_state(self) -> tuple[Row, ...]:
        """What of that is guest state, also where the controls forbid it already."""
        return tuple(entry_reading.broken_by_class(self._read()))[-1]

    def _read(self) -> entry_reading.Entry:
        return entry_reading.Entry(list(self.vmcs), self.vtpr, self.caps)

    def exit_of_failure(self, reason: int, qualification: int) -> Record:
        """The exit information when it fails: only reason and qualification are written (E0)."""
        vmcs = list(self.vmcs)
        vmcs[EXIT_REASON], vmcs[EXIT_QUALIFICATION] = reason, qualification
        return exit_fields(vmcs, self.origin)


class Difference(NamedTuple):
    """The first difference of two journals.

    A record that a machine does not have is empty. ``entry`` is the last entry of L1; ``history`` are the
    records in front of the difference, in which both agree; ``behind`` is what the other machine shows
    after it.
    """

    bare: Record
    other: Record
    entry: Entry
    history: tuple[Record, ...] = ()
    behind: tuple[Record, ...] = ()

    @property
    def place(self) -> int:
        """How many records are in front of the difference."""
        return len(self.history)

    @property
    def injected(self) -> int:
        """The event that the last entry of L1 injected; 0 for none."""
        return next((record[1] for record in self.history[::-1] if record[0] == L1_ENTRY), 0)

    @property
    def entry_rule(self) -> str:
        """The rule that the last entry of L1 broke in the model, or ""."""
        return self.entry.rule

    def fields(self) -> tuple[str, ...]:
        """The names of the fields that differ; none if the records are of different kinds."""
        if not self.is_of_one_kind():
            return ()
        names = RECORD_FIELDS[self.bare[0]]
        pairs = zip(names, self.bare[1:], self.other[1:], strict=True)
        return tuple(name for name, ours, theirs in pairs if ours != theirs)

    def is_of_one_kind(self) -> bool:
        """Whether both records are of one kind (an exit and an exit, say)."""
        return bool(self.bare and self.other) and self.bare[0] == self.other[0]

    def key(self) -> str:
        """What names this kind of difference."""
        rule = f" [{self.entry_rule}]" if self.entry_rule else ""
        if self.is_of_one_kind():
            return f"{_kind(self.bare)}: {', '.join(self.fields())}{rule}"
        return f"{_kind(self.bare)} / {_kind(self.other)}{rule}"

    def values(self) -> list[tuple[str, str, str]]:
        """What differs: the name of a field, and its value in each record for a person."""
        if not self.is_of_one_kind():
            return [(_EVENT, _kind(self.bare), _kind(self.other))]
        return [
            (name, record_word(self.bare, name), record_word(self.other, name))
            for name in self.fields()
        ]

    def rules_of(self, name: str) -> tuple[str, ...]:
        """The rules that decide about a field, or about records of different kinds; the entry's first."""
        rules = [self.entry_rule]
        if self.bare[:1] == (EXIT,) and self.bare[1] & FAILED_ENTRY:
            rules.append("E0")
        fields = () if name == _EVENT else (name,)
        rules += by_situation(fields, self.other or None, self.bare or None)
        return tuple(dict.fromkeys(rule for rule in rules if rule in RULES))

    def rules(self) -> tuple[str, ...]:
        """All of them."""
        found = [rule for name, _, _ in self.values() for rule in self.rules_of(name)]
        return tuple(dict.fromkeys(found))

    def lines(self, other_name: str) -> list[str]:
        """Both records for a person, with the fields in which they differ."""
        fields = self.fields()
        return [
            f"{'bare':6} {_shown(self.bare, fields)}",
            f"{other_name:6} {_shown(self.other, fields)}",
        ]


def _kind(record: Record) -> str:
    if not record:
        return "nothing"
    if record[0] == EXIT:
        return f"exit {exit_name(record[1])}"
    return RECORD_NAMES[record[0]]


def _shown(record: Record, fields: tuple[str, ...]) -> str:
    return f"{RECORD_NAMES[record[0]]}: {record_text(record, fields)}" if record else "nothing"


def first_difference(
    bare: Sequence[Record], other: Sequence[Record], entries: Sequence[Entry]
) -> Difference | None:
    """The first difference, or None; *entries* has one for each record `L1_ENTRY`, or none is asked about."""
    if bare == other:
        return None
    entry = Entry()
    following = iter(entries)
    for index in range(max(len(bare), len(other))):
        ours = bare[index] if index < len(bare) else ()
        theirs = other[index] if index < len(other) else ()
        if ours != theirs:
            behind = tuple(other[index + 1 :])
            return Difference(ours, theirs, entry, tuple(bare[:index]), behind)
        if ours[0] == L1_ENTRY:
            entry = next(following, Entry())
    return None
