# SPDX-License-Identifier: Apache-2.0
"""What the files of sysctl.d(5) say of a parameter, in the order in which a boot reads them.

Sources: sysctl.d(5) for folders, masking and globs; sysctl(8) for /etc/sysctl.conf, which ``sysctl --system``
reads last. systemd-sysctl reads it only through the link 99-sysctl.conf that several distributions have.
"""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

# Earlier folders mask files of the same name in later ones.
FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
SYSCTL_CONF = "/etc/sysctl.conf"

# Settings of well-known hardening, so that a message can name who wants them.
HARDENING: Mapping[Tuple[str, str], str] = {
    ("user/max_user_namespaces", "0"): (
        "DISA STIG: RHEL-08-040284, RHEL-09-213105, OL09-00-002370, ALMA-09-023010; "
        "not applicable where containers are an operational requirement that is documented"
    ),
    ("kernel/unprivileged_userns_clone", "0"): "dev-sec os_hardening",
    ("kernel/apparmor_restrict_unprivileged_userns", "1"): "Ubuntu since 23.10",
}


@dataclass(frozen=True)
class Setting:
    """Line *line* of *path* gives parameter *name* the value *value*.

    *late* if that file is read after our own; *pattern* if it names the parameter by a glob only.
    """

    path: str
    line: int
    name: str
    value: str
    late: bool
    pattern: bool = False

    def describe(self) -> str:
        """Return a phrase for people: parameter, value, file and line, and whose hardening it is."""
        known = HARDENING.get((canonical(self.name), self.value))
        whose = f" ({known})" if known else ""
        return f"{self.name} = {self.value} in {self.path}, line {self.line}{whose}"


def canonical(name: str) -> str:
    """Return a parameter's name with slashes; the first separator decides which ones it was written with."""
    first = next((character for character in name if character in "./"), "/")
    return name.translate(str.maketrans("./", "/.")) if first == "." else name


def parse(text: str) -> List[Tuple[int, str, str]]:
    """Return line number, name and value of each setting in a sysctl.d(5) file."""
    settings = []
    for number, line in enumerate(text.split("\n"), 1):
        name, separator, value = line.strip().partition("=")
        name = name.strip()
        if separator and name and name[0] not in "#;":
            settings.append((number, name.lstrip("-").strip(), " ".join(value.split())))
    return settings


def others(
    names: Sequence[str],
    own: str,
    folders: Sequence[str] = FOLDERS,
    sysctl_conf: str = SYSCTL_CONF,
) -> List[Setting]:
    """Return what other files than *own* say of the parameters *names*, in the order in which they are read.

    Raises OSError for a folder or file that is there and can't be read.
    """
    files: Dict[str, str] = {}
    for folder in folders:
        try:
            listed = [file.name for file in Path(folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for file in listed:
            if file.endswith(".conf"):
                files.setdefault(file, f"{folder}/{file}")
    wanted = {canonical(name): name for name in names}
    position = Path(own).name
    result: List[Setting] = []
    linked = False
    for file in sorted(files):
        path = files[file]
        linked = linked or os.path.realpath(path) == os.path.realpath(sysctl_conf)
        if path != own:
            result += _settings(path, wanted, late=file > position)
    if not linked:
        result += _settings(sysctl_conf, wanted, late=True)
    return result


def _settings(path: str, wanted: Mapping[str, str], late: bool) -> List[Setting]:
    found = []
    for line, name, value in parse(_read(path) or ""):
        pattern = canonical(name)
        for key, asked in wanted.items():
            if pattern == key or fnmatch.fnmatchcase(key, pattern):
                found.append(Setting(path, line, asked, value, late, pattern != key))
    return found


def last(settings: Sequence[Setting], name: str, late: bool = False) -> Optional[Setting]:
    """Return the one of *settings* that parameter *name* has after a boot, of the late ones only with *late*.

    A pattern counts only where no file names the parameter itself, wherever that stands.
    """
    of_name = [setting for setting in settings if setting.name == name and (setting.late or not late)]
    named = [setting for setting in of_name if not setting.pattern]
    return next(iter((named or of_name)[::-1]), None)


def lost(values: Mapping[str, str], settings: Sequence[Setting]) -> List[Setting]:
    """Return the settings by which a boot would undo *values* (name to value), which our own file names."""
    found = (last([s for s in settings if not s.pattern], name, late=True) for name in values)
    return [setting for setting in found if setting is not None and setting.value != values[setting.name]]


def overruled(values: Mapping[str, str], settings: Sequence[Setting]) -> List[Setting]:
    """Return the settings that our own file, with *values*, overrules at a boot.

    Whoever wrote them may set them in the running kernel again, which a hardening run does.
    """
    return [s for s in settings if not s.late and s.name in values and s.value != values[s.name]]


def _read(path: str) -> Optional[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
