# SPDX-License-Identifier: Apache-2.0
"""Apptainer's packages on Debian and its relatives: the files of apt, its output and its commands."""

from __future__ import annotations

import re
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence

from .apptainer_version import Version

MAIN, SUID = "apptainer", "apptainer-suid"
SOURCES = "/etc/apt/sources.list.d/apptainer.sources"
PREFERENCES = "/etc/apt/preferences.d/apptainer"

_HEADER = "# Written by Ansible (apptainer_package): changes made here are lost.\n"
# "Inst PACKAGE [OLD] (NEW SOURCES)", "Remv PACKAGE [OLD]"
_SIMULATED = re.compile(r"(?P<verb>Inst|Remv) (?P<package>\S+)(?: \[(?P<old>[^]]*)\])?(?: \((?P<new>\S+))?")
_ARMOR = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
# Debian Policy 5.6.1 allows a hyphen at the end too, which no package has and apt reads as a removal. A plus
# there is part of the name (g++), as long as there is such a package.
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*[a-z0-9.+]")
# apt waits for dpkg's locks if it is told to, but never for these.
_LOCKED = re.compile(r"^E: (Could not get lock \S+/(?:lists|archives)/lock\b.*)", re.MULTILINE)


class Repository(NamedTuple):
    """An APT repository; *key* is the ASCII-armored public key that signs it."""

    url: str
    suite: str
    component: str
    key: str


class Step(NamedTuple):
    """One step of a transaction that apt has planned.

    action: ``install`` or ``remove``. version: the new one, empty if removed. previous: empty if new.
    """

    action: str
    package: str
    version: str
    previous: str


def sources(repository: Repository) -> str:
    """Return the file for `SOURCES`: deb822 with the key inside (apt 2.4), so that the two can't part.

    Raises ValueError if the key isn't ASCII-armored.
    """
    key = repository.key.strip()
    if not key.startswith(_ARMOR):
        raise ValueError(
            "apptainer_repository: the file with the key is no ASCII-armored public key: it must begin with"
            f" {_ARMOR}"
        )
    # A continuation line must not be empty: a dot stands for it (deb822(5)).
    block = "".join(f" {line.strip() or '.'}\n" for line in key.splitlines())
    return (
        f"{_HEADER}Types: deb\nURIs: {repository.url}\nSuites: {repository.suite}\n"
        f"Components: {repository.component}\nSigned-By:\n{block}"
    )


def preferences(version: str, suid: bool) -> str:
    """Return the file for `PREFERENCES`: these packages stay at *version*, whatever any source offers.

    Above 1000 even a downgrade is taken, below 0 nothing is (apt_preferences(5)). Without *suid* the
    setuid package can't come along as somebody's dependency either.
    """
    pinned = f"{MAIN} {SUID}" if suid else MAIN
    text = f"{_HEADER}Package: {pinned}\nPin: version {version}\nPin-Priority: 1001\n"
    return text if suid else f"{text}\nPackage: {SUID}\nPin: version *\nPin-Priority: -1\n"


def check_helpers(names: Iterable[object]) -> None:
    """Refuse what apt would read as other than packages to have beside Apptainer. Raises ValueError."""
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name of a Debian package, like 'fuse2fs'; versions, architectures, options"
                " and removals ('fuse2fs-') can't stand here"
            )
        if name in (MAIN, SUID):
            raise ValueError(f"{name} is no helper: apptainer_version and apptainer_profile decide on it")


def locked(errors: str) -> Optional[str]:
    """Return what apt's *errors* say of a lock that it doesn't wait for, with its holder; None if nothing."""
    match = _LOCKED.search(errors)
    return match.group(1) if match else None


def installed(dpkg_query: str) -> Dict[str, str]:
    """Return package → version from ``dpkg-query --show`` with the format `DPKG_FORMAT`."""
    rows = [line.split(" ") for line in dpkg_query.splitlines()]
    return {package: version for package, status, version in rows if status == "installed"}


DPKG_FORMAT = "${Package} ${db:Status-Status} ${Version}\n"


def offered(madison: str, url: Optional[str] = None) -> List[str]:
    """Return the versions in the output of ``apt-cache madison``, newest first; with *url*, only its own."""
    versions = []
    for line in madison.splitlines():
        columns = [column.strip() for column in line.split("|")]
        if len(columns) != 3 or not columns[2].endswith(" Packages"):  # noqa: PLR2004 - package, version, source
            continue
        if url is None or columns[2].split(" ")[0].rstrip("/") == url.rstrip("/"):
            versions.append(columns[1])
    return list(dict.fromkeys(versions))


def choose(wanted: Version, versions: Sequence[str]) -> Optional[str]:
    """Return the first of *versions* (newest first) that is the *wanted* one, None if there is none."""
    return next((version for version in versions if wanted.matches(version)), None)


def packages(version: str, suid: bool, helpers: Sequence[str] = ()) -> List[str]:
    """Return what ``apt-get install`` has to be told, so that all packages change in one transaction."""
    return [f"{MAIN}={version}", f"{SUID}={version}" if suid else f"{SUID}-", *helpers]


def planned(simulation: str) -> List[Step]:
    """Return the steps in the output of ``apt-get --simulate install``."""
    matches = (_SIMULATED.match(line) for line in simulation.splitlines())
    return [
        Step(
            "install" if match.group("verb") == "Inst" else "remove",
            match.group("package"),
            match.group("new") or "",
            match.group("old") or "",
        )
        for match in matches
        if match
    ]
