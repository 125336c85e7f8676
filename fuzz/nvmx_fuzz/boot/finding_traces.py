"""Writes docs/KVM-TRACES.md: what the kernel traces of each finding (`scripts/kvm --traces`).

One boot each, about 20 seconds. Of the trace it keeps what L1 and L2 meet, from the first entry of L1 on: the
repairs of pages, L1's own exits and what the monitor does stand out of the way.
"""

import re
from collections.abc import Iterator
from typing import Final

import click

from nvmx_core.bugs.versions import numbers_of_release
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz import module_command
from nvmx_fuzz.boot.divergences import ANY_KERNEL
from nvmx_fuzz.boot.known_findings import known_findings
from nvmx_fuzz.boot.linux import kernel_release
from nvmx_fuzz.boot.trace import trace_of
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.files import write_whole
from nvmx_fuzz.outcomes import UnavailableError

PAGE: Final = ROOT / "docs" / "KVM-TRACES.md"
_HEAD: Final = """\
# Traces of the findings

What Linux {release} traces of the scenarios of [KVM-FINDINGS.md](KVM-FINDINGS.md), each in a
machine of its own. Repairs of pages (EPT violations), what L1 does by itself and repeated lines are left
out, times and leading zeros too. Written by `scripts/kvm --traces` (`--kernel` in front of it chooses
another kernel).
"""
_LINES_MAX: Final = 24
_FIRST_OF_L1: Final = 0x100000
"""Where L1's code stands; L2's is below."""
_EVENT: Final = re.compile(r"(?P<time>\d+\.\d+): (?P<name>kvm_\w+): (?P<rest>.*)")
_RIP: Final = re.compile(r"\brip:? (0x[0-9a-f]+)")
_KEPT: Final = (
    "kvm_nested_vmenter", "kvm_nested_vmenter_failed", "kvm_nested_vmexit_inject", "kvm_inj_exception",
    "kvm_inj_virq", "kvm_apic_accept_irq", "kvm_enter_smm", "kvm_vcpu_wakeup", "kvm_apic_ipi",
)  # fmt: skip
_OF_L2: Final = ("kvm_entry", "kvm_exit")


def excerpt(trace: str) -> list[str]:
    """The lines of a trace that tell what became of L1's entries, without times and leading zeros."""
    events = [found for line in trace.splitlines() if (found := _EVENT.search(line))]
    names = [found["name"] for found in events]
    first = names.index("kvm_nested_vmenter") if "kvm_nested_vmenter" in names else len(names)
    kept = [_plain(found) for found in events[first:] if _tells(found)]
    return [line for line, before in zip(kept, ["", *kept], strict=False) if line != before]


def _tells(found: re.Match[str]) -> bool:
    if found["name"] in _KEPT:
        return True
    rip = _RIP.search(found["rest"])
    is_of_l2 = rip is not None and int(rip[1], 16) < _FIRST_OF_L1
    return found["name"] in _OF_L2 and is_of_l2 and "EPT_VIOLATION" not in found["rest"]


def _plain(found: re.Match[str]) -> str:
    rest = re.sub(r"0x0+(?=[0-9a-f])", "0x", found["rest"])
    rest = re.sub(r" (?:requests|error_code|nested_eptp:|vmcs:) ?0x[0-9a-f]+", "", rest)
    return f"{found['name']}: {rest}"


@click.command()
@click.argument("numbers", nargs=-1)
def main(numbers: tuple[str, ...]) -> int:
    """Trace each finding and write the page; or print what it has on those of these NUMBERS (F1 …)."""
    try:
        page = "".join(_page(numbers))
    except UnavailableError as error:
        raise click.ClickException(str(error)) from None
    if numbers:
        click.echo(page, nl=False)
    else:
        write_whole(PAGE, page.encode())
    return 0


def _page(numbers: tuple[str, ...]) -> Iterator[str]:
    release = kernel_release()
    yield _HEAD.format(release=release)
    for known in known_findings(numbers_of_release(release) or ANY_KERNEL):
        if numbers and known.number not in numbers:
            continue
        click.echo(known.number, err=True)
        steps = format_scenario(known.scenario).removeprefix("version 1\n")
        lines = excerpt(trace_of(known.scenario))
        more = f"… {len(lines) - _LINES_MAX} more\n" if len(lines) > _LINES_MAX else ""
        shown = "\n".join(lines[:_LINES_MAX])
        yield f"\n## {known.number} {known.name}\n\n```\n{steps}```\n\n```\n{shown}\n{more}```\n"


def run() -> int:
    """The command for a shell: one line for what went wrong."""
    return module_command.run(main, "scripts/kvm --traces")


if __name__ == "__main__":
    raise SystemExit(run())
