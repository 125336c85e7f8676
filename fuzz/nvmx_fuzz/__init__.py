"""The engine: byte codec, mutators, campaign, corpus, reports and the command line."""

from typing import Final

__version__: Final = "0.1.0"

# The environment variables that the command line and the fuzz target share.
L0_VARIABLE: Final = "NVMX_L0"
FEEDBACK_VARIABLE: Final = "NVMX_FEEDBACK"

CODE_UNDER_TEST: Final = ("nvmx_core.l0", "nvmx_core.bugs")
"""What gets branch counters: L0 is searched for bugs, the processor is what it is held against.

Probes in the processor and in the oracles halve the rate and find nothing sooner: docs/PERFORMANCE.md.
"""

ENTRY_CHECKS: Final = (
    "nvmx_core.cpu.entry_checks",
    "nvmx_core.cpu.event_checks",
    "nvmx_core.cpu.control_checks",
    "nvmx_core.cpu.guest_checks",
)
"""The same for the target `fuzz_entry_checks`."""

SCENARIO_TEXT: Final = ("nvmx_core.scenario",)
"""The same for the target `fuzz_scenario_text`."""

TRACE_READER: Final = ("nvmx_fuzz.trace",)
"""The same for the target `fuzz_trace_reader`."""

# Exit statuses that do not depend on what was looked for.
BAD_INPUT: Final = 2
OUR_OWN_BUG: Final = 3
