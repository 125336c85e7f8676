"""Planted bugs for measuring a search: each needs several situations in one order before it shows.

They are no KVM's, and stand in no catalogue of history. A stale flag is what they have in common: one
situation raises it, others let it survive, a last one reads it. Everything else is the fixed L0.
"""

from typing import Final

from nvmx_core.arch.exits import EPT_VIOLATION, TRIPLE_FAULT
from nvmx_core.arch.instructions import Instruction
from nvmx_core.bugs.remembering import Remembering
from nvmx_core.l0.kvm import Kvm


class _Staged(Remembering):
    """Counts how far a history has come; a situation out of order changes nothing."""

    __slots__ = ()

    def advance(self, stage: int) -> None:
        """The situation number *stage* (from 1) has been seen."""
        if self.stage == stage - 1:
            self.stage = stage

    def exit_stage(self, reason: int) -> int:
        """The stage that a nested exit with *reason* is, 0 for none."""
        return 0

    def save_pending_event(self, reason: int, info: int, length: int) -> None:
        super().save_pending_event(reason, info, length)
        stage = self.exit_stage(reason)
        if stage:
            self.advance(stage)


class Deep1(_Staged):
    """An EPT violation for L1, a cancelled entry, then a re-injected NMI."""

    __slots__ = ()

    def exit_stage(self, reason: int) -> int:
        return 1 if reason == EPT_VIOLATION else 0

    def cancel_injection(self, immediate: bool) -> None:
        self.advance(2)
        super().cancel_injection(immediate)

    def unblock_nmi_for_reinjection(self) -> None:
        if self.stage < 2:
            super().unblock_nmi_for_reinjection()


class Deep2(_Staged):
    """SMM from L2, an emulated instruction, then an immediate exit."""

    __slots__ = ()

    def enter_smm(self) -> None:
        if self.guest_mode:
            self.advance(1)
        super().enter_smm()

    def emulate(self, instruction: Instruction) -> None:
        self.advance(2)
        super().emulate(instruction)

    def request_immediate_exit(self) -> None:
        if self.stage < 2:
            super().request_immediate_exit()


class Deep3(_Staged):
    """An NMI that L0 injects into L2, a triple fault for L1, then a re-injected event."""

    __slots__ = ()

    def exit_stage(self, reason: int) -> int:
        return 2 if reason == TRIPLE_FAULT else 0

    def inject_nmi(self) -> None:
        self.advance(1)
        super().inject_nmi()

    def blocks_boundary_events(self) -> bool:
        return self.stage < 2 and super().blocks_boundary_events()


PLANTED: Final[dict[str, type[Kvm]]] = {
    "deep1": Deep1,
    "deep2": Deep2,
    "deep3": Deep3,
}
