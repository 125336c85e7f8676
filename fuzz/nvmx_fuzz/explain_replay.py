"""A scenario run again on the nested machine, one step at a time, with the state between the steps.

The journal and L0's log are merged into one list of moments: a log record carries the length that the
journal had when it was written, so it stands before the journal record of that index.
"""

from typing import Final, NamedTuple

from nvmx_core.journal import Record
from nvmx_core.l0.kvm import Kvm
from nvmx_core.l0.log import L0Record
from nvmx_core.machines.nested import Nested
from nvmx_core.scenario.config import Config
from nvmx_core.scenario.steps import Scenario, Step

NOT_LOADED: Final = -1
"""The value of vmcs02's fields before the first nested entry."""


class Moment(NamedTuple):
    """One record in time order: of the journal, or (``hidden``) of L0's log.

    ``position`` is the record's index in the journal; for a log record, of the next one there.
    """

    hidden: bool
    position: int
    record: Record | L0Record


class Snapshot(NamedTuple):
    """The state between two steps. ``state`` holds what is not in a VMCS, by KVM's names."""

    vmcs12: tuple[int, ...]
    vmcs02: tuple[int, ...]
    state: dict[str, int]
    runs: str
    rip: int
    skipped: int


class PlayedStep(NamedTuple):
    """One step, counted from 1, or with ``step`` None the end of the run."""

    number: int
    step: Step | None
    before: Snapshot
    after: Snapshot
    moments: tuple[Moment, ...]


class Place(NamedTuple):
    """Where a run is wrong: the record there, and the one that bare metal shows, if it is known."""

    moment: Moment
    expected: Record | None


def play(scenario: Scenario, config: Config, l0: type[Kvm]) -> list[PlayedStep]:
    """Run the scenario; the last entry is the end of the run, with the END record."""
    machine = Nested(config, l0)
    played: list[PlayedStep] = []
    before = _snapshot(machine)
    for number, step in enumerate((*scenario.steps, None), start=1):
        journal_start = len(machine.journal)
        log_start = len(machine.vcpu.log)
        if step is None:
            machine.finish()
        else:
            machine.do_step(step)
        after = _snapshot(machine)
        moments = _merge(machine, journal_start, log_start)
        played.append(PlayedStep(number, step, before, after, moments))
        before = after
    return played


def _merge(machine: Nested, journal_start: int, log_start: int) -> tuple[Moment, ...]:
    journal = machine.journal
    moments: list[Moment] = []
    position = journal_start
    for record in machine.vcpu.log[log_start:]:
        while position < record[1]:
            moments.append(Moment(False, position, journal[position]))
            position += 1
        moments.append(Moment(True, record[1], record))
    moments.extend(Moment(False, index, journal[index]) for index in range(position, len(journal)))
    return tuple(moments)


def _snapshot(machine: Nested) -> Snapshot:
    vcpu = machine.vcpu
    if vcpu.dead:
        runs = "nobody"
    elif vcpu.in_smm:
        runs = "the SMM handler"
    else:
        runs = "L2" if vcpu.guest_mode else "L1"
    return Snapshot(
        vmcs12=tuple(machine.l1.vmcs),
        vmcs02=tuple(vcpu.vmcs02),
        state=_state(machine),
        runs=runs,
        rip=machine.cpu.rip,
        skipped=machine.skipped,
    )


def _state(machine: Nested) -> dict[str, int]:
    """What waits for L1 or for L2, and the registers that an event writes."""
    vcpu = machine.vcpu
    return {
        "IRR": vcpu.apic.irr,
        "ISR": vcpu.apic.isr,
        "nmi_pending": int(vcpu.nmi_pending),
        "smi_pending": int(vcpu.smi_pending),
        "init_pending": int(vcpu.init_pending),
        "mtf_pending": int(vcpu.mtf_pending),
        "preemption_timer_expired": int(vcpu.timer_expired),
        "nested_run_pending": int(vcpu.nested_run_pending),
        "exception.pending": vcpu.exception_info if vcpu.exception_pending else 0,
        "exception.injected": vcpu.exception_info if vcpu.exception_injected else 0,
        "exception_vmexit.pending": vcpu.vmexit_info if vcpu.vmexit_pending else 0,
        "interrupt.injected": vcpu.interrupt_info if vcpu.interrupt_injected else 0,
        "nmi_injected": int(vcpu.nmi_injected),
        "nmi_blocked_in_l1": int(vcpu.l1_nmi_blocked),
        "mp_state": vcpu.mp_state,
        "KVM_REQ_EVENT": int(vcpu.request_event),
        "CR2": machine.cpu.cr2,
        "DR6": machine.cpu.dr6,
    }
