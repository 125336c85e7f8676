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

import sys

NAME = "fuzz_nested_events"

try:
    import atheris  # noqa: F401 - asked here, so that its absence is one line
except ModuleNotFoundError:
    sys.stderr.write(f"{NAME}: atheris is missing; try: source scripts/setup-env\n")
    sys.exit(2)

from nvmx_fuzz import CODE_UNDER_TEST
from nvmx_fuzz.feedback import instrument
from nvmx_fuzz.target_start import choose_build

mode = choose_build(NAME)
with instrument(CODE_UNDER_TEST, mode) as probes:
    from nvmx_fuzz.scenario_target import fuzz_scenarios

if __name__ == "__main__":
    sys.exit(fuzz_scenarios(NAME, mode, probes))
