"""`nvmx-fuzz export`: a scenario as a test, as an example of a property, or as a report to be pasted."""

import click

from nvmx_fuzz.cli_explain import report_of
from nvmx_fuzz.cli_options import l0_option, output_option, violation_option, write_text
from nvmx_fuzz.export import FORMS, export
from nvmx_fuzz.scenario_files import load


@click.command("export")
@click.argument("file")
@click.option(
    "--format",
    "form",
    type=click.Choice(tuple(FORMS)),
    required=True,
    help="pytest: regression tests; hypothesis: an @example; markdown: for a mail or an issue.",
)
@l0_option("The L0 that FILE violates a rule of.")
@violation_option
@output_option
def command(file: str, form: str, l0_name: str, violation: int, output: str) -> int:
    """Write the scenario in FILE so that it stands alone, with what it violates; - is standard input.

    The tests hold L0 `fixed` to every rule, and check that the L0 given is still caught.
    """
    loaded = load(file)
    write_text(output, export(loaded, report_of(loaded, l0_name, violation), form))
    return 0
