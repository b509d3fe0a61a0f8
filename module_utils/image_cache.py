# SPDX-License-Identifier: Apache-2.0
"""What is remembered of images, so that an unchanged one costs one stat(2): a SQLite file of its owner alone.

What is remembered of a file counts only while its device, inode, size, and times of modification and change
are the same; a verdict only while policy, lock, keys, day and folders are, too. Every row has a digest of its
own: what does not fit is as if it were not there. A file that is no database is thrown away and made anew,
since all it holds can be found out again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any, Container, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from .image_rules import Contents, Finding, Partition, Signatures, Stat, Verdict
from .squashfs import Content, Paths

#: Raised when what is remembered changes its meaning: older rows are not read then.
VERSION = 1
# Times of files tick as coarsely as this on some file systems; a file that changed later than so long before
# it was read could change once more without its times showing it.
SETTLED_NS = 2 * 10**9

_SCHEMA = """
CREATE TABLE IF NOT EXISTS contents (
  device INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL,
  changed INTEGER NOT NULL, value TEXT NOT NULL, seal BLOB NOT NULL, PRIMARY KEY (device, inode)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdicts (
  folder BLOB PRIMARY KEY, context TEXT NOT NULL, value TEXT NOT NULL, seal BLOB NOT NULL
) WITHOUT ROWID;
"""


class CacheError(Exception):
    """A cache that must not be used; the message says why and what to do."""


def copy(source: str, target: str) -> None:
    """Make *target* a copy of the cache *source*, which is only read; nothing if there is none to be read."""
    if not os.path.isfile(source):  # noqa: PTH113
        return
    with contextlib.suppress(sqlite3.Error), contextlib.ExitStack() as opened:
        old = opened.enter_context(contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)))
        new = opened.enter_context(contextlib.closing(sqlite3.connect(target)))
        old.backup(new)
    if os.path.exists(target):  # noqa: PTH110
        os.chmod(target, 0o600)  # noqa: PTH101


class Remembered:
    """The verdicts of one folder, by name of the file."""

    def __init__(self, folder: str, rows: Optional[Mapping[str, Any]] = None) -> None:
        self._prefix = folder.rstrip("/") + "/"
        self._rows = rows or {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        """Return the names."""
        return iter(self._rows)

    def without(self, names: Container[str]) -> Dict[str, Any]:
        """Return the rows of all but *names*."""
        return {name: row for name, row in self._rows.items() if name not in names}

    def verdict(self, name: str, status: os.stat_result) -> Optional[Verdict]:
        """Return the verdict on the file *name*, if *status* is what it was."""
        row = self._rows.get(name)
        if (
            row is None
            or row[0] != status.st_ino
            or row[1] != status.st_ctime_ns
            or row[2] != status.st_mtime_ns
            or row[3] != status.st_size
            or row[4] != status.st_dev
        ):
            return None
        findings = tuple([Finding(*one) for one in row[6]]) if row[6] else ()
        return Verdict(self._prefix + name, row[3], row[5], findings)


class Cache:
    """An open cache. It belongs to the thread that opened it."""

    def __init__(self, path: str) -> None:
        """Open the cache at *path*, which is made if it is missing. Raises CacheError."""
        self.path = path
        _check_place(path)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError:
            self._connection = self._anew()

    def close(self) -> None:
        """Write what is to be remembered, and close it."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.commit()
        self._connection.close()

    def contents(self, status: Stat) -> Optional[Contents]:
        """Return what is remembered of the file that has these values now."""
        row = self._row(
            "SELECT value, seal FROM contents "
            "WHERE device=? AND inode=? AND size=? AND modified=? AND changed=?",
            status,
        )
        if row is None or row[1] != _seal(*status, row[0]):
            return None
        try:
            return _contents(json.loads(row[0]))
        except (ValueError, TypeError, KeyError):
            return None

    def remember(self, status: Stat, contents: Contents) -> None:
        """Remember what is in a file."""
        value = json.dumps(asdict(contents))
        self._write(
            "INSERT OR REPLACE INTO contents VALUES (?,?,?,?,?,?,?)", (*status, value, _seal(*status, value))
        )

    def verdicts(self, folder: str, context: str) -> Remembered:
        """Return the verdicts on the files of *folder* that were made in the same *context*."""
        key = os.fsencode(folder)
        row = self._row("SELECT value, seal FROM verdicts WHERE folder=? AND context=?", (key, context))
        if row is None or row[1] != _seal(folder, context, row[0]):
            return Remembered(folder)
        try:
            return Remembered(folder, json.loads(row[0]))
        except ValueError:
            return Remembered(folder)

    def remember_verdicts(
        self, folder: str, context: str, rows: Mapping[str, Any], new: Iterable[Tuple[str, Verdict, Stat]]
    ) -> None:
        """Remember the verdicts on the files of *folder*: *rows* of those before, and *new* ones by name."""
        added = {
            name: [
                *(status.inode, status.changed, status.modified, status.size, status.device),
                *(verdict.sha256, [list(finding) for finding in verdict.findings]),
            ]
            for name, verdict, status in new
        }
        value = json.dumps({**rows, **added})
        self._write(
            "INSERT OR REPLACE INTO verdicts VALUES (?,?,?,?)",
            (os.fsencode(folder), context, value, _seal(folder, context, value)),
        )

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            # A cache that a power cut damages is made anew.
            connection.execute("PRAGMA synchronous=OFF")
            if connection.execute("PRAGMA user_version").fetchone() != (VERSION,):
                connection.executescript("DROP TABLE IF EXISTS contents; DROP TABLE IF EXISTS verdicts;")
                connection.execute(f"PRAGMA user_version={VERSION}")
            connection.executescript(_SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _anew(self) -> sqlite3.Connection:
        try:
            for suffix in ("", "-journal", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(self.path + suffix).unlink()
            _check_place(self.path)
            return self._open()
        except (OSError, sqlite3.Error) as error:
            raise CacheError(f"{self.path} can't be made anew: {error}") from error

    def _row(self, query: str, values: Iterable[Any]) -> Optional[Tuple[Any, ...]]:
        try:
            row: Optional[Tuple[Any, ...]] = self._connection.execute(query, tuple(values)).fetchone()
            return row
        except sqlite3.OperationalError:
            # Busy for half a minute: nothing is remembered.
            return None
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            self._rebuild()
            return None

    def _write(self, statement: str, values: Iterable[Any]) -> None:
        try:
            self._connection.execute(statement, tuple(values))
        except sqlite3.OperationalError:
            # Full disk or busy: what is not remembered is found out again.
            pass
        except sqlite3.DatabaseError:
            self._rebuild()

    def _rebuild(self) -> None:
        self._connection.close()
        self._connection = self._anew()


def _check_place(path: str) -> None:
    """Make the file if it is missing. Raises CacheError unless only its owner can write it or its folder."""
    folder = Path(path).absolute().parent
    mend = "give a path in a folder that only its owner can write to"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise CacheError(f"{folder} can be written by others: {mend}")
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise CacheError(f"{path} can't be opened: {error.strerror}; {mend}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise CacheError(f"{path} must be a regular file of its user alone, mode 0600: remove it")
    finally:
        os.close(descriptor)


def _seal(*values: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, values)).encode("utf-8", "surrogateescape")).digest()


def _contents(data: Dict[str, Any]) -> Contents:
    """Return the contents of their JSON form."""
    values = dict(data)
    values["partitions"] = tuple(Partition(*one) for one in data["partitions"])
    values["remarks"] = tuple(data["remarks"])
    values["sources"] = None if data["sources"] is None else tuple(data["sources"])
    if data["signatures"] is not None:
        signers, problem = data["signatures"]
        values["signatures"] = Signatures(tuple(signers), problem)
    if data["root"] is not None:
        entries, setuid, devices, writable, capabilities, strange = data["root"]
        values["root"] = Content(
            entries,
            _paths(setuid),
            _paths(devices),
            _paths(writable),
            None if capabilities is None else _paths(capabilities),
            strange,
        )
    return Contents(**values)


def _paths(data: List[Any]) -> Paths:
    return Paths(data[0], tuple(data[1]))
