# SPDX-License-Identifier: Apache-2.0
"""What containers get from the node on request: nvliblist.conf, rocmliblist.conf and dmtcp-conf.yaml.

Apptainer looks each line up, and passes over what it doesn't find without a word. So a line that can't be
found on any node is an error here.

Sources: ``etc/nvliblist.conf``, ``internal/pkg/util/paths`` and ``internal/pkg/checkpoint/dmtcp`` of
https://github.com/apptainer/apptainer.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple, Sequence, Tuple

from . import apptainer_version, typed
from .typed import Field

_NAME = re.compile(r"[A-Za-z0-9._+-]+")
_PROGRAM = re.compile(r"(?!.*\.so$)[A-Za-z0-9._+-]+")
_LIBRARY = re.compile(r"[A-Za-z0-9._+-]+\.so")
_PATH = re.compile(r"(/[A-Za-z0-9._+@-]+)+")
#: The first release that takes absolute paths.
_PATHS_SINCE = (1, 4, 0)
_HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n"


class Dmtcp(NamedTuple):
    """What ``--dmtcp-launch`` binds: names of programs, and of libraries with ``.so``."""

    programs: Tuple[str, ...] = ()
    libraries: Tuple[str, ...] = ()


def wanted_gpu(items: object, release: str) -> Tuple[str, ...]:
    """Return *items*, the lines of nvliblist.conf or rocmliblist.conf, checked for *release* (``X.Y.Z``).

    Each is a program, a library (``libX.so``), or from 1.4.0 on the absolute path of a file.
    Raises ValueError with a line for each problem.
    """
    paths = apptainer_version.parse(release).numbers >= _PATHS_SINCE

    def read(value: object) -> str:
        if isinstance(value, str) and _is_path(value):
            if not paths:
                raise ValueError(f"{value} is a path, which Apptainer {release} passes over; leave it out")
            return value
        return str(_FILE(value))

    read_all: Tuple[str, ...] = typed.items(read)(items)
    return read_all


def render_gpu(items: Sequence[str]) -> str:
    """Return the file with *items*, as `wanted_gpu` returns them."""
    return _HEAD + "".join(f"{item}\n" for item in items)


def wanted_dmtcp(description: object) -> Dmtcp:
    """Return what *description* asks for: ``programs`` and ``libraries``.

    Raises ValueError with a line for each problem.
    """
    dmtcp: Dmtcp = _DMTCP(description)
    return dmtcp


def render_dmtcp(wanted: Dmtcp) -> str:
    """Return dmtcp-conf.yaml for *wanted*. JSON's strings are also those of YAML."""
    parts = [_HEAD]
    for key, items in (("bins", wanted.programs), ("libs", wanted.libraries)):
        lines = "".join(f"  - {json.dumps(item)}\n" for item in items)
        parts.append(f"{key}:\n{lines}" if items else f"{key}: []\n")
    return "".join(parts)


def _is_path(text: str) -> bool:
    return bool(_PATH.fullmatch(text)) and not any(part in (".", "..") for part in text.split("/"))


_FILE = typed.text(_NAME, "a program, a library like libcuda.so, or an absolute path")
_DMTCP = typed.nested(
    {
        "programs": Field(typed.items(typed.text(_PROGRAM, "a program like dmtcp_launch"))),
        "libraries": Field(typed.items(typed.text(_LIBRARY, "a library like libdmtcp.so"))),
    },
    Dmtcp,
)
