"""What the benches and the hunt compare: settings of build and feedback, and one search with one of them.

A setting is written `CORE:FEEDBACK`: "python" or "compiled", and a key of `FEEDBACKS`. Nothing here imports
the model or atheris; what is measured runs in `bench_child.py`.
"""

from typing import Any, Final, NamedTuple

from nvmx_fuzz.core_choice import has_branch_counters, why_not_compiled
from nvmx_fuzz.json_line import in_child

CHILD: Final = "nvmx_fuzz.bench_child"


class Feedback(NamedTuple):
    """What libFuzzer sees: how branches are counted (a mode of `feedback.py`), and which states."""

    mode: str
    reach: bool = True
    transitions: bool = True


FEEDBACKS: Final = {
    "fast": Feedback("fast"),
    "branches": Feedback("branches"),
    "stock": Feedback("stock"),
    "states": Feedback("states"),
    "edges": Feedback("fast", reach=False, transitions=False),
    "edges+reach": Feedback("fast", transitions=False),
    "edges+transitions": Feedback("fast", reach=False),
    "transitions": Feedback("states", reach=False),
}
"""By name; `fast` and `states` are edges or no edges with both kinds of states."""


def campaign_setting() -> str:
    """What a campaign has without further words (`core_choice.agree`, `state_feedback.feedback_beside`)."""
    return "python:edges" if why_not_compiled() else "compiled:transitions"


def is_usable(setting: str) -> bool:
    """Whether the builds at hand allow a setting."""
    core, _, name = setting.partition(":")
    if core == "python":
        return True
    return not why_not_compiled() and (FEEDBACKS[name].mode == "states" or has_branch_counters())


def search(l0: str, seed: int, seconds: float, *setting: str) -> dict[str, Any]:
    """One search for a broken rule from an empty corpus.

    *setting* is one of the above, and what libFuzzer is told besides; *seconds* are CPU time.
    """
    return in_child(CHILD, "find", l0, str(seed), str(seconds), *setting)


def reach(seed: int, seconds: float, *setting: str) -> dict[str, Any]:
    """The same until many situations were reached on `fixed`."""
    return in_child(CHILD, "reach", str(seed), str(seconds), *setting)
