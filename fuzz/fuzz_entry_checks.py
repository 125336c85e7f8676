#!/usr/bin/env python3
"""Fuzz target: one VM entry and all of its checks, held against a second reading of the rules.

Any bytes are a scenario; its steps of L1 before the first entry prepare that entry. The checks of the model,
the machine `bare` and the table `nvmx_fuzz/entry_reading.py` have to agree on what comes of it.

Environment:
    NVMX_FEEDBACK: how branches are counted, see `nvmx_fuzz.feedback`. The model runs as plain Python.
"""

import sys
from functools import partial

NAME = "fuzz_entry_checks"

try:
    import atheris
except ModuleNotFoundError:
    sys.stderr.write(f"{NAME}: atheris is missing; try: source scripts/setup-env\n")
    sys.exit(2)

from nvmx_fuzz import ENTRY_CHECKS
from nvmx_fuzz.feedback import instrument, setup
from nvmx_fuzz.target_start import choose_build

with instrument(ENTRY_CHECKS, choose_build(NAME, "python")) as probes:
    from nvmx_fuzz.artifacts import artifact_prefix_of
    from nvmx_fuzz.entry_checks import check_input
    from nvmx_fuzz.mutate import crossover, mutate
    from nvmx_fuzz.nested_events import with_defaults

if __name__ == "__main__":
    setup(
        with_defaults(sys.argv),
        partial(check_input, artifact_prefix=artifact_prefix_of(sys.argv)),
        probes=probes,
        custom_mutator=mutate,
        custom_crossover=crossover,
    )
    atheris.Fuzz()
