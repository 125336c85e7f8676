"""Each bug lets through what it is about, and nothing else."""

from nvmx_core.arch.exits import EXTERNAL_INTERRUPT_EXIT, FAILED_ENTRY, INVALID_STATE
from nvmx_core.bugs.versions import l0_class
from nvmx_core.cpu.entry_checks import QUALIFICATION_LINK_POINTER, VMFAIL_HOST_STATE
from nvmx_core.journal import DELIVER, EXIT, VMFAIL, Record
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.judge import run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.text import parse_scenario

POSTED = "tpr-shadow=on virtual-interrupt-delivery=on posted-interrupts=on"


def nested(l0_name: str, *lines: str) -> Nested:
    scenario = parse_scenario("\n".join(("version 1", *lines))).scenario
    return run_and_judge(scenario, config_for(scenario.config), l0_class(l0_name)).nested


def records(machine: Nested, kind: int) -> list[Record]:
    return [record[1:] for record in machine.journal if record[0] == kind]


def test_bug32_still_checks_the_host_state() -> None:
    event = "L1 inject nmi 0x3"
    assert records(nested("bug32", event, "L1 enter"), VMFAIL) == [(7,)]
    both = nested("bug32", event, "L1 vmwrite HOST_RIP 0x800000000000", "L1 enter")
    assert records(both, VMFAIL) == [(VMFAIL_HOST_STATE,)]


def test_res8_still_checks_what_has_nothing_to_do_with_the_activity() -> None:
    asleep = ("L1 vmwrite GUEST_ACTIVITY 0x1", "L1 vmwrite GUEST_SS_DPL 0x3")
    assert not records(nested("res8", *asleep, "L1 enter"), EXIT)
    both = nested("res8", *asleep, "L1 vmwrite VMCS_LINK_POINTER 0x0", "L1 enter")
    (failed,) = records(both, EXIT)
    assert failed[:2] == (INVALID_STATE | FAILED_ENTRY, QUALIFICATION_LINK_POINTER)


def test_bug47_knows_a_notification_at_the_entry_from_a_later_one() -> None:
    config = f"config acknowledge-interrupt-on-exit=on {POSTED}"
    at_entry = nested("bug47", config, "outside post-interrupt 0x41", "L1 enter")
    assert not records(at_entry, EXIT)
    later = nested(
        "bug47", config, "outside post-interrupt 0x41", "L1 enter", "outside post-interrupt 0x42"
    )
    assert [record[0] for record in records(later, EXIT)] == [EXTERNAL_INTERRUPT_EXIT]


def test_res3_loses_only_an_int1_that_l1_injects() -> None:
    inject = "L1 inject privileged-software-exception #DB length=1"
    lost = nested("res3", "L0 drop-page idt-low", inject, "L1 enter")
    executed = nested("res3", "L0 drop-page idt-low", "L1 enter", "L2 int1")
    after = nested("res3", inject, "L1 enter", "L0 drop-page idt-low", "L2 int1")
    assert [len(records(machine, DELIVER)) for machine in (lost, executed, after)] == [0, 1, 2]
