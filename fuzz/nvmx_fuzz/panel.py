"""The live panel of a campaign on a terminal."""

import time
from typing import Final

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nvmx_core.l0.reach import REACH_COUNT, REACH_NAMES
from nvmx_fuzz.status import Rate, Status

REFRESH_SECONDS: Final = 0.5

_FINDINGS_SHOWN: Final = 8
_REACH_SHOWN: Final = 12


class LiveReporter:
    """A panel that is drawn anew twice a second, and goes away at the end."""

    def __init__(self, console: Console) -> None:
        """Draw on *console*, a terminal."""
        self._rate: Final = Rate()
        self._drawn = 0.0
        self._live: Final = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, status: Status) -> None:
        """Draw the panel when it is time."""
        now = time.monotonic()
        if now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            self._live.update(render(status, self._rate.look(status)), refresh=True)

    def tell(self, line: str) -> None:
        """Print a line above the panel."""
        self._live.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        """Take the panel away and give the terminal back."""
        self._live.stop()


def render(status: Status, rates: tuple[float, float]) -> Panel:
    """The panel for the numbers of now."""
    plan = status.plan
    limit = f" of {plan.seconds:.0f} s" if plan.seconds else ""
    state = "" if status.progress.executions else "starting   "
    return Panel(
        Group(_numbers(status, rates), _reach(status), _findings(status)),
        title=f"nvmx-fuzz   L0 {plan.l0}   seed {plan.seed}{_jobs(status)}",
        subtitle=f"{state}{status.seconds:.0f} s{limit}   Ctrl-C stops",
        box=box.ROUNDED,
        padding=(1, 2),
    )


def _jobs(status: Status) -> str:
    """How many jobs work, if there is more than one."""
    jobs, lost = status.plan.jobs, len(status.lost)
    if jobs == 1:
        return ""
    return f"   {jobs - lost} of {jobs} jobs" if lost else f"   {jobs} jobs"


def _numbers(status: Status, rates: tuple[float, float]) -> Table:
    progress = status.progress
    coverage = status.coverage()
    table = Table.grid(padding=(0, 3))
    table.add_column(width=10)
    table.add_column(justify="right", min_width=12)
    table.add_column(justify="right", min_width=16)
    table.add_row("executions", f"{progress.executions:,}", f"{rates[0]:,.0f}/s")
    table.add_row("steps", f"{progress.steps:,}", f"{rates[1]:,.0f}/s")
    table.add_row("coverage", f"{coverage.counters:,}", f"{coverage.features:,} features")
    table.add_row("corpus", f"{coverage.corpus:,}", "")
    return table


def _reach(status: Status) -> Text:
    counts = status.reach()
    missing = [name for name, count in zip(REACH_NAMES, counts, strict=True) if not count]
    text = Text(f"\nreach        {REACH_COUNT - len(missing)}/{REACH_COUNT}")
    if missing:
        shown = ", ".join(missing[:_REACH_SHOWN])
        more = f" and {len(missing) - _REACH_SHOWN} more" if len(missing) > _REACH_SHOWN else ""
        text.append(f"   not yet: {shown}{more}", style="dim")
    return text


def _findings(status: Status) -> Text:
    findings = status.findings.all()
    text = Text()
    text.append(f"\nfindings     {len(findings)}", style="bold red" if findings else "")
    for finding in findings[:_FINDINGS_SHOWN]:
        steps = len(finding.scenario.steps)
        text.append(f"\n  {finding.violation.sentence} ({steps} steps)", style="red")
    if len(findings) > _FINDINGS_SHOWN:
        text.append(f"\n  and {len(findings) - _FINDINGS_SHOWN} more")
    errors = len(status.model_errors.seen)
    if errors:
        text.append(f"\nour own bugs {errors}", style="bold magenta")
    return text
