"""What the fuzz targets `fuzz_nested_events.py` and `fuzz_transparency.py` do with an input.

The campaign does the same as the former.

This module imports the model, so import it inside `feedback.instrument`.
"""

from collections.abc import Callable, Sequence
from typing import Final

from nvmx_core.bugs.versions import (
    FIXED,
    L0_BY_NAME,
    VERSIONS,
    CombinationError,
    UnknownL0Error,
    l0_class,
)
from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.judge import Verdict, run_and_judge
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario.config import Config, config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz import L0_VARIABLE
from nvmx_fuzz.artifacts import crash_name
from nvmx_fuzz.codec import decode
from nvmx_fuzz.deduplication import raise_called_after
from nvmx_fuzz.state_feedback import StateFeedback
from nvmx_fuzz.targets import BYTES_LEN_MAX
from nvmx_fuzz.wording import command_on

_DEFAULT_OPTIONS: Final = (
    f"-max_len={BYTES_LEN_MAX}",
    "-len_control=0",  # the smallest scenario that does something has 16 bytes: no slow start
    "-entropic=0",  # its lists of rare features grow for as long as a campaign runs (docs/RELIABILITY.md)
)
_NAMES: Final = (*L0_BY_NAME, *(f"kvm-{version}" for version in VERSIONS))
_HEADING: Final = "our own bug, not a finding"


Judge = Callable[[Scenario, Config, type[Kvm]], Verdict]
"""`run_and_judge`, or what asks less."""


class Finding(Exception):  # noqa: N818 - it is no error of this program
    """An oracle was violated; the text is for the person who reads libFuzzer's output."""


class NestedEvents:
    """Runs inputs on both machines and asks the oracles."""

    def __init__(self, l0_name: str, feedback: StateFeedback, judge: Judge | None = None) -> None:
        """Judge the L0 called *l0_name* (UnknownL0Error if there is none) and report to *feedback*.

        *judge* runs a scenario and says what is wrong; by default every oracle is asked.
        """
        self.l0_name: Final = l0_name
        self._l0: Final = l0_class(l0_name)
        self._judge: Final[Judge] = judge or run_and_judge
        self._feedback: Final = feedback

    def run(self, scenario: Scenario) -> Verdict:
        """Run and judge one scenario; raises ModelError when the model contradicts itself."""
        verdict = self._judge(scenario, config_for(scenario.config), self._l0)
        vcpu = verdict.nested.vcpu
        self._feedback.record(vcpu.reach, vcpu.log)
        return verdict


def raise_on_violation(target: NestedEvents, data: bytes, artifact_prefix: str = "") -> None:
    """Run one input as a libFuzzer target does.

    Raises:
        Finding: an oracle was violated.
        Exception: our own bug, with a note that says so.
    """
    try:
        verdict = target.run(decode(data))
    except Exception as error:
        replay = replay_command(target.l0_name, data, artifact_prefix)
        error.add_note(f"{_HEADING}: the model contradicts itself\nreplay: {replay}")
        raise
    if verdict.violations:
        replay = replay_command(target.l0_name, data, artifact_prefix)
        finding = Finding(finding_text(verdict.violations, replay))
        raise_called_after(verdict.violations[0].key(), finding)


def finding_text(violations: Sequence[Violation], replay: str) -> str:
    """What a violated run says: a sentence and a key for each rule, then the next command."""
    lines = [f"{len(violations)} rules are broken" if len(violations) > 1 else "a rule is broken"]
    for violation in violations:
        lines += [
            f"  step {violation.step + 1}: {violation.sentence}",
            f"  key: {violation.key()}",
        ]
    return "\n".join([*lines, f"replay: {replay}"])


def replay_command(l0_name: str, data: bytes, artifact_prefix: str = "") -> str:
    """The command that runs the file again that libFuzzer will write for *data*."""
    return command_on("replay", l0_name, crash_name(data, artifact_prefix))


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """Put our defaults before the arguments meant for libFuzzer, unless they are given there."""
    program, *rest = arguments
    given = {argument.partition("=")[0] for argument in rest}
    return [
        program,
        *(option for option in _DEFAULT_OPTIONS if option.partition("=")[0] not in given),
        *rest,
    ]


def unknown_l0(name: str) -> str:
    """One line about a name that stands for no L0; "" when it does."""
    try:
        l0_class(name)
    except CombinationError as clash:
        return str(clash)
    except UnknownL0Error as unknown:
        return why_unknown(unknown)
    return ""


def why_unknown(unknown: UnknownL0Error) -> str:
    """One line about a part of a name that stands for no L0: why, or the nearest names."""
    if unknown.reason:
        return unknown.reason
    near = nearest_l0_names(unknown.part)
    known = f"known are {', '.join(_NAMES[:4])}, ...; see: nvmx-fuzz bugs"
    hint = f"did you mean {' or '.join(near)}?" if near else known
    return f"there is no L0 called {unknown.part!r}; {hint}"


def nearest_l0_names(name: str) -> list[str]:
    """The known names that look like *name*, best first."""
    from difflib import get_close_matches  # noqa: PLC0415 - only when something went wrong

    near = get_close_matches(name, _NAMES, n=3, cutoff=0.5)
    return near or [known for known in _NAMES if name and known.startswith(name[:3])][:3]


__all__ = ["FIXED", "L0_VARIABLE", "Finding", "NestedEvents"]
