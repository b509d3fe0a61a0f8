# SPDX-License-Identifier: Apache-2.0
"""What ``apptainer exec --nv`` and ``--rocm`` would bring into a container from this node.

Apptainer looks up each line of its list, and passes over what the node has not got without a word: the user
then has a container without a driver. So this looks the same things up in the same way, runs no program and
says what is missing.

Sources: ``internal/pkg/util/gpu/paths.go`` of https://github.com/apptainer/apptainer; of glibc,
``sysdeps/generic/dl-cache.h`` (``struct cache_file_new``).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Tuple

#: Where Apptainer looks for programs, whatever its user's PATH is.
PROGRAMS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
CACHE = "etc/ld.so.cache"

_MAGIC = b"glibc-ld.so.cache1.1"
_HEADER = struct.Struct("=20s2I20x")  # magic, count, length of strings; flags, offsets and padding
_ENTRY = struct.Struct("=i2IIQ")  # flags, key, value, version, hardware capabilities
_VERSION = re.compile(r"\.so\.(\d+(?:\.\d+)+)$")


class GpuList(NamedTuple):
    """A list of Apptainer: its option and *file*, and what no container can do without (*needed*)."""

    option: str
    file: str
    needed: Tuple[str, ...]


#: By the names that programs load. Of ROCm, images bring the libraries themselves.
LISTS: Mapping[str, GpuList] = {
    "nvidia": GpuList("--nv", "nvliblist.conf", ("libcuda.so.1", "libnvidia-ml.so.1")),
    "amd": GpuList("--rocm", "rocmliblist.conf", ()),
}


def cached(data: bytes) -> Dict[str, str]:
    """Return path → name of the libraries in an ld.so.cache. Raises ValueError if it is none that is known.

    The format of before glibc 2.2 may stand before it; offsets count from where the new one begins.
    """
    start = data.find(_MAGIC)
    if start < 0:
        raise ValueError("is no cache of glibc 2.2 or newer")
    try:
        _, count, _ = _HEADER.unpack_from(data, start)
        entries = [_ENTRY.unpack_from(data, start + _HEADER.size + n * _ENTRY.size) for n in range(count)]
    except struct.error as error:
        raise ValueError("is cut short") from error

    def text(offset: int) -> str:
        begin = start + offset
        end = data.find(b"\0", begin)
        if not 0 <= begin < end:
            raise ValueError("is cut short")
        return data[begin:end].decode(errors="surrogateescape")

    return {text(value): text(key) for _, key, value, _, _ in entries}


def lines(text: str) -> List[str]:
    """Return the entries of a list."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def resolve(entries: List[str], root: str = "/") -> Dict[str, List[str]]:
    """Return entry → files of the node that it brings, none if there is none. Raises ValueError, OSError."""
    base = Path(root)
    libraries = cached((base / CACHE).read_bytes())
    found: Dict[str, List[str]] = {}
    for entry in entries:
        if ".so" not in entry:
            places = (base / folder / entry for folder in PROGRAMS)
            programs = [str(path) for path in places if path.is_file() and os.access(str(path), os.X_OK)]
            found[entry] = programs[:1]
        elif entry.startswith("/"):
            found[entry] = [entry] if (base / entry.lstrip("/")).is_file() else []
        else:
            found[entry] = sorted(
                path
                for path, name in libraries.items()
                if name.startswith(entry) and (base / path.lstrip("/")).is_file()
            )
    return found


def lacking(vendor: str, folder: str, driver: str, root: str = "/") -> List[str]:
    """Return why containers would not have what they need of *vendor*'s driver, as sentences.

    *folder* is where Apptainer's configuration is; *driver* the version of the loaded kernel module, empty if
    it is not known.
    """
    wanted = LISTS.get(vendor)
    if wanted is None:
        return []
    file = f"{folder}/{wanted.file}"
    try:
        entries = lines((Path(root) / file.lstrip("/")).read_text(errors="replace"))
    except OSError as error:
        return [f"{file}: {error.strerror}: {wanted.option} brings nothing into containers"]
    try:
        found = resolve(entries, root)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        return [f"/{CACHE} {said}: run ldconfig"]
    wrong = []
    for name in wanted.needed:
        listed = [entry for entry in entries if name.startswith(entry)]
        files = [path for entry in listed for path in found[entry] if Path(path).name == name]
        if not listed:
            wrong.append(f"{file} does not have {name}: {wanted.option} brings it into no container")
        elif not files:
            wrong.append(f"{name} is not on this node: {wanted.option} brings it into no container")
        wrong += _of_another_driver(files, name, driver, root)
    return wrong


def _of_another_driver(files: List[str], name: str, driver: str, root: str) -> List[str]:
    """A driver that was upgraded under a loaded module answers nobody until the next boot."""
    for path in files if driver else ():
        real = os.path.realpath(str(Path(root) / path.lstrip("/")))
        version = _VERSION.search(real)
        if version and version.group(1) != driver:
            return [f"{name} is of driver {version.group(1)}, the loaded module of {driver}: boot the node"]
    return []


def container_cli(root: str = "/", owner: int = 0) -> List[str]:
    """Return why ``use nvidia-container-cli`` would not work here, or would be refused, as sentences.

    *root* and *owner* are others in tests.
    """
    wrong = []
    for name in ("nvidia-container-cli", "ldconfig"):
        places = (Path(root) / folder / name for folder in PROGRAMS)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            wrong.append(f"{name}, which apptainer.conf asks for, is not on this node")
            continue
        status = path.stat()
        if status.st_uid != owner or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            wrong.append(f"/{path.relative_to(root)} is not root's alone: Apptainer would run it as root")
    return wrong
