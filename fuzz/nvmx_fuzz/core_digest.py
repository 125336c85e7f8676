"""One digest of all that the machines show: `python -m nvmx_fuzz.core_digest CORE FIRST LAST [FOLDER]`.

Runs the random scenarios FIRST to LAST - 1, and the seeds in FOLDER, on the build CORE of the model
("python" or "compiled"), each with every L0, and prints a line "LAST DIGEST" for each thousand: equal
output, equal machines. Exit status 2: the build cannot be used.
"""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

from nvmx_fuzz.core_choice import NoCompiledCoreError, choose

_CHUNK: Final = 1000
_L0S: Final = ("fixed", "bug1", "bug3")


def main(core: str, first: int, last: int, folder: str = "") -> int:
    """Print the digests."""
    try:
        choose(core)
    except (NoCompiledCoreError, ValueError) as error:
        sys.stderr.write(f"core_digest: {error}\n")
        return 2
    # Here, because which build they come from has only just been chosen.
    from nvmx_core.bugs.versions import l0_class  # noqa: PLC0415
    from nvmx_core.oracle.judge import run_and_judge  # noqa: PLC0415
    from nvmx_core.scenario.config import config_for  # noqa: PLC0415
    from nvmx_fuzz.generate import random_scenario  # noqa: PLC0415
    from nvmx_fuzz.scenario_files import load  # noqa: PLC0415
    from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback  # noqa: PLC0415

    l0s = [l0_class(name) for name in _L0S]
    digest = sha256()
    states = bytearray(COUNTERS)
    feedback = StateFeedback(states)
    texts = sorted(Path(folder).rglob("*.scn")) if folder else []
    scenarios = [load(str(path)).scenario for path in texts]
    for number in range(first - len(scenarios), last):
        scenario = random_scenario(number) if number >= first else scenarios[number - first]
        for l0 in l0s:
            verdict = run_and_judge(scenario, config_for(scenario.config), l0)
            vcpu = verdict.nested.vcpu
            feedback.record(vcpu.reach, vcpu.log)
            shown = (verdict.bare.journal, verdict.nested.journal, vcpu.log, verdict.violations)
            digest.update(repr(shown).encode() + states)
            states[:] = bytes(COUNTERS)
        if (number + 1 - first) % _CHUNK == 0 or number + 1 == last:
            sys.stdout.write(f"{number + 1} {digest.hexdigest()}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
