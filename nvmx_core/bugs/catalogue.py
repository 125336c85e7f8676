"""Which L0 a name stands for: ``fixed``, or one bug put back."""

from typing import Final, NamedTuple

from nvmx_core.bugs.bug1 import Bug1
from nvmx_core.bugs.bug3 import Bug3
from nvmx_core.bugs.planted import PLANTED
from nvmx_core.l0.kvm import Kvm

FIXED: Final = "fixed"


class Bug(NamedTuple):
    """One historical bug: id, the fixing commit and its subject, the first fixed version, the broken rule."""

    name: str
    commit: str
    subject: str
    fixed_in: str
    rule: str
    l0: type[Kvm]


CATALOGUE: Final[tuple[Bug, ...]] = (
    Bug(
        "bug1",
        "51cfe38ea50aa631",
        "KVM: nVMX: Fix warning-causing idt-vectoring-info behavior",
        "about 3.3",
        "X3",
        Bug1,
    ),
    Bug("bug3", "d6185f20a0ef", "KVM: nVMX: Add KVM_REQ_IMMEDIATE_EXIT", "about 3.3", "O11", Bug3),
)

L0_BY_NAME: Final[dict[str, type[Kvm]]] = {FIXED: Kvm} | {bug.name: bug.l0 for bug in CATALOGUE}


def l0_class(name: str) -> type[Kvm]:
    """The L0 that a name stands for; KeyError for an unknown name, see ``L0_BY_NAME`` and ``PLANTED``."""
    return PLANTED[name] if name in PLANTED else L0_BY_NAME[name]
