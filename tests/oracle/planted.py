"""A wrong core, the scenario that shows it, and the one finding that it must lead to."""

from typing import NamedTuple

from nvmx_core.l0.kvm import Kvm
from nvmx_core.scenario.steps import Step
from tests.nested_support import Pair, both


class Planted(NamedTuple):
    """One mistake: which rule it breaks in which situation, and how it shows."""

    rule: str
    situation: str
    l0: type[Kvm]
    moves: tuple[Step, ...]
    on: str = ""
    off: str = ""
    l0_exceptions: int = 0


def run_wrong(planted: Planted) -> Pair:
    """The scenario on the wrong core."""
    return _run(planted, planted.l0)


def run_fixed(planted: Planted) -> Pair:
    """The same scenario on the fixed core."""
    return _run(planted, Kvm)


def _run(planted: Planted, l0: type[Kvm]) -> Pair:
    return both(
        *planted.moves,
        on=planted.on,
        off=planted.off,
        l0_exceptions=planted.l0_exceptions,
        l0=l0,
    )


def told_by(oracle: str, pair: Pair) -> list[tuple[str, str]]:
    """Rule and situation of everything that one oracle found, each once, in order."""
    found = [(rule, situation) for name, rule, situation in pair.rules if name == oracle]
    return list(dict.fromkeys(found))


def name_of(planted: Planted) -> str:
    """The test id: rule and situation."""
    return f"{planted.rule}-{planted.situation}".replace(" ", "-")
