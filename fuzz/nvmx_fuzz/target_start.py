"""What a fuzz target does before it imports the model."""

import os
import sys

from nvmx_fuzz import L0_VARIABLE
from nvmx_fuzz.core_choice import NoCompiledCoreError, agree, choose
from nvmx_fuzz.feedback import Mode, choose_mode


def choose_build(name: str, core: str | None = None) -> Mode:
    """Put the build of the model in place and say how its branches are counted.

    Args:
        name: the target, for messages.
        core: see `core_choice.agree`; "python" for a target that has no feedback but branches.

    Returns:
        The mode for `feedback.instrument`.

    Raises:
        SystemExit: status 2, after one line, when the environment asks for what there is not.
    """
    try:
        core, feedback = agree(core, None, os.environ.get(L0_VARIABLE, ""))
        mode = choose_mode(feedback)
        choose(core)
    except (ValueError, NoCompiledCoreError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        raise SystemExit(2) from None
    return mode
