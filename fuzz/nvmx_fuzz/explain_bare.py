"""The run on bare metal beside an explanation: what L1 and L2 see there, step by step."""

from nvmx_core.journal import END, L1_ENTRY, Record
from nvmx_core.machines.bare import Bare
from nvmx_core.oracle.transparency import first_difference
from nvmx_core.scenario.config import Config
from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz.explain_arrows import drawn_on_bare
from nvmx_fuzz.explain_records import record_text, seen_by
from nvmx_fuzz.explain_report import BareLine
from nvmx_fuzz.explain_timeline import differing_fields


def bare_lines(scenario: Scenario, config: Config, nested: list[Record]) -> tuple[BareLine, ...]:
    """Run a scenario on bare metal; *nested* is the journal that it is compared with."""
    machine = Bare(config)
    machine.run(scenario)
    journal = machine.journal
    difference = first_difference(journal, nested) if journal != nested else len(journal)
    starts = [*machine.step_starts, len(journal)]
    lines: list[BareLine] = []
    step = 0
    for position, record in enumerate(journal):
        while step + 1 < len(starts) and starts[step + 1] <= position:
            step += 1
        differs = position == difference
        fields: tuple[str, ...] = ()
        if differs and position < len(nested) and nested[position][0] == record[0]:
            fields = differing_fields(record, nested[position])
        kind, arrow = drawn_on_bare(record)
        text = record_text(record, fields)
        if record[0] == L1_ENTRY:
            text = f"VM entry, {text}"
        who = seen_by(record) if record[0] != END else ""
        lines.append(BareLine(step + 1, who, text, kind, arrow, position, differs, fields))
    return tuple(lines)
