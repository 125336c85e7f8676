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
        ("nvmx-fuzz replay --target fuzz_t", {"fuzz_trace_reader", "fuzz_transparency"}),
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


@pytest.mark.parametrize(
    "words",
    [
        "replay cra",
        "explain fin",
        "export --format pytest fin",
        "minimize fin",
        "compare fin",
        "check-trace tra",
        "report out",
        "run --corpus mer",
        "explain --format svg -o pic",
        "report -o pag",
        "corpus add fin",
        "corpus merge a b",
        "corpus merge a --to m",
        "corpus minimize a",
        "corpus stats a",
        "corpus pack a",
        "corpus pack a b.z",
        "corpus encode fin",
        "corpus decode cra",
        "corpus list a",
        "corpus check fin",
        "corpus from-trace tra",
    ],
)
def test_a_shell_is_told_where_a_file_belongs(words: str) -> None:
    line = f"nvmx-fuzz {words}"
    finished = ask("bash_complete", {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))})
    assert finished.stdout == f"file,{line.rsplit(maxsplit=1)[-1]}\n"


@pytest.mark.parametrize("words", [(), ("corpus",)])
def test_the_list_of_commands_is_not_cut_off(words: tuple[str, ...]) -> None:
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "nvmx_fuzz.cli", *words, "--help"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert "Commands:" in finished.stdout
    assert "..." not in finished.stdout.partition("Commands:")[2]
