#!/usr/bin/env python3
"""Fuzz target: the reader of KVM's traces and the rules that it checks, whatever the text.

A trace is checked or refused; in other pieces, in the spelling of trace-cmd, and with holes it gets the
verdict that it should.

Environment:
    NVMX_FEEDBACK: how branches are counted, see `nvmx_fuzz.feedback`. The model runs as plain Python.
"""

import sys
from functools import partial

NAME = "fuzz_trace_reader"

try:
    import atheris
except ModuleNotFoundError:
    sys.stderr.write(f"{NAME}: atheris is missing; try: source scripts/setup-env\n")
    sys.exit(2)

from nvmx_fuzz import TRACE_READER
from nvmx_fuzz.feedback import instrument, setup
from nvmx_fuzz.target_start import choose_build

with instrument(TRACE_READER, choose_build(NAME, "python")) as probes:
    from nvmx_fuzz.artifacts import artifact_prefix_of
    from nvmx_fuzz.trace.target import check_trace

if __name__ == "__main__":
    prefix = artifact_prefix_of(sys.argv)
    setup(sys.argv, partial(check_trace, artifact_prefix=prefix), probes=probes)
    atheris.Fuzz()
