"""Check and inject: re-injection keeps every event as it was, a cancelled entry loses nothing (S4, S5)."""

from typing import Final

import pytest

from nvmx_core.arch.events import (
    BP,
    DB,
    DF,
    EXTERNAL_INTERRUPT,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NMI_VECTOR,
    OF,
    OTHER_EVENT,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    SOFTWARE_EXCEPTION,
    SOFTWARE_INTERRUPT,
    UD,
)
from nvmx_core.arch.exits import (
    EPT_VIOLATION,
    EXTERNAL_INTERRUPT_EXIT,
    INTERRUPT_WINDOW,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
)
from nvmx_core.arch.fields import GUEST_INTERRUPTIBILITY, GUEST_PENDING_DBG
from nvmx_core.arch.state import BLOCKING_BY_STI, PENDING_DBG_BS, RFLAGS_RF
from nvmx_core.guests.memory import CODE_BASE, STACK, handler_rip
from nvmx_core.journal import SMM_ENTRY
from nvmx_core.l0.log import CANCEL, HIDDEN_EXIT, INJECT, REINJECT
from nvmx_core.scenario.steps import AT_ENTRY, IN_DELIVERY, IN_EMULATION, Step
from tests.nested_support import cancel_entry, drop_page, transparent
from tests.support import control, enter, ept, event, inject, interrupt, nmi, rsm, run, smi, vmwrite

ERROR: Final = 0x18

EVENTS: Final[dict[str, tuple[Step, int]]] = {
    "interrupt": (inject(EXTERNAL_INTERRUPT, 0x40), event(EXTERNAL_INTERRUPT, 0x40)),
    "nmi": (inject(NMI, NMI_VECTOR), event(NMI, NMI_VECTOR)),
    "fault": (inject(HARDWARE_EXCEPTION, UD), event(HARDWARE_EXCEPTION, UD)),
    "fault-with-error": (
        inject(HARDWARE_EXCEPTION, GP, error=ERROR),
        event(HARDWARE_EXCEPTION, GP, error_code=True),
    ),
    "page-fault": (
        inject(HARDWARE_EXCEPTION, PF, error=2),
        event(HARDWARE_EXCEPTION, PF, error_code=True),
    ),
    "double-fault": (
        inject(HARDWARE_EXCEPTION, DF),
        event(HARDWARE_EXCEPTION, DF, error_code=True),
    ),
    "breakpoint-as-fault": (inject(HARDWARE_EXCEPTION, BP), event(HARDWARE_EXCEPTION, BP)),
    "int": (inject(SOFTWARE_INTERRUPT, 0x80, length=2), event(SOFTWARE_INTERRUPT, 0x80)),
    "int1": (
        inject(PRIVILEGED_SOFTWARE_EXCEPTION, DB, length=1),
        event(PRIVILEGED_SOFTWARE_EXCEPTION, DB),
    ),
    "int3": (inject(SOFTWARE_EXCEPTION, BP, length=1), event(SOFTWARE_EXCEPTION, BP)),
    "into": (inject(SOFTWARE_EXCEPTION, OF, length=1), event(SOFTWARE_EXCEPTION, OF)),
    "gp-as-trap": (inject(SOFTWARE_EXCEPTION, GP, length=3), event(SOFTWARE_EXCEPTION, GP)),
}
PAGING: Final = ("", "l0-ept", "l1-ept")
"""What is switched off: nothing, L0's EPT (and L1's with it), L1's EPT."""


# -- X4, X13: re-injection ------------------------------------------------------------------------


@pytest.mark.parametrize("off", PAGING)
@pytest.mark.parametrize("name", EVENTS)
def test_x4_reinjection_keeps_the_event_as_it_was(name: str, off: str) -> None:
    """S4b: after a repair of L0 the entry field holds the same type, vector and error-code bit."""
    step, info = EVENTS[name]
    pair = transparent(drop_page(STACK), step, enter(), run("nop"), off=off)
    assert pair.log(REINJECT) == [(info,)]
    assert pair.seen.vectors == [info & 0xFF]


@pytest.mark.parametrize("off", PAGING)
@pytest.mark.parametrize(
    ("name", "length"), [("int", 2), ("int1", 1), ("int3", 1), ("gp-as-trap", 3)]
)
def test_x9_reinjection_keeps_the_length(name: str, length: int, off: str) -> None:
    """The return address of a soft event lies behind the instruction, once."""
    pair = transparent(drop_page(STACK), EVENTS[name][0], enter(), off=off)
    assert [seen.return_rip for seen in pair.seen.delivered] == [CODE_BASE + length]


