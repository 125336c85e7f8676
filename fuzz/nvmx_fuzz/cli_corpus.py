"""`nvmx-fuzz corpus`: convert, list and check scenarios; to grow a corpus see `cli_corpus_care.py`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from nvmx_core.scenario.text import format_file, format_scenario
from nvmx_fuzz import BAD_INPUT, cli_corpus_care, cli_corpus_trace
from nvmx_fuzz.cli_options import FIXED, complete_path, json_option
from nvmx_fuzz.cli_replay import show
from nvmx_fuzz.codec import encode
from nvmx_fuzz.corpus_files import files_of, scenarios_in
from nvmx_fuzz.files import STANDARD_INPUT, BadFile, read_small_file, write_output
from nvmx_fuzz.replaying import replay
from nvmx_fuzz.scenario_files import Loaded, load, load_content
from nvmx_fuzz.wording import counted


@click.group("corpus")
def command() -> None:
    """Convert, list and check scenarios; grow a corpus and keep it small."""


for _care in (
    cli_corpus_care.add_command,
    cli_corpus_care.merge_command,
    cli_corpus_care.minimize_command,
    cli_corpus_care.stats_command,
    cli_corpus_care.pack_command,
    cli_corpus_trace.from_trace_command,
):
    command.add_command(_care)


@command.command("encode", short_help="Write the bytes of a scenario.")
@click.argument("source", metavar="IN.scn", shell_complete=complete_path)
@click.argument("target", metavar="OUT", shell_complete=complete_path)
@json_option
def encode_command(source: str, target: str, as_json: bool) -> int:
    """Write the canonical bytes of a scenario; - is standard input or output."""
    loaded = load(source)
    _write(target, encode(loaded.scenario))
    if as_json:
        _tell_written(loaded, target)
    return 0


@command.command("decode", short_help="Write the text of a scenario.")
@click.argument("source", metavar="IN", shell_complete=complete_path)
@click.argument("target", metavar="OUT.scn", shell_complete=complete_path)
@json_option
def decode_command(source: str, target: str, as_json: bool) -> int:
    """Write the canonical text of a scenario; - is standard input or output."""
    loaded = load(source)
    _write(target, canonical_text(loaded).encode())
    if as_json:
        _tell_written(loaded, target)
    return 0


@command.command("list", short_help="List the scenarios in a folder.")
@click.argument("folder", metavar="DIR", shell_complete=complete_path)
@json_option
def list_command(folder: str, as_json: bool) -> int:
    """List the scenarios in a folder: form, steps, and the first line of their comment."""
    status = 0
    rows: list[dict[str, Any]] = []
    for path in scenarios_in(Path(folder)):
        try:
            rows.append(_row(load(str(path)), str(path.relative_to(folder))))
        except BadFile as error:
            click.echo(f"nvmx-fuzz: {error}", err=True)
            status = BAD_INPUT
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        width = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            line = f"{row['name']:{width}}  {row['form']:5}  {counted(row['steps'], 'step'):>9}"
            click.echo(f"{line}  {row['about']}".rstrip())
    return status


@command.command("check", short_help="Check form, expectations, and what L0 fixed does.")
@click.argument(
    "names", nargs=-1, required=True, metavar="FILE_OR_DIR...", shell_complete=complete_path
)
@json_option
def check_command(names: tuple[str, ...], as_json: bool) -> int:
    """Check scenarios: canonical form, expectations on both machines, no violation on `fixed`."""
    status = 0
    results: list[dict[str, Any]] = []
    files = files_of(names)
    if not files:
        raise BadFile(names[0], "holds no scenarios")
    for name in files:
        try:
            loaded = _load_canonical(name)
        except BadFile as error:
            click.echo(f"nvmx-fuzz: {error}", err=True)
            results.append({"file": name, "verdict": "bad file", "message": str(error)})
            status = max(status, BAD_INPUT)
            continue
        replayed = replay(loaded, FIXED)
        results.append(replayed.to_json())
        status = max(status, replayed.status)
        if replayed.status and not as_json:
            show(replayed)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        good = sum(result["verdict"] == "ok" for result in results)
        click.echo(f"as they should be: {good} of {counted(len(files), 'scenario')}")
    return status


def canonical_text(loaded: Loaded) -> str:
    """The one text of a scenario, with comments and expectations if it has any."""
    if loaded.text is not None:
        return format_file(loaded.text)
    return format_scenario(loaded.scenario)


def _load_canonical(name: str) -> Loaded:
    """Load a scenario that is written as `corpus encode` or `decode` would; raises BadFile."""
    content = read_small_file(name)
    loaded = load_content(name, content)
    if loaded.text is None:
        if content != encode(loaded.scenario):
            raise BadFile(name, f"is not canonical; try: nvmx-fuzz corpus encode {name} OUT")
        return loaded
    wanted = canonical_text(loaded).split("\n")
    found = content.decode().split("\n")
    for number, (line, canonical) in enumerate(zip(found, wanted, strict=False), start=1):
        if line != canonical:
            raise BadFile(name, f"is not canonical, expected {canonical!r}", number)
    if len(found) != len(wanted):
        number = min(len(found), len(wanted))
        raise BadFile(name, f"is not canonical, expected {len(wanted) - 1} lines", number)
    return loaded


def _write(target: str, content: bytes) -> None:
    if target == STANDARD_INPUT:
        sys.stdout.buffer.write(content)
    else:
        write_output(target, content)


def _tell_written(loaded: Loaded, target: str) -> None:
    steps = len(loaded.scenario.steps)
    size = len(encode(loaded.scenario))
    click.echo(json.dumps({"from": loaded.name, "to": target, "steps": steps, "bytes": size}))


def _row(loaded: Loaded, name: str) -> dict[str, Any]:
    comments = loaded.text.comments if loaded.text is not None else ()
    return {
        "name": name,
        "form": "bytes" if loaded.text is None else "text",
        "steps": len(loaded.scenario.steps),
        "expectations": len(loaded.text.expects) if loaded.text is not None else 0,
        "about": comments[0] if comments else "",
    }
