"""The same scenario on ``bare`` and on ``nested``, and what each of them showed.

    pair = both(drop_page(IDT_HIGH), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    assert pair.seen.vectors == [0x40]
    assert pair.violations == ()

:func:`transparent` is for behaviour that must not differ from bare metal: it insists that no rule is broken.
"""

from typing import Final, NamedTuple

from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.log import HARDWARE_ENTRY, L0Record
from nvmx_core.l0.reach import REACH_INDEX
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.judge import Verdict, run_and_judge
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario import steps
from nvmx_core.scenario.config import Config
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, IN_EMULATION, NOW, Scenario, Step
from tests import support
from tests.support import Play

MOMENTS: Final = (NOW, AT_ENTRY, IN_DELIVERY, IN_EMULATION)

# -- steps of L0 --------------------------------------------------------------------------------


def drop_page(page: int) -> Step:
    """L0 drops a page from its own tables."""
    return steps.DROP_PAGE, page, 0, 0


def host_interrupt() -> Step:
    """An interrupt for the host arrives."""
    return steps.HOST_INTERRUPT, 0, 0, 0


def host_nmi() -> Step:
    """An NMI for the host arrives."""
    return steps.HOST_NMI, 0, 0, 0


def cancel_entry() -> Step:
    """L0 gives up its next entry at the last moment."""
    return steps.CANCEL_ENTRY, 0, 0, 0


def save_restore(when: int = NOW) -> Step:
    """Userspace saves the vCPU and restores it into a new one."""
    return steps.SAVE_RESTORE, when, 0, 0


L0_ONLY_STEPS: Final[tuple[Step, ...]] = (
    *(drop_page(page) for page in range(8)),
    host_interrupt(),
    host_nmi(),
    cancel_entry(),
    *(save_restore(when) for when in MOMENTS),
)
"""Every step that L1 and L2 must never notice."""

# -- what was seen ------------------------------------------------------------------------------


class HardwareEntry(NamedTuple):
    """One entry of vmcs02, as L0's log has it."""

    info: int
    immediate: bool
    run_pending: bool
    reinjection: bool
    waiting: int
    will_evaluate: bool


class Pair(NamedTuple):
    """A finished run on both machines, with the judgement."""

    verdict: Verdict

    @property
    def nested(self) -> Nested:
        """The nested machine."""
        return self.verdict.nested

    @property
    def metal(self) -> Play:
        """What ``bare`` showed."""
        bare = self.verdict.bare
        return Play(bare, bare.journal)

    @property
    def seen(self) -> Play:
        """What ``nested`` showed, read by name; its ``machine`` is that of ``bare``."""
        return Play(self.verdict.bare, self.verdict.nested.journal)

    @property
    def violations(self) -> tuple[Violation, ...]:
        """All findings."""
        return self.verdict.violations

    @property
    def rules(self) -> list[tuple[str, str, str]]:
        """Oracle, rule and situation of each finding."""
        return [(found.oracle, found.rule, found.situation) for found in self.violations]

    def log(self, kind: int) -> list[L0Record]:
        """L0's secret records of one kind, without kind and position."""
        return [record[2:] for record in self.nested.vcpu.log if record[0] == kind]

    @property
    def entries(self) -> list[HardwareEntry]:
        """All entries of vmcs02, in order."""
        return [
            HardwareEntry(
                record[0],
                record[1] != 0,
                record[2] != 0,
                record[3] != 0,
                record[4],
                record[5] != 0,
            )
            for record in self.log(HARDWARE_ENTRY)
        ]

    def reached(self, name: str) -> int:
        """How often a situation of ``l0.reach`` arose."""
        return self.nested.vcpu.reach[REACH_INDEX[name]]


def both(
    *moves: Step,
    on: str = "",
    off: str = "",
    exceptions: int = 0,
    l0_exceptions: int = 0,
    pf_filter: int = 0,
    l0: type[Kvm] = Kvm,
) -> Pair:
    """Run steps on both machines; flags by name, the other choices as in ``Config``."""
    flags = support.config(on, off).flags
    config = Config(flags, exceptions, l0_exceptions, pf_filter)
    for step in moves:
        assert steps.canonical(*step) == step, f"{step} is not canonical"
    packed = (flags, exceptions, l0_exceptions, pf_filter)
    return Pair(run_and_judge(Scenario(packed, moves), config, l0))


def transparent(
    *moves: Step,
    on: str = "",
    off: str = "",
    exceptions: int = 0,
    l0_exceptions: int = 0,
    pf_filter: int = 0,
) -> Pair:
    """Run steps on both machines and insist that the fixed L0 breaks no rule."""
    pair = both(
        *moves,
        on=on,
        off=off,
        exceptions=exceptions,
        l0_exceptions=l0_exceptions,
        pf_filter=pf_filter,
    )
    assert pair.violations == ()
    return pair
