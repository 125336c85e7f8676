#!/usr/bin/env python3
"""Fuzz target: events for L1 and L2 while an L0 weaves the two together.

Any bytes are a scenario; it runs on the machines `bare` and `nested`, and the oracles judge it. An
ordinary libFuzzer target: start it by its path, with libFuzzer's arguments.

Environment:
    NVMX_L0: which L0 is judged (default `fixed`; an unknown name is answered with known ones).
    NVMX_CORE: which build of the model runs, see `nvmx_fuzz.core_choice`.
    NVMX_FEEDBACK: how branches are counted, see `nvmx_fuzz.feedback`.

To keep going after a finding, use `nvmx-fuzz run`.
"""

import os
import sys

try:
    import atheris
except ModuleNotFoundError:
    sys.stderr.write("fuzz_nested_events: atheris is missing; try: source scripts/setup-env\n")
    sys.exit(2)

from nvmx_fuzz import CODE_UNDER_TEST, L0_VARIABLE
from nvmx_fuzz.core_choice import NoCompiledCoreError, agree, choose
from nvmx_fuzz.feedback import ExtraCounters, choose_mode, instrument, setup

try:
    core, feedback = agree(None, None, os.environ.get(L0_VARIABLE, ""))
    mode = choose_mode(feedback)
    choose(core)
except (ValueError, NoCompiledCoreError) as error:
    sys.stderr.write(f"fuzz_nested_events: {error}\n")
    sys.exit(2)

with instrument(CODE_UNDER_TEST, mode) as probes:
    from nvmx_fuzz import nested_events
    from nvmx_fuzz.mutate import crossover, mutate
    from nvmx_fuzz.state_feedback import COUNTERS, feedback_beside


def main() -> int:
    """Fuzz until libFuzzer ends the process; the status is for what goes wrong before."""
    l0_name = os.environ.get(L0_VARIABLE) or nested_events.FIXED
    problem = nested_events.unknown_l0(l0_name)
    if problem:
        sys.stderr.write(f"fuzz_nested_events: {L0_VARIABLE}: {problem}\n")
        return 2
    states = ExtraCounters(COUNTERS)
    target = nested_events.NestedEvents(l0_name, feedback_beside(mode, states.buffer))
    prefix = nested_events.artifact_prefix_of(sys.argv)

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


if __name__ == "__main__":
    sys.exit(main())
