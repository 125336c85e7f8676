"""pytest plugin: ``pytest --nvmx-corpus DIR`` makes a test of every scenario below DIR.

A test replays its file on both machines and fails with the rule that is broken, the `expect` line that does
not hold, or what is wrong with the file. DIR is a corpus of either form, a folder of saved findings, or a
whole output folder of a campaign: files ``.scn``, ``.bin`` and without a suffix are taken, a ``.bin`` only
when no ``.scn`` of its name stands beside it. Where its name tells the target of a testcase, that is asked.
The tests come on top of what pytest is told to run; to run nothing else name DIR, or a file in it, once
more as its argument.

pytest loads this module in every run of an environment that has nvmx-fuzz, so it imports next to nothing.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from nvmx_fuzz import L0_VARIABLE
from nvmx_fuzz.wording import as_testcase, command_on

if TYPE_CHECKING:
    from nvmx_fuzz.asking import Answer
    from nvmx_fuzz.replaying import Replay

_L0_DEFAULT: Final = "fixed"
_SUFFIXES: Final = frozenset({".scn", ".bin", ""})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("nvmx-fuzz")
    group.addoption(
        "--nvmx-corpus",
        action="append",
        default=[],
        metavar="DIR",
        help="also run every scenario below DIR as a test; may be repeated",
    )
    group.addoption(
        "--nvmx-l0",
        default=os.environ.get(L0_VARIABLE) or _L0_DEFAULT,
        metavar="NAME",
        help=f"the L0 that --nvmx-corpus judges (default: ${L0_VARIABLE}, or {_L0_DEFAULT})",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the folders to what is collected; UsageError for what cannot be."""
    folders = corpora(config)
    if not folders:
        return
    for folder in folders:
        if not folder.is_dir():
            what = "is not a directory" if folder.exists() else "does not exist"
            raise pytest.UsageError(f"--nvmx-corpus: {folder} {what}")
    from nvmx_fuzz.nested_events import unknown_l0  # noqa: PLC0415 - imports the model

    problem = unknown_l0(config.getoption("--nvmx-l0"))
    if problem:
        raise pytest.UsageError(f"--nvmx-l0: {problem}")
    named = [
        (config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args
    ]
    config.args += [
        str(folder) for folder in folders if not any(path.is_relative_to(folder) for path in named)
    ]


def corpora(config: pytest.Config) -> list[Path]:
    """The folders that were asked for, without links."""
    start = config.invocation_params.dir
    return [(start / name).resolve() for name in config.getoption("--nvmx-corpus")]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "ScenarioFile | None":
    """Collect the scenarios below the folders."""
    path = file_path.resolve()
    if not any(path.is_relative_to(folder) for folder in corpora(parent.config)):
        return None
    if path.suffix not in _SUFFIXES or path.name.startswith("."):
        return None
    if path.suffix == ".bin" and path.with_suffix(".scn").exists():
        return None
    collector: ScenarioFile = ScenarioFile.from_parent(parent, path=file_path)
    return collector


class ScenarioFile(pytest.File):
    """A file with one scenario."""

    def collect(self) -> Iterator["ScenarioItem"]:
        """The one test of the file."""
        yield ScenarioItem.from_parent(self, name=self.config.getoption("--nvmx-l0"))


class BrokenScenarioError(Exception):
    """A scenario did not run as it should; the text is for the person who reads the failure."""


class ScenarioItem(pytest.Item):
    """A scenario, judged with the L0 that its name tells."""

    def runtest(self) -> None:
        """Replay the file; raises BrokenScenarioError."""
        from nvmx_fuzz.asking import ask, own_target  # noqa: PLC0415 - imports the model, as the next
        from nvmx_fuzz.files import BadFile  # noqa: PLC0415
        from nvmx_fuzz.replaying import replay  # noqa: PLC0415
        from nvmx_fuzz.scenario_files import load  # noqa: PLC0415

        name = str(self.path)
        target = own_target(name)
        try:
            if target:
                answer = ask(target, name)
                failure = answer_text(answer) if answer.status else ""
            else:
                replayed = replay(load(name), self.name)
                failure = failure_text(replayed) if replayed.status else ""
        except BadFile as error:
            raise BrokenScenarioError(str(error)) from None
        if failure:
            raise BrokenScenarioError(failure)

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None
    ) -> str:
        """What is broken, without a traceback of ours."""
        del style
        if isinstance(excinfo.value, BrokenScenarioError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """What stands above a failure."""
        return self.path, None, f"{self.path.name} on L0 {self.name}"


def failure_text(replayed: "Replay") -> str:
    """The broken rules with their text and source, expectations that do not hold, and the next command."""
    from nvmx_core.arch.rules import RULES  # noqa: PLC0415 - the model

    lines: list[str] = []
    for violation in replayed.violations:
        rule = RULES[violation.rule]
        lines += [
            f"{violation.rule}: {violation.sentence} (step {violation.step + 1})",
            f"  {rule.title}: {rule.text} ({rule.source})",
            f"  key: {violation.key()}",
        ]
    lines += [f"{machine}: {sentence}" for machine, sentence in replayed.broken]
    if replayed.model_error:
        lines += ["OUR OWN BUG: the model contradicts itself", replayed.model_error.rstrip()]
    what = "explain" if replayed.violations else "replay --journal"
    return "\n".join([*lines, f"next: {command_on(what, replayed.l0, replayed.name)}"])


def answer_text(answer: "Answer") -> str:
    """What a target asks, what is wrong, and the next command."""
    target = answer.target
    return "\n".join(
        [
            f"{target.name}: {target.asks}  No:",
            answer.report,
            f"next: {as_testcase(target.name, answer.name)}",
        ]
    )
