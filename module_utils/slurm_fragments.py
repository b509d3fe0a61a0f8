# SPDX-License-Identifier: Apache-2.0
"""What other roles add to the configuration of a cluster: parameters of slurm.conf, and files beside it.

A *fragment* is a mapping with ``parameters`` and ``files``. One writer has all of them, so that slurmctld is
reconfigured once and never sees half of a change. slurmctld hands the files on to every node, if they lie
beside slurm.conf and are named there without a folder; slurm.conf(5), enable_configless.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple

from . import slurm_conf

# slurm.conf(5) of Slurm 24.11, SlurmctldParameters, enable_configless.
_HANDED_ON = ("epilog", "prolog")
_NOT_HANDED_ON = ("healthcheckprogram", "srunepilog", "srunprolog", "taskepilog", "taskprolog")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MODES = {"0644": 0o644, "0755": 0o755}
# The role makes these from its own variables, or they are secret.
_OWN_FILES = ("slurm.conf", "cgroup.conf", "gres.conf", "topology.conf", "slurmdbd.conf")


@dataclass(frozen=True)
class File:
    """A file beside slurm.conf; scripts have the mode 0755."""

    name: str
    content: str
    mode: str = "0644"


def combine(
    fragments: Mapping[str, Mapping[str, object]], base: Mapping[str, slurm_conf.Value]
) -> Tuple[Dict[str, slurm_conf.Value], List[File]]:
    """Return the parameters and files of *fragments*, by the name of whoever gave them, on top of *base*.

    Lists that several give for one parameter are joined, *base* first. Anything else of *base* gives way, and
    that two fragments differ about is an error. Files are sorted by name.
    Raises SlurmConfError, naming both.
    """
    parameters: Dict[str, slurm_conf.Value] = dict(base)
    givers: Dict[str, str] = {}
    files: Dict[str, Tuple[str, File]] = {}
    for giver, fragment in fragments.items():
        wanted = fragment.get("parameters") or {}
        if not isinstance(wanted, Mapping):
            raise slurm_conf.SlurmConfError(f"{giver}: parameters must be a mapping")
        for key, value in wanted.items():
            present = next((old for old in parameters if old.lower() == key.lower()), key)
            old = parameters.get(present)
            if isinstance(old, list) and isinstance(value, list):
                parameters[present] = [*old, *(item for item in value if item not in old)]
            elif present in givers and old != value:
                raise slurm_conf.SlurmConfError(
                    f"{givers[present]} and {giver} differ about {key}: {old!r} and {value!r}"
                )
            else:
                parameters[present] = value
            givers[present] = giver
        listed = fragment.get("files") or []
        if not isinstance(listed, list):
            raise slurm_conf.SlurmConfError(f"{giver}: files must be a list")
        for entry in listed:
            file = _file(giver, entry)
            other = files.setdefault(file.name, (giver, file))
            if other[1] is not file:
                raise slurm_conf.SlurmConfError(f"{other[0]} and {giver} both have the file {file.name}")
    return parameters, [files[name][1] for name in sorted(files)]


def check_programs(parameters: Mapping[str, slurm_conf.Value], names: Sequence[str]) -> None:
    """Raise SlurmConfError for a script that nodes would not find; a node that doesn't is drained.

    *names* are those of the files beside slurm.conf. Prolog and Epilog are handed on to the nodes from there
    by name, globs are not, and no other script is: it needs a path that each node has.
    """
    for key, value in parameters.items():
        for program in [value] if isinstance(value, (str, int, bool)) else value:
            where = f"{key} is {program}"
            if "/" in str(program) or key.lower() not in (*_HANDED_ON, *_NOT_HANDED_ON):
                continue
            if key.lower() in _NOT_HANDED_ON:
                raise slurm_conf.SlurmConfError(
                    f"{where}: Slurm hands it on to no node, so give the path that it has on each of them"
                )
            if program not in names:
                raise slurm_conf.SlurmConfError(
                    f"{where}: there is no such file beside slurm.conf: add it to slurm_extra_files, "
                    "or give the path that it has on every node"
                )


def check_files(entries: Sequence[Mapping[str, object]]) -> None:
    """Raise SlurmConfError for what slurm_extra_files can't have; a ``src`` is not read."""
    names = set()
    for entry in entries:
        if (entry.get("content") is None) == (entry.get("src") is None):
            raise slurm_conf.SlurmConfError(f"the file {entry.get('name')} needs one of content and src")
        file = _file("slurm_extra_files", {**entry, "content": ""})
        if file.name in names:
            raise slurm_conf.SlurmConfError(f"the file {file.name} is there twice")
        names.add(file.name)


def _file(giver: str, entry: Mapping[str, object]) -> File:
    """Return the file that *entry* describes. Raises SlurmConfError, naming *giver*."""
    file = File(str(entry.get("name")), str(entry.get("content")), str(entry.get("mode") or "0644"))
    if not _FILE_NAME.fullmatch(file.name) or file.name in _OWN_FILES:
        raise slurm_conf.SlurmConfError(
            f"{giver}: the file {file.name!r} needs a name without a folder, and not of those that the role "
            f"slurm makes: {', '.join(_OWN_FILES)}"
        )
    if entry.get("content") is None:
        raise slurm_conf.SlurmConfError(f"{giver}: the file {file.name} has no content")
    if file.mode not in _MODES:
        raise slurm_conf.SlurmConfError(
            f"{giver}: the file {file.name} has the mode {file.mode}: make it '0644', or '0755' for a script"
        )
    return file
