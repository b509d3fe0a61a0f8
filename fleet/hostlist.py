"""Hostlists: how people write many nodes, and how they read them, in the syntax of ClusterShell's NodeSet.

Needs only ClusterShell, since the inventory plugin runs on nodes that converge themselves, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException
from ClusterShell.NodeUtils import GroupResolver, GroupResolverError, GroupSource, GroupSourceError

from fleet.errors import FleetError

#: Names without an operator: NodeSet would take @storage for a group and ask the system for its nodes.
_NAME = re.compile(r"[\w.-]+")
#: One bracket of a hostlist. Ansible's own ranges have a colon, ``n[001:200]`` and ``n[a:f]``.
_BRACKET = re.compile(r"\[[\d,/-]+\]")


def fold(names: Iterable[str]) -> str:
    """Names as people write many of them: ``c1``, ``c2`` → ``c[1-2]``."""
    ordered = sorted(names)
    if all(map(_NAME.fullmatch, ordered)):
        try:
            return str(NodeSet.fromlist(ordered, resolver=RESOLVER_NOGROUP))
        except NodeSetException:
            pass
    return ",".join(ordered)


def is_hostlist(text: str) -> bool:
    """Whether *text* is meant as a hostlist of several nodes: ``n[1-3]``, ``r[1-2]n[1-4]``, ``n1,n2``.

    A single name is none, nor is a range of Ansible's, ``n[1:3]``.
    """
    return "," in text or bool(_BRACKET.search(text))


def expand(text: str) -> list[str]:
    """The names a hostlist stands for, in order. Raises ValueError if it is none, or has groups in it."""
    if not re.fullmatch(r"[\w.,/\[\]-]+", text):
        raise ValueError(f"{text!r} is no hostlist, such as n[001-200,205] or r[1-20]n[01-36]")
    try:
        return list(NodeSet(text, resolver=RESOLVER_NOGROUP))
    except NodeSetException as error:
        raise ValueError(f"{text!r} is no hostlist: {error}") from error


def choose(
    hostlist: str | None,
    everything: Iterable[str],
    groups: Mapping[str, Iterable[str]],
    where: str,
    option: str,
) -> NodeSet:
    """The nodes of an expression such as ``n[1-9],@gpu&@rack2!n3``; all without one.

    :param groups: name → nodes, of the inventory.
    :param where: what has to have the nodes, for messages; *option* is where the expression stands.
    :raises FleetError: it can't be read, or names nodes or groups that are not there, or none.
    """
    nodes = NodeSet.fromlist(list(everything), resolver=RESOLVER_NOGROUP)
    if hostlist is None:
        return nodes
    folded = {name: fold(members) for name, members in groups.items()}
    resolver = GroupResolver(GroupSource("inventory", folded, str(nodes)))
    mend = "a hostlist such as n[1-9],@group; & is and, ! is without, ^ is one of both"
    try:
        chosen = NodeSet(hostlist, resolver=resolver)
    except (NodeSetException, GroupResolverError, GroupSourceError) as error:
        raise FleetError(f"{option} {hostlist}: {error}", mend) from error
    unknown = sorted(set(re.findall(r"@([\w.*:-]+)", hostlist)) - folded.keys() - {"*"})
    if unknown:
        raise FleetError(f"{option} {hostlist}: there is no group {unknown[0]}", mend)
    if not chosen:
        raise FleetError(f"{option} {hostlist!r}: no node", f"its nodes are {nodes}")
    strange = chosen - nodes
    if strange:
        raise FleetError(f"{option} {hostlist}: {strange} not in {where}", f"its nodes are {nodes}")
    return chosen
