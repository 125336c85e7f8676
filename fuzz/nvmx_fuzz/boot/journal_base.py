"""The database of a campaign on a real machine: what ran, what became of it, where to go on.

A batch is written with what comes behind it (the next number of the stream, the situations that are
known) in one transaction: a campaign that is killed loses the batch that was running, and nothing else.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from nvmx_fuzz.corpus_features import Feature
from nvmx_fuzz.files import BadFile, about

VERSION: Final = 1
_TABLES: Final = """
create table state (version integer, machine text, next integer);
create table run (
    digest text primary key, content blob, batch integer, verdict text, key text, known text,
    reason text, shown text, journal integer
) without rowid;
create table batch (
    number integer primary key, scenarios integer, refused integer, seconds real, boots integer
);
create table feature (
    kind text, first integer, second integer, primary key (kind, first, second)
) without rowid;
"""


class Row(NamedTuple):
    """One scenario: its bytes, what became of it, what is known to make it different.

    ``shown``: both records of the first difference, for a person.
    """

    content: bytes
    verdict: str
    key: str
    known: str
    reason: str
    shown: str
    journal: int


class Kind(NamedTuple):
    """How often something was seen: a verdict with what is known of it, or with its key."""

    verdict: str
    name: str
    is_known: bool
    number: int


class JournalBase:
    """An open database."""

    def __init__(self, path: Path, machine: str = "") -> None:
        """Open it, or make it for a machine; "" takes that of whatever machine, and makes none.

        Raises: BadFile.
        """
        self._path: Final = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path)
            self._prepare(machine)
        except (sqlite3.Error, OSError) as error:
            raise BadFile(path, f"is no database of a campaign: {error}") from None

    def _prepare(self, machine: str) -> None:
        connection = self._connection
        tables = {name for (name,) in connection.execute("select name from sqlite_master")}
        if not tables and machine:
            with connection:
                connection.executescript(_TABLES)
                connection.execute("insert into state values (?, ?, 0)", (VERSION, machine))
            return
        if "state" not in tables:
            raise BadFile(self._path, "is no database of a campaign")
        version, theirs, _next = connection.execute("select * from state").fetchone()
        if version != VERSION:
            raise BadFile(self._path, f"has version {version}, and this is {VERSION}")
        if machine and theirs != machine:
            raise BadFile(self._path, f"is of the machine {theirs}; give another --database")

    @property
    def next_number(self) -> int:
        """Where the stream of scenarios goes on."""
        (number,) = self._connection.execute("select next from state").fetchone()
        return int(number)

    def has(self, content: bytes) -> bool:
        """Whether a scenario has run already."""
        found = self._connection.execute("select 1 from run where digest = ?", (_digest(content),))
        return found.fetchone() is not None

    def features(self) -> set[Feature]:
        """What the scenarios that have run show of the model."""
        return set(self._connection.execute("select kind, first, second from feature"))

    def add_batch(
        self, rows: Sequence[Row], features: Iterable[Feature], refused: int, seconds: float, boots: int,
        next_number: int,
    ) -> None:  # fmt: skip
        """Write a whole batch."""
        connection = self._connection
        with connection:
            cursor = connection.execute(
                "insert into batch (scenarios, refused, seconds, boots) values (?, ?, ?, ?)",
                (len(rows), refused, seconds, boots),
            )
            batch = cursor.lastrowid
            connection.executemany(
                "insert or ignore into run values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(_digest(row.content), row.content, batch, *row[1:]) for row in rows],
            )
            connection.executemany("insert or ignore into feature values (?, ?, ?)", list(features))
            connection.execute("update state set next = ?", (next_number,))

    def kinds(self) -> list[Kind]:
        """Everything that was seen, the most frequent first."""
        rows = self._connection.execute(
            "select verdict, case when known <> '' then known when key <> '' then key else reason end, "
            "known <> '', count(*) from run group by 1, 2, 3 order by 4 desc, 1, 2"
        )
        return [Kind(verdict, name, bool(known), number) for verdict, name, known, number in rows]

    def unlisted(self) -> list[tuple[str, bytes, str]]:
        """The smallest scenario of each kind that nothing is known of, with its key and what was seen."""
        smallest: dict[str, tuple[str, bytes, str]] = {}
        for row in self.all_unlisted():
            smallest.setdefault(row[0], row)
        return sorted(smallest.values())

    def runs(self) -> Iterator[tuple[bytes, str, str]]:
        """Every scenario with its verdict and what is known of it."""
        yield from self._connection.execute("select content, verdict, known from run")

    def journals(self) -> Iterator[tuple[bytes, str, int]]:
        """Every scenario with its verdict and the checksum of its journal."""
        yield from self._connection.execute("select content, verdict, journal from run")

    def all_unlisted(self) -> list[tuple[str, bytes, str]]:
        """Every scenario that nothing is known of, with its key and what was seen; the smallest first."""
        rows = self._connection.execute(
            "select case when key <> '' then key else reason end, content, shown from run where known = '' "
            "and verdict in ('different', 'incident') order by length(content), content"
        )
        return [(key, content, shown) for key, content, shown in rows]

    def all_that_differ(self) -> list[bytes]:
        """Every scenario that was different or an incident; the smallest first."""
        rows = self._connection.execute(
            "select content from run where verdict in ('different', 'incident') "
            "order by length(content), content"
        )
        return [content for (content,) in rows]

    def replace_batch(self, rows: Sequence[Row]) -> None:
        """Write what became of scenarios that have run once more."""
        with self._connection:
            self._connection.executemany(
                "update run set verdict = ?, key = ?, known = ?, reason = ?, shown = ?, journal = ? "
                "where digest = ?",
                [(*row[1:], _digest(row.content)) for row in rows],
            )

    def batches(self) -> list[tuple[int, float, int]]:
        """Scenarios, seconds and boots of each batch."""
        rows = self._connection.execute(
            "select scenarios, seconds, boots from batch order by number"
        )
        return [(scenarios, seconds, boots) for scenarios, seconds, boots in rows]

    def close(self) -> None:
        """Close it."""
        with closing(self._connection):
            pass


def require_database(path: Path) -> None:
    """Raise BadFile where opening a database would make one."""
    with about(path):
        if not path.stat().st_size:
            raise BadFile(path, "is no database of a campaign")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
