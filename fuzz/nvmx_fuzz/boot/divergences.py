"""Where the machines that boot are known to disagree with the model: Bochs 3.0 and KVM.

What the catalogue of KVM's bugs predicts is not here (``predicted.py``), nor what every Bochs does
(``bochs/divergences.py``). `docs/KVM.md` is made from this table.
"""

from typing import Final

from nvmx_fuzz.boot.rows import Listed
from nvmx_fuzz.boot.rows_of_bochs import OF_BOCHS
from nvmx_fuzz.boot.rows_of_kvm import OF_KVM
from nvmx_fuzz.compare import Difference

LISTED: Final = (*OF_KVM, *OF_BOCHS)

SLEEPS: Final = "L2 sleeps though something is due"
"""The name of an incident: the scenario enters HLT or wait-for-SIPI, and nothing comes back."""
UNCHECKED: Final = "single step not pending"
"""The name of another: Bochs enters where a check (G9) forbids it (FIDELITY.md), and goes on anywhere."""


def listed(machine: str, found: Difference) -> Listed | None:
    """The row that a difference on a machine is an instance of."""
    return next((row for row in LISTED if machine in row.machines and row.matches(found)), None)
