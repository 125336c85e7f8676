"""`nvmx-fuzz check-trace`: does a trace of a real KVM keep the rules that can be seen in it?"""

import json
from typing import Any, Final

import click

from nvmx_fuzz import BAD_INPUT
from nvmx_fuzz.cli_options import complete_path, json_option
from nvmx_fuzz.files import BadFile

FOUND: Final = 1


@click.command("check-trace")
@click.argument("names", nargs=-1, required=True, metavar="FILE...", shell_complete=complete_path)
@json_option
def command(names: tuple[str, ...], as_json: bool) -> int:
    """Check traces of the kvm events: ftrace text or `trace-cmd report -N`; - is standard input.

    Text may be compressed by gzip. docs/TRACES.md says how to record, and what is checked.
    """
    from nvmx_fuzz.trace.check import Check  # noqa: PLC0415 - imports the model
    from nvmx_fuzz.trace.report import text_of, to_json  # noqa: PLC0415
    from nvmx_fuzz.trace.source import check_into  # noqa: PLC0415

    status = 0
    results: list[dict[str, Any]] = []
    for name in names:
        check = Check()
        try:
            check_into(check, name)
        except BadFile as error:
            if check.findings_count and not as_json:  # in front of where it is damaged
                click.echo(text_of(name, check), nl=False)
            click.echo(f"nvmx-fuzz: {error}", err=True)
            found = to_json(name, check) if check.findings_count else {"file": name}
            results.append(found | {"verdict": "bad file", "message": str(error)})
            status = BAD_INPUT
            continue
        if check.findings_count:
            status = max(status, FOUND)
        if as_json:
            results.append(to_json(name, check))
        else:
            click.echo(text_of(name, check), nl=False)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    return status
