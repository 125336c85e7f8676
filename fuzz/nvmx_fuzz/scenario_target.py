"""What the fuzz targets have in common that run scenarios on both machines.

This module imports the model, so import it inside `feedback.instrument`.
"""

import os
import sys

import atheris

from nvmx_fuzz import L0_VARIABLE, nested_events
from nvmx_fuzz.artifacts import artifact_prefix_of
from nvmx_fuzz.feedback import ExtraCounters, Mode, Probes, setup
from nvmx_fuzz.mutate import crossover, mutate
from nvmx_fuzz.nested_events import Judge
from nvmx_fuzz.state_feedback import COUNTERS, feedback_beside


def fuzz_scenarios(name: str, mode: Mode, probes: Probes, judge: Judge | None = None) -> int:
    """Fuzz until libFuzzer ends the process; the status is for what goes wrong before.

    *name* is the target, for messages; *judge* asks less than every oracle.
    """
    l0_name = os.environ.get(L0_VARIABLE) or nested_events.FIXED
    problem = nested_events.unknown_l0(l0_name)
    if problem:
        sys.stderr.write(f"{name}: {L0_VARIABLE}: {problem}\n")
        return 2
    states = ExtraCounters(COUNTERS)
    target = nested_events.NestedEvents(l0_name, feedback_beside(mode, states.buffer), judge)
    prefix = artifact_prefix_of(sys.argv)

    def test_one_input(data: bytes) -> None:
        nested_events.raise_on_violation(target, data, prefix)

    setup(
        nested_events.with_defaults(sys.argv),
        test_one_input,
        probes=probes,
        counters=[states],
        custom_mutator=mutate,
        custom_crossover=crossover,
    )
    atheris.Fuzz()
    return 0
