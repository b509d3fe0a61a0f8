# SPDX-License-Identifier: Apache-2.0
"""The nodes and partitions that a slurm.conf names, without a slurmctld or a node being up.

Hostlists stay as they are written: whoever has a library for them expands them.
Source: slurm.conf(5) of Slurm 24.11, introduction (comments, continued lines, Include), NODE CONFIGURATION,
NODESET CONFIGURATION and PARTITION CONFIGURATION; every keyword counts whatever its case.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, List, NamedTuple, Tuple

_PAIR = re.compile(r"([A-Za-z][A-Za-z0-9_]*)=(\"[^\"]*\"|\S*)")
_KINDS = ("nodename", "partitionname", "nodeset")
#: Include inside Include; slurm.conf(5) names no limit, a file that includes itself has none.
_DEPTH = 20


class SlurmConfReadError(ValueError):
    """The file can't be read; the message has the line and what is wrong."""


class Configured(NamedTuple):
    """Lines of a slurm.conf as dicts of lower-case keyword → value, those of DEFAULT merged into them.

    :param nodes: with ``nodename``, a hostlist.
    :param partitions: with ``partitionname``, and ``nodes``: a hostlist, names of node sets, or ``ALL``.
    :param nodesets: with ``nodeset``, and ``feature`` or ``nodes``.
    """

    nodes: List[Dict[str, str]]
    partitions: List[Dict[str, str]]
    nodesets: List[Dict[str, str]]


def read(text: str, include: Callable[[str], str]) -> Configured:
    """Return the nodes, partitions and node sets of a slurm.conf.

    :param include: returns the content of a file that an Include names; may raise OSError.
    :raises SlurmConfReadError: a line can't be what it is.
    """
    found: Dict[str, List[Dict[str, str]]] = {kind: [] for kind in _KINDS}
    defaults: Dict[str, Dict[str, str]] = {kind: {} for kind in _KINDS}
    _read(text, include, found, defaults, _DEPTH)
    return Configured(found["nodename"], found["partitionname"], found["nodeset"])


def _read(
    text: str,
    include: Callable[[str], str],
    found: Dict[str, List[Dict[str, str]]],
    defaults: Dict[str, Dict[str, str]],
    depth: int,
) -> None:
    for number, line in _lines(text):
        words = line.split(None, 1)
        if words[0].lower() == "include" and len(words) > 1:
            if depth == 0:
                raise SlurmConfReadError(f"line {number}: {line}: too many files include each other")
            try:
                content = include(words[1].strip())
            except OSError as error:
                raise SlurmConfReadError(f"line {number}: {line}: {error.strerror}") from error
            _read(content, include, found, defaults, depth - 1)
            continue
        pairs = {key.lower(): value.strip('"') for key, value in _PAIR.findall(line)}
        kind = next((kind for kind in _KINDS if line.lower().startswith(f"{kind}=")), None)
        if kind is None:
            continue
        if not pairs[kind]:
            raise SlurmConfReadError(f"line {number}: {line}: names nothing")
        if pairs[kind].upper() == "DEFAULT":
            defaults[kind].update({key: value for key, value in pairs.items() if key != kind})
        else:
            found[kind].append({**defaults[kind], **pairs})


def _lines(text: str) -> List[Tuple[int, str]]:
    """Number and text of each line that says something, a continued one as one."""
    result: List[Tuple[int, str]] = []
    whole, began = "", 1
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"(?<!\\)#.*", "", raw).rstrip()
        if not whole:
            began = number
        if line.endswith("\\"):
            whole += line[:-1] + " "
            continue
        whole += line
        if whole.strip():
            result.append((began, whole.strip()))
        whole = ""
    if whole.strip():
        result.append((began, whole.strip()))
    return result
