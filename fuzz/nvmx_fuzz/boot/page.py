"""Writes the tables of docs/KVM.md (`python -m nvmx_fuzz.boot.page`)."""

import sys
from collections.abc import Iterator
from typing import Final

from nvmx_fuzz.boot import residuals
from nvmx_fuzz.boot.divergences import LISTED
from nvmx_fuzz.core_choice import ROOT

PAGE: Final = ROOT / "docs" / "KVM.md"
HEADING: Final = "## res1 to res11\n"
FOLLOWING: Final = "## Measured\n"


def main() -> int:
    """Write the section of the page; returns the exit status."""
    before, _, rest = PAGE.read_text().partition(HEADING)
    _, _, after = rest.partition(FOLLOWING)
    PAGE.write_text(before + section() + FOLLOWING + after)
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
    return 0


def section() -> str:
    """The text between the two headings."""
    return f"{HEADING}\n" + "\n".join(_lines()) + "\n\n"


def _lines() -> Iterator[str]:
    yield "What the catalogue says of divergences in today's KVM, against the real 6.1; 6.12 and 7.2 confirm"
    yield "the same ones (`scripts/kvm --findings`):"
    yield ""
    yield from residuals.rows()
    yield ""
    yield "New, and not in the catalogue but for res3b: [KVM-FINDINGS.md](KVM-FINDINGS.md)."
    yield ""
    yield "## Known differences"
    yield ""
    yield "This table and the one above are written by `python -m nvmx_fuzz.boot.page`. What the catalogue of"
    yield "bugs predicts is reported as `KVM: res2` and so on, what every Bochs does under the names of"
    yield "[FIDELITY.md](FIDELITY.md)."
    yield ""
    yield "| difference | machines | rules | who is right | scenario |"
    yield "|---|---|---|---|---|"
    for row in LISTED:
        machines, rules = ", ".join(row.machines), ", ".join(row.rules)
        yield f"| **{row.name}**: {row.why} | {machines} | {rules} | {row.verdict} | `{row.scenario}` |"


if __name__ == "__main__":
    raise SystemExit(main())
