"""SELF-CHECK: L0 never finds itself in a state that must not be (its own WARN_ONs, V5, V6)."""

from collections.abc import Iterator
from typing import Final

from nvmx_core.l0.log import (
    CHECK_ENTRY_FAILED,
    CHECK_EVENT_FOR_L1,
    CHECK_EXIT_WHILE_RUN_PENDING,
    CHECK_RUN_PENDING_OUTSIDE_GUEST,
    CHECK_VECTORING_WITH_REASON,
    SELF_CHECK,
    SELF_CHECKS,
)
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.timeline import step_of
from nvmx_core.oracle.violation import Violation

ORACLE: Final = "SELF-CHECK"

RULE_OF_CHECK: Final[dict[int, str]] = {
    CHECK_EXIT_WHILE_RUN_PENDING: "V5",
    CHECK_RUN_PENDING_OUTSIDE_GUEST: "V5",
    CHECK_VECTORING_WITH_REASON: "X1",
    CHECK_ENTRY_FAILED: "E0",
    CHECK_EVENT_FOR_L1: "V6",
}


def self_check(nested: Nested) -> Iterator[Violation]:
    """Report every failed self-check of the run; the end of the run is one more check."""
    vcpu = nested.vcpu
    if vcpu.alarmed:
        for index, record in enumerate(vcpu.log):
            if record[0] == SELF_CHECK:
                yield _violation(record[2], step_of(nested.log_starts, index), record[1])
    if vcpu.nested_run_pending and not vcpu.guest_mode and not vcpu.in_smm:
        yield _violation(
            CHECK_RUN_PENDING_OUTSIDE_GUEST, len(nested.log_starts) - 1, len(nested.journal)
        )


def _violation(code: int, step: int, position: int) -> Violation:
    text = SELF_CHECKS[code]
    return Violation(ORACLE, RULE_OF_CHECK[code], text, step, position, (), f"L0: {text}")
