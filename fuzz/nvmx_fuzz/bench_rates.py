"""How fast the imported build of the model is, without atheris."""

import time
from typing import Final

from nvmx_core.l0.kvm import Kvm
from nvmx_core.oracle.judge import run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.codec import decode
from nvmx_fuzz.generate import random_scenario
from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback

STEPS_MIN: Final = 12
STEPS_MAX: Final = 20

_SCENARIOS: Final = 1000


def scenarios() -> list[Scenario]:
    """The fixed set of generated scenarios of 12 to 20 steps."""
    found: list[Scenario] = []
    seed = 0
    while len(found) < _SCENARIOS:
        scenario = random_scenario(seed)
        if STEPS_MIN <= len(scenario.steps) <= STEPS_MAX:
            found.append(scenario)
        seed += 1
    return found


def rates(inputs: list[bytes]) -> tuple[float, float]:
    """Decode, run on both machines, judge, and record states: executions and steps a second."""
    feedback = StateFeedback(bytearray(COUNTERS))
    steps = 0
    start = time.perf_counter()
    for data in inputs:
        scenario = decode(data)
        verdict = run_and_judge(scenario, config_for(scenario.config), Kvm)
        feedback.record(verdict.nested.vcpu.reach, verdict.nested.vcpu.log)
        steps += len(scenario.steps)
    seconds = time.perf_counter() - start
    return len(inputs) / seconds, steps / seconds
