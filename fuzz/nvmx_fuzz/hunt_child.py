"""One run of one search method against one L0, in a process of its own: `hunt.py` reads its one line of JSON.

`python -m nvmx_fuzz.hunt_child METHOD L0 SEED SECONDS CORE`. A run ends at the first violation, or when
SECONDS of CPU time are over. The methods here are what a user would take instead of this fuzzer:

    random        random scenarios of the same generator, without feedback
    hypothesis    the public strategies, without shrinking or database
    hypofuzz      the same with HypoFuzz as the backend, which is guided by the lines that it traces
    atheris       atheris as it comes: its instrumentation, its byte mutator, an empty corpus in memory
"""

import sys
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from nvmx_fuzz import CODE_UNDER_TEST
from nvmx_fuzz.core_choice import choose
from nvmx_fuzz.json_line import SearchRun

_STRIDE: Final = 1 << 32
"""Seeds of random scenarios of different runs do not meet."""

_EXAMPLES_MAX: Final = 1 << 40


def random_search(l0_name: str, seed: int, seconds: float) -> None:
    """Try one random scenario after the other."""
    from nvmx_core.bugs.versions import l0_class  # noqa: PLC0415 - after the choice of the build
    from nvmx_core.oracle.judge import violations_of  # noqa: PLC0415
    from nvmx_fuzz.codec import decode  # noqa: PLC0415
    from nvmx_fuzz.generate import random_bytes  # noqa: PLC0415

    l0 = l0_class(l0_name)
    run = SearchRun(seconds)
    for number in count(seed * _STRIDE):
        data = random_bytes(number)
        violations = violations_of(decode(data), l0)
        run.executed(bool(violations), lambda found=data: found)  # type: ignore[misc]


def hypothesis_search(l0_name: str, seed: int, seconds: float) -> None:
    """Let Hypothesis generate examples until one fails."""
    import hypothesis  # noqa: PLC0415 - of this method only

    test = property_test(l0_name, seconds, database=None)
    # Hypothesis ends by itself when it believes to have seen everything that is new.
    for turn in count():
        hypothesis.seed(seed * _STRIDE + turn)(test)()


def hypofuzz_search(l0_name: str, _seed: int, seconds: float) -> None:
    """Let HypoFuzz do so, with its corpus in memory; it takes no seed, but draws its own."""
    import hypofuzz.entrypoint  # noqa: F401, PLC0415 - importing it registers the backend
    from hypothesis.database import InMemoryExampleDatabase  # noqa: PLC0415

    test = property_test(l0_name, seconds, backend="hypofuzz", database=InMemoryExampleDatabase())
    while True:
        test()


def property_test(l0_name: str, seconds: float, **engine: Any) -> Callable[[], None]:
    """What a user would write with the public strategies, without end; *engine* are settings."""
    import hypothesis  # noqa: PLC0415 - of these methods only

    from nvmx_core.bugs.versions import l0_class  # noqa: PLC0415
    from nvmx_core.oracle.judge import violations_of  # noqa: PLC0415
    from nvmx_core.scenario.steps import Scenario  # noqa: PLC0415
    from nvmx_fuzz.codec import encode  # noqa: PLC0415
    from nvmx_fuzz.strategies import scenarios  # noqa: PLC0415

    l0 = l0_class(l0_name)
    settings = hypothesis.settings(
        max_examples=_EXAMPLES_MAX,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        **engine,
    )
    run = SearchRun(seconds)

    @settings
    @hypothesis.given(scenarios())
    def holds(scenario: Scenario) -> None:
        run.executed(bool(violations_of(scenario, l0)), lambda: encode(scenario))

    return holds


def atheris_search(l0_name: str, seed: int, seconds: float) -> None:
    """Let atheris mutate bytes, guided by its own instrumentation."""
    import atheris  # noqa: PLC0415 - of this method only

    from nvmx_fuzz.feedback import instrument, setup  # noqa: PLC0415

    with instrument(CODE_UNDER_TEST, "stock") as probes:
        from nvmx_core.bugs.versions import l0_class  # noqa: PLC0415
        from nvmx_core.oracle.judge import violations_of  # noqa: PLC0415
        from nvmx_fuzz.codec import decode  # noqa: PLC0415
    l0 = l0_class(l0_name)
    run = SearchRun(seconds)

    def test_one_input(data: bytes) -> None:
        run.executed(bool(violations_of(decode(data), l0)), lambda: data)

    options = ("-max_len=520", "-verbosity=0", "-print_final_stats=0", f"-seed={seed}")
    setup(["nvmx-hunt", *options], test_one_input, probes=probes)
    run.begin()
    atheris.Fuzz()


SEARCHES: Final[dict[str, Callable[[str, int, float], None]]] = {
    "random": random_search,
    "hypothesis": hypothesis_search,
    "hypofuzz": hypofuzz_search,
    "atheris": atheris_search,
}


def main(method: str, l0_name: str, seed: str, seconds: str, core: str) -> int:
    """Search; only an error returns."""
    choose(core)
    SEARCHES[method](l0_name, int(seed), float(seconds))
    return 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
