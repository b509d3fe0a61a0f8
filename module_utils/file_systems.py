# SPDX-License-Identifier: Apache-2.0
"""File systems of the network on a node: what an inventory says of them, and the units that mount them.

A mount is a unit and not a line of fstab, so that it can say what it needs (LNet), and give up in time. With
an automount the server is asked when somebody looks, and a boot waits for nobody.
Sources: systemd.mount(5), systemd.automount(5), systemd-escape(1); mount(8), nfs(5).
"""

from __future__ import annotations

import os
import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import lustre, mounts, typed
from .typed import Field, Reader

UNITS = "/etc/systemd/system"
FSTAB = "/etc/fstab"
#: Who mounts: the role's name → what kind of entries it has.
OWNERS = ("lustre", "nfs_mounts", "other_mounts")
HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n# Owner: "

#: Folders of the system. Nothing is mounted over them, and none of them is bound into containers.
SYSTEM = frozenset(
    [*("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run")]
    + ["/sbin", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/tmp"]  # noqa: S108
)
_KERNEL = ("/dev/", "/proc/", "/sys/")
_PATH = re.compile(r"(/[A-Za-z0-9_.+@-]+)+")
_OPTION = re.compile(r"[A-Za-z0-9_.+/:@=~^#-]+")
_TYPE = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.(service|target|mount|socket|path)")
#: ``[v6]`` is an address in brackets.
_NFS = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\]):(/\S*)")
_NFS_TYPES = ("nfs", "nfs4")
#: Options that a unit says in its own words.
_OURS = {
    "noauto": "set automount",
    "auto": "leave it out",
    "defaults": "leave it out",
    "_netdev": "leave it out: it is added",
    "nofail": "leave it out: no boot waits for a mount that fails",
    "remount": "leave it out",
}
_ONE_OF = (("flock", "localflock", "noflock"), ("hard", "soft", "softerr"), ("ro", "rw"))
_GUARDS = (("nosuid", "suid"), ("nodev", "dev"))


class FileSystem(NamedTuple):
    """A file system on a node; *source* is empty if something else mounts it.

    idle: seconds after which an automount is taken away that nobody uses, 0 for never. timeout: seconds that
    mounting may take. bind: whether containers see it. requires: units that come before.
    """

    path: str
    type: str
    source: str = ""
    options: Tuple[str, ...] = ()
    automount: bool = True
    idle: int = 0
    timeout: int = 30
    bind: bool = False
    requires: Tuple[str, ...] = ()


def _mount_point(value: object) -> str:
    path = typed.text(_PATH, "an absolute path of letters, digits and _ . + @ -")(value)
    if {".", ".."} & set(path.split("/")) or path in SYSTEM or path.startswith(_KERNEL):
        raise ValueError(f"must be a folder of its own, not {path}")
    return str(path)


def _option(value: object) -> str:
    word = typed.text(_OPTION, "one option of mount(8) without a comma")(value)
    name = word.partition("=")[0]
    if name.startswith("x-systemd."):
        raise ValueError(f"must not be {word}: the unit says that; use automount, idle, timeout, requires")
    if name in _OURS:
        raise ValueError(f"must not be {word}: {_OURS[name]}")
    return str(word)


def _lustre_source(value: object) -> str:
    return str(lustre.source(typed.text()(value)))


def _nfs_source(value: object) -> str:
    return str(typed.text(_NFS, "SERVER:/FOLDER, an address of IPv6 in brackets")(value))


_SOURCES: Mapping[str, Reader] = {
    "lustre": _lustre_source,
    "nfs_mounts": _nfs_source,
    "other_mounts": typed.text(re.compile(r"[^\s%\"'\\]+"), "what mount(8) takes, without blanks"),
}
_TYPES: Mapping[str, Field] = {
    "nfs_mounts": Field(typed.choice(*_NFS_TYPES)),
    "other_mounts": Field(typed.text(_TYPE, "a type of file system, such as beegfs"), required=True),
}


