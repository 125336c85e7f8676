"""What a shell offers for a line that is not finished."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("nvmx-fuzz ru", {"run"}),
        ("nvmx-fuzz run --l", {"--l0"}),
        (
            "nvmx-fuzz replay --l0 bug5",
            {
                "bug5",
                "bug50",
                "bug50b",
                "bug51",
                "bug51b",
                "bug55",
                "bug55b",
                "bug56",
                "bug58",
                "bug59",
            },
        ),
        ("nvmx-fuzz explain --l0 bug1,res1", {"bug1,res1", "bug1,res11"}),
        ("nvmx-fuzz corpus me", {"merge"}),
    ],
)
def test_a_shell_completes(words: str, offered: set[str]) -> None:
    environment = {
        "_NVMX_FUZZ_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "nvmx_fuzz.cli"],
        env=os.environ | environment,
        capture_output=True,
        check=False,
        text=True,
    )
    assert {line.partition(",")[2] for line in finished.stdout.splitlines()} == offered
