"""Stops: how our monitor gets control at an exact moment while L2 runs, and what it does there.

Before an entry L1 tells the monitor (``_vmm_stops.h``) a page of L2 and an action. The monitor takes the page
away from itself; when L2, or a delivery in L2, touches it, KVM_RUN fails with EFAULT in the middle of L0's
repair, with the event still in flight. The page is given back, the action done, and L0 goes on. Neither L1
nor L2 can notice more than a page that L0 had to repair.
"""

from typing import Final

from nvmx_core.scenario.steps import INIT, INTERRUPT, NMI, SIPI, SMI
from nvmx_fuzz.boot.program import STOP
from nvmx_fuzz.realise.script import Operation

# Where; the order is that of `enum place`.
NOW, AT_PAGE, ASLEEP, AT_PORT, ALSO = range(5)
# What; the order is that of `enum action`.
NOTHING, MESSAGE, SAVE, CANCEL, DROP_ALL = range(5)

PORT: Final = 0x80
"""The port that L2's IN and OUT name."""
SMM_PORT: Final = 0xF4
"""The port that the system-management handler uses before it returns."""
_MODES: Final = {INTERRUPT: 0x000, SMI: 0x200, NMI: 0x400, INIT: 0x500, SIPI: 0x600}
"""The delivery mode of a message to L1's APIC."""


def stop(place: int, where: int, what: int) -> Operation:
    """The operation of L1's script that asks for one."""
    return STOP, place, where, what


def message(op: int, vector: int) -> int:
    """The action by which an outside step arrives: a message to L1's APIC; -1 if none says that."""
    mode = _MODES.get(op, -1)
    if mode < 0:
        return -1
    return MESSAGE | (mode | (vector if op in (INTERRUPT, SIPI) else 0)) << 8
