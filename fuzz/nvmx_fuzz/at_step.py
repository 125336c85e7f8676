"""One step of a scenario, for `replay --at-step`: what it does, and the state that it leaves.

The records are those of the machine asked for. The nested machine also shows its state: what waits for L1 and
L2 by KVM's names, vmcs12, and vmcs02 where it differs from vmcs12.
"""

from collections.abc import Iterator
from typing import Final

from nvmx_core.arch.fields import FIELDS, POISON
from nvmx_core.bugs.versions import l0_class
from nvmx_core.machines.bare import Bare
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.step_text import format_step
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.decode_words import address_word, hexadecimal, vmcs_meaning
from nvmx_fuzz.explain_records import log_text, record_text, seen_by
from nvmx_fuzz.explain_replay import NOT_LOADED, PlayedStep, Snapshot, play

BARE: Final = "bare"
NESTED: Final = "nested"
MACHINES: Final = (BARE, NESTED)


def step_lines(scenario: Scenario, l0_name: str, number: int, machine: str) -> Iterator[str]:
    """The lines about step *number*, counted from 1; the one behind the last is the end of the run."""
    config = config_for(scenario.config)
    played = play(scenario, config, l0_class(l0_name))[number - 1]
    step = "the end" if played.step is None else format_step(played.step, compact=True)
    yield f"step {number} of {len(scenario.steps)}: {step}  (on {machine})"
    records = _on_bare(scenario, number) if machine == BARE else _on_nested(played)
    yield from records or ["  nothing is recorded"]
    if machine == NESTED:
        yield from _state_lines(played.after)


def _on_bare(scenario: Scenario, number: int) -> list[str]:
    bare = Bare(config_for(scenario.config))
    bare.run(scenario)
    starts = [*bare.step_starts, len(bare.journal)]
    records = bare.journal[starts[number - 1] : starts[number]]
    return [f"  {seen_by(record)}: {record_text(record)}" for record in records]


def _on_nested(played: PlayedStep) -> list[str]:
    return [
        f"  L0*: {log_text(moment.record)}"
        if moment.hidden
        else f"  {seen_by(moment.record)}: {record_text(moment.record)}"
        for moment in played.moments
    ]


def _state_lines(after: Snapshot) -> Iterator[str]:
    yield f"then {after.runs} runs; L2's instruction pointer is {address_word(after.rip)}"
    for name, value in after.state.items():
        if value:
            yield f"  {name} = {hexadecimal(value)}"
    for field in FIELDS:
        value, loaded = after.vmcs12[field.place], after.vmcs02[field.place]
        if value not in (0, POISON):
            yield f"  vmcs12.{field.name} = {_word(field.name, value)}"
        if loaded not in (value, POISON, NOT_LOADED):
            yield f"  vmcs02.{field.name} = {_word(field.name, loaded)}"


def _word(field: str, value: int) -> str:
    meaning = vmcs_meaning(field, value)
    return f"{hexadecimal(value)} ({meaning})" if meaning else hexadecimal(value)
