"""`nvmx-fuzz corpus from-trace`: a scenario from a stretch of a trace of a real KVM."""

import json

import click

from nvmx_fuzz.cli_options import complete_path, json_option, output_option, write_text
from nvmx_fuzz.files import STANDARD_OUTPUT


@click.command("from-trace", short_help="Make a scenario of a stretch of a trace.")
@click.argument("file", shell_complete=complete_path)
@click.option("--at", type=click.IntRange(1), metavar="LINE",
              help="Take the stay in L2 around this line (default: around the first violation).")  # fmt: skip
@click.option("--vcpu", type=click.IntRange(0), metavar="N", help="Look at this vCPU only.")
@output_option
@json_option
def from_trace_command(
    file: str, at: int | None, vcpu: int | None, output: str, as_json: bool
) -> int:
    """Make a scenario of a stretch of the trace in FILE, as check-trace reads it; - is standard input.

    It is run on `bare` and on `nested` before it is written; what could not be carried over is said.
    """
    from nvmx_fuzz.trace.from_trace import make  # noqa: PLC0415 - imports the model

    made = make(file, at or 0, vcpu)
    if output != STANDARD_OUTPUT or not as_json:
        write_text(output, made.text)
    if as_json:
        click.echo(json.dumps(made.to_json(), indent=2))
    else:
        for line in made.remarks(output):
            click.echo(f"nvmx-fuzz: {line}", err=True)
    return made.status
