"""A row of the table of known disagreements."""

from typing import Final, NamedTuple

from nvmx_fuzz.bochs.predicates import Predicate

BOCHS_WRONG: Final = "Bochs is wrong"
KVM_WRONG: Final = "KVM is wrong"
BOTH_ALLOWED: Final = "both are allowed"

SMI_ENDS_HLT: Final = "SMI ends HLT"

BOCHS: Final = ("bochs-boot", "kvm-bochs")
KVM: Final = ("kvm", "kvm-bochs")

EVERYWHERE: Final = ("bochs-boot", "kvm", "kvm-bochs")


class Listed(NamedTuple):
    """One known disagreement: on which machines, its rules, who is right, why, and a scenario.

    ``finding``: where docs/KVM-FINDINGS.md tells of it; ``since``, ``until``: the first kernel that shows it,
    and the first that does not any more, as far as kernels were asked.
    """

    name: str
    machines: tuple[str, ...]
    rules: tuple[str, ...]
    verdict: str
    why: str
    scenario: str
    matches: Predicate
    finding: str = ""
    since: tuple[int, int] = (0, 0)
    until: tuple[int, int] = (99, 0)
