# SPDX-License-Identifier: Apache-2.0
"""Versions of Apptainer: the release (``1.4.5``) and what a packager adds to it (``1.4.5-2``)."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional, Tuple

_VERSION = re.compile(r"(?P<release>[0-9]+\.[0-9]+\.[0-9]+)(?:-(?P<revision>[A-Za-z0-9.+~]+))?")
#: What ``apptainer --version`` prints; packagers may add their revision.
_PRINTED = re.compile(r"apptainer version (?P<version>\S+)")


class VersionError(ValueError):
    """A text that is no version of Apptainer; the message says what one looks like."""


class Version(NamedTuple):
    """A wanted version: the release, and the packaging revision if one in particular is wanted."""

    release: str
    revision: Optional[str] = None

    def __str__(self) -> str:
        return self.release if self.revision is None else f"{self.release}-{self.revision}"

    @property
    def numbers(self) -> Tuple[int, ...]:
        """Return the release as numbers, to compare it: ``(1, 4, 5)``."""
        return tuple(int(number) for number in self.release.split("."))

    def matches(self, package_version: str) -> bool:
        """Say whether a Debian or RPM package of this version (``[EPOCH:]RELEASE[-REVISION]``) will do."""
        upstream = package_version.split(":", 1)[-1]
        return upstream == str(self) or (self.revision is None and upstream.split("-", 1)[0] == self.release)


def parse(text: object) -> Version:
    """Read ``X.Y.Z`` or ``X.Y.Z-REVISION``. Raises VersionError."""
    match = _VERSION.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise VersionError(
            f"{text!r} is no version of Apptainer; a release is like '1.4.5', a package's like '1.4.5-2'"
        )
    return Version(match.group("release"), match.group("revision"))


def printed(output: str) -> Optional[str]:
    """Return the version in the output of ``apptainer --version``, None if there is none."""
    match = _PRINTED.fullmatch(output.strip())
    return match.group("version") if match else None
