"""SQLite files of the controller: one way to open and to make them.

With a rollback journal and not a write-ahead log: writes are few, a log needs memory that controllers share,
which a home on NFS has not, and one file is easier to keep and to copy. ``synchronous=FULL``: what was
written is on the disk.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path


class SchemaError(Exception):
    """The file is of another release; the message says which schema it has."""


def connect(file: Path, schema: int, tables: str) -> sqlite3.Connection:
    """Open *file*, or make it with *tables*, statements of SQL. Every statement is a transaction of its own.

    Raises SchemaError and sqlite3.Error.
    """
    database = sqlite3.connect(file, timeout=30, isolation_level=None)
    database.execute("PRAGMA journal_mode=DELETE")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("PRAGMA foreign_keys=ON")
    if _version(database) == 0:
        database.execute("BEGIN IMMEDIATE")
        # Another process may have been faster.
        if _version(database) == 0:
            for statement in tables.split(";\n"):
                if statement.strip():
                    database.execute(statement)
            database.execute(f"PRAGMA user_version={schema}")
        database.execute("COMMIT")
    if _version(database) != schema:
        version = _version(database)
        database.close()
        raise SchemaError(f"{file}: has schema {version}, this program knows {schema}")
    return database


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])
