"""Nodes as people write them: hostlists with groups of an inventory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ClusterShell.NodeSet import NodeSet, NodeSetException
from ClusterShell.NodeUtils import GroupResolver, GroupResolverError, GroupSource

from fleet.errors import FleetError


def choose(
    hostlist: str | None,
    everything: Iterable[str],
    groups: Mapping[str, Iterable[str]],
    where: str,
    option: str,
) -> NodeSet:
    """The nodes that a hostlist like ``c[1-2],@slurm_compute`` means; all without one.

    :param groups: name → nodes, of the inventory.
    :param where: what has to have the nodes, for messages; *option* is where the hostlist stands.
    :raises FleetError: it is no hostlist, or names nodes that are not there, or none.
    """
    nodes = NodeSet.fromlist(list(everything))
    if hostlist is None:
        return nodes
    folded = {name: str(NodeSet.fromlist(list(members))) for name, members in groups.items()}
    resolver = GroupResolver(GroupSource("inventory", folded, str(nodes)))
    try:
        chosen = NodeSet(hostlist, resolver=resolver)
    except (NodeSetException, GroupResolverError) as error:
        raise FleetError(f"{option} {hostlist}: {error}", "a hostlist like c[1-2],@slurm_compute") from error
    if not chosen:
        raise FleetError(f"{option} {hostlist!r}: no node", f"its nodes are {nodes}")
    if chosen - nodes:
        raise FleetError(f"{option}: {chosen - nodes} not in {where}", f"its nodes are {nodes}")
    return chosen
