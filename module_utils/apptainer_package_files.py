# SPDX-License-Identifier: Apache-2.0
"""Package files that are given instead of a repository: what a site says of them, and how a node gets them.

Nothing of a file is used, and nothing of the node is touched, before its SHA-256 is right.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import urllib.request
from pathlib import Path
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple

VARIABLE = "apptainer_package_files"
#: What a server may send before it is cut off; a package of Apptainer has a fiftieth of it.
MOST_OCTETS = 2 << 30
#: Seconds without an octet.
PATIENCE = 60

_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"(https?|file)://\S+")
_PACKAGES, _ARCHIVES = (".deb", ".rpm"), (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar")


class PackageFileError(Exception):
    """A file that can't be had, or is another one than promised; the message says which and why."""


class PackageFile(NamedTuple):
    """A file as the site gives it. file: on the controller. url: where nodes get it. One of them is empty."""

    sha256: str
    file: str = ""
    url: str = ""

    @property
    def name(self) -> str:
        """Return its name without the folders."""
        return re.split(r"[?#]", self.file or self.url)[0].rpartition("/")[2]

    def __str__(self) -> str:
        return self.file or self.url


def read(given: Sequence[Mapping[str, Any]], archives: bool) -> Tuple[List[PackageFile], List[str]]:
    """Return the good ones of what the variable has, and a sentence for each that is not.

    archives: whether there may be archives, too, to unpack.
    """
    suffixes = _PACKAGES + (_ARCHIVES if archives else ())
    good: List[PackageFile] = []
    problems = []
    for number, entry in enumerate(given):
        one = PackageFile(*(str(entry.get(key) or "") for key in ("sha256", "file", "url")))
        problem = _problem(one, suffixes)
        if problem is None and any(one.sha256 == other.sha256 for other in good):
            problem = "is there twice"
        if problem:
            problems.append(f"[{number}]: {one or 'an entry'} {problem}")
        else:
            good.append(one)
    return good, problems


def _problem(one: PackageFile, suffixes: Tuple[str, ...]) -> Optional[str]:
    if bool(one.file) == bool(one.url):
        return "has to have one of file (on the controller) and url (where nodes get it)"
    if one.file and not one.file.startswith("/"):
        return "is not absolute: begin it with {{ inventory_dir }}, for example"
    if one.url and not _URL.fullmatch(one.url):
        return "is no URL that begins with https://, http:// or file:///"
    if not _SHA256.fullmatch(one.sha256):
        return "has no sha256 of 64 hexadecimal digits in small letters, as `sha256sum` prints it"
    if not one.name.endswith(suffixes):
        return f"is no package by its name: that ends with {' or '.join(suffixes)}"
    return None


def check(path: Path, one: PackageFile) -> None:
    """Raise PackageFileError if the file at *path* is not the one that was promised, and OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != one.sha256:
        raise PackageFileError(
            f"{VARIABLE}: {one} has the SHA-256 {digest.hexdigest()}, and {one.sha256} was promised: it is"
            " another file, or was changed on its way"
        )


def download(one: PackageFile, target: Path) -> None:
    """Fetch a file that has a URL to *target*; whether it is the right one is left to `check`.

    Raises PackageFileError and OSError.
    """
    # The variables of the environment for proxies count; which address answers does not, as the digest does.
    opener = urllib.request.build_opener()
    try:
        with opener.open(one.url, timeout=PATIENCE) as answer, target.open("wb") as file:
            left = MOST_OCTETS
            for block in iter(lambda: answer.read(1 << 20), b""):
                left -= len(block)
                if left < 0:
                    raise PackageFileError(f"{VARIABLE}: {one} does not end after {MOST_OCTETS} octets")
                file.write(block)
    except (OSError, ValueError) as error:
        # urllib's errors are OSErrors without the name of a file.
        if getattr(error, "filename", None) == str(target):
            raise
        raise PackageFileError(f"{VARIABLE}: {one} can't be had: {error}") from error


def fetch(one: PackageFile, brought: str, folder: Path) -> Path:
    """Return the file in *folder*, an existing one, with a name of its own and the right digest.

    brought: where on this node a file of the controller has been put. Raises PackageFileError and OSError.
    """
    target = folder / one.sha256[:12] / one.name
    target.parent.mkdir(exist_ok=True)
    if one.url:
        download(one, target)
    else:
        shutil.copyfile(brought, str(target))
    check(target, one)
    return target
