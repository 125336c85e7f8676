"""The same bytes give the same journals: in any process, with any hash seed, on any Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Journals, L0's log and the state feedback of scenarios that enter L2 in many ways, in one digest.
DIGEST = """
from hashlib import sha256
from nvmx_core.bugs.versions import L0_BY_NAME
from nvmx_core.oracle.judge import run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_fuzz.codec import decode
from nvmx_fuzz.generate import random_bytes
from nvmx_fuzz.mutate import crossover, mutate
from nvmx_fuzz.state_feedback import COUNTERS, StateFeedback

digest = sha256()
before = b""
for seed in range(400):
    data = mutate(crossover(random_bytes(seed), before, 520, seed), 520, seed)
    scenario = decode(data)
    for l0 in L0_BY_NAME.values():
        verdict = run_and_judge(scenario, config_for(scenario.config), l0)
        vcpu = verdict.nested.vcpu
        states = bytearray(COUNTERS)
        StateFeedback(states).record(vcpu.reach, vcpu.log)
        for part in (data, verdict.bare.journal, verdict.nested.journal, vcpu.log,
                     verdict.violations, bytes(states)):
            digest.update(repr(part).encode())
    before = data
print(digest.hexdigest())
"""


def digest_of(python: str, hash_seed: str, minor: int = 0) -> str:
    """Run the digest on this interpreter, which needs nothing but our sources."""
    finished = subprocess.run(
        [python, "-c", DIGEST],
        env={
            **environment(minor),
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'fuzz'}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return finished.stdout


def environment(minor: int) -> dict[str, str]:
    """Ours, with the choice that pyenv's shims ask for."""
    return {**os.environ, "PYENV_VERSION": f"3.{minor}"} if minor else dict(os.environ)


def is_suitable(python: str, minor: int) -> bool:
    """Whether this is another Python of that version that can be started."""
    if minor == sys.version_info.minor:
        return False
    code = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
    started = subprocess.run(
        [python, "-c", code], env=environment(minor), capture_output=True, check=False
    )
    return started.returncode == 0


@pytest.fixture(scope="module")
def here() -> str:
    """The digest of this interpreter."""
    return digest_of(sys.executable, "0")


def test_hash_seed_does_not_matter(here: str) -> None:
    assert digest_of(sys.executable, "12345") == here


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_python_version_does_not_matter(here: str, minor: int) -> None:
    python = shutil.which(f"python3.{minor}")
    if python is None or not is_suitable(python, minor):
        pytest.skip(f"there is no other Python 3.{minor}")
    assert digest_of(python, "1", minor) == here
