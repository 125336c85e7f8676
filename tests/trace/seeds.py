"""The seeds of the target `fuzz_trace_reader`: every broken rule, and two situations in every spelling.

``python -m tests.trace.seeds`` writes them anew.
"""

from pathlib import Path

from tests.trace.cases import FIRING, SILENT, Case
from tests.trace.writer import FORMS, Trace

FOLDER = Path(__file__).resolve().parents[2] / "corpus" / "trace_reader"

_SPELLED = ("the original bug", "the mended order")
_LOSS = "CPU:1 [LOST 5 EVENTS]"


def seeds() -> dict[str, bytes]:
    """The content of each file."""
    made: dict[str, bytes] = {}
    by_name = {case.name: case for case in (*FIRING, *SILENT)}
    for name in _SPELLED:
        for form in FORMS.values():
            made[f"{_slug(name)}-{_slug(form.name)}.trace"] = by_name[name].trace().render(form)
    for case in FIRING:
        if case.name not in _SPELLED:
            made[f"{_slug(case.name)}.trace"] = case.trace().render(FORMS["6.1"])
    made["lost-events.trace"] = _holed(by_name["the original bug"]).render(FORMS["6.1"])
    return made


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _holed(case: Case) -> Trace:
    trace = case.trace()
    trace.events[-3:-3] = Trace().line(_LOSS).events
    return trace


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.trace"):
        old.unlink()
    for name, content in seeds().items():
        (FOLDER / name).write_bytes(content)