def read(entries: object, owner: str) -> Tuple[FileSystem, ...]:
    """Return what the variable of a role says. Raises ValueError, a line for each mistake."""
    fields = {
        "path": Field(_mount_point, required=True),
        "source": Field(_SOURCES[owner], required=owner != "other_mounts"),
        "options": Field(typed.items(_option)),
        "automount": Field(typed.boolean),
        "idle": Field(typed.integer(0)),
        "timeout": Field(typed.integer(1, 3600)),
        "bind": Field(typed.boolean),
        "requires": Field(typed.items(typed.text(_UNIT, "a unit of systemd, such as beegfs-client.service"))),
        **({"type": _TYPES[owner]} if owner in _TYPES else {}),
    }
    found = typed.items(typed.nested(fields, lambda **values: _build(owner, **values)))(entries)
    same = [one.path for one in found]
    twice = sorted({path for path in same if same.count(path) > 1})
    if twice:
        raise ValueError(f": {', '.join(twice)} is there twice")
    binds(found)
    return tuple(found)


def _build(owner: str, **values: Any) -> FileSystem:
    kind = {"lustre": "lustre", "nfs_mounts": values.get("type", "nfs")}.get(owner, values.get("type", ""))
    if owner == "lustre":
        values["requires"] = tuple(dict.fromkeys(("lnet.service", *values.get("requires", ()))))
    result = FileSystem(**{**values, "type": kind})
    names = [option.partition("=")[0] for option in result.options]
    for group in (*_ONE_OF, *_GUARDS):
        both = [name for name in group if name in names]
        if len(both) > 1:
            raise ValueError(f".options: must have one of {' and '.join(both)}")
    if not result.source and (result.options or "automount" in values):
        raise ValueError(": without a source something else mounts it, so options and automount mean nothing")
    return result


def binds(file_systems: Iterable[FileSystem]) -> List[str]:
    """Return the folders that containers get for those with *bind*: the one above each mount point.

    That one is of the node itself, so it is there and answers whatever the server does; what is mounted
    below it, now or later, is seen in a container, as mounts propagate ('mount slave = yes'). A mount point
    itself would stop every container of the node while its server is away. Raises ValueError.
    """
    every = list(file_systems)
    found = []
    for one in every:
        if not one.bind:
            continue
        folder = os.path.dirname(one.path)  # noqa: PTH120 - text alone
        name = os.path.basename(one.path)  # noqa: PTH119
        if folder in SYSTEM:
            raise ValueError(
                f": {one.path} can't be seen in containers: with 'bind path = {one.path}' none would start"
                f" while its server is away. Mount it in a folder of its own, such as /fs/{name}, of which"
                " /fs is bound; or leave out bind"
            )
        above = [other.path for other in every if within(folder, other.path)]
        if above:
            raise ValueError(
                f": {one.path} can't be seen in containers by itself, as it is in {above[0]}, which may be"
                " away; set bind there, or mount it beside"
            )
        found.append(folder)
    return list(dict.fromkeys(found))


#: What Apptainer binds if a configuration does not say (admindocs, configfiles.rst).
DEFAULT_BINDS = ("/etc/localtime", "/etc/hosts")


def with_binds(config: Mapping[str, Any], folders: Sequence[str]) -> Mapping[str, Any]:
    """Return directives of apptainer.conf with *folders* in 'bind path', beside what it has there."""
    given = config.get("bind path")
    if given is None:
        given = DEFAULT_BINDS
    own = [given] if isinstance(given, str) else list(given)
    more = [folder for folder in folders if folder not in own]
    return {**config, "bind path": own + more} if more else config


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


# --- units --------------------------------------------------------------------------------------------------


def escape(path: str) -> str:
    """Return a path as names of units have it (systemd-escape --path).

    >>> escape("/lustre/home-1")
    'lustre-home\\\\x2d1'
    """
    inner = re.sub("/+", "/", path).strip("/")
    if not inner:
        return "-"
    kept = []
    for position, byte in enumerate(inner.encode()):
        character = chr(byte)
        if character == "/":
            kept.append("-")
        elif re.match(r"[A-Za-z0-9:_]", character) or (character == "." and position):
            kept.append(character)
        else:
            kept.append(f"\\x{byte:02x}")
    return "".join(kept)


def unescape(name: str) -> str:
    """Return the path that a name of a unit stands for, without its suffix; the reverse of `escape`."""
    if name == "-":
        return "/"
    inner = re.sub(
        rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m.group(1), 16)]), name.replace("-", "/").encode()
    )
    return f"/{inner.decode(errors='surrogateescape')}"


def options(one: FileSystem) -> str:
    """Return the mount options of the unit: no set-user-ID programs and devices unless they are asked for."""
    names = [option.partition("=")[0] for option in one.options]
    guards = [guard for guard, opposite in _GUARDS if opposite not in names and guard not in names]
    # Of suid and dev nothing needs to be said to the kernel, and Lustre does not know them.
    said = [option for option in one.options if option not in ("suid", "dev")]
    return ",".join(["_netdev", *guards, *said])


