"""What a rule is: one checkable statement, with a stable name and the place it comes from."""

from typing import NamedTuple


class Rule(NamedTuple):
    """One statement about what a processor or KVM does.

    id      stable name, a letter and a number; it appears in findings, so it is never reused
    title   at most 60 characters, for tables and headlines
    text    one to three sentences that can be decided true or false for a journal
    source  section title of the SDM, function of the kernel or of Bochs, or name of a test
    """

    id: str
    title: str
    text: str
    source: str
