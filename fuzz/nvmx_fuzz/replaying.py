"""Running a scenario again, for a person: verdict, expectations, and the journals beside it."""

import traceback
from dataclasses import dataclass
from typing import Any, Final

from nvmx_core.bugs.versions import l0_class
from nvmx_core.journal import Record
from nvmx_core.machines.bare import Bare
from nvmx_core.machines.machine import Machine
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.judge import judge
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import check_expectations
from nvmx_fuzz import OUR_OWN_BUG
from nvmx_fuzz.scenario_files import Loaded

OK: Final = 0
FOUND: Final = 1


@dataclass(frozen=True)
class MachineRun:
    """What one machine showed: its journal, and where the records of each step begin in it."""

    name: str
    journal: tuple[Record, ...]
    step_starts: tuple[int, ...]
    skipped: int

    def records_of(self, step: int) -> tuple[Record, ...]:
        """The records of a step; those of the end for the number of steps."""
        starts = self.step_starts
        if step >= len(starts):
            return ()
        stop = starts[step + 1] if step + 1 < len(starts) else len(self.journal)
        return self.journal[starts[step] : stop]


@dataclass(frozen=True)
class Replay:
    """One scenario on both machines.

    `runs` are bare and nested, empty after a model error; `broken` are pairs (machine, sentence) of
    expectations that do not hold; `model_error` is a traceback, or "".
    """

    name: str
    l0: str
    scenario: Scenario
    runs: tuple[MachineRun, ...] = ()
    violations: tuple[Violation, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()
    expectations: int = 0
    model_error: str = ""

    @property
    def verdict(self) -> str:
        """One word for what came of it."""
        if self.model_error:
            return "our own bug"
        if self.violations:
            return "violation"
        return "unexpected" if self.broken else "ok"

    @property
    def status(self) -> int:
        """The exit status that this calls for."""
        if self.model_error:
            return OUR_OWN_BUG
        return FOUND if self.violations or self.broken else OK

    def to_json(self) -> dict[str, Any]:
        """What there is to know, without the journals."""
        return {
            "file": self.name,
            "l0": self.l0,
            "verdict": self.verdict,
            "steps": len(self.scenario.steps),
            "steps_skipped": self.runs[-1].skipped if self.runs else 0,
            "violations": [
                violation._asdict() | {"key": violation.key(), "step": violation.step + 1}
                for violation in self.violations
            ],
            "expectations": self.expectations,
            "broken_expectations": [
                {"machine": machine, "sentence": sentence} for machine, sentence in self.broken
            ],
            "model_error": self.model_error,
        }


def replay(loaded: Loaded, l0_name: str) -> Replay:
    """Run on ``bare`` and on ``nested`` with the L0 of that name, and check ``expect``; or UnknownL0Error."""
    scenario = loaded.scenario
    config = config_for(scenario.config)
    bare, nested = Bare(config), Nested(config, l0_class(l0_name))
    try:
        bare.run(scenario)
        nested.run(scenario)
        violations = judge(bare, nested)
    except Exception as error:  # noqa: BLE001 - whatever the model raises is our own bug
        report = "".join(traceback.format_exception(error))
        return Replay(loaded.name, l0_name, scenario, model_error=report)
    runs = (_run("bare", bare), _run("nested", nested))
    broken: list[tuple[str, str]] = []
    if loaded.text is not None:
        for run in runs:
            sentences = check_expectations(loaded.text, run.journal, run.step_starts)
            broken += [(run.name, sentence) for sentence in sentences]
    return Replay(
        loaded.name,
        l0_name,
        scenario,
        runs,
        violations,
        tuple(broken),
        len(loaded.text.expects) if loaded.text is not None else 0,
    )


def _run(name: str, machine: Machine) -> MachineRun:
    return MachineRun(name, tuple(machine.journal), tuple(machine.step_starts), machine.skipped)