def units(one: FileSystem, owner: str) -> Dict[str, str]:
    """Return the units of a file system, name → text; none if something else mounts it."""
    if not one.source:
        return {}
    name = escape(one.path)
    wanted = "[Install]\nWantedBy=remote-fs.target\n"
    needs = "".join(f"Requires={unit}\nAfter={unit}\n" for unit in one.requires)
    mount = (
        f"{HEAD}{owner}\n[Unit]\nDescription={one.type} {one.path}\n{needs}"
        "Wants=network-online.target\nAfter=network-online.target\n"
        # Else an automount ends for ever once its mount has failed a few times within seconds.
        "StartLimitIntervalSec=0\n\n"
        f"[Mount]\nWhat={one.source}\nWhere={one.path}\nType={one.type}\nOptions={options(one)}\n"
        f"TimeoutSec={one.timeout}\n"
    )
    if not one.automount:
        return {f"{name}.mount": f"{mount}\n{wanted}"}
    automount = (
        f"{HEAD}{owner}\n[Unit]\nDescription={one.type} {one.path}, once somebody looks\n"
        "Before=remote-fs.target\n\n"
        f"[Automount]\nWhere={one.path}\nTimeoutIdleSec={one.idle}\n\n{wanted}"
    )
    return {f"{name}.mount": mount, f"{name}.automount": automount}


def owned(texts: Mapping[str, str], owner: str) -> Dict[str, str]:
    """Return those of *texts*, name of a unit → text, that this role has written."""
    return {name: text for name, text in texts.items() if text.startswith(f"{HEAD}{owner}\n")}


def section(text: Optional[str], name: str) -> str:
    """Return a section of a unit, empty if it has none."""
    match = re.search(rf"(?ms)^\[{name}\]$(.*?)(?=^\[|\Z)", text or "")
    return match.group(1).strip() if match else ""


# --- what is mounted ----------------------------------------------------------------------------------------


class Mounted(NamedTuple):
    """What is at a mount point: a file system, if any, and whether an automount watches it."""

    mount: Optional[mounts.Mount]
    watched: bool


def mounted(path: str, listed: Sequence[mounts.Mount]) -> Mounted:
    """Return what mountinfo says of a mount point."""
    here = [mount for mount in listed if mount.path == path]
    real = [mount for mount in here if mount.type != "autofs"]
    return Mounted(real[-1] if real else None, any(mount.type == "autofs" for mount in here))


def same_mount(one: FileSystem, mount: mounts.Mount) -> str:
    """Return in what a mount is another than is wanted, as far as the kernel says; empty if in nothing."""
    if mount.source.rstrip("/") != one.source.rstrip("/"):
        return f"it is mounted from {mount.source} and is to be from {one.source}"
    wanted = set(options(one).split(","))
    for guard in ("nosuid", "nodev", "ro", "noexec"):
        if (guard in wanted) != (guard in mount.options):
            return f"it is mounted {'without' if guard in wanted else 'with'} {guard}"
    return ""


def users(path: str, root: str = "/proc") -> List[str]:
    """Return who uses a file system, as ``PID NAME``: no file of it is touched for that."""
    found = []
    for pid in sorted((name for name in os.listdir(root) if name.isdigit()), key=int):  # noqa: PTH208
        if any(within(link, path) for link in _links(f"{root}/{pid}")):
            try:
                with open(f"{root}/{pid}/comm", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                    name = typed.printable(file.read().strip())
            except OSError:
                continue
            found.append(f"{pid} {name}")
    return found


def _links(process: str) -> Iterable[str]:
    for name in ("cwd", "root", "exe"):
        yield _link(f"{process}/{name}")
    for folder in ("fd", "map_files"):
        try:
            names = os.listdir(f"{process}/{folder}")  # noqa: PTH208
        except OSError:
            continue
        for name in names:
            yield _link(f"{process}/{folder}/{name}")


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - may be no path
    except OSError:
        return ""


def in_fstab(text: str, paths: Iterable[str]) -> List[str]:
    """Return which of *paths* a line of fstab mounts, too, each as ``PATH (line N)``."""
    wanted = set(paths)
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if len(fields) > 1 and not fields[0].startswith("#"):
            path = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), fields[1]).rstrip("/")
            if path in wanted:
                found.append(f"{path} (line {number})")
    return found
