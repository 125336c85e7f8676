"""A scenario in the form in which other people and other tools take it: a test, an example, a mail.

What is written stands alone: it holds the scenario itself, and needs no file beside it. Comments and file
names come from outside, so they are made printable and escaped for where they stand.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from textwrap import wrap
from typing import Final

from nvmx_core.bugs.versions import FIXED
from nvmx_core.scenario.text import ScenarioFile, format_file
from nvmx_fuzz.explain import render_text
from nvmx_fuzz.explain_report import Report
from nvmx_fuzz.scenario_files import Loaded
from nvmx_fuzz.wording import printable

_DOC_WIDTH: Final = 96
_MARKDOWN_SPECIAL: Final = re.compile(r"([\\`*\[\]<>|~])")


def export(loaded: Loaded, report: Report, form: str) -> str:
    """A scenario, with its explanation, in one of FORMS."""
    return FORMS[form](loaded, report)


def scenario_text(loaded: Loaded) -> str:
    """The canonical text of a scenario with the comments and expectations of its file."""
    file = loaded.text or ScenarioFile(loaded.scenario, (), ())
    comments = tuple(printable(comment) for comment in file.comments)
    return format_file(file._replace(comments=comments))


# -- Python ------------------------------------------------------------------------------------------


def as_pytest(loaded: Loaded, report: Report) -> str:
    """A module of tests: `fixed` keeps every rule here, and the L0 of the finding is caught."""
    has_expects = loaded.text is not None and bool(loaded.text.expects)
    finding = report.finding
    imports = [
        "from nvmx_core.bugs.versions import l0_class",
        "from nvmx_core.oracle.judge import violations_of",
        "from nvmx_core.scenario.text import parse_scenario",
    ]
    if has_expects:
        imports[1:2] = [
            "from nvmx_core.machines.bare import Bare",
            "from nvmx_core.machines.nested import Nested",
            "from nvmx_core.oracle.judge import violations_of",
            "from nvmx_core.scenario.config import config_for",
        ]
        imports[-1] = "from nvmx_core.scenario.text import check_expectations, parse_scenario"
    topic = finding.rule.lower() if finding else "scenario"
    parts = [_head(loaded, report, "pytest"), "\n".join(imports), _python_scenario(loaded)]
    parts.append(f"\n{_KEYS}")
    parts.append(
        f'\ndef test_{topic}_keeps_every_rule_on_fixed() -> None:\n    assert keys_on("{FIXED}") == []'
    )
    if finding and report.l0 != FIXED:
        key = f"{finding.oracle} {finding.rule} {finding.situation}"
        name = re.sub(r"\W+", "_", report.l0)
        parts.append(
            f"\ndef test_{topic}_is_broken_by_{name}() -> None:\n"
            f"    assert {_quoted(key)} in keys_on({_quoted(report.l0)})"
        )
    if has_expects:
        parts.append(f"\n{_EXPECTS.format(topic=topic)}")
    return "\n\n".join(parts) + "\n"


_KEYS: Final = '''\
def keys_on(l0_name: str) -> list[str]:
    """What the scenario violates on an L0 of the catalogue."""
    scenario = parse_scenario(SCENARIO).scenario
    return [violation.key() for violation in violations_of(scenario, l0_class(l0_name))]'''

_EXPECTS: Final = """\
def test_{topic}_shows_what_is_expected() -> None:
    file = parse_scenario(SCENARIO)
    config = config_for(file.scenario.config)
    for machine in (Bare(config), Nested(config)):
        machine.run(file.scenario)
        assert check_expectations(file, machine.journal, machine.step_starts) == []"""


def as_hypothesis(loaded: Loaded, report: Report) -> str:
    """A module with a property of random scenarios, and this one as an example that is always tried."""
    imports = (
        "from hypothesis import example, given\n\n"
        "from nvmx_core.bugs.versions import l0_class\n"
        "from nvmx_core.oracle.judge import violations_of\n"
        "from nvmx_core.scenario.steps import Scenario\n"
        "from nvmx_core.scenario.text import parse_scenario\n"
        "from nvmx_fuzz.strategies import scenarios"
    )
    topic = f"{report.finding.rule.lower()}_and_all_rules" if report.finding else "all_rules"
    test = (
        "\n@example(parse_scenario(SCENARIO).scenario)\n"
        "@given(scenarios())\n"
        f"def test_{topic}_are_kept_by_fixed(scenario: Scenario) -> None:\n"
        f'    assert [found.sentence for found in violations_of(scenario, l0_class("{FIXED}"))] == []'
    )
    head = _head(loaded, report, "hypothesis")
    return "\n\n".join((head, imports, _python_scenario(loaded), test)) + "\n"


def _head(loaded: Loaded, report: Report, form: str) -> str:
    """The docstring: what is wrong and where, and the command that wrote the file."""
    finding = report.finding
    lines = ["Nothing is wrong: both machines show the same."]
    if finding:
        where = f" on L0 {report.l0}" if report.l0 != FIXED else " on L0 fixed, until it is mended"
        lines = [
            f"{finding.rule}: {finding.sentence}.",
            "",
            f"Violates {finding.oracle} {finding.rule}{where}.",
        ]
    command = f"nvmx-fuzz export --format {form} --l0 {report.l0} {shlex.quote(loaded.name)}"
    lines += ["", f"Made by: {command}", f"with nvmx-fuzz {report.revision}"]
    text = "\n".join(
        part
        for line in lines
        for part in wrap(printable(line), _DOC_WIDTH, break_long_words=False) or [""]
    )
    return f'"""{_escaped(text)}\n"""'


def _python_scenario(loaded: Loaded) -> str:
    return f'SCENARIO = """\\\n{_escaped(scenario_text(loaded))}"""'


def _escaped(text: str) -> str:
    """A text between triple quotes."""
    return (
        text.replace("\\", "\\\\").replace('"', '\\"')
        if '"""' in text
        else text.replace("\\", "\\\\")
    )


def _quoted(text: str) -> str:
    """A text as a literal of Python, with the quotes of this project."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# -- Markdown ----------------------------------------------------------------------------------------


def as_markdown(loaded: Loaded, report: Report) -> str:
    """A report to be pasted into a mail or an issue; the scenario is in the command that replays it."""
    finding = report.finding
    title = "Nothing wrong: both machines show the same"
    if finding:
        title = f"{finding.oracle} {finding.rule}: {finding.sentence}"
    # The command in it names a file that the reader has not.
    explanation = printable_lines(render_text(replace(report, replay="")))
    command = (
        f"nvmx-fuzz replay --l0 {report.l0} - <<'END-OF-SCENARIO'\n"
        f"{scenario_text(loaded)}END-OF-SCENARIO"
    )
    parts = [
        f"## {_MARKDOWN_SPECIAL.sub(_BACKSLASH, printable(title))}",
        "To replay it, paste this into a shell:",
        fenced(command, "sh"),
        "What happens, and why it is wrong:" if finding else "What happens:",
        fenced(explanation, "text"),
    ]
    if report.revision:
        parts.append(f"nvmx-fuzz {report.revision}")
    return "\n\n".join(parts) + "\n"


_BACKSLASH: Final = r"\\\1"


def fenced(text: str, language: str) -> str:
    """A block of code whose fence is longer than any that is in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def printable_lines(text: str) -> str:
    """The same lines, each of them printable."""
    return "\n".join(printable(line) for line in text.split("\n"))


FORMS: Final[dict[str, Callable[[Loaded, Report], str]]] = {
    "pytest": as_pytest,
    "hypothesis": as_hypothesis,
    "markdown": as_markdown,
}
