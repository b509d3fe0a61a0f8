# SPDX-License-Identifier: Apache-2.0
"""What a converge left on a node, as data that a later look at the node is compared with.

Sources: sysctl.d(5); systemctl(1), ``show``; dpkg-query(1) and rpm(8), query formats; proc(5), mounts.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import hashlib
import json
import os
import re
import stat
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import kernel_parameters

#: Where the record is.
PATH = "/var/lib/apptainer-fleet/record.json"
VERSION = 1
#: Files above this size are known by size and time: reading programs of Go at each check would cost too much.
DIGESTED = 1 << 20
#: Text up to this size that everybody may read is recorded by line, too, so that a difference has a place.
LINED = 1 << 16

#: argv → exit status, standard output.
Run = Callable[[List[str]], Tuple[int, str]]
#: Topic (``files``, ``packages``, …) → name → what it is, in words.
State = Dict[str, Dict[str, str]]


class Watch(NamedTuple):
    """What is looked at.

    :param files: patterns of files and folders, ``**`` for any depth.
    :param exclude: patterns of what is not, although a pattern of ``files`` matches.
    :param packages: names of packages, those of all distributions.
    :param sysctl_files: patterns of files of sysctl.d(5), whose parameters are read from the running kernel.
    :param units: systemd units: whether they are enabled, and active.
    :param mount_types: types of file systems whose mounts are looked at.
    :param setuid: patterns of programs: which have a setuid or setgid bit.
    """

    files: Sequence[str] = ()
    exclude: Sequence[str] = ()
    packages: Sequence[str] = ()
    sysctl_files: Sequence[str] = ()
    units: Sequence[str] = ()
    mount_types: Sequence[str] = ()
    setuid: Sequence[str] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Watch:
        """From a mapping of lists of text. Raises ValueError, naming what is wrong."""
        for name, value in values.items():
            if name not in cls._fields:
                raise ValueError(f"{name}: is nothing that can be watched: {', '.join(cls._fields)}")
            if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"{name}: {value!r} is no list of text")
        return cls(**values)


class Difference(NamedTuple):
    """One thing that is not as it was: ``topic`` and ``name``, what it ``was`` and what it ``is``."""

    topic: str
    name: str
    was: str
    now: str


def look(watch: Watch, run: Run, root: str = "") -> State:
    """Return what is there now. What is missing is ``absent``, and no error."""
    return {
        "files": _files(watch, root),
        "packages": _packages(watch.packages, run),
        "sysctls": _sysctls(watch.sysctl_files, root),
        "units": _units(watch.units, run),
        "mounts": _mounts(watch.mount_types, root),
        "setuid": _setuid(watch.setuid, root),
    }


def started(state: State) -> State:
    """Return *state* as it is once all units have started that are enabled.

    At a boot, a node converges before slurmd starts, and is on record as it then is.
    """
    waiting = {f"enabled {word}": "enabled active" for word in ("inactive", "activating")}
    return {**state, "units": {unit: waiting.get(was, was) for unit, was in state["units"].items()}}


class Place(NamedTuple):
    """Where a file is not as it was: the first line, from 1, and what it is now; empty if it is gone."""

    line: int
    text: str


def lines(state: State, root: str = "") -> Dict[str, str]:
    """Return file → digests of its lines, for those of *state* that are text and that everybody may read.

    What is secret is not among them, so that a line can be shown.
    """
    found = {}
    for name in state["files"]:
        content = _open_text(state, name, root)
        if content is not None:
            found[name] = " ".join(map(_digest, content))
    return found


def place(name: str, recorded: Mapping[str, str], state: State, root: str = "") -> Optional[Place]:
    """Return where the file *name* differs from what :func:`lines` has *recorded*; None if that isn't known.

    :param state: what there is now.
    """
    content = _open_text(state, name, root)
    if content is None or name not in recorded:
        return None
    old, new = recorded[name].split(), list(map(_digest, content))
    for kind, _, _, begin, _ in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            return Place(begin + 1, "" if kind == "delete" else content[begin])
    return None


def _open_text(state: State, name: str, root: str) -> Optional[List[str]]:
    """The lines of a file that is text, small, and readable by everybody; else None."""
    words = state["files"].get(name, "").split()
    if words[:1] != ["sha256"] or not int(words[3], 8) & stat.S_IROTH:
        return None
    try:
        descriptor = os.open(root + name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(LINED + 1)
        return None if len(content) > LINED or b"\0" in content else content.decode().splitlines()
    except (OSError, ValueError):
        return None


def _digest(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()[:12]


def text(watch: Watch, state: State, by_line: Optional[Mapping[str, str]] = None) -> str:
    """Return the record as it is written; *by_line* is what :func:`lines` has given."""
    record = {"version": VERSION, "watch": watch._asdict(), "state": state, "lines": by_line or {}}
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def read(content: str) -> Tuple[Watch, State]:
    """Return what :func:`text` was made from. Raises ValueError."""
    record = json.loads(content)
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise ValueError("is of another version of this project")
    return Watch.of(record["watch"]), record["state"]


def read_lines(content: str) -> Dict[str, str]:
    """Return what a record that :func:`read` takes has of lines; none if it was written without."""
    found = json.loads(content).get("lines", {})
    return found if isinstance(found, dict) else {}


def differences(before: State, after: State) -> List[Difference]:
    """Return what differs, by topic and name."""
    found = []
    for topic in sorted({*before, *after}):
        old, new = before.get(topic, {}), after.get(topic, {})
        for name in sorted({*old, *new}):
            was, now = old.get(name, "absent"), new.get(name, "absent")
            if was != now:
                found.append(Difference(topic, name, was, now))
    return found


# --- files --------------------------------------------------------------------------------------------------


def _files(watch: Watch, root: str) -> Dict[str, str]:
    found = {}
    for path in _matching(watch.files, root):
        name = path[len(root) :]
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in watch.exclude):
            described = _describe(path)
            if described:
                found[name] = described
    return found


def _matching(patterns: Sequence[str], root: str) -> List[str]:
    return sorted({path for pattern in patterns for path in glob.glob(root + pattern, recursive=True)})  # noqa: PTH207


def _describe(path: str) -> str:
    """What is at *path*; empty if it has just gone."""
    try:
        status = os.lstat(path)
        rights = f"mode {stat.S_IMODE(status.st_mode):04o} owner {status.st_uid}:{status.st_gid}"
        if stat.S_ISLNK(status.st_mode):
            return f"link to {os.readlink(path)}"  # noqa: PTH115 - Python 3.8
        if stat.S_ISDIR(status.st_mode):
            return f"folder {rights}"
        if not stat.S_ISREG(status.st_mode):
            return f"no regular file {rights}"
        return f"{_content(path, status)} {rights}"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _content(path: str, status: os.stat_result) -> str:
    if status.st_size > DIGESTED:
        return f"size {status.st_size} time {int(status.st_mtime)}"
    # Opened without following a link that somebody has put there since.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        return f"sha256 {hashlib.sha256(file.read(DIGESTED + 1)).hexdigest()}"


def _setuid(patterns: Sequence[str], root: str) -> Dict[str, str]:
    found = {}
    for path in _matching(patterns, root):
        try:
            status = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            owner = f"{status.st_uid}:{status.st_gid}"
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            found[path[len(root) :]] = f"mode {mode} owner {owner} size {status.st_size}"
    return found


# --- packages, units ----------------------------------------------------------------------------------------


def _packages(names: Sequence[str], run: Run) -> Dict[str, str]:
    if not names:
        return {}
    # Both may be installed; that of the other family knows none of the packages.
    found: Dict[str, str] = {}
    for argv in (
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status} ${Version}\\n"],
        ["rpm", "--query", "--queryformat", "%{NAME} installed %{VERSION}-%{RELEASE}\\n"],
    ):
        # A name that is not known makes for exit status 1, and a line that is no answer.
        for line in run([*argv, *names])[1].splitlines():
            words = line.split(" ")
            if len(words) == 3 and words[0] in names and words[1] == "installed":  # noqa: PLR2004
                found[words[0]] = words[2]
        if found:
            break
    return found


def _units(units: Sequence[str], run: Run) -> Dict[str, str]:
    if not units:
        return {}
    argv = ["systemctl", "show", "--property=Id,LoadState,UnitFileState,ActiveState", "--", *units]
    found = {}
    # A paragraph for each, in the order in which they were asked for; the Id of an alias is another name.
    for unit, paragraph in zip(units, run(argv)[1].strip().split("\n\n")):  # noqa: B905 - Python 3.8
        values = dict(line.split("=", 1) for line in paragraph.splitlines() if "=" in line)
        if values.get("LoadState") == "loaded":
            found[unit] = f"{values.get('UnitFileState') or 'static'} {values.get('ActiveState', '')}"
    return found


# --- the kernel ---------------------------------------------------------------------------------------------


def _sysctls(patterns: Sequence[str], root: str) -> Dict[str, str]:
    found = {}
    for path in _matching(patterns, root):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - Python 3.8
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            name = line.split("=", 1)[0].strip().lstrip("-").strip()
            if "=" in line and re.fullmatch(r"[\w./-]+", name):
                try:
                    value = kernel_parameters.running_value(name, f"{root}{kernel_parameters.PROC_SYS}")
                except kernel_parameters.KernelParameterError as error:
                    value = str(error)
                if value is not None:
                    found[name] = value
    return found


#: Options that say what a mount allows; others, addresses for example, change by themselves.
_OPTIONS = frozenset(["ro", "rw", "nosuid", "nodev", "noexec", "flock", "localflock", "user_xattr"])


def _mounts(types: Sequence[str], root: str) -> Dict[str, str]:
    if not types:
        return {}
    try:
        with open(f"{root}/proc/self/mounts", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            lines = [line.split(" ") for line in file.read().splitlines()]
    except OSError:
        return {}
    # Those come and go with their use.
    automatic = {line[1] for line in lines if line[2] == "autofs"}
    found = {}
    for source, path, kind, options, *_ in lines:
        if kind in types and path not in automatic:
            chosen = ",".join(option for option in options.split(",") if option in _OPTIONS)
            found[path] = f"{source} type {kind} ({chosen})"
    return found
