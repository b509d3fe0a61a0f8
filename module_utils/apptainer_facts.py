# SPDX-License-Identifier: Apache-2.0
"""What a node has of Apptainer, as `apptainer_rules.Node`, without ever touching what is on the network.

A server that does not answer holds whoever asks for one of its files, so what is on or below such a mount, or
would be mounted by being looked at, stays unknown.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import (
    apptainer_apt,
    apptainer_capability,
    apptainer_conf,
    apptainer_conf_lint,
    apptainer_ecl,
    apptainer_packages,
    apptainer_rpm,
    apptainer_rules,
    apptainer_version,
    kernel_parameters,
    openpgp,
)
from .apptainer_conf_releases import Value
from .apptainer_rules import FileFact, Keyring, Mount, Node, PathFact
from .mounts import NETWORK_TYPES, parse

#: The files that setuid mode has to have, and those that it reads if they are there.
_FILES: Mapping[str, bool] = {
    "apptainer.conf": True,
    "ecl.toml": True,
    "capability.json": True,
    "global-pgp-public": False,
    "nvliblist.conf": False,
    "dmtcp-conf.yaml": False,
}
_MOST_LINKS = 40  # as the kernel: path_resolution(7)


class Root(NamedTuple):
    """Where the node's files are: ``/``, or a directory in tests."""

    path: str = "/"

    def real(self, path: str) -> Path:
        """Return where *path* of the node really is."""
        return Path(self.path, path.lstrip("/"))

    def read(self, path: str) -> Optional[bytes]:
        """Return the content of a file, None if there is none."""
        try:
            return self.real(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None


def gather(run: apptainer_packages.Run, profile: Optional[str], root: Root = Root()) -> Node:  # noqa: B008
    """Look at the node. *run* runs a program; *profile* is what the site has chosen, if that is known.

    Without Apptainer on the node, nothing of it is known. Raises OSError.
    """
    program = apptainer_packages.find(run)
    if program is None:
        return Node(profile=profile)
    release = re.match(r"[0-9]+\.[0-9]+\.[0-9]+", program.version or "")
    packages = _packages(run)
    open_to_users, why = kernel_parameters.user_namespaces(root.path)
    code, out, _ = run([program.path, "--config", os.devnull, "buildcfg", "APPTAINER_CONFDIR"])
    folder = out.strip() if code == 0 and out.startswith("/") else "/etc/apptainer"
    return describe(
        Node(
            version=_version(program.version or "") or (release.group() if release else None),
            package_version=packages.get(apptainer_packages.MAIN),
            suid_version=packages.get(apptainer_packages.SUID),
            profile=profile,
            suid=bool((program.starter_mode or 0) & stat.S_ISUID) if program.starter else None,
            user_namespaces=open_to_users,
            user_namespaces_why=why,
        ),
        folder,
        root,
    )


def describe(node: Node, folder: str, root: Root) -> Node:
    """Return *node* with all that its files say; *folder* is that of apptainer.conf."""
    mounts = mounted((root.read("/proc/self/mountinfo") or b"").decode(errors="surrogateescape"))
    directives, problems = _conf(node.release, root.read(f"{folder}/apptainer.conf"))
    ecl, ecl_error = _ecl(root.read(f"{folder}/ecl.toml"))
    grants, grants_error = _grants(root.read(f"{folder}/capability.json"))
    programs = list(_programs(folder, root))
    found = replace(
        node,
        directives=directives,
        problems=problems,
        ecl=ecl,
        ecl_error=ecl_error,
        grants=grants,
        grants_error=grants_error,
        keyring=_keyring(root.read(f"{folder}/global-pgp-public")),
        files=[
            _file(path, required, root)
            for path, required in (
                (folder, True),
                *((f"{folder}/{name}", required) for name, required in _FILES.items()),
            )
        ],
        has_gpu=any(root.real(f"/dev/{name}").exists() for name in ("nvidiactl", "nvidia0")),
        mounts=mounts,
        programs=programs,
        leftover=root.real("/etc/singularity").is_dir() and root.real(folder).is_dir(),
    )
    return replace(found, paths={path: look(path, mounts, root) for path in _paths(found)})


def mounted(mountinfo: str) -> List[Mount]:
    """Return the mounts in ``/proc/self/mountinfo`` (proc(5)), in its order."""
    return [Mount(mount.path, mount.type) for mount in parse(mountinfo)]


def look(path: str, mounts: Sequence[Mount], root: Root) -> PathFact:
    """Return what *path* is, following links by hand, and no further than where the network begins."""
    parts, current, writable, links = path.split("/")[::-1], "/", False, 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if part == "..":
            current = posixpath.dirname(current)
            continue
        step = posixpath.join(current, part)
        last = not any(part not in ("", ".") for part in parts)
        remote = [
            mount.path
            for mount in mounts
            if mount.kind in _REMOTE and apptainer_rules.within(step, mount.path)
        ]
        if remote:
            return PathFact(exists=True if last and step in remote else None)
        try:
            status = os.lstat(root.real(step))
        except (FileNotFoundError, NotADirectoryError):
            return PathFact(exists=False)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                return PathFact(exists=False)
            target = os.readlink(root.real(step))  # noqa: PTH115 - Path can since 3.9
            current = "/" if target.startswith("/") else current
            parts += target.split("/")[::-1]
            continue
        # Where the sticky bit keeps users from replacing what is root's, only the last step can be theirs.
        guarded = not last and status.st_mode & stat.S_ISVTX and status.st_uid == 0
        writable = writable or (_others_write(status) and not guarded)
        current = step
    return PathFact(True, writable, _siblings(current, root), current)


_REMOTE = NETWORK_TYPES | {"autofs"}


def _others_write(status: os.stat_result) -> bool:
    group = status.st_gid != 0 and status.st_mode & stat.S_IWGRP
    return bool(status.st_uid != 0 or group or status.st_mode & stat.S_IWOTH)


def _siblings(path: str, root: Root) -> Tuple[str, ...]:
    folder, name = posixpath.split(path)
    names = [entry.name for entry in root.real(folder).iterdir()] if name else []
    return tuple(sorted(other for other in names if other.startswith(name) and other != name))


def _version(text: str) -> Optional[str]:
    try:
        return str(apptainer_version.parse(text))
    except apptainer_version.VersionError:
        return None


def _packages(run: apptainer_packages.Run) -> Dict[str, str]:
    names = [apptainer_packages.MAIN, apptainer_packages.SUID]
    path = apptainer_packages.ENVIRONMENT["PATH"]
    # A package that is not installed makes both of them fail, and show the other one.
    if shutil.which("dpkg-query", path=path):
        command = ["dpkg-query", "--show", f"--showformat={apptainer_apt.DPKG_FORMAT}", *names]
        found = apptainer_apt.installed(run(command)[1])
        if found:
            return found
    if shutil.which("rpm", path=path):
        return apptainer_rpm.installed(run, names)
    return {}


def _conf(
    release: Optional[str], content: Optional[bytes]
) -> Tuple[Optional[Mapping[str, Value]], Optional[List[apptainer_conf_lint.Problem]]]:
    if release is None:
        return None, None
    try:
        if content is None:
            return apptainer_conf.complete({}, release), []
        return apptainer_conf_lint.read(content.decode(errors="surrogateescape"), release)
    except apptainer_conf.UnknownReleaseError:
        return None, None


def _ecl(content: Optional[bytes]) -> Tuple[Optional[apptainer_ecl.Ecl], Optional[str]]:
    try:
        return (None if content is None else apptainer_ecl.read(content)), None
    except apptainer_ecl.EclError as error:
        return None, str(error)


def _grants(content: Optional[bytes]) -> Tuple[Optional[apptainer_capability.Grants], Optional[str]]:
    try:
        return (None if content is None else apptainer_capability.read(content)), None
    except apptainer_capability.CapabilityError as error:
        return None, str(error)


def _keyring(content: Optional[bytes]) -> Keyring:
    if not content:
        return Keyring()
    if content.lstrip().startswith(b"-----"):
        return Keyring(unreadable="it is text (ASCII armor), and Apptainer reads binary keys only")
    try:
        return Keyring(frozenset(key.fingerprint for key in openpgp.public_keys(content)))
    except openpgp.OpenPGPError as error:
        return Keyring(unreadable=str(error))


def _file(path: str, required: bool, root: Root) -> FileFact:
    try:
        status = os.lstat(root.real(path))
    except (FileNotFoundError, NotADirectoryError):
        return FileFact(path, "missing", required=required)
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "other")
    return FileFact(path, kind, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), required)


