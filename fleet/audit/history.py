"""Audits over time: one SQLite file per inventory.

What is the same on many nodes stands once, with their hostlist; the text of a finding stands once for all
audits. So an audit of thousands of nodes is some rows.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fleet import database
from fleet.audit.model import UNKNOWN, Audit, Finding, Summary
from fleet.errors import FleetError
from fleet.hostlist import expand, fold

SCHEMA = 1
_TABLES = """
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,      -- seconds since the epoch by the controller's clock
    nodes TEXT NOT NULL,   -- a hostlist, as in all tables
    stores TEXT NOT NULL   -- JSON
);
CREATE TABLE finding (id INTEGER PRIMARY KEY, data TEXT NOT NULL UNIQUE);
CREATE TABLE found (
    audit INTEGER NOT NULL REFERENCES audit (id),
    finding INTEGER NOT NULL REFERENCES finding (id),
    nodes TEXT NOT NULL,
    number INTEGER NOT NULL,   -- of nodes: hostlists of thousands take time to read
    PRIMARY KEY (audit, finding)
) WITHOUT ROWID;
CREATE TABLE fact (
    audit INTEGER NOT NULL REFERENCES audit (id),
    data TEXT NOT NULL,    -- JSON: what all these nodes are
    nodes TEXT NOT NULL,
    number INTEGER NOT NULL
);
CREATE INDEX fact_of_audit ON fact (audit);
"""


class HistoryError(FleetError):
    """The history can't be read or written, or has not what was asked for."""


class History:
    """The audits of one inventory.

    :param home: the folder of its file, which is made if it is missing.
    """

    def __init__(self, home: Path) -> None:
        self.file = home / "audit.sqlite"
        with self._errors():
            # What is wrong with nodes is nobody else's business.
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.file.touch(mode=0o600)
            self._db = database.connect(self.file, SCHEMA, _TABLES)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, audit: Audit) -> int:
        """Keep an audit, all of it or nothing; return its number, which it has from then on."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                cursor = self._db.execute(
                    "INSERT INTO audit (at, nodes, stores) VALUES (?, ?, ?)",
                    (audit.at, fold(audit.nodes), json.dumps(audit.stores, sort_keys=True)),
                )
                audit.number = int(cursor.lastrowid or 0)
                for finding, nodes in audit.found.items():
                    data = json.dumps(finding._asdict(), sort_keys=True)
                    self._db.execute("INSERT OR IGNORE INTO finding (data) VALUES (?)", (data,))
                    self._db.execute(
                        "INSERT INTO found SELECT ?, id, ?, ? FROM finding WHERE data = ?",
                        (audit.number, fold(nodes), len(nodes), data),
                    )
                alike: dict[str, list[str]] = {}
                for node, facts in audit.facts.items():
                    alike.setdefault(json.dumps(facts, sort_keys=True), []).append(node)
                self._db.executemany(
                    "INSERT INTO fact VALUES (?, ?, ?, ?)",
                    ((audit.number, data, fold(nodes), len(nodes)) for data, nodes in alike.items()),
                )
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
        return audit.number

    def audits(self) -> list[tuple[int, float]]:
        """Number and time of all audits, in order."""
        with self._errors():
            return self._db.execute("SELECT id, at FROM audit ORDER BY id").fetchall()

    def read(self, number: int) -> Audit:
        """The audit with this number. Raises HistoryError."""
        with self._errors():
            row = self._db.execute("SELECT at, nodes, stores FROM audit WHERE id = ?", (number,)).fetchone()
            if row is None:
                raise HistoryError(f"{self.file}: there is no audit {number}", "fleet audit list")
            found = self._db.execute(
                "SELECT data, nodes FROM found JOIN finding ON finding.id = found.finding WHERE audit = ?",
                (number,),
            ).fetchall()
            facts = self._db.execute("SELECT data, nodes FROM fact WHERE audit = ?", (number,)).fetchall()
        return Audit(
            row[0],
            set(_expand(row[1])),
            {Finding.of(json.loads(data)): set(_expand(nodes)) for data, nodes in found},
            {node: json.loads(data) for data, nodes in facts for node in _expand(nodes)},
            json.loads(row[2]),
            number,
        )

    def before(self, number: int, most: int) -> list[Summary]:
        """The *most* last audits before that *number* in numbers, in order; before none yet if it is 0."""
        with self._errors():
            audits = self._db.execute(
                "SELECT id, at FROM audit WHERE id < ? OR ? = 0 ORDER BY id DESC LIMIT ?",
                (number, number, most),
            ).fetchall()
            made = []
            for one, at in reversed(audits):
                facts = self._db.execute("SELECT data, number FROM fact WHERE audit = ?", (one,))
                versions: Counter[str] = Counter()
                for data, count in facts:
                    versions[json.loads(data).get("apptainer", UNKNOWN)] += count
                found = self._db.execute(
                    "SELECT data, number FROM found JOIN finding ON finding.id = finding WHERE audit = ?",
                    (one,),
                )
                counts: Counter[str] = Counter()
                for data, count in found:
                    counts[Finding.of(json.loads(data)).counts] += count
                made.append(Summary(at, versions, counts))
        return made

    def find(self, text: str) -> int:
        """The number of an audit: ``12``, or ``-2``, the last but one; or the last one that was begun by a
        time, ``2026-11-24`` (the end of that day) or ``2026-11-24T10:00``. Raises HistoryError.
        """
        known = self.audits()
        if not known:
            raise HistoryError(f"{self.file}: there is no audit yet", "fleet audit")
        if text.removeprefix("-").isdecimal() and len(text) < len("20261124"):
            number = int(text)
            if number < 0 and -number <= len(known):
                return known[number][0]
            if number in dict(known):
                return number
            raise HistoryError(f"{text}: there is no such audit", "fleet audit list")
        try:
            by = datetime.datetime.fromisoformat(text).astimezone()
        except ValueError as error:
            raise HistoryError(
                f"{text}: is neither the number of an audit nor a time", "2026-11-24T10:00, for example"
            ) from error
        if len(text) <= len("2026-11-24"):
            by += datetime.timedelta(days=1)
        before = [number for number, at in known if at < by.timestamp() + 1]
        if not before:
            raise HistoryError(f"{text}: there was no audit by then", "fleet audit list")
        return before[-1]

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, database.SchemaError) as error:
            raise HistoryError(
                str(error) if isinstance(error, database.SchemaError) else f"{self.file}: {error}",
                "make room and see to its permissions, or move the file away to begin a new history",
            ) from error


def _expand(nodes: str) -> Iterable[str]:
    # Names of hosts that are no hostlist were only joined.
    try:
        return expand(nodes) if nodes else ()
    except ValueError:
        return nodes.split(",")
