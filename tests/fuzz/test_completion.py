"""What a shell offers for a line that is not finished."""

import os
import subprocess
import sys

import pytest


def ask(instruction: str, line: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What a shell gets that asks for completion."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "nvmx_fuzz.cli"],
        env=os.environ | {"_NVMX_FUZZ_COMPLETE": instruction} | line,
        capture_output=True,
        check=False,
        text=True,
    )


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
    finished = ask("bash_complete", {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))})
    assert finished.returncode == 0
    assert {line.partition(",")[2] for line in finished.stdout.splitlines()} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    finished = ask(f"{shell}_source", {})
    assert finished.returncode == 0
    assert "nvmx-fuzz" in finished.stdout


def test_what_is_no_request_for_completion_is_bad_input() -> None:
    assert ask("nonsense", {}).returncode == 2
