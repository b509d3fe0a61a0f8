# SPDX-License-Identifier: Apache-2.0
"""slurmdbd.conf, and the database behind slurmdbd.

Sources: slurmdbd.conf(5) of Slurm 24.11; MariaDB's documentation of CREATE USER and of unix_socket.
"""

from __future__ import annotations

import re
from typing import Mapping, Optional

from .slurm_conf import HEADER, SlurmConfError, Value, format_line, merge

USER = "slurm"
DEFAULT_DATABASE = "slurm_acct_db"
DEFAULT_PORT = 6819
_LONGEST_PASSWORD = 128
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
# Written by the role from variables of their own.
_OWN = {"storagehost": "slurm_accounting_database_host", "storagepass": "slurm_accounting_password"}


def check_password(password: str) -> None:
    """Raise SlurmConfError, without the password, for one that slurmdbd.conf can't have."""
    if not password.isprintable() or set(password) & set("#\"'\\ ") or len(password) > _LONGEST_PASSWORD:
        raise SlurmConfError(
            "slurm_accounting_password: use letters, digits and punctuation, but no # \" ' \\ or blank"
        )


def check_name(database: str) -> None:
    """Raise SlurmConfError for a name that would have to be quoted in SQL."""
    if not _NAME.fullmatch(database):
        raise SlurmConfError(f"slurm_accounting_database is {database!r}: use letters, digits and _")


def check_parameters(parameters: Mapping[str, object]) -> None:
    """Raise SlurmConfError for what has a variable of its own."""
    for key in parameters:
        if key.lower() in _OWN:
            raise SlurmConfError(f"slurm_accounting_parameters has {key}: set {_OWN[key.lower()]} instead")


def render(
    host: str, database_host: str, database: str, password: str, parameters: Mapping[str, Optional[Value]]
) -> str:
    """Return slurmdbd.conf for slurmdbd on *host*; *parameters* of the site win.

    Without a password, slurmdbd is known to a database on its own node by its user. Raises SlurmConfError.
    """
    check_name(database)
    check_parameters(parameters)
    settings = merge(
        {
            "AuthType": "auth/munge",
            "DbdHost": host,
            "SlurmUser": "slurm",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": database_host,
            "StorageUser": USER,
            "StorageLoc": database,
        },
        parameters,
    )
    text = HEADER + "".join(
        format_line({key: settings[key]}, "slurm_accounting_parameters") for key in settings
    )
    if password:
        check_password(password)
        text += f"StoragePass={password}\n"
    return text


def statements(database: str, password: str) -> str:
    """Return the SQL that makes the database and its user on this node, however far it has come before."""
    check_name(database)
    identified = "VIA unix_socket"
    if password:
        check_password(password)
        identified = f"BY '{password}'"
    return (
        f"CREATE DATABASE IF NOT EXISTS {database};\n"
        f"CREATE USER IF NOT EXISTS '{USER}'@'localhost' IDENTIFIED {identified};\n"
        f"ALTER USER '{USER}'@'localhost' IDENTIFIED {identified};\n"
        f"GRANT ALL PRIVILEGES ON {database}.* TO '{USER}'@'localhost';\n"
    )
