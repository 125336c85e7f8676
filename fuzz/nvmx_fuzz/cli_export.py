"""`nvmx-fuzz export`: a scenario as a test, as an example of a property, or as a report to be pasted."""

import click

from nvmx_fuzz.cli_explain import report_of
from nvmx_fuzz.cli_options import l0_option, output_option, violation_option, write_text
from nvmx_fuzz.export import FORMS, export
from nvmx_fuzz.scenario_files import load

KVM_UNIT_TEST = "kvm-unit-test"


@click.command("export")
@click.argument("file")
@click.option(
    "--format",
    "form",
    type=click.Choice((*FORMS, KVM_UNIT_TEST)),
    required=True,
    help="pytest: regression tests; hypothesis: an @example; markdown: for a mail or an issue; "
    "kvm-unit-test: a C file.",
)
@l0_option("The L0 that FILE violates a rule of.")
@violation_option
@output_option
def command(file: str, form: str, l0_name: str, violation: int, output: str) -> int:
    """Write the scenario in FILE so that it stands alone, with what it violates; - is standard input.

    The tests hold L0 `fixed` to every rule, and check that the L0 given is still caught. A C file for a
    tree of kvm-unit-tests asserts what `bare` saw, whatever FILE violates.
    """
    loaded = load(file)
    if form == KVM_UNIT_TEST:
        from nvmx_fuzz.kvm_unit_test import kvm_unit_test  # noqa: PLC0415 - nothing else needs it

        write_text(output, kvm_unit_test(loaded))
        return 0
    write_text(output, export(loaded, report_of(loaded, l0_name, violation), form))
    return 0