def _programs(folder: str, root: Root) -> Iterator[str]:
    """Yield the programs that containers get from the node and Apptainer looks for in the PATH."""
    listed = (root.read(f"{folder}/nvliblist.conf") or b"").decode(errors="surrogateescape").splitlines()
    names = [line.strip() for line in listed if line.strip() and not line.strip().startswith("#")]
    text = (root.read(f"{folder}/dmtcp-conf.yaml") or b"").decode(errors="surrogateescape")
    bins = re.search(r"(?m)^bins:[ \t]*\n((?:[ \t]*-.*\n?)*)", text)
    names += [line.strip(" \t-'\"") for line in bins.group(1).splitlines()] if bins else []
    for name in names:
        if "/" not in name and ".so" not in name:
            places = (f"{place}/{name}" for place in apptainer_packages.ENVIRONMENT["PATH"].split(":"))
            yield from [path for path in places if root.real(path).exists()][:1]


def _paths(node: Node) -> List[str]:
    """Return the paths that rules want to know more of."""
    binds = [bind.split(":")[0] for bind in node.items("bind path")]
    groups = node.ecl.execgroups if node.ecl else ()
    every = [
        *node.items("limit container paths"),
        *binds,
        *(node.value("binary path") or "").split(":"),
        *(group.dirpath for group in groups),
        *(node.programs or ()),
    ]
    return [path for path in dict.fromkeys(every) if path.startswith("/")]
