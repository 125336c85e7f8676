"""A scenario from a stretch of a trace: the same situation, as far as the trace and the model allow.

A line of the text form for each thing that can be carried over, in the order in which the scenario needs
it: what L1 turned on, what came for L1, L1's injection, the pages that L0 had not mapped, the entry, L2's
instructions. What has no counterpart is said in a comment, never left out in silence.

| in the trace | in the scenario |
|---|---|
| injection of L1's entry | `L1 inject` |
| EPT violation in delivery that L0 finishes | `L0 drop-page` of a page that this delivery touches |
| the same, shown to L1 | `L1 ept PAGE absent` |
| two injections by L0 without an entry between | `L0 cancel-entry` |
| interrupt for L1's APIC | `outside interrupt`: before the entry, `at-entry`, `in-delivery` or `now` |
| exit of an instruction | `L2 run`, with the control that makes it exit if L1 sees it |
| host's interrupt or NMI | `L0 host-interrupt`, `L0 host-nmi` |
"""

from pathlib import Path
from textwrap import wrap
from typing import Final, NamedTuple

from nvmx_core.arch.controls import CONTROLS
from nvmx_core.arch.events import (
    ERROR_CODE_VALID,
    TYPE_MASK,
    TYPE_NAMES,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    info_text,
    vector_name,
)
from nvmx_core.arch.exits import (
    CR_ACCESS,
    EPT_FETCH,
    EPT_FINAL_TRANSLATION,
    EPT_LINEAR_VALID,
    EPT_VIOLATION,
    EPT_WRITE,
    EXCEPTION_NMI,
    EXTERNAL_INTERRUPT_EXIT,
    INTERRUPT_WINDOW,
    IO_INSTRUCTION,
    MONITOR_TRAP_FLAG,
    NMI_WINDOW,
    PREEMPTION_TIMER,
    is_soft,
)
from nvmx_core.arch.instructions import ALWAYS, EMULATED_BY_REASON, INSTRUCTIONS, IO_IN
from nvmx_core.scenario.config import CHOSEN_EXCEPTIONS
from nvmx_core.scenario.words import show_exception
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.trace.late import Line
from nvmx_fuzz.trace.reasons import reason_name
from nvmx_fuzz.trace.records import (
    Arrival,
    Entry,
    Event,
    ExceptionInjected,
    InterruptInjected,
    NestedEntry,
    NestedExit,
    Reflected,
)
from nvmx_fuzz.trace.stretch import Stretch, Stretches
from nvmx_fuzz.trace.words import UNKNOWN
from nvmx_fuzz.wording import printable

_NMI_TYPE: Final = 2
_MOV_CR3: Final = 3
_COMMENT_WIDTH: Final = 100
_STEPS_MAX: Final = 64
"""Of L2's run: what comes behind is left out, and said."""

_INSTRUCTION_OF_REASON: Final[dict[int, str]] = {
    instruction.exit_reason: instruction.name
    for instruction in reversed(INSTRUCTIONS)
    if instruction.exit_reason
}
_INSTRUCTION_OF_VECTOR: Final[dict[int, str]] = {
    0: "div0", 3: "int3", 4: "into", 5: "bound", 6: "ud2", 7: "nm", 10: "ts", 11: "np", 12: "ss", 13: "gp",
    17: "ac",
}  # fmt: skip
_CONTROL_OF_REASON: Final[dict[int, str]] = {
    INTERRUPT_WINDOW: "interrupt-window-exiting",
    NMI_WINDOW: "nmi-window-exiting",
    MONITOR_TRAP_FLAG: "monitor-trap-flag",
}
_CONTROL_BY_BIT: Final[dict[tuple[int, int], str]] = {
    (control.field, control.bit): control.name for control in CONTROLS
}


class Seed(NamedTuple):
    """A scenario as text, the stretch it is of, what could not be carried over, and L1's exit at its end."""

    text: str
    stretch: Stretch
    left_out: tuple[str, ...]
    exit_reason: int


