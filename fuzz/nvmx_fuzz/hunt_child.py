"""One run of one search method against one L0, in a process of its own: `hunt.py` reads its one line of JSON.

`python -m nvmx_fuzz.hunt_child METHOD L0 SEED SECONDS CORE`. A run ends at the first violation, or when
SECONDS of CPU time are over. The methods here are what a user would take instead of this fuzzer:

    random        random scenarios of the same generator, without feedback
    hypothesis    the public strategies, without shrinking or database
    atheris       atheris as it comes: its instrumentation, its byte mutator, an empty corpus
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from typing import Final

from nvmx_fuzz import CODE_UNDER_TEST
from nvmx_fuzz.core_choice import choose
from nvmx_fuzz.json_line import finish

_STRIDE: Final = 1 << 32
"""Seeds of random scenarios of different runs do not meet."""

_EXAMPLES_MAX: Final = 1 << 40


class Run:
    """Counts executions and CPU time, and ends the process with the result."""

    def __init__(self, seconds: float) -> None:
        """Give up after *seconds* of CPU time from now."""
        self._seconds: Final = seconds
        self._started: Final = time.process_time()
        self._executions = 0

    def executed(self, violates: bool, data: Callable[[], bytes]) -> None:
        """One execution more; does not return when it is the last."""
        self._executions += 1
        passed = time.process_time() - self._started
        if violates or passed > self._seconds:
            finish(
                {
                    "found": violates,
                    "executions": self._executions,
                    "seconds": passed,
                    "data": data().hex() if violates else "",
                }
            )


def random_search(l0_name: str, seed: int, seconds: float) -> None:
    """Try one random scenario after the other."""
    from nvmx_core.bugs.versions import l0_class  # noqa: PLC0415 - after the choice of the build
    from nvmx_core.oracle.judge import run_and_judge  # noqa: PLC0415
    from nvmx_core.scenario.config import config_for  # noqa: PLC0415
    from nvmx_fuzz.codec import decode  # noqa: PLC0415
    from nvmx_fuzz.generate import random_bytes  # noqa: PLC0415

    l0 = l0_class(l0_name)
    run = Run(seconds)
    for number in count(seed * _STRIDE):
        data = random_bytes(number)
        scenario = decode(data)
        violations = run_and_judge(scenario, config_for(scenario.config), l0).violations
        run.executed(bool(violations), lambda found=data: found)  # type: ignore[misc]


def hypothesis_search(l0_name: str, seed: int, seconds: float) -> None:
    """Let Hypothesis generate examples until one fails."""
    import hypothesis  # noqa: PLC0415 - of this method only

    from nvmx_core.bugs.versions import l0_class  # noqa: PLC0415
    from nvmx_core.oracle.judge import run_and_judge  # noqa: PLC0415
    from nvmx_core.scenario.config import config_for  # noqa: PLC0415
    from nvmx_core.scenario.steps import Scenario  # noqa: PLC0415
    from nvmx_fuzz.codec import encode  # noqa: PLC0415
    from nvmx_fuzz.strategies import scenarios  # noqa: PLC0415

    l0 = l0_class(l0_name)
    run = Run(seconds)

    def holds(scenario: Scenario) -> None:
        violations = run_and_judge(scenario, config_for(scenario.config), l0).violations
        run.executed(bool(violations), lambda: encode(scenario))

    settings = hypothesis.settings(
        max_examples=_EXAMPLES_MAX,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    # Hypothesis ends by itself when it believes to have seen everything that is new.
    for turn in count():
        example = settings(hypothesis.given(scenarios())(holds))
        hypothesis.seed(seed * _STRIDE + turn)(example)()


def atheris_search(l0_name: str, seed: int, seconds: float) -> None:
    """Let atheris mutate bytes, guided by its own instrumentation."""
    import atheris  # noqa: PLC0415 - of this method only

    from nvmx_fuzz.feedback import instrument, setup  # noqa: PLC0415

    with instrument(CODE_UNDER_TEST, "stock") as probes:
        from nvmx_core.bugs.versions import l0_class  # noqa: PLC0415
        from nvmx_core.oracle.judge import run_and_judge  # noqa: PLC0415
        from nvmx_core.scenario.config import config_for  # noqa: PLC0415
        from nvmx_fuzz.codec import decode  # noqa: PLC0415
    l0 = l0_class(l0_name)
    run = Run(seconds)

    def test_one_input(data: bytes) -> None:
        scenario = decode(data)
        violations = run_and_judge(scenario, config_for(scenario.config), l0).violations
        run.executed(bool(violations), lambda: data)

    with tempfile.TemporaryDirectory(prefix="nvmx-hunt-") as corpus:
        options = ("-max_len=520", "-verbosity=0", "-print_final_stats=0", f"-seed={seed}")
        setup([f"nvmx-hunt{os.sep}", *options, corpus], test_one_input, probes=probes)
        atheris.Fuzz()


SEARCHES: Final[dict[str, Callable[[str, int, float], None]]] = {
    "random": random_search,
    "hypothesis": hypothesis_search,
    "atheris": atheris_search,
}


def main(method: str, l0_name: str, seed: str, seconds: str, core: str) -> int:
    """Search; only an error returns."""
    choose(core)
    SEARCHES[method](l0_name, int(seed), float(seconds))
    return 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
