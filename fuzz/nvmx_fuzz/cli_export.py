"""`nvmx-fuzz export`: a scenario as a test, as an example of a property, or as a report to be pasted."""

import click

from nvmx_fuzz.cli_explain import report_of
from nvmx_fuzz.cli_options import (
    complete_path,
    l0_option,
    output_option,
    violation_option,
    write_text,
)
from nvmx_fuzz.export import FORMS, export
from nvmx_fuzz.files import write_output
from nvmx_fuzz.scenario_files import load

KVM_UNIT_TEST = "kvm-unit-test"
IMAGES = ("iso", "multiboot")


@click.command("export")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=complete_path)
@click.option(
    "--format",
    "form",
    type=click.Choice((*FORMS, KVM_UNIT_TEST, *IMAGES)),
    required=True,
    help="pytest: regression tests; hypothesis: an @example; markdown: for a mail or an issue; "
    "kvm-unit-test: a C file; iso, multiboot: FILEs as an image that boots.",
)
@l0_option("The L0 that FILE violates a rule of.")
@violation_option
@output_option
def command(files: tuple[str, ...], form: str, l0_name: str, violation: int, output: str) -> int:
    """Write the scenario in FILE so that it stands alone, with what it violates; - is standard input.

    The tests hold L0 `fixed` to every rule, and check that the L0 given is still caught. A C file for a
    tree of kvm-unit-tests asserts what `bare` saw, whatever FILE violates. An image holds any number of
    FILEs; it boots where there is VMX, and prints what L1 saw on the first serial port (docs/KVM.md).
    """
    if form in IMAGES:
        return _export_image(files, form, output)
    if len(files) > 1:
        raise click.UsageError(f"--format {form} takes one FILE", click.get_current_context())
    file = files[0]
    loaded = load(file)
    if form == KVM_UNIT_TEST:
        from nvmx_fuzz.kvm_unit_test import kvm_unit_test  # noqa: PLC0415 - nothing else needs it

        write_text(output, kvm_unit_test(loaded))
        return 0
    write_text(output, export(loaded, report_of(loaded, l0_name, violation), form))
    return 0


def _export_image(files: tuple[str, ...], form: str, output: str) -> int:
    """Write an image of all scenarios that can stand alone; the others are named on standard error."""
    from nvmx_fuzz.boot.export import image_of  # noqa: PLC0415 - loads the assembler

    image, numbers, refused = image_of(files, is_disc=form == "iso")
    for name, reason in refused:
        click.echo(f"{name}: left out, {reason}", err=True)
    if not numbers:
        raise click.ClickException("none of the scenarios can be in an image")
    write_output(output, image)
    for number, name in enumerate(numbers):
        click.echo(f"#{number:x} {name}", err=True)
    return 0
