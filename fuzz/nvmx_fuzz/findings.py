"""The findings of a campaign: one per key, as small as a quick shrink makes it, on disk at once.

A finding is known by the first violation of its run, the most telling one; what else such a run
breaks is in its explanation. Three files belong to it: ``.scn`` for people and for git, ``.bin`` for
libFuzzer, ``.txt`` with the explanation. All are named after the key, so a later campaign into the
same folder finds them and goes on from there.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvmx_core.bugs.versions import l0_class
from nvmx_core.oracle.judge import violations_of
from nvmx_core.oracle.violation import Violation
from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import format_scenario
from nvmx_fuzz.codec import decode, encode
from nvmx_fuzz.files import (
    BadFile,
    about,
    content_name,
    is_draft,
    is_of_content,
    is_whole,
    read_small_file,
    write_whole,
)
from nvmx_fuzz.shrink import shrink
from nvmx_fuzz.version import revision
from nvmx_fuzz.wording import command_on


@dataclass(frozen=True)
class Finding:
    """One broken rule in one situation, and the smallest scenario that shows it.

    `text` is the text form with comments and `scn` its path; the other files stand beside it.
    `earlier` says that a campaign before this one found it.
    """

    violation: Violation
    scenario: Scenario
    text: str
    scn: Path
    earlier: bool = False

    @property
    def size(self) -> tuple[int, bytes]:
        """What makes one scenario smaller than another: its steps, then its bytes."""
        return len(self.scenario.steps), encode(self.scenario)


class Findings:
    """The findings in one folder, judged with one L0."""

    def __init__(self, folder: Path, l0_name: str, arrivals: Path) -> None:
        """Keep findings about the L0 called *l0_name* in *folder*.

        In *arrivals* are inputs that were found but may not have been offered. Both folders exist.
        """
        self._folder: Final = folder
        self._arrivals: Final = arrivals
        self._l0_name: Final = l0_name
        self._l0: Final = l0_class(l0_name)
        self._by_key: dict[str, Finding] = {}
        self.unwritten: Final[list[Finding]] = []
        """What could not be written, so that it can at least be shown."""

    def __len__(self) -> int:
        return len(self._by_key)

    def all(self) -> list[Finding]:
        """All findings in the order of their keys."""
        return [self._by_key[key] for key in sorted(self._by_key)]

    def recall(self) -> None:
        """Take up what an earlier campaign left, if it still happens; raises BadFile."""
        with about(self._folder):
            paths = sorted(self._folder.glob("*.bin"))
        for data in [read_small_file(str(path)) for path in paths]:
            scenario = decode(data)
            violation = self._first_violation(scenario)
            if violation is not None:
                key = violation.key()
                finding = self._finding(violation, scenario, earlier=True)
                known = self._by_key.get(key)
                if known is None or finding.size < known.size:
                    self._by_key[key] = finding
                if not finding.scn.exists():
                    self._write(self._by_key[key])
        with about(self._arrivals):
            arrived = sorted(self._arrivals.iterdir())
        for path in arrived:
            if is_of_content(path.name):
                data = read_small_file(str(path))
                if is_whole(path.name, data):
                    self.offer(data)
            elif not is_draft(path.name):
                continue
            with about(path):
                path.unlink(missing_ok=True)

    def offer(self, data: bytes) -> tuple[Finding, bool] | None:
        """Shrink and keep an input that violates an oracle.

        Returns:
            The finding and whether its key is new; None when nothing is violated, or when no
            scenario with fewer steps came of it.

        Raises:
            BadFile: it could not be written.
        """
        kept = self._offer(decode(data))
        arrival = self._arrivals / content_name(data)
        with about(arrival):
            arrival.unlink(missing_ok=True)
        return kept

    def _offer(self, scenario: Scenario) -> tuple[Finding, bool] | None:
        violation = self._first_violation(scenario)
        if violation is None:
            return None
        key = violation.key()
        if key not in self._by_key:
            # Before the shrink, so that a campaign killed in it has lost nothing.
            self._keep(self._finding(violation, scenario), self._write_bytes)
        small = shrink(scenario, lambda candidate: self._key(candidate) == key)
        violation = self._first_violation(small)
        assert violation is not None, "shrinking keeps the key"
        finding = self._finding(violation, small)
        known = self._by_key.get(key)
        if known is not None and len(small.steps) >= len(known.scenario.steps):
            return None
        self._by_key[key] = finding
        self._keep(finding, self._write)
        return finding, known is None

    def _keep(self, finding: Finding, write: Callable[[Finding], None]) -> None:
        """Write a finding; one that cannot be written is remembered for the summary."""
        try:
            write(finding)
        except BadFile:
            self.unwritten.append(finding)
            raise

    def replay_command(self, finding: Finding) -> str:
        """The command that runs a finding again."""
        return command_on("replay", self._l0_name, str(finding.scn))

    def explain_command(self, finding: Finding) -> str:
        """The command that explains a finding."""
        return command_on("explain", self._l0_name, str(finding.scn))

    def _finding(
        self, violation: Violation, scenario: Scenario, *, earlier: bool = False
    ) -> Finding:
        scn = self._path(violation.key())
        comments = (
            violation.sentence,
            f"key: {violation.key()}",
            f"found in L0 {self._l0_name}, at step {violation.step + 1}",
            command_on("explain", self._l0_name, scn.name),  # wherever the file is taken to
        )
        return Finding(violation, scenario, format_scenario(scenario, comments), scn, earlier)

    def _first_violation(self, scenario: Scenario) -> Violation | None:
        violations = violations_of(scenario, self._l0)
        return violations[0] if violations else None

    def _key(self, scenario: Scenario) -> str | None:
        violation = self._first_violation(scenario)
        return violation.key() if violation else None

    def _path(self, key: str) -> Path:
        words = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")[:48].strip("-")
        return self._folder / f"{words}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.scn"

    def _write_bytes(self, finding: Finding) -> None:
        write_whole(finding.scn.with_suffix(".bin"), encode(finding.scenario))

    def _write(self, finding: Finding) -> None:
        self._write_bytes(finding)
        write_whole(finding.scn, finding.text.encode())
        write_whole(finding.scn.with_suffix(".txt"), self._explanation(finding).encode())

    def _explanation(self, finding: Finding) -> str:
        """The report of `explain`; should that fail, the bare sentence: a finding is never lost."""
        from nvmx_fuzz.explain import explain, render_text  # noqa: PLC0415 - needed for few runs

        try:
            report = explain(
                finding.scenario, self._l0_name, file=finding.scn.name, revision=revision()
            )
            return render_text(report)
        except Exception as error:  # noqa: BLE001 - the finding counts, not its rendering
            sentence = finding.violation.sentence
            return f"{sentence}\n\nIt could not be explained: {error!r} (our own bug)\n"