def test_x4_reinjection_keeps_the_error_code() -> None:
    pair = transparent(drop_page(STACK), EVENTS["fault-with-error"][0], enter())
    assert [seen.error_code for seen in pair.seen.delivered] == [ERROR]


@pytest.mark.parametrize("instruction", [run("int", 0x80), run("int1"), run("int3")])
def test_x13_an_event_of_l2_itself_is_injected_again(instruction: Step) -> None:
    """An INT n, INT1, INT3 of L2 that met L0's missing page goes on as an injection."""
    pair = transparent(enter(), drop_page(STACK), instruction)
    assert len(pair.log(REINJECT)) == 1
    assert len(pair.seen.delivered) == 1


@pytest.mark.parametrize("off", PAGING)
def test_x8_a_fault_of_l2_is_injected_again_with_rf(off: str) -> None:
    pair = transparent(enter(), drop_page(STACK), run("ud2"), off=off)
    assert [seen.rflags & RFLAGS_RF for seen in pair.seen.delivered] == [RFLAGS_RF]


@pytest.mark.parametrize("name", EVENTS)
def test_x11_a_reflected_event_survives_l0_and_l1(name: str) -> None:
    """First L1's EPT lacks the page, then L0's: reflected, given back, repaired, delivered once."""
    step, info = EVENTS[name]
    pair = transparent(drop_page(STACK), ept(STACK), step, enter(), enter())
    assert pair.seen.exit.reason == EPT_VIOLATION
    assert pair.seen.exit.vectoring == info
    assert pair.seen.vectors == [info & 0xFF]


def test_x13_reinjection_alone_asks_for_no_immediate_exit() -> None:
    """V10 (bug23): nothing waits, so the second entry is an ordinary one."""
    pair = transparent(drop_page(STACK), EVENTS["interrupt"][0], enter())
    assert [entry.reinjection for entry in pair.entries] == [False, True]
    assert not any(entry.immediate for entry in pair.entries)


# -- S5: the cancelled entry ----------------------------------------------------------------------


@pytest.mark.parametrize("name", EVENTS)
def test_s5_a_cancelled_entry_keeps_the_event(name: str) -> None:
    step, info = EVENTS[name]
    pair = transparent(cancel_entry(), step, enter(), run("nop"))
    assert pair.log(CANCEL) == [(info,)]
    assert pair.seen.vectors == [info & 0xFF]


def test_s5_a_cancelled_entry_keeps_a_pending_mtf_exit() -> None:
    """res3: type 7 comes back too; the exit reports RIP as loaded (M5)."""
    pair = transparent(cancel_entry(), inject(OTHER_EVENT, 0), enter(), run("nop"))
    assert pair.seen.exit.reason == MONITOR_TRAP_FLAG
    assert pair.seen.exit.rip == CODE_BASE


def test_s5_a_cancelled_entry_still_owes_the_immediate_exit() -> None:
    """bug15: the second try is short too."""
    moves = (interrupt(0x51, AT_ENTRY), cancel_entry(), inject(EXTERNAL_INTERRUPT, 0x40), enter())
    pair = transparent(*moves)
    assert [entry.immediate for entry in pair.entries] == [True]
    assert pair.seen.vectors == [0x40]
    assert pair.seen.exit.rip == handler_rip(0x40)


def test_s5_a_cancelled_reinjection_comes_back() -> None:
    """The event in flight survives a repair and then a cancelled entry."""
    pair = transparent(enter(), drop_page(STACK), cancel_entry(), run("int", 0x80), run("nop"))
    assert pair.reached("cancelled-injection") == 1
    assert pair.seen.vectors == [0x80]


# -- S4e, S4f: new events -------------------------------------------------------------------------


def test_s4_an_nmi_for_l2_is_injected() -> None:
    pair = transparent(enter(), nmi(), off="nmi-exiting virtual-nmis")
    assert pair.log(INJECT) == [(event(NMI, NMI_VECTOR),)]


