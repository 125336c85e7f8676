"""Stops in the core where a rule is violated: `replay --pdb`.

The scenario runs again on the nested machine, traced line by line; once the record that the violation is
about is written, the debugger takes over in the frame that wrote it. Needs the Python build of the model.
"""

import bdb
import pdb  # noqa: T100 - to debug is what this is for
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from nvmx_core.bugs.versions import l0_class
from nvmx_core.machines.nested import Nested
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.explain_replay import play
from nvmx_fuzz.explain_timeline import wrong_moment

Debug = Callable[[FrameType], None]


def stop_at(
    scenario: Scenario, l0_name: str, violation: Violation, debug: Debug | None = None
) -> bool:
    """Run until the record of *violation*, and call *debug* (default: pdb) with the frame.

    Returns whether the record was met.
    """
    config = config_for(scenario.config)
    l0 = l0_class(l0_name)
    played = play(scenario, config, l0)
    moment = wrong_moment(played, violation)
    if moment is None:
        return False
    machine = Nested(config, l0)
    if moment.hidden:
        hidden = [other for step in played for other in step.moments if other.hidden]
        index = next(place for place, other in enumerate(hidden) if other is moment)
    else:
        index = moment.position
    met = False

    def line(frame: FrameType, _event: str, _argument: object) -> Callable[..., Any] | None:
        nonlocal met
        records = machine.vcpu.log if moment.hidden else machine.journal
        if met or len(records) <= index:
            return None if met else line
        met = True
        sys.settrace(None)
        (debug or pdb.Pdb().set_trace)(frame)
        return sys.gettrace()

    sys.settrace(lambda _frame, _event, _argument: None if met else line)
    try:
        machine.run(scenario)
    except bdb.BdbQuit:
        pass
    finally:
        sys.settrace(None)
    return met
