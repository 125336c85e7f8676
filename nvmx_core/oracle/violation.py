"""A finding: which rule was broken, in which situation, at which step."""

from typing import NamedTuple


class Violation(NamedTuple):
    """One broken rule of one run.

    ``oracle`` is the id of the property, ``rule`` the id of the rule of ``arch.rules`` that decides.
    ``situation`` is a short stable key: findings with the same oracle, rule and situation are one finding.
    ``step`` is the index of the step during which it showed, ``position`` the index in the journal of the
    nested machine (or its length), ``fields`` the journal fields that differ or are wrong. ``sentence`` is
    one line for people.
    """

    oracle: str
    rule: str
    situation: str
    step: int
    position: int
    fields: tuple[str, ...]
    sentence: str

    def key(self) -> str:
        """What makes two findings the same one."""
        return f"{self.oracle} {self.rule} {self.situation}"
