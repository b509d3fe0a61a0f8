# SPDX-License-Identifier: Apache-2.0
"""Leftovers of old installations of Singularity and Apptainer on the local file systems of a node.

Only file systems that are known to be local are entered, so that neither a dead server nor a billion files on
a parallel file system can hold the audit up. Which is which comes from /proc/self/mountinfo (proc(5)).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from .mounts import PSEUDO_TYPES, Mount, parse

# On disks or in memory of the node itself; the roots of diskless nodes are tmpfs, overlay and squashfs.
LOCAL_TYPES = frozenset(
    ["bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfsplus", "iso9660", "jfs"]
    + ["nilfs2", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "udf", "ufs"]
    + ["vfat", "xfs", "zfs"]
)
# The setuid programs of Singularity 2.0 to 2.6 and, since 3.0, of all of its descendants.
SETUID_NAMES = frozenset(
    ["starter-suid", "sexec", "sexec-suid", "start-suid", "import-suid", "export-suid", "mount-suid"]
    + ["action-suid", "copy-suid", "create-suid", "expand-suid"]
)
PROGRAM, CONFIGURATION = "singularity", "singularity"
_PROGRAM_FOLDERS = frozenset(["bin", "sbin"])

# Looked into first, so that a deadline takes what is least likely.
LIKELY = ("/etc", "/usr/local", "/usr/libexec", "/usr/bin", "/usr/sbin", "/opt", "/usr")

# In a report, that many; their number is told anyway.
MAX_UNREADABLE = 100
#: Whose setuid programs are taken care of; those of others are nobody's way to root.
ROOT = 0
#: What shells say of a program that is not there.
_ABSENT = 127


@dataclass(frozen=True)
class Finding:
    """A leftover: *kind* is ``setuid``, ``program`` or ``configuration``; *nosuid* if its mount is so."""

    path: str
    kind: str
    uid: int
    gid: int
    mode: int
    nosuid: bool


@dataclass
class Audit:
    """What was found, and how far the audit got.

    *walked* and *not_entered* are mount points; *unreadable* holds the first folders that could not be read,
    of *unreadable_count*; *stopped_at* is the folder at which the deadline came, or None; *entries* counts
    names.
    """

    findings: List[Finding] = field(default_factory=list)
    walked: List[str] = field(default_factory=list)
    not_entered: List[str] = field(default_factory=list)
    unreadable: List[str] = field(default_factory=list)
    unreadable_count: int = 0
    entries: int = 0
    stopped_at: Optional[str] = None


def visible(mounts: Sequence[Mount]) -> Dict[str, Mount]:
    """Return mount point → mount for all that no other mount hides, itself or one of its parents."""
    by_number = {mount.number: mount for mount in mounts}
    top = {mount.path: mount for mount in mounts}

    def shown(mount: Mount) -> bool:
        seen: Set[int] = set()
        while top[mount.path] is mount and mount.number not in seen:
            seen.add(mount.number)
            parent = by_number.get(mount.parent)
            if parent is None or parent is mount:
                return True
            if parent.path == mount.path:
                # Stacked upon another: what that one stands on decides.
                parent = by_number.get(parent.parent)
                if parent is None:
                    return True
            mount = parent
        return False

    return {path: mount for path, mount in top.items() if shown(mount)}


def starting_points(mounts: Mapping[str, Mount]) -> List[Mount]:
    """Return the mounts to walk, each part of a file system once.

    A local one below a network or FUSE one is left out: the way to it leads through the other.
    """
    by_number = {mount.number: mount for mount in mounts.values()}

    def reachable(mount: Optional[Mount]) -> bool:
        seen: Set[int] = set()
        while mount is not None and mount.number not in seen:
            if mount.type not in LOCAL_TYPES | PSEUDO_TYPES or mount.type == "autofs":
                return False
            seen.add(mount.number)
            mount = by_number.get(mount.parent)
        return True

    result: List[Mount] = []
    for mount in sorted(mounts.values(), key=lambda mount: (mount.path.count("/"), mount.path)):
        # A bind mount shows again what is walked anyway.
        shown = any(
            other.device == mount.device and _below(mount.root, other.root) and other.path != mount.path
            for other in result
        )
        if mount.type in LOCAL_TYPES and reachable(mount) and not shown:
            result.append(mount)
    return result


def mount_of(path: str, mounts: Mapping[str, Mount]) -> Optional[Mount]:
    """Return the mount that *path* is in, or None if mountinfo had none."""
    above = [mount for mount in mounts.values() if _below(path, mount.path)]
    return max(above, key=lambda mount: len(mount.path), default=None)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def audit(
    seconds: float,
    mountinfo: str,
    roots: Iterable[str] = ("/",),
    clock: Callable[[], float] = time.monotonic,
) -> Audit:
    """Look through the local file systems below *roots* for at most *seconds*.

    *mountinfo* is the text of /proc/self/mountinfo. Symbolic links are not followed; a folder that vanishes
    meanwhile is none; one that can't be read is reported.
    """
    result = Audit()
    mounts = visible(parse(mountinfo))
    points = starting_points(mounts)
    walk = _Walk(result, mounts, clock, clock() + seconds)
    for root in roots:
        inside = [mount for mount in points if _below(mount.path, root)]
        if root not in (mount.path for mount in inside):
            home = mount_of(root, mounts)
            if home in points:
                inside.insert(0, home)
        for mount in inside:
            start = mount.path if _below(mount.path, root) else root
            if not walk.tree(start, mount):
                return result
    result.not_entered = sorted(
        f"{mount.path} ({mount.type})"
        for mount in mounts.values()
        if mount.type not in LOCAL_TYPES | PSEUDO_TYPES and any(_below(mount.path, root) for root in roots)
    )
    return result


class _Walk:
    def __init__(
        self, result: Audit, mounts: Mapping[str, Mount], clock: Callable[[], float], deadline: float
    ) -> None:
        self.result, self.mounts, self.clock, self.deadline = result, mounts, clock, deadline

    def tree(self, start: str, mount: Mount) -> bool:
        """Walk *start*, a folder of *mount*, without leaving it; False if the deadline came."""
        self.result.walked.append(start)
        seen: Set[str] = set()
        device: Optional[int] = None
        likely = [
            path
            for path in LIKELY
            if path != start and _below(path, start) and mount_of(path, self.mounts) is mount
        ]
        # A stack: the last one is next.
        pending = [start, *reversed(likely)]
        while pending:
            folder = pending.pop()
            if folder in seen or (folder in self.mounts and self.mounts[folder] is not mount):
                continue
            seen.add(folder)
            if self.clock() > self.deadline:
                self.result.stopped_at = folder
                return False
            device, children = self.folder(folder, mount, device)
            pending.extend(children)
        return True

    def folder(self, folder: str, mount: Mount, device: Optional[int]) -> Tuple[Optional[int], List[str]]:
        """Judge the names in *folder*; return the device of the walk and the folders in it."""
        try:
            # A folder that somebody has replaced by a link in the meantime is not followed.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            self.failed(folder, error)
            return device, []
        children: List[str] = []
        try:
            here = os.fstat(descriptor).st_dev
            # Subvolumes of btrfs have devices of their own. Elsewhere another one is a mount that came later.
            if device is not None and here != device and mount.type != "btrfs":
                return device, []
            prefix = folder.rstrip("/") + "/"
            base = folder.rpartition("/")[2]
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    self.result.entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        children.append(prefix + entry.name)
                        if entry.name == CONFIGURATION and base == "etc":
                            self.found(entry, prefix, "configuration", mount)
                    elif entry.name in SETUID_NAMES:
                        self.found(entry, prefix, "setuid", mount)
                    elif entry.name == PROGRAM and base in _PROGRAM_FOLDERS:
                        self.found(entry, prefix, "program", mount)
        except OSError as error:
            self.failed(folder, error)
            here = device if device is not None else -1
        finally:
            os.close(descriptor)
        return (here if device is None else device), children

    def found(self, entry: "os.DirEntry[str]", prefix: str, kind: str, mount: Mount) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        regular = stat.S_ISREG(status.st_mode)
        # Apptainer's own `singularity` is a symbolic link; a setuid program without that bit is a file.
        if kind == "setuid" and not (regular and status.st_mode & stat.S_ISUID):
            return
        if kind == "program" and not (regular and status.st_mode & 0o111):
            return
        if kind == "program" and status.st_mode & stat.S_ISUID:
            kind = "setuid"
        self.result.findings.append(
            Finding(
                prefix + entry.name,
                kind,
                status.st_uid,
                status.st_gid,
                stat.S_IMODE(status.st_mode),
                "nosuid" in mount.options,
            )
        )

    def failed(self, folder: str, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return
        self.result.unreadable_count += 1
        if len(self.result.unreadable) < MAX_UNREADABLE:
            self.result.unreadable.append(f"{folder} ({error.strerror})")


def disarm(
    audit: Audit,
    allowed: Iterable[str],
    owners: Callable[[List[str]], Optional[Dict[str, str]]],
    dry_run: bool = False,
) -> Tuple[List[str], Dict[str, str]]:
    """Take the setuid bit from the programs of *audit* that nobody answers for; the files stay.

    :param allowed: paths that the site answers for.
    :param owners: paths → path → package; None where no package manager can say.
    :return: the paths that have lost the bit, or would, and path → why of those that have it still.
    """
    paths = sorted({one.path for one in audit.findings if one.kind == "setuid"} - set(allowed))
    packages = owners(paths) if paths else {}
    done, kept = [], {}
    for path in paths:
        if packages is None:
            kept[path] = "no package manager can say whether it belongs to a package"
        elif not packages.get(path):
            why = _disarm(path, dry_run)
            if why:
                kept[path] = why
            else:
                done.append(path)
    return done, kept


def _disarm(path: str, dry_run: bool) -> str:
    """Take the bit from *path*; return why not, empty if it is done."""
    try:
        # By the file that is open: another one may stand there by now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not (stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_ISUID):
                return "it is another file by now"
            if status.st_uid != ROOT:
                return f"it is not root's, but of user {status.st_uid}"
            if status.st_nlink > 1:
                return "it has another name, which may belong to a package"
            if not dry_run:
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~(stat.S_ISUID | stat.S_ISGID))
        finally:
            os.close(descriptor)
    except OSError as error:
        return str(error.strerror)
    return ""


def owners(dpkg: str, rpm: str, paths: Sequence[str]) -> Dict[str, str]:
    """Return path → package from what ``dpkg-query -S`` and ``rpm -qf --qf '%{NAME}\\n'`` printed of *paths*.

    rpm prints a line for each path, in order; a package's name has no blank, its complaint has some.
    """
    result: Dict[str, str] = {}
    for path, line in zip(paths, rpm.splitlines()):  # noqa: B905 - Python 3.8
        if line and " " not in line:
            result[path] = line
    for line in dpkg.splitlines():
        packages, separator, path = line.partition(": ")
        if separator and path in paths and not packages.startswith("diversion "):
            result[path] = packages.split(", ")[0].partition(":")[0]
    return result


def packages(run: Callable[[List[str]], Tuple[int, str]], paths: Sequence[str]) -> Optional[Dict[str, str]]:
    """Return path → package, asking the package managers that there are; None if there is none.

    *run* takes argv and gives exit status, 127 for a program that is not there, and standard output.
    """
    # A package of before folders were merged has /bin/su where the node has /usr/bin/su.
    before = {path: path[len("/usr") :] for path in paths if path.startswith("/usr/")}
    asked = [*paths, *before.values()]
    dpkg = run(["dpkg-query", "-S", "--", *asked]) if asked else (0, "")
    rpm = run(["rpm", "-qf", "--qf", "%{NAME}\\n", "--", *asked]) if asked else (0, "")
    if dpkg[0] == rpm[0] == _ABSENT:
        return None
    found = owners(dpkg[1], "" if rpm[0] == _ABSENT else rpm[1], asked)
    return {path: owner for path in paths if (owner := found.get(path) or found.get(before.get(path, "")))}
