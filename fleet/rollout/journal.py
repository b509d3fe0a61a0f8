"""What was intended and what came of it, on disk before and after everything that is done.

One SQLite file per cluster (`fleet.database`). Every entry is a transaction of its own, so that it is on the
disk before its act begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import socket
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from fleet import database
from fleet.errors import FleetError
from fleet.hostlist import fold
from fleet.paths import state_home
from fleet.rollout.model import Plan

SCHEMA = 1
_TABLES = """
CREATE TABLE rollout (id TEXT PRIMARY KEY, created REAL NOT NULL, plan TEXT NOT NULL);
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    rollout TEXT NOT NULL REFERENCES rollout (id),
    at REAL NOT NULL,      -- seconds since the epoch by the controller's clock, for people
    kind TEXT NOT NULL,
    nodes TEXT NOT NULL,   -- a hostlist
    data TEXT NOT NULL     -- JSON
);
CREATE INDEX entry_of_rollout ON entry (rollout, seq);
"""
#: What entries of a kind have to say, so that a state comes of them.
_NEEDS: Mapping[str, Mapping[str, type]] = {
    "batch": {"number": int},
    "drain?": {"reason": str},
    "step?": {"step": int},
    "step": {"step": int},
    "step-failed": {"step": int, "why": str},
    "step-broken": {"step": int, "why": str},
    "fail?": {"why": str},
    "left": {"why": str},
    "stop": {"why": str},
    "request": {"what": str},
    "end": {"outcome": str},
}
_CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class JournalError(FleetError):
    """The journal can't be read or written; nothing is done without it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal; kinds with a question mark are intentions."""

    seq: int
    at: float
    kind: str
    nodes: tuple[str, ...] = ()
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


def folder(cluster: str, base: Path | None = None) -> Path:
    """The folder of a cluster's journal and of the logs of its rollouts. Raises JournalError."""
    if not _CLUSTER.fullmatch(cluster):
        raise JournalError(f"{cluster!r} is no name for a cluster", "letters, digits, and . _ - between them")
    return (base or state_home() / "rollout") / cluster


