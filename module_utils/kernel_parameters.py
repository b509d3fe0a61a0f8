# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters: what sysctl(8) does, without running it.

Sources: sysctl.d(5) (file format, the ``-`` prefix, separators), proc(5) (/proc/sys).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from . import atomic_file, sysctl_files

PROC_SYS = "/proc/sys"

#: What lies there is the distribution's, and no sign of hardening.
VENDOR = ("/usr/lib/", "/lib/")
#: The arguments of the modules that call `bring`.
SPEC: Mapping[str, Any] = {
    "path": {"type": "path", "required": True},
    "parameters": {"type": "dict", "required": True},
    "conflicts": {"type": "str", "choices": ["refuse", "report"], "default": "refuse"},
    "report": {"type": "list", "elements": "str", "default": []},
    "limits": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "minimum": {"type": "int"},
            "maximum": {"type": "int"},
            "reason": {"type": "str", "required": True},
        },
    },
}

HEADER = "# Written by Ansible (module kernel_parameters); changes made here are lost.\n"

_USER_NAMESPACES = (
    "user.max_user_namespaces",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)
_NAME = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_:-]+)+")


class KernelParameterError(Exception):
    """A parameter that can't be had; the message names it, says what is wrong, and how to mend it."""


@dataclass(frozen=True)
class Limit:
    """What *name* must be, whoever set it; *reason* is a sentence for the one who has to mend it."""

    name: str
    minimum: Optional[int]
    maximum: Optional[int]
    reason: str


@dataclass(frozen=True)
class Change:
    """*name* has the value *running* in the kernel and shall have *wanted*."""

    name: str
    running: str
    wanted: str


@dataclass(frozen=True)
class Plan:
    """*changes* to the running kernel, names *skipped* as it lacks them, *text* for the next boot.

    *values* are all that are wanted, as the kernel prints them.
    """

    values: Mapping[str, str]
    changes: Tuple[Change, ...]
    skipped: Tuple[str, ...]
    text: str


def parameter_path(name: str, proc_sys: str = PROC_SYS) -> Path:
    """Return the file of a parameter such as ``kernel.pid_max`` or ``net/ipv4/conf/eth0.7/forwarding``.

    As in sysctl.d(5) the first separator decides: after a slash, dots are part of a name.
    Raises KernelParameterError for anything that is not the name of a parameter.
    """
    if not _NAME.fullmatch(name):
        raise KernelParameterError(f"{name!r} is not the name of a parameter, as kernel.pid_max is")
    if next(character for character in name if character in "./") == ".":
        name = name.translate(str.maketrans("./", "/."))
    return Path(proc_sys, name)


def normalise(value: object) -> str:
    """Return *value* (str, int or bool) as the kernel prints it: 0 and 1, one blank between fields.

    Raises KernelParameterError for other types, for several lines and for no value at all.
    """
    if isinstance(value, (bool, int)):
        return str(int(value))
    if not isinstance(value, str) or not value.strip() or "\n" in value.strip():
        raise KernelParameterError(f"{value!r} is not one line of text or a number")
    return " ".join(value.split())


def running_value(name: str, proc_sys: str = PROC_SYS) -> Optional[str]:
    """Return the value that parameter *name* has now, normalised, or None if this kernel does not have it.

    Raises KernelParameterError if it is there and can't be read.
    """
    try:
        return " ".join(parameter_path(name, proc_sys).read_text().split())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelParameterError(f"{name} can't be read: {error.strerror}") from error


def user_namespaces(root: str = "/") -> Tuple[Optional[bool], str]:
    """Return whether users can create user namespaces, None if unknown, and the parameter that decides.

    Source: user_namespaces(7); Debian's kernel.unprivileged_userns_clone; Ubuntu's AppArmor restriction, from
    which a profile excepts Apptainer.
    """
    most, clone, restricted = (
        running_value(name, str(Path(root, PROC_SYS.lstrip("/")))) for name in _USER_NAMESPACES
    )
    if most == "0":
        return False, f"{_USER_NAMESPACES[0]} = 0"
    if clone == "0":
        return False, f"{_USER_NAMESPACES[1]} = 0"
    if restricted == "1" and not Path(root, "etc/apparmor.d/apptainer").exists():
        return False, f"{_USER_NAMESPACES[2]} = 1, and there is no /etc/apparmor.d/apptainer"
    return (None, "") if most is None else (True, f"{_USER_NAMESPACES[0]} = {most}")


def check_limit(limit: Limit, value: str, where: str) -> None:
    """Raise KernelParameterError unless *value*, found *where* ("the running kernel"), keeps to *limit*."""
    try:
        number = int(value)
    except ValueError:
        bound = "a number"
    else:
        if limit.minimum is not None and number < limit.minimum:
            bound = f"at least {limit.minimum}"
        elif limit.maximum is not None and number > limit.maximum:
            bound = f"at most {limit.maximum}"
        else:
            return
    raise KernelParameterError(f"{limit.name} is {value} in {where} and must be {bound}: {limit.reason}")


def render(values: Mapping[str, str], skipped: Sequence[str] = ()) -> str:
    """Return the text of a sysctl.d(5) file.

    A parameter that the kernel lacks is written with ``-`` before it: another kernel, booted tomorrow,
    may have it, and until then nothing complains.
    """
    lines = [f"{'-' if name in skipped else ''}{name} = {values[name]}\n" for name in sorted(values)]
    return HEADER + "".join(lines)


