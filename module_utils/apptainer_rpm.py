# SPDX-License-Identifier: Apache-2.0
"""What dnf and zypper have in common for Apptainer's packages: rpm, repository files, keys."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Sequence

from . import apptainer_packages
from .apptainer_packages import LocalPackage, PackageError, Repository, Run

#: The name of our repository in the package manager.
ID = "apptainer"
KEY = "/etc/pki/rpm-gpg/RPM-GPG-KEY-apptainer-fleet"
HEADER = "# Written by Ansible (apptainer_package): changes made here are lost.\n"
QUERY = "%{NAME} %|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\\n"


def installed(run: Run, names: Sequence[str]) -> Dict[str, str]:
    """Return package → version of those of *names* that rpm has."""
    # Fails where one of them is missing, says so in a sentence, and shows the others.
    rows = [
        line.split(" ") for line in run(["rpm", "--query", f"--queryformat={QUERY}", *names])[1].splitlines()
    ]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in names}  # noqa: PLR2004


def describe(run: Run, path: str) -> LocalPackage:
    """Return what an RPM package file says of itself. Raises PackageError."""
    query = QUERY.replace("\\n", " %{ARCH}\\n")
    code, out, err = run(["rpm", "--query", "--package", "--nosignature", f"--queryformat={query}", path])
    if code != 0 or len(out.split()) != 3:  # noqa: PLR2004 - the fields
        said = (err or out).strip()
        raise PackageError(f"apptainer_package_files: rpm can't read {Path(path).name}: {said}")
    return LocalPackage(path, *out.split())


def repository_file(repository: Repository, *more: str) -> str:
    """Return the file for dnf or zypper: packages are taken if the key in the file `KEY` has signed them.

    more: further lines. Raises ValueError if the key isn't ASCII-armored.
    """
    apptainer_packages.check_key(repository.key)
    lines = [
        f"[{ID}]",
        "name=Apptainer (apptainer_repository)",
        f"baseurl={repository.url}",
        "enabled=1",
        "gpgcheck=1",
        f"gpgkey=file://{KEY}",
        *more,
    ]
    return HEADER + "".join(f"{line}\n" for line in lines)


def key_file(repository: Repository) -> str:
    """Return the file for `KEY`. Raises ValueError if the key isn't ASCII-armored."""
    return f"{apptainer_packages.check_key(repository.key)}\n"


def check_signatures(run: Run, packages: Sequence[str], key: Path, keyring: Path) -> None:
    """Refuse package files that *key*, and no other one that the node may trust, has not signed.

    packages: paths. key: file with the armored key. keyring: an empty directory for rpm to work in.
    Raises PackageError.
    """
    rpmkeys = ["rpmkeys", "--define", f"_dbpath {keyring}"]
    code, out, err = run([*rpmkeys, "--import", str(key)])
    if code != 0:
        raise PackageError(f"apptainer_repository: rpm can't read its key: {(err or out).strip()}")
    refused: List[str] = []
    for package in packages:
        code, out, _ = run([*rpmkeys, "--checksig", package])
        # rpm is content with a package that nobody has signed, and says then that its digests are right.
        if code != 0 or not out.rstrip().endswith(" signatures OK"):
            refused.append(out.rpartition("/")[2].strip() or package)
    if refused:
        raise PackageError(
            f"apptainer_repository: its key has not signed {'; '.join(refused)}: name the key that the"
            " packages are signed with, or have them signed"
        )