def scenario_text(name: str, stretches: Stretches) -> Seed:
    """The scenario of the stretch that *stretches* chose in the trace called *name*.

    Raises:
        BadFile: there is no such stretch; the message says where there is one.
    """
    stretch = stretches.chosen
    if stretch is None:
        raise BadFile(name, stretches.why_none(), stretches.at)
    return _Writer(name, stretches, stretch).seed()


def _comment(text: str) -> list[str]:
    return wrap(text, _COMMENT_WIDTH, initial_indent="# ", subsequent_indent="# ")


class _Writer:
    """Writes one scenario; each `_take` method turns a record into lines or into a remark."""

    def __init__(self, name: str, stretches: Stretches, stretch: Stretch) -> None:
        self._name = name
        self._stretch = stretch
        self._stretches = stretches
        self._config: dict[str, str] = {}
        self._exceptions: list[str] = []
        self._controls: dict[str, None] = {}
        self._prepared: dict[str, None] = {}
        self._steps: list[str] = []
        self._left_out: dict[str, None] = {}
        self._dropped_in_delivery = 0
        self._is_entered = False
        self._is_delivering = False
        self._is_emulating = False
        self._injections = 0
        self._injected_vector = 0
        self._exit_reason = UNKNOWN
        self._arrived: set[int] = set()

    def seed(self) -> Seed:
        """The whole text."""
        stretch = self._stretch
        for line, event in stretch.before:
            if isinstance(event, Arrival) and event.is_interrupt:
                self._arrived.add(event.vector)
                self._prepared[f"outside interrupt {event.vector:#x}"] = None
            del line
        if not stretch.is_begun:
            self._leave_out("L1's entry is not in the trace: its injection is not known")
        records = stretch.records
        for position, (line, event) in enumerate(records):
            following = self._reflection_after(position)
            self._take(line, event, following)
        if not stretch.is_ended:
            self._leave_out("the exit that L1 saw is not in the trace")
        return Seed(self._text(), stretch, tuple(self._left_out), self._exit_reason)

    def _text(self) -> str:
        stretch = self._stretch
        name = printable(Path(self._name).name)
        lines = [
            f"# Lines {stretch.first_line} to {stretch.last_line} of {name}, vCPU {stretch.vcpu}."
        ]
        finding = self._stretches.finding()
        if finding is not None and stretch.first_line <= finding.line <= stretch.last_line:
            lines += _comment(f"There: {finding.sentence}.")
            lines.append(f"# Rules: {finding.rule}")
        for remark in self._left_out:
            lines += _comment(f"Not carried over: {remark}.")
        lines.append("version 1")
        config = [f"{key}={value}" for key, value in self._config.items()]
        if self._exceptions:
            config.append(f"exceptions={','.join(self._exceptions)}")
        if config:
            lines.append(f"config {' '.join(config)}")
        lines += [f"L1 control {control} on" for control in self._controls]
        lines += self._prepared
        lines.append("L1 enter")
        lines += self._steps
        return "".join(f"{line}\n" for line in lines)

    def _leave_out(self, remark: str) -> None:
        self._left_out[remark] = None

    def _reflection_after(self, position: int) -> Reflected | None:
        """The exit that L1 sees because of the exit at *position*, if L2 is not entered in between."""
        for _line, event in self._stretch.records[position + 1 :]:
            if isinstance(event, Reflected):
                return event
            if isinstance(event, Entry | NestedExit):
                return None
        return None

    # -- records -----------------------------------------------------------------------------------

    def _take(self, line: Line, event: Event, following: Reflected | None) -> None:
        if isinstance(event, NestedEntry):
            self._take_nested_entry(event)
        elif isinstance(event, Entry):
            self._is_entered = True
            self._is_delivering = self._is_emulating = False
            self._injections = 0
        elif isinstance(event, NestedExit):
            self._is_entered = True
            self._is_delivering = event.vectoring > 0 and event.vectoring & VALID != 0
            self._take_exit(event, following, line)
        elif isinstance(event, Reflected):
            self._take_reflected(event)
        elif isinstance(event, Arrival):
            self._take_arrival(event)
        elif isinstance(event, InterruptInjected):
            self._take_injection(event)
        elif isinstance(event, ExceptionInjected) and not event.reinjected:
            self._leave_out(
                f"exception {vector_name(event.vector)} that L0 injects in line {line[0]}"
            )

    def _take_nested_entry(self, event: NestedEntry) -> None:
        if not event.has_ept:
            self._config["l1-ept"] = "off"
        injection = event.event
        if not injection & VALID:
            return
        event_type = (injection & TYPE_MASK) >> TYPE_SHIFT
        vector = injection & VECTOR_MASK
        self._injected_vector = vector
        words = [f"L1 inject {TYPE_NAMES[event_type]}"]
        if event_type == 3 and vector <= 31:
            words.append(show_exception(vector))
        elif event_type != _NMI_TYPE or vector != _NMI_TYPE:
            words.append(f"{vector:#x}")
        if injection & ERROR_CODE_VALID:
            words.append("error=0x0")
            self._leave_out("the error code of L1's injection, which no event shows; 0 here")
        if is_soft(injection):
            words.append("length=1")
            self._leave_out(
                "the instruction length of L1's injection, which no event shows; 1 here"
            )
        self._prepared[" ".join(words)] = None

    def _take_injection(self, event: InterruptInjected) -> None:
        self._injections += 1
        is_again = event.reinjected == 1
        if self._injections > 1 or (not self._is_entered and is_again):
            self._prepared["L0 cancel-entry"] = None
        elif not is_again and event.reinjected != UNKNOWN and not self._is_delivering:
            self._config["external-interrupt-exiting"] = "off"
            self._add_arrival(event.vector)

    def _take_arrival(self, event: Arrival) -> None:
        if event.is_interrupt:
            self._arrived.add(event.vector)
            self._add_arrival(event.vector)
        else:
            self._leave_out("an arrival that is no interrupt (INIT, SIPI, NMI or SMI)")

    def _add_arrival(self, vector: int) -> None:
        """The moment: before the processor enters, while L0 repairs in a delivery or emulates, or at rest."""
        step = f"outside interrupt {vector:#x}"
        if not self._is_entered:
            self._prepared[f"{step} at-entry"] = None
        elif self._is_delivering:
            self._prepared[f"{step} in-delivery"] = None
        elif self._is_emulating and self._steps:
            self._steps.insert(len(self._steps) - 1, f"{step} in-emulation")
        else:
            self._steps.append(step)

    def _take_reflected(self, event: Reflected) -> None:
        self._exit_reason = event.reason
        if event.failed:
            self._leave_out(f"the failed entry ({reason_name(event.reason)}): no event shows why")
            return
        if event.reason == EXTERNAL_INTERRUPT_EXIT:
            if event.interruption & VALID:
                self._config["acknowledge-interrupt-on-exit"] = "on"
                vector = event.interruption & VECTOR_MASK
                if vector not in self._arrived:
                    self._leave_out(
                        f"when interrupt {vector:#x} came: its arrival is not in the trace"
                    )
                    self._add_arrival(vector)
            elif not self._arrived:
                self._leave_out("the vector of the interrupt for L1; 0x51 here")
                self._add_arrival(0x51)
        elif event.reason in _CONTROL_OF_REASON:
            self._controls[_CONTROL_OF_REASON[event.reason]] = None
        elif event.reason == PREEMPTION_TIMER:
            self._config["preemption-timer"] = "on"
            self._steps.append("outside timer 65535")
        elif (
            event.reason == EXCEPTION_NMI
            and (event.interruption & TYPE_MASK) >> TYPE_SHIFT == _NMI_TYPE
        ):
            self._prepared["outside nmi at-entry"] = None

    # -- exits of L2 -------------------------------------------------------------------------------

    def _take_exit(self, event: NestedExit, following: Reflected | None, line: Line) -> None:
        if len(self._steps) >= _STEPS_MAX:
            self._leave_out(f"what L2 does from line {line[0]} on")
        elif event.reason == EPT_VIOLATION:
            self._take_ept_violation(event, following, line)
        elif event.reason == EXTERNAL_INTERRUPT_EXIT:
            if following is None:
                self._steps.append("L0 host-interrupt")
        elif event.reason == EXCEPTION_NMI:
            self._take_exception(event, following, line)
        elif event.reason in _INSTRUCTION_OF_REASON:
            self._take_instruction(event, following, line)
        elif event.reason not in _CONTROL_OF_REASON and event.reason != PREEMPTION_TIMER:
            self._leave_out(f"exit {reason_name(event.reason)} of L2 in line {line[0]}")

    def _take_ept_violation(
        self, event: NestedExit, following: Reflected | None, line: Line
    ) -> None:
        page = self._page_of(event)
        if page is None:
            self._leave_out(
                f"the EPT violation in line {line[0]}: L2's paging structures are no pages of the model"
            )
            return
        is_for_l1 = following is not None and following.reason == EPT_VIOLATION
        step = f"L1 ept {page} absent" if is_for_l1 else f"L0 drop-page {page}"
        if self._is_delivering or page in ("handler", "code"):
            self._prepared[step] = None
        else:
            action = "store" if event.qualification & EPT_WRITE else "load"
            (self._prepared.setdefault(step) if is_for_l1 else self._steps.append(step))
            self._steps.append(f"L2 run {action}")

    def _page_of(self, event: NestedExit) -> str | None:
        """The model's page for an access, in delivery IDT, GDT, stack; L2's paging structures are none."""
        qualification = event.qualification
        if qualification & EPT_LINEAR_VALID and not qualification & EPT_FINAL_TRANSLATION:
            return None
        if not self._is_delivering:
            if qualification & EPT_FETCH:
                return "handler" if self._injected_vector or self._dropped_in_delivery else "code"
            return "data"
        if qualification & EPT_WRITE:
            return "stack"
        vector = event.vectoring & VECTOR_MASK
        pages = ("idt-low" if vector <= 31 else "idt-high", "gdt", "tss")
        number = self._dropped_in_delivery
        self._dropped_in_delivery += 1
        return pages[number] if number < len(pages) else None

    def _take_exception(self, event: NestedExit, following: Reflected | None, line: Line) -> None:
        word = event.interruption
        if word == UNKNOWN or not word & VALID:
            self._leave_out(f"the exception of L2 in line {line[0]}")
            return
        vector = word & VECTOR_MASK
        if (word & TYPE_MASK) >> TYPE_SHIFT == _NMI_TYPE:
            if following is None:
                self._steps.append("L0 host-nmi")
            return
        if following is not None and vector in CHOSEN_EXCEPTIONS:
            name = show_exception(vector)
            if name not in self._exceptions:
                self._exceptions.append(name)
        if self._is_delivering:
            if vector == 14:
                self._prepared["L2 page stack absent"] = None
            elif vector == 11:
                self._prepared[f"L2 gate {event.vectoring & VECTOR_MASK:#x} not-present"] = None
            else:
                self._leave_out(f"{info_text(word)} in a delivery, in line {line[0]}")
        elif vector == 14:
            self._prepared["L2 page data absent"] = None
            self._steps.append("L2 run load")
        elif vector in _INSTRUCTION_OF_VECTOR:
            self._steps.append(f"L2 run {_INSTRUCTION_OF_VECTOR[vector]}")
        else:
            self._leave_out(f"{info_text(word)} of L2 in line {line[0]}")

    def _take_instruction(self, event: NestedExit, following: Reflected | None, line: Line) -> None:
        name = _INSTRUCTION_OF_REASON[event.reason]
        if event.reason == CR_ACCESS:
            name = "mov-cr3" if event.qualification & 15 == _MOV_CR3 else "mov-cr8"
        elif event.reason == IO_INSTRUCTION:
            name = "in" if event.qualification & IO_IN else "out"
        instruction = next(entry for entry in INSTRUCTIONS if entry.name == name)
        if following is None and event.reason not in EMULATED_BY_REASON:
            self._leave_out(
                f"{name} in line {line[0]}, which L0 finishes: the model's L0 does not intercept it"
            )
            return
        self._is_emulating = following is None
        self._steps.append(f"L2 run {name}")
        control = _CONTROL_BY_BIT.get((instruction.exit_field, instruction.exit_bit))
        if following is not None and instruction.exit_field != ALWAYS and control is not None:
            self._controls[control] = None