def plan(parameters: Mapping[str, object], limits: Sequence[Limit] = (), proc_sys: str = PROC_SYS) -> Plan:
    """Compare *parameters* (name to str, int or bool) with the running kernel; nothing is changed.

    Raises KernelParameterError for a bad name or value, for a value against one of *limits* (the one
    asked for, or the running one where none is), and for a change that a read-only /proc/sys forbids.
    """
    values: Dict[str, str] = {}
    for name, value in parameters.items():
        parameter_path(name, proc_sys)
        try:
            values[name] = normalise(value)
        except KernelParameterError as error:
            raise KernelParameterError(f"{name}: {error}") from error

    for limit in limits:
        if limit.name in values:
            check_limit(limit, values[limit.name], "what is asked for")
        else:
            running = running_value(limit.name, proc_sys)
            if running is not None:
                check_limit(limit, running, "the running kernel")

    changes: List[Change] = []
    skipped: List[str] = []
    for name in sorted(values):
        running = running_value(name, proc_sys)
        if running is None:
            skipped.append(name)
        elif running != values[name]:
            change = Change(name, running, values[name])
            if os.statvfs(parameter_path(name, proc_sys)).f_flag & os.ST_RDONLY:
                raise KernelParameterError(_read_only(change))
            changes.append(change)
    return Plan(values, tuple(changes), tuple(skipped), render(values, skipped))


def apply(change: Change, proc_sys: str = PROC_SYS) -> None:
    """Give the running kernel the wanted value. Raises KernelParameterError if it refuses or alters it."""
    try:
        parameter_path(change.name, proc_sys).write_text(change.wanted + "\n")
    except OSError as error:
        raise KernelParameterError(
            f"{change.name} is {change.running} and shall be {change.wanted}, "
            f"but the kernel refuses it: {error.strerror}"
        ) from error
    after = running_value(change.name, proc_sys)
    if after != change.wanted:
        raise KernelParameterError(
            f"{change.name} was set to {change.wanted}, but the kernel made it {after}: "
            "ask for a value that it keeps"
        )


def _read_only(change: Change) -> str:
    return (
        f"{change.name} is {change.running} and shall be {change.wanted}, but /proc/sys is read-only here, "
        f"as it is in a container: set it to {change.wanted} on the machine that this node runs on, "
        f"or ask for {change.running} here"
    )


def bring(params: Mapping[str, Any], check: bool) -> Dict[str, Any]:
    """Bring the node to *params*, or with *check* only predict it; return the result of a module.

    params: values of `SPEC`. The result has ``warnings``, too. Raises KernelParameterError.
    """
    path = params["path"]
    settings: List[sysctl_files.Setting] = []
    limits = [Limit(**limit) for limit in params["limits"]]
    try:
        names = [*params["parameters"], *(limit.name for limit in limits)]
        settings = sysctl_files.others(names, path, sysctl_files.FOLDERS, sysctl_files.SYSCTL_CONF)
        wanted = plan(params["parameters"], limits, PROC_SYS)
        running = {name: running_value(name, PROC_SYS) for name in params["report"]}
        lost = _lost(wanted.values, limits, settings)
        if lost and params["conflicts"] == "refuse":
            raise KernelParameterError(
                "; ".join(lost) + ": remove that line, or the hardening that writes it"
            )
        old = (atomic_file.read(path) or b"").decode(errors="surrogateescape")
        if not check:
            for change in wanted.changes:
                apply(change, PROC_SYS)
            if old != wanted.text:
                atomic_file.replace(path, wanted.text.encode(), owner=(0, 0) if os.geteuid() == 0 else None)
    except KernelParameterError as error:
        message = str(error)
        # Whoever set what is wrong now; the other messages have it already.
        origins = [s.describe() for s in settings if message.startswith(s.name) and s.path not in message]
        raise KernelParameterError(message + "".join(f". There is {origin}" for origin in origins)) from error
    except OSError as error:
        raise KernelParameterError(f"{path} can't be written: {error.filename}: {error.strerror}") from error
    overruled = sysctl_files.overruled(wanted.values, settings)
    return {
        "changed": bool(wanted.changes) or old != wanted.text,
        "changes": [{"name": c.name, "before": c.running, "after": c.wanted} for c in wanted.changes],
        "skipped_parameters": list(wanted.skipped),
        "running": running,
        "lost": lost,
        "overruled": [setting.describe() for setting in overruled],
        "warnings": lost
        + [
            f"{setting.describe()}, contradicts {path}, which is read later and wins at a boot"
            for setting in overruled
            if not setting.path.startswith(VENDOR)
        ],
        "diff": [
            {"before_header": path, "after_header": path, "before": old, "after": wanted.text},
            {
                "before_header": "running kernel",
                "after_header": "running kernel",
                "before": "".join(f"{c.name} = {c.running}\n" for c in wanted.changes),
                "after": "".join(f"{c.name} = {c.wanted}\n" for c in wanted.changes),
            },
        ],
    }


def _lost(
    values: Mapping[str, str], limits: Sequence[Limit], settings: Sequence[sysctl_files.Setting]
) -> List[str]:
    """Return what is wrong after the next boot: values that other files undo, or that a limit forbids."""
    problems = [
        f"{setting.describe()}, is read later at a boot and undoes {setting.name} = {values[setting.name]}"
        for setting in sysctl_files.lost(values, settings)
    ]
    for limit in limits:
        setting = sysctl_files.last(settings, limit.name)
        if limit.name not in values and setting is not None:
            try:
                check_limit(limit, setting.value, "the next boot")
            except KernelParameterError as error:
                problems.append(f"{error}. It comes from {setting.describe()}")
    return problems
