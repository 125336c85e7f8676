"""What the catalogue says of divergences in today's KVM (res1 to res11), against the real Linux 6.1.

docs/KVM.md and docs/FIDELITY.md are made from this table.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

CONFIRMED: Final = "confirmed"
NO_DIFFERENCE: Final = "no difference"
NOT_THERE: Final = "not in 6.1"
OUTSIDE: Final = "outside the model"


class Residual(NamedTuple):
    """One divergence: its name, what it says, what the real kernel shows, why, and what shows it.

    ``shown_by``: the scenario to ask a kernel with.
    """

    name: str
    about: str
    verdict: str
    why: str
    seen_by: str = ""
    shown_by: str = ""


RESIDUALS: Final[tuple[Residual, ...]] = (
    Residual("res1", "exit 1 comes late after a forced entry", NOT_THERE, "of 3.4 only"),
    Residual(
        "res2", "types are normalised", CONFIRMED,
        "VMfail 7 after L2 ran, and a stale length that moves the return address",
        "`corpus/bugs/res2.scn`, `injected-soft-exception-keeps-its-type`", "corpus/bugs/res2.scn",
    ),
    Residual(
        "res3", "an injected INT1 is dropped", CONFIRMED,
        "one that L2 executes is not lost: L0 intercepts it and makes it a hardware exception (F8); res3b, "
        "the same for an injected MTF exit whose entry is cancelled, is F22",
        "`corpus/bugs/res3.scn`, `inject-int1`", "corpus/bugs/res3.scn",
    ),
    Residual(
        "res4", "the entry length of L1 changes", CONFIRMED, "",
        "`corpus/bugs/res4.scn`, `ept12-fault-keeps-instruction-length`", "corpus/bugs/res4.scn",
    ),
    Residual(
        "res5", "a second NMI is lost", NO_DIFFERENCE,
        "that L1 can tell: two NMIs in one delivery are one on metal too; one behind the exit comes",
        "`outside nmi in-delivery` twice (the tests that boot)",
    ),
    Residual(
        "res6", "NMI unblocking by IRET", CONFIRMED,
        "bit 3 is set again (res6b); a reflected EPT violation has no bit 12 (res6c, as old as nested EPT)",
        "`iret-fault-in-ept12-reports-nmi-unblocking`",
        "corpus/nested_events/iret-fault-in-ept12-reports-nmi-unblocking.scn",
    ),
    Residual(
        "res7", "rank of SMI", CONFIRMED, "an INIT exits before the SMI that came in the same delivery",
        "`outside smi at-entry`, `outside init`, `L1 inject external-interrupt 0x40`, `L1 enter`",
        "outside smi at-entry / outside init / L1 inject external-interrupt 0x40 / L1 enter",
    ),
    Residual(
        "res8", "activity checks", CONFIRMED,
        "HLT with SS.DPL 3, with a shadow, with an exception injected; wait-for-SIPI with an injection",
        "`corpus/entry_checks/g2-*`, `g3-*`, `g4-*`",
        "config user-mode=on / L1 vmwrite GUEST_ACTIVITY 0x1 / L1 control nmi-window-exiting on / L1 enter",
    ),
    Residual(
        "res9", "triple fault with a pending entry", OUTSIDE,
        "between VMLAUNCH and the entry L0 asks for one only where the root of L2's page tables, or of L1's "
        "EPT, is no memory (mmu_check_root), or where a userspace does (KVM_SET_VCPU_EVENTS); scenarios have "
        "neither",
    ),
    Residual("res10", "#CP and #VE in #DF", OUTSIDE, "the model has neither"),
    Residual(
        "res11", "userspace save drops soft events", CONFIRMED,
        "an injected software interrupt or #BP in flight is gone, and nothing takes its place",
        "`L0 save-restore in-delivery`, `L1 inject software-interrupt 0x80 length=2`, `L1 enter`; "
        "`corpus/bugs/res11.scn`",
        "L0 save-restore in-delivery / L1 inject software-interrupt 0x80 length=2 / L1 enter",
    ),
)  # fmt: skip


def rows() -> Iterator[str]:
    """The lines of the table."""
    yield "| | what the catalogue says | on the real 6.1 | | seen by |"
    yield "|---|---|---|---|---|"
    for row in RESIDUALS:
        yield f"| {row.name} | {row.about} | **{row.verdict}** | {row.why} | {row.seen_by} |"