@pytest.mark.parametrize("off", ["", "in-kernel-apic"])
def test_s4_an_interrupt_for_l2_is_injected(off: str) -> None:
    """With the controller in the kernel or in userspace (bug19)."""
    pair = transparent(enter(), interrupt(0x51), off=f"external-interrupt-exiting {off}")
    assert pair.log(INJECT) == [(event(EXTERNAL_INTERRUPT, 0x51),)]
    assert pair.seen.end.isr == 1 << 0x51


def test_s4_an_nmi_for_l2_comes_before_an_interrupt_for_l2() -> None:
    """P10 before P12; the interrupt waits for the handler's IRET."""
    moves = (enter(), nmi(IN_EMULATION), interrupt(0x51, IN_EMULATION), run("out"), run("iret"))
    pair = transparent(*moves, off="external-interrupt-exiting nmi-exiting virtual-nmis")
    assert pair.seen.vectors == [NMI_VECTOR, 0x51]


def test_s4_a_new_interrupt_waits_for_a_reinjection() -> None:
    """An immediate exit brings L0 back after 0x40; then the window is closed, for the handler has IF = 0."""
    moves = (drop_page(STACK), interrupt(0x51, IN_DELIVERY), EVENTS["interrupt"][0], enter())
    pair = transparent(*moves, run("iret"), off="external-interrupt-exiting")
    assert pair.seen.vectors == [0x40, 0x51]


# -- windows --------------------------------------------------------------------------------------


def test_b5_l0_opens_an_interrupt_window_that_l1_does_not_see() -> None:
    """bug9: exit 7 belongs to L0 as long as L1 has not asked for it."""
    moves = (enter(), interrupt(0x51), run("sti"), run("nop"))
    pair = transparent(*moves, off="external-interrupt-exiting interrupts-on")
    assert pair.reached("interrupt-window-by-l0")
    assert INTERRUPT_WINDOW in [reason for reason, _vectoring in pair.log(HIDDEN_EXIT)]
    assert pair.seen.reasons == []
    assert pair.seen.vectors == [0x51]


def test_b6_l0_opens_an_nmi_window_that_l1_does_not_see() -> None:
    """bug9: an NMI for L2 waits for the IRET of the handler of another one."""
    moves = (inject(NMI, NMI_VECTOR), enter(), nmi(), run("iret"))
    pair = transparent(*moves, off="nmi-exiting virtual-nmis")
    assert NMI_WINDOW in [reason for reason, _vectoring in pair.log(HIDDEN_EXIT)]
    assert pair.seen.reasons == []
    assert pair.seen.vectors == [NMI_VECTOR, NMI_VECTOR]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("interrupt-window-exiting", INTERRUPT_WINDOW), ("nmi-window-exiting", NMI_WINDOW)],
)
def test_b5_the_window_of_l1_exits(name: str, reason: int) -> None:
    pair = transparent(control(name), enter())
    assert pair.seen.exit.reason == reason


# -- SMM ------------------------------------------------------------------------------------------


def test_p4_an_smi_waits_for_the_injection_and_takes_l2_out() -> None:
    pair = transparent(smi(AT_ENTRY), EVENTS["interrupt"][0], enter())
    assert pair.seen.vectors == [0x40]
    assert SMM_ENTRY in pair.seen.kinds
    assert pair.reached("smm-from-l2") == 1


def test_p4_an_smi_comes_before_an_interrupt_exit() -> None:
    """bug27: the interrupt exits when RSM has brought L2 back, not before SMM."""
    moves = (smi(AT_ENTRY), interrupt(0x51, AT_ENTRY), enter())
    pair = transparent(*moves)
    assert SMM_ENTRY in pair.seen.kinds
    assert EXTERNAL_INTERRUPT_EXIT not in pair.seen.reasons


def test_m5_a_cancelled_mtf_in_a_shadow_stays_that_of_l1() -> None:
    """The MTF exit that comes before the traps is L1's own: L0 must not take it for one of its own."""
    state = (
        vmwrite(GUEST_INTERRUPTIBILITY, BLOCKING_BY_STI),
        vmwrite(GUEST_PENDING_DBG, PENDING_DBG_BS),
    )
    moves = (*state, smi(AT_ENTRY), cancel_entry(), inject(OTHER_EVENT, 0), enter(), rsm())
    pair = transparent(*moves, on="single-step")
    assert SMM_ENTRY in pair.seen.kinds
    assert pair.seen.exit.reason == MONITOR_TRAP_FLAG
