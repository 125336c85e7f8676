#!/usr/bin/env python3
"""Fuzz target: L1 and L2 see on `nested` exactly what they see on `bare`, and nothing else is asked.

The same inputs as `fuzz_nested_events.py`, with the two journals compared and no oracle besides: the one
property that needs no rule to be understood, and more executions in a second.

Environment: see `fuzz_nested_events.py`.
"""

import sys

NAME = "fuzz_transparency"

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
    from nvmx_core.oracle.judge import run_and_compare
    from nvmx_fuzz.scenario_target import fuzz_scenarios

if __name__ == "__main__":
    sys.exit(fuzz_scenarios(NAME, mode, probes, run_and_compare))
