"""`python -m nvmx_fuzz.boot.cli_unit_tests TREE FILE...`, which `scripts/kvm --unit-tests` starts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from nvmx_fuzz import module_command
from nvmx_fuzz.boot.unit_tests import (
    FAILS,
    STOPS,
    Verdict,
    build,
    check_tree,
    export_into,
    kvm_in_bochs,
    kvm_of_host,
    run_alone,
    run_below,
)
from nvmx_fuzz.corpus_files import files_of
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.outcomes import UnavailableError

_WORDS = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped", "STOP": "stopped"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("tree", type=click.Path(path_type=Path), metavar="TREE")
@click.argument("files", nargs=-1, required=True, metavar="FILE|DIR...")
@click.option("--machine", type=click.Choice(("bochs-boot", "kvm-bochs", "kvm")), default="kvm-bochs",
              show_default=True, help="The machine that the tests run on.")  # fmt: skip
@click.option("--build-only", is_flag=True, help="Export and build the tests, and run nothing.")
def main(tree: Path, files: tuple[str, ...], machine: str, build_only: bool) -> int:
    """Export scenarios into TREE, a configured tree of kvm-unit-tests, build them there, and run them.

    The files go to TREE/x86/nvmx_NAME.c and stay there. Scenarios that no unit test can bring about are named
    on standard error and left out. Exit status 1: a test failed or did not come to its end.
    """
    try:
        paths = _built(tree, files)
        if build_only:
            click.echo(f"{len(paths)} tests built in {tree / 'x86'}")
            return 0
        return _report(_run(machine, paths), machine)
    except (BadFile, UnavailableError) as error:
        raise click.ClickException(str(error)) from None


def _built(tree: Path, files: Sequence[str]) -> list[Path]:
    """The tests. Raises: BadFile."""
    check_tree(tree)
    names = files_of(files)
    if not names:
        raise BadFile(files[0], "holds no scenario")
    tests, refused = export_into(tree, names)
    for error in refused:
        click.echo(f"left out: {error}", err=True)
    if not tests:
        raise BadFile(files[0], "holds no scenario that can be a unit test")
    return build(tree, tests)


def _run(machine: str, paths: list[Path]) -> Iterator[Verdict]:
    if machine == "bochs-boot":
        return run_alone(paths)
    return run_below(paths, kvm_in_bochs if machine == "kvm-bochs" else kvm_of_host)


def _report(verdicts: Iterator[Verdict], machine: str) -> int:
    counts: Counter[str] = Counter()
    for found in verdicts:
        counts[found.verdict] += 1
        click.echo(f"{found.verdict}  {found.name}  {found.reason}".rstrip())
    words = ", ".join(f"{counts[key]} {word}" for key, word in _WORDS.items() if counts[key])
    click.echo(f"{machine}: {words}")
    return 1 if counts[FAILS] or counts[STOPS] else 0


def run() -> int:
    """The command for a shell: one line for what went wrong."""
    return module_command.run(main, "scripts/kvm --unit-tests")


if __name__ == "__main__":
    raise SystemExit(run())
