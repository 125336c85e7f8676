"""What a real KVM traces of one scenario: `python -m nvmx_fuzz.boot.trace FILE`."""

import click

from nvmx_core.scenario.steps import Scenario
from nvmx_fuzz import module_command
from nvmx_fuzz.boot.batch import BootError
from nvmx_fuzz.boot.emulator import Settings, run_disc
from nvmx_fuzz.boot.image import boot_image
from nvmx_fuzz.boot.linux import disc_with_kvm
from nvmx_fuzz.boot.machine import BOOTING, BootingMachine
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.cli_options import output_option, write_text
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.outcomes import UnavailableError
from nvmx_fuzz.realise.vmcs import NotRealisableError
from nvmx_fuzz.scenario_files import load

_SETTINGS = Settings(megabytes=512, silent_seconds=30.0, start_seconds=120.0)
_POWERED_OFF = "reboot: Power down"


@click.command()
@click.argument("file")
@output_option
def main(file: str, output: str) -> int:
    """Boot Linux in Bochs, run the scenario in FILE below its KVM, and write the trace of the kvm events."""
    try:
        write_text(output, trace_of(load(file).scenario))
    except NotRealisableError as error:
        raise click.ClickException(f"{file} cannot stand alone: {error}") from None
    except (BadFile, UnavailableError) as error:
        raise click.ClickException(str(error)) from None
    return 0


def trace_of(scenario: Scenario) -> str:
    """The lines of the trace, from its head on.

    Raises: UnavailableError, NotRealisableError.
    """
    capabilities = BootingMachine(BOOTING["kvm-bochs"]).capabilities
    script = stand_alone_moved(scenario, capabilities).realised.script
    disc = disc_with_kvm(boot_image([script], doorbell=True), traces=True)
    text = run_disc(disc, _SETTINGS, _POWERED_OFF).text.replace("\r\n", "\n")
    start = text.find("# tracer:")
    if start < 0:
        raise BootError("the kernel printed no trace")
    return text[start : text.find("[", text.rfind("\n", 0, text.find(_POWERED_OFF)))]


def run() -> int:
    """The command for a shell: one line for what went wrong."""
    return module_command.run(main, "python -m nvmx_fuzz.boot.trace")


if __name__ == "__main__":
    raise SystemExit(run())
