"""What the doctor says of things that are there and of those that are not."""

import pytest

from nvmx_fuzz import cli_doctor


def test_what_is_missing_comes_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli_doctor, "find_spec", lambda _name: None)
    monkeypatch.setattr(cli_doctor, "_version", lambda _name: "")
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    monkeypatch.setenv("PATH", "")
    found = cli_doctor.diagnosis()
    assert found["C compiler"].startswith("no-such-compiler is missing; try: apt install")
    assert found["pictures"] == "jinja2 and matplotlib missing; try: pip install -e '.[report]'"
    assert found["bochs"].endswith("try: pip install -e '.[bochs]'")
    assert found["baseline"].endswith("try: pip install -e '.[report]'")
    assert found["browser"].endswith("try: apt install chromium")
    assert "try: scripts/fuzz" in found["atheris"]


def test_the_compiler_is_the_one_that_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "sh -c")
    assert cli_doctor.diagnosis()["C compiler"].endswith("/sh")


def test_a_feedback_that_there_is_not_is_told_and_nothing_else_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NVMX_FEEDBACK", "much")
    found = cli_doctor.diagnosis()
    assert found["feedback"].startswith("NVMX_FEEDBACK is 'much', but must be one of auto")
    assert found["core"].endswith("is used")
