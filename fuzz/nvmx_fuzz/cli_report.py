"""`nvmx-fuzz report`: one page about a campaign."""

from pathlib import Path

import click

from nvmx_fuzz.campaign_report import PAGE, ReportMaker
from nvmx_fuzz.cli_options import complete_path
from nvmx_fuzz.files import STANDARD_OUTPUT, write_output, write_whole


@click.command("report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    "output",
    metavar="FILE",
    shell_complete=complete_path,
    help=f"Where the page goes; - is standard output (default: DIR/{PAGE}).",
)
def command(folder: Path, output: str | None) -> int:
    """Write one HTML file about the campaign whose output folder is DIR, running or not.

    The page needs nothing else: no script, no other file, no network.
    """
    html = ReportMaker(folder).html()
    if output == STANDARD_OUTPUT:
        click.echo(html, nl=False)
        return 0
    if output:
        write_output(output, html.encode())
    else:
        write_whole(folder / PAGE, html.encode())
    click.echo(output or folder / PAGE)
    return 0
