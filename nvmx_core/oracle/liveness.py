"""LIVENESS: L0 comes to rest. A loop is a finding and not a hang."""

from collections.abc import Iterator
from typing import Final

from nvmx_core.l0.log import STUCK
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.timeline import step_of
from nvmx_core.oracle.violation import Violation

ORACLE: Final = "LIVENESS"


def liveness(nested: Nested) -> Iterator[Violation]:
    """Report the step in which L0 made no progress."""
    if not nested.vcpu.dead:
        return
    for index, record in enumerate(nested.vcpu.log):
        if record[0] == STUCK:
            yield Violation(
                ORACLE,
                "S1",
                "L0 does not come to rest",
                step_of(nested.log_starts, index),
                record[1],
                (),
                f"L0 goes round more than {record[2] - 1} times without any progress",
            )
