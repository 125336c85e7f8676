"""Every rule that a finding may cite, by its stable id.

The letter tells the topic: E, C and G are checks of a VM entry, O its effects in order; P the
priority on an instruction boundary, B blocking, N NMIs, A activity states, M the monitor trap
flag, I instructions; D delivery, Y and X exits, F double and triple faults, K acknowledgement;
S one pass of L0 and V what must always hold there. docs/SOURCES.md names the documents and says
what was decided where they disagree or are silent.
"""

from typing import Final

from nvmx_core.arch.rule import Rule
from nvmx_core.arch.rules_boundary import BOUNDARY_RULES
from nvmx_core.arch.rules_delivery import DELIVERY_RULES
from nvmx_core.arch.rules_entry import ENTRY_RULES
from nvmx_core.arch.rules_l0 import L0_RULES

__all__ = ["RULES", "Rule", "rule"]

_TITLE_LENGTH_MAX: Final = 60


def _by_id(rules: tuple[Rule, ...]) -> dict[str, Rule]:
    """Index the rules by id; a malformed table is our own bug and stops the import."""
    table: dict[str, Rule] = {}
    for entry in rules:
        assert entry.id not in table, f"rule id {entry.id} is used twice"
        assert entry.text.endswith("."), f"the text of rule {entry.id} lacks its full stop"
        assert entry.source, f"rule {entry.id} names no source"
        assert 0 < len(entry.title) <= _TITLE_LENGTH_MAX, f"bad title length in rule {entry.id}"
        table[entry.id] = entry
    return table


RULES: Final[dict[str, Rule]] = _by_id(ENTRY_RULES + BOUNDARY_RULES + DELIVERY_RULES + L0_RULES)


def rule(rule_id: str) -> Rule:
    """Return the rule with this id.

    Raises:
        KeyError: no such rule; the message lists the ids that begin with the same letter.
    """
    found = RULES.get(rule_id)
    if found is not None:
        return found
    near = [known for known in RULES if known[:1] == rule_id[:1].upper()]
    hint = f"known are {', '.join(near)}" if near else "an id is a letter and a number, as in X3"
    raise KeyError(f"no rule {rule_id!r}; {hint} (see nvmx_core/arch/rules.py)")
