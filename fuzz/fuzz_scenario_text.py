#!/usr/bin/env python3
"""Fuzz target: the text form of a scenario, whatever the text.

A text is read or refused in one line, and what is read survives being written, read again and encoded.

Environment:
    NVMX_FEEDBACK: how branches are counted, see `nvmx_fuzz.feedback`. The model runs as plain Python.
"""

import sys
from functools import partial

NAME = "fuzz_scenario_text"

try:
    import atheris
except ModuleNotFoundError:
    sys.stderr.write(f"{NAME}: atheris is missing; try: source scripts/setup-env\n")
    sys.exit(2)

from nvmx_fuzz import SCENARIO_TEXT
from nvmx_fuzz.feedback import instrument, setup
from nvmx_fuzz.target_start import choose_build

with instrument(SCENARIO_TEXT, choose_build(NAME, "python")) as probes:
    from nvmx_fuzz.artifacts import artifact_prefix_of
    from nvmx_fuzz.scenario_text import check_text

if __name__ == "__main__":
    prefix = artifact_prefix_of(sys.argv)
    setup(sys.argv, partial(check_text, artifact_prefix=prefix), probes=probes)
    atheris.Fuzz()
