"""A folder of things that take long to make, each made once under a key of everything that goes into it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet.errors import FleetError


def cache_key(ingredients: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with any of the ingredients (JSON-able values)."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]


def cached(
    folder: Path, make: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.exists
) -> Path:
    """The folder, made first if it is not there.

    Two processes that want the same folder make it once; one that is killed leaves only a part beside it,
    which the next one throws away.

    :param make: fills the empty folder it is given, or raises.
    :param is_whole: whether it is there and good; what is not is made anew.
    """
    if is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if is_whole(folder):
            return folder
        part = folder.with_suffix(".part")
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(mode=0o755)
        make(part)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    return folder


def made(folder: Path) -> int:
    """When a cached folder was made, 0 if it is not there: a disk over one does not fit its successor."""
    return folder.stat().st_mtime_ns if folder.exists() else 0


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what may need so many MiB: programs that run out of space say all sorts of things.

    :raises FleetError: there is less.
    """
    free = shutil.disk_usage(folder).free >> 20
    if free < needed:
        raise FleetError(
            f"{folder.parent}: {free} MiB are free, {needed} may be needed",
            "free some, or set XDG_CACHE_HOME to a folder on a larger file system",
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that no dead process can hold: the kernel drops it with its last file descriptor.

    A child between fork and exec still has that descriptor, so whoever gets the lock after a crash sees
    every process the dead holder started.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
