"""The rules that oracles ask about, and which situations put each to the test.

A rule that was never put to the test proves nothing. The oracles judge every run, but most of their rules
say something only where an event waits, is in flight, or exits; those situations are the ones that L0
counts (``nvmx_core.l0.reach``). How often a rule was checked is the sum of their counts; where every run
says something about a rule, it is the number of runs.
"""

from typing import Final, NamedTuple

from nvmx_core.l0.reach import REACH_INDEX
from nvmx_core.oracle.judge import ORACLES

_BOUNDARY_EXITS: Final = (
    "nested-exit-interrupt", "nested-exit-nmi", "nested-exit-init", "nested-exit-sipi",
    "nested-exit-mtf", "nested-exit-timer", "nested-exit-interrupt-window",
    "nested-exit-nmi-window", "nested-exit-tpr-threshold", "nested-exit-eoi",
)  # fmt: skip
_REINJECTIONS: Final = (
    "reinject-nmi", "reinject-interrupt", "reinject-exception", "reinject-soft",
)  # fmt: skip

EVERY_RUN: Final[tuple[str, ...]] = ()


class RuleRow(NamedTuple):
    """One rule that an oracle cites; ``situations`` is EVERY_RUN or names of ``REACH_NAMES``."""

    oracle: str
    rule: str
    situations: tuple[str, ...]


_SITUATIONS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("EXIT-INFO", "X1"): ("nested-exit-vectoring",),
    ("EXIT-INFO", "X2"): ("nested-exit-triple-fault", "nested-exit-double-fault"),
    ("EXIT-INFO", "X3"): _BOUNDARY_EXITS,
    ("EXIT-INFO", "X4"): ("nested-exit-vectoring",),
    ("EXIT-INFO", "X6"): ("nested-exit-interrupt-acknowledged", "nested-exit-nmi"),
    ("IMMEDIATE-EXIT", "O7"): ("immediate-exit-timer", "nested-exit-timer"),
    ("IMMEDIATE-EXIT", "O11"): ("immediate-exit-run-pending", "immediate-exit-reinjection"),
    ("IMMEDIATE-EXIT", "M1"): ("immediate-exit-mtf", "nested-exit-mtf"),
    ("IMMEDIATE-EXIT", "B5"): ("nested-exit-interrupt-window",),
    ("IMMEDIATE-EXIT", "B6"): ("nested-exit-nmi-window",),
    ("IMMEDIATE-EXIT", "V10"): ("immediate-exit",),
    ("EVENT-RANK", "V4"): _BOUNDARY_EXITS,
    ("LIVENESS", "S1"): EVERY_RUN,
    ("SELF-CHECK", "V5"): ("immediate-exit-run-pending", "arrival-at-entry"),
    ("SELF-CHECK", "V6"): ("nested-exit-vectoring", "smm-from-l2"),
    ("SELF-CHECK", "X1"): _BOUNDARY_EXITS,
    ("SELF-CHECK", "E0"): EVERY_RUN,
    ("CONSERVATION", "V2"): ("repair-in-delivery-l1-injection", *_REINJECTIONS),
    ("CONSERVATION", "V7"): ("nested-exit-interrupt", "interrupt-injected-for-l2"),
    ("CONSERVATION", "V8"): ("nested-exit-nmi", "nmi-injected-for-l2", "reinject-nmi"),
    ("CONSERVATION", "K2"): ("nested-exit-interrupt-acknowledged",),
    ("CONSERVATION", "Y1"): EVERY_RUN,
    ("TRANSPARENCY", "V11"): EVERY_RUN,
}

RULE_ROWS: Final = tuple(
    RuleRow(oracle.id, rule, _SITUATIONS[oracle.id, rule])
    for oracle in ORACLES
    for rule in oracle.rules
)
RULE_INDEX: Final = {(row.oracle, row.rule): index for index, row in enumerate(RULE_ROWS)}

assert len(_SITUATIONS) == len(RULE_ROWS)
assert all(name in REACH_INDEX for row in RULE_ROWS for name in row.situations)
