"""Explanations and reports as SVG and as HTML, from the templates beside this file.

jinja2 fills them, and escapes all that is filled in: file names, comments and sentences come from
outside. A page is whole in itself: no script, no request, light and dark as the reader's system says.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nvmx_fuzz.diagram import NARROW, WIDE, Diagram, diagram
from nvmx_fuzz.explain_report import Report
from nvmx_fuzz.files import MissingLibraryError
from nvmx_fuzz.wording import printable

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES: Final = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True)
class ShownReport:
    """An explanation with its pictures for both widths; *about* is their title."""

    report: Report
    about: str
    wide: Diagram
    narrow: Diagram


def shown(report: Report) -> ShownReport:
    """An explanation with its pictures."""
    return ShownReport(report, about(report), diagram(report, WIDE), diagram(report, NARROW))


def about(report: Report) -> str:
    """One line that names the picture."""
    if report.finding is None:
        return f"nothing wrong with L0 {report.l0}: both machines show the same"
    return f"{report.finding.oracle} {report.finding.rule}: {report.finding.sentence}"


def explanation_svg(report: Report) -> str:
    """The diagram alone; raises MissingLibraryError."""
    return page("diagram_file.svg", diagram=diagram(report, WIDE), about=about(report))


def explanation_html(report: Report) -> str:
    """The whole explanation; raises MissingLibraryError."""
    return page("explain.html", shown=shown(report))


def page(template: str, **values: Any) -> str:
    """Fill a template; raises MissingLibraryError where jinja2 is not installed."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> "Environment":
    try:
        import jinja2  # noqa: PLC0415 - of the extra "report"
    except ModuleNotFoundError:
        raise MissingLibraryError("jinja2") from None
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_plain,
    )


def _plain(value: object) -> object:
    """Coordinates without a needless fraction; text that every file and every reader can hold.

    A file name may have bytes that are no text, and a comment any letter that moves a terminal.
    """
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    if type(value) is str and not value.isprintable():
        return "\n".join(map(printable, value.split("\n")))
    return value
