# SPDX-License-Identifier: Apache-2.0
"""Files that are either the old one or the new one, also after a power cut."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import List, Mapping, Optional, Tuple


def read(path: str) -> Optional[bytes]:
    """Return the content of *path*, or None if there is no such file.

    Raises OSError if it is there and can't be read.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def replace(path: str, content: bytes, mode: int = 0o644, owner: Optional[Tuple[int, int]] = None) -> None:
    """Put *content* at *path*: temporary file in the same directory, fsync, rename, fsync of the directory.

    *mode* and *owner* (uid, gid; None keeps those of the process) are set before the content is
    written, so a secret is never readable by others for a moment.
    Raises OSError; the file at *path* is untouched then and no temporary file is left.
    """
    replace_all({path: content}, mode, owner)


def replace_all(
    contents: Mapping[str, bytes], mode: int = 0o644, owner: Optional[Tuple[int, int]] = None
) -> None:
    """Put contents at paths as `replace` does: all are written before the first is renamed, in their order.

    Raises OSError; no temporary file is left then, and no file is touched unless a rename itself failed.
    """
    temporaries: List[Path] = []
    try:
        for path, content in contents.items():
            temporaries.append(_temporary(Path(path), content, mode, owner))
        for path in contents:
            temporaries[0].rename(path)
            del temporaries[0]
    except BaseException:
        for temporary in temporaries:
            temporary.unlink()
        raise
    for folder in {Path(path).parent for path in contents}:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _temporary(target: Path, content: bytes, mode: int, owner: Optional[Tuple[int, int]]) -> Path:
    """Return a file beside *target* that has the content, on the disk. Raises OSError and leaves none."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=str(target.parent))
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(temporary).unlink()
        raise
    return Path(temporary)
