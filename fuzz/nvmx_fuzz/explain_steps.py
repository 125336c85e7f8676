"""What one step of the scenario does by itself, before anything follows from it.

Steps that only let something happen (enter, run, an arrival now) have no effect of their own: the
records that follow tell it. A step that could not apply says why.
"""

from collections.abc import Callable
from typing import Final

from nvmx_core.arch.fields import FIELDS, LAUNCH_STATE
from nvmx_core.arch.state import ACTIVE
from nvmx_core.guests.memory import GATE_NAMES, PAGE_NAMES
from nvmx_core.scenario import steps as s
from nvmx_core.scenario.steps import Step
from nvmx_fuzz.decode_words import activity_word, address_word, vectors_word, vmcs_change
from nvmx_fuzz.explain_replay import PlayedStep, Snapshot

_MOMENTS: Final = (
    "",
    "when L1 enters L2",
    "during the next event delivery in L2",
    "while L0 emulates an L2 instruction",
)
_WRITES_VMCS12: Final = frozenset(
    {s.INJECT, s.VMWRITE, s.CONTROL, s.INTERCEPT, s.VIRTUAL_INTERRUPT}
)
_RECORDS_TELL: Final = frozenset(
    {s.ENTER, s.RUN, s.OPEN_INTERRUPTS, s.RSM, s.HOST_INTERRUPT, s.HOST_NMI}
)
_ARRIVALS: Final = frozenset(
    {s.INTERRUPT, s.NMI, s.SMI, s.INIT, s.SIPI, s.TIMER, s.POST_INTERRUPT, s.SAVE_RESTORE}
)


def own_effect(played: PlayedStep) -> str:
    """The step's own effect; "" when its records tell it."""
    step = played.step
    if step is None:
        return ""
    if played.after.skipped > played.before.skipped:
        return _why_skipped(step[0], played.before)
    op, a, _b, _c = step
    if op in _ARRIVALS:
        return f"will happen {_MOMENTS[a]}" if a else ""
    if op in _RECORDS_TELL:
        return "" if played.moments else _nothing(op)
    if op in _WRITES_VMCS12:
        return changes(played.before, played.after) or "no change"
    if op in _EFFECTS:
        return _EFFECTS[op](step)
    return _state_effect(op, played)


def changes(before: Snapshot, after: Snapshot) -> str:
    """What differs in the current vmcs12."""
    return "; ".join(
        f"{field.name} {vmcs_change(field.name, before.vmcs12[field.place], new)}"
        for field in FIELDS
        if (new := after.vmcs12[field.place]) != before.vmcs12[field.place]
    )


def entry_instruction(played: PlayedStep) -> str:
    """Which instruction L1 enters with."""
    step = played.step
    if step is not None and step[1] & (s.FORCE_LAUNCH | s.FORCE_RESUME):
        launched = not step[1] & s.FORCE_LAUNCH
        if bool(played.before.vmcs12[LAUNCH_STATE]) == launched:
            return "VMRESUME" if launched else "VMLAUNCH"
        forced = s.FORCE_LAUNCH if not launched else s.FORCE_RESUME
        return "VMLAUNCH" if step[1] & forced & s.FORCE_LAUNCH else "VMRESUME"
    return "VMRESUME" if played.before.vmcs12[LAUNCH_STATE] else "VMLAUNCH"


def _why_skipped(op: int, before: Snapshot) -> str:
    actor = s.OPERATIONS[op].actor
    if op == s.RSM:
        return "nothing: not in SMM"
    if actor == "L2" and before.runs == "L2" and before.state["mp_state"] != ACTIVE:
        return f"nothing: L2 sleeps ({activity_word(before.state['mp_state'])})"
    if before.runs == actor:
        return "nothing"
    return f"nothing: {before.runs} runs"


def _nothing(op: int) -> str:
    if op == s.OPEN_INTERRUPTS:
        return "no interrupt is pending"
    if op in (s.HOST_INTERRUPT, s.HOST_NMI):
        return "nothing: L2 is not in the processor"
    return "nothing"


def _state_effect(op: int, played: PlayedStep) -> str:
    """EOI, IRET and the switching of VMCSs, told from the state around the step."""
    before, after = played.before.state, played.after.state
    if op == s.L1_EOI:
        if before["ISR"] == after["ISR"]:
            return "no interrupt is in service"
        return f"in service: {vectors_word(before['ISR'])} -> {vectors_word(after['ISR'])}"
    if op == s.L1_IRET:
        return "ends NMI blocking" if before["nmi_blocked_in_l1"] else "NMIs were not blocked"
    return ""


def _page_state(who: str) -> Callable[[Step], str]:
    return lambda step: f"page {PAGE_NAMES[step[1]]} is {s.PAGE_STATES[step[2]]} in {who}"


def _apic_page(step: Step) -> str:
    place = f"page {PAGE_NAMES[step[1]]}" if step[1] < len(PAGE_NAMES) else "no page"
    return f"L1's APIC-access page for L2 is {place}"


_EFFECTS: Final[dict[int, Callable[[Step], str]]] = {
    s.EPT_PAGE: _page_state("L1's EPT"),
    s.L2_PAGE: _page_state("L2's own page tables"),
    s.L2_GATE: lambda step: f"IDT gate {step[2]:#x} is {GATE_NAMES[step[1]]}",
    s.L1_MOV_SS: lambda _step: "the next instruction of L1 is in a MOV-SS shadow",
    s.VMPTRLD: lambda step: f"VMCS {step[1]} is current",
    s.VMCLEAR: lambda step: f"VMCS {step[1]} is clear and not current",
    s.PML_LOG: lambda step: f"L1's page-modification log is {('empty', 'full')[bool(step[1])]}",
    s.APIC_PAGE: _apic_page,
    s.VTPR: lambda step: f"virtual TPR class {step[1]}",
    s.DROP_PAGE: lambda step: f"page {PAGE_NAMES[step[1]]} is not mapped by L0 any more",
    s.CANCEL_ENTRY: lambda _step: "the next hardware entry will be cancelled",
}


def place_of(played: PlayedStep) -> str:
    """Where L2 is when a step of its own begins."""
    return f"begins at {address_word(played.before.rip)}"