class Journal:
    """The journal of one cluster.

    :param home: its folder, which is made if it is missing.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.file = home / "journal.sqlite"
        try:
            _make(home)
            # SQLite itself would never let a group write.
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660))
        except OSError as error:
            raise JournalError(
                f"{error.filename}: {error.strerror}", "give --state a folder that you can write to"
            ) from error
        with self._errors():
            try:
                self._db = database.connect(self.file, SCHEMA, _TABLES)
            except database.SchemaError as error:
                raise JournalError(
                    str(error),
                    "use the release of this project that wrote it, or finish there and move the file away",
                ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- writing --------------------------------------------------------------------------------------------

    def begin(self, plan: Plan) -> None:
        """Take a plan in, as a new rollout."""
        with self._transaction():
            self._db.execute("INSERT INTO rollout VALUES (?, ?, ?)", (plan.id, time.time(), plan.dumps()))

    def write(self, rollout: str, kind: str, nodes: Iterable[str] = (), **data: Any) -> Entry:
        """Add an entry; it is on the disk when this returns."""
        names, now = tuple(nodes), time.time()
        row = (rollout, now, kind, fold(names), json.dumps(data, sort_keys=True))
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO entry (rollout, at, kind, nodes, data) VALUES (?, ?, ?, ?, ?)", row
            )
        return Entry(int(cursor.lastrowid or 0), now, kind, names, data)

    # --- reading --------------------------------------------------------------------------------------------

    def rollouts(self) -> list[Plan]:
        """The plans of all rollouts, the last one first."""
        with self._errors():
            rows = self._db.execute("SELECT plan FROM rollout ORDER BY created DESC, rowid DESC").fetchall()
        try:
            return [Plan.loads(row[0]) for row in rows]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._spoilt("a plan", error) from error

    def plan(self, rollout: str | None = None) -> Plan:
        """The plan of a rollout, of the last one without a name. Raises JournalError."""
        plans = self.rollouts()
        for plan in plans:
            if rollout in (None, plan.id):
                return plan
        what = f"no rollout {rollout}" if rollout else "no rollout yet"
        raise JournalError(f"{self.file}: {what}", "fleet rollout history")

    def entries(self, rollout: str, after: int = 0) -> list[Entry]:
        """The entries of a rollout behind number *after*, in order."""
        with self._errors():
            rows = self._db.execute(
                "SELECT seq, at, kind, nodes, data FROM entry WHERE rollout = ? AND seq > ? ORDER BY seq",
                (rollout, after),
            ).fetchall()
        return [self._entry(*row) for row in rows]

    def _entry(self, seq: int, at: float, kind: str, nodes: str, text: str) -> Entry:
        try:
            names, data = tuple(NodeSet(nodes, resolver=RESOLVER_NOGROUP)), json.loads(text)
            wrong = [
                name for name, type_ in _NEEDS.get(kind, {}).items() if not isinstance(data[name], type_)
            ]
        except (ValueError, TypeError, KeyError, NodeSetException) as error:
            raise self._spoilt(f"entry {seq}", error) from error
        if wrong:
            raise self._spoilt(f"entry {seq}", f"{wrong[0]}={data[wrong[0]]!r}")
        return Entry(seq, at, kind, names, data)

    def _spoilt(self, what: str, why: object) -> JournalError:
        return JournalError(
            f"{self.file}: {what} is not as this program writes it: {why}",
            "take the file from a backup; or move it away, and see to nodes that are drained by their Reason",
        )

    def at_work(self) -> str:
        """The rollout that a controller is at work on, empty if none is."""
        if not is_locked(self.home):
            return ""
        with self._errors():
            row = self._db.execute(
                "SELECT rollout FROM entry WHERE kind = 'run' ORDER BY seq DESC LIMIT 1"
            ).fetchone()
        return str(row[0]) if row else ""

    def original(self, rollout: str) -> Path | None:
        """The journal on this machine with which it was worked on last, if this one is a copy of that."""
        runs = [entry.data for entry in self.entries(rollout) if entry.kind == "run"]
        if not runs or runs[-1].get("host") != socket.gethostname():
            return None
        file = Path(str(runs[-1].get("file") or self.file))
        try:
            return None if file.samefile(self.file) else file
        except OSError:  # it is not there any more: this was moved, or comes from a backup
            return None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(
                f"{self.file}: {error}",
                "make room and see to its permissions; then `fleet rollout resume` goes on",
            ) from error


def _make(home: Path) -> None:
    """Make the folder of a cluster; whoever may write beside it, the group included, may write in it."""
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.parent.stat().st_mode & stat.S_IWGRP:
        os.umask(0o007)
        home.mkdir(mode=0o770, exist_ok=True)
    else:
        home.mkdir(mode=0o700, exist_ok=True)


class Lock:
    """One controller at a time: a lock on a file that ends with the process that has it, however that
    ends.
    """

    def __init__(self, home: Path, name: str = "lock") -> None:
        self._path = home / name
        self._fd = -1

    def take(self) -> bool:
        """Take it; False if somebody has it. Raises JournalError."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        except OSError as error:
            raise JournalError(
                f"{self._path}: {error.strerror}", "make room there, or see to its permissions"
            ) from error
        for pause in (0.1, 0.3, 0.6, None):  # `status` may be asking whether it is taken
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if pause is None:
                    os.close(self._fd)
                    return False
                time.sleep(pause)
        # Who has it is for people alone: the disk may be full.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return True

    def holder(self) -> str:
        """Who has it, or had it last."""
        with contextlib.suppress(OSError):
            return self._path.read_text(errors="replace")
        return ""

    def release(self) -> None:
        """Give it back."""
        os.close(self._fd)


def is_locked(home: Path, name: str = "lock") -> bool:
    """Whether a process has the lock, without taking it for longer than it takes to ask."""
    try:
        fd = os.open(home / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
