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

ANY_KERNEL: Final = (0, 0)
SLEEPS: Final = "L2 sleeps though something is due"
"""The name of an incident: the scenario enters HLT or wait-for-SIPI, and nothing comes back."""
SLEEPS_IN_BOCHS: Final = "L2 sleeps though a window is open"
"""The same in Bochs, which in HLT looks neither for windows nor for virtual interrupts."""
UNCHECKED: Final = "single step not pending"
"""The name of another: Bochs enters where a check (G9) forbids it (FIDELITY.md), and goes on anywhere."""


def listed(machine: str, found: Difference, kernel: tuple[int, int] = ANY_KERNEL) -> Listed | None:
    """The row that a difference on a machine is an instance of, on a kernel of that version."""
    return next((row for row in LISTED if is_on(row, machine, kernel) and row.matches(found)), None)


def is_on(row: Listed, machine: str, kernel: tuple[int, int]) -> bool:
    """Whether a row is one of a machine with that kernel."""
    return machine in row.machines and (kernel == ANY_KERNEL or row.since <= kernel < row.until)
