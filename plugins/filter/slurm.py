# SPDX-License-Identifier: Apache-2.0
"""Filters of the role slurm: from the inventory to node classes, and from those to configuration files.

slurm_node_classes and slurm_files are meant for tasks that run once: they look at every node of the cluster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ClusterShell.NodeSet import NodeSet, NodeSetException
from ClusterShell.NodeUtils import GroupResolver, GroupSource

from module_utils import (
    accelerators,
    slurm_accounting,
    slurm_conf,
    slurm_fragments,
    slurm_gres,
    slurm_names,
    slurm_release,
    slurm_topology,
)

DEFAULT_CLASS = "compute"
FOLDER = "/etc/slurm"
ROLES = Path(__file__).resolve().parents[2] / "roles"
# Groups alone, which are joined: no intersection, no difference.
_PLAIN_GROUPS = re.compile(r"@\w+( *, *@\w+)*")
# Words of slurm.conf(5) in the place of a node set.
_NO_NODE_SET = ("ALL", "DEFAULT")
_FRAGMENT = re.compile(r"__(?P<role>.+)_slurm_fragment")


def node_name(host: str) -> str:
    """Return Slurm's name of an inventory host: what ``hostname -s`` prints there.

    Raises AnsibleFilterError for an address and for anything else that is no host name.
    """
    try:
        return slurm_names.node_name(host)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def fold(names: Iterable[str]) -> str:
    """Return the hostlist of *names*: ``c1 c2 c3`` becomes ``c[1-3]``."""
    return str(NodeSet.fromlist(list(names)))


def slurm_node_classes(
    hosts: Sequence[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    active: Collection[str],
    tried: Collection[str],
) -> list[dict[str, Any]]:
    """Return the node classes of *hosts*, sorted by name.

    *active* are the hosts that this run reaches, *tried* those that it began with (ansible_play_hosts and
    ansible_play_hosts_all). Each class is a dict: name; nodes, a hostlist; representative, the inventory
    name of a node that can be asked; parameters and gres as in the inventory.
    Raises AnsibleFilterError for nodes of one class that differ, for a class of which no node answers, for
    two nodes with one name, and for bad GRES.
    """
    members: dict[str, list[str]] = {}
    settings: dict[str, tuple[str, dict[str, Any]]] = {}
    names: dict[str, str] = {}
    for host in hosts:
        other = names.setdefault(node_name(host), host)
        if other != host:
            raise AnsibleFilterError(
                f"inventory hosts {other} and {host} are both {node_name(host)} for Slurm"
            )
        variables = hostvars[host]
        name = str(variables.get("slurm_node_class", DEFAULT_CLASS))
        own = {
            "parameters": dict(variables.get("slurm_node_parameters") or {}),
            "gres": _gres(variables),
        }
        first, common = settings.setdefault(name, (host, own))
        if own != common:
            raise AnsibleFilterError(
                f"{first} and {host} are both of slurm_node_class {name}, but differ in "
                "slurm_node_parameters or slurm_gres: set these for the group that sets the class, "
                "or make two classes of it"
            )
        members.setdefault(name, []).append(host)

    classes = []
    for name in sorted(members):
        try:
            slurm_gres.check(settings[name][1]["gres"])
        except slurm_conf.SlurmConfError as error:
            raise AnsibleFilterError(f"slurm_gres of class {name}: {error}") from error
        classes.append(
            {
                "name": name,
                "nodes": fold(map(node_name, members[name])),
                "representative": _representative(name, members[name], active, tried),
                **settings[name][1],
            }
        )
    return classes


def _gres(variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a host's generic resources: those of slurm_gres, and of the role gpu what has another name."""
    own = [dict(gres) for gres in variables.get("slurm_gres") or []]
    if "gpu" not in (variables.get("group_names") or ()):
        return own
    names = {gres.get("name") for gres in own}
    of_class = accelerators.gres(accelerators.of_class(variables))
    return own + [gres for gres in of_class if gres["name"] not in names]


def slurm_files(
    gathered: Sequence[Mapping[str, Any]],
    *,
    parameters: Sequence[Mapping[str, Any]],
    partitions: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    cgroup_plugin: str = "auto",
    cgroup_parameters: Mapping[str, Any] | None = None,
    fragments: Mapping[str, Mapping[str, Any]] | None = None,
    topology: str = "",
) -> list[dict[str, str]]:
    """Return the configuration files as dicts of path, content and mode; slurm.conf is the last one.

    *gathered* are the results of module slurm_hardware_facts in a loop over slurm_node_classes. Of the layers
    of *parameters* the later ones win: those of the role, on top of them what the *fragments* of other roles
    ask for, then the site's. *partitions* are those of the role; their nodes may use the hostlist
    syntax of ClusterShell with the inventory's *groups* (``@gpu``). *fragments* are by the name of their
    variable; see module_utils/slurm_fragments.py. *topology* is the result of slurm_topology_conf.
    Raises AnsibleFilterError, naming the variable that has to be mended.
    """
    classes = [
        slurm_conf.NodeClass(
            name=result["item"]["name"],
            nodes=result["item"]["nodes"],
            hardware=result["hardware"],
            cgroup=result["cgroup"],
            parameters=result["item"]["parameters"],
            gres=[_detected(gres, result) for gres in result["item"]["gres"]],
        )
        for result in gathered
    ]
    known = NodeSet.fromlist([node_class.nodes for node_class in classes])
    try:
        plugin = slurm_conf.cgroup_plugin(classes, cgroup_plugin)
        node_sets, parts = _partitions(partitions, known, groups)
        tree = {"TopologyPlugin": "topology/tree"} if topology else {}
        # A default that one class can't have would fail every srun there.
        mpi = {"MpiDefault": "pmix"} if all(result.get("pmix") for result in gathered) else {}
        own = slurm_conf.merge(slurm_conf.plugin_parameters(plugin), tree, mpi, *parameters[:1])
        given = {name: _with_content(name, fragment) for name, fragment in (fragments or {}).items()}
        combined, beside = slurm_fragments.combine(given, own)
        settings = slurm_conf.merge(combined, *parameters[1:])
        slurm_fragments.check_programs(settings, [file.name for file in beside])
        return [
            *(
                {"path": f"{FOLDER}/{file.name}", "content": file.content, "mode": file.mode}
                for file in beside
            ),
            *([{"path": f"{FOLDER}/topology.conf", "content": topology}] if topology else []),
            {
                "path": f"{FOLDER}/cgroup.conf",
                "content": slurm_conf.render_cgroup_conf(plugin, cgroup_parameters or {}),
            },
            {"path": f"{FOLDER}/gres.conf", "content": slurm_conf.render_gres_conf(classes)},
            {
                "path": f"{FOLDER}/slurm.conf",
                "content": slurm_conf.render_slurm_conf(settings, classes, parts, node_sets),
            },
        ]
    except slurm_conf.SlurmConfError as error:
        raise AnsibleFilterError(str(error)) from error


def _with_content(name: str, fragment: Mapping[str, Any]) -> dict[str, Any]:
    """Return *fragment* with the content of those of its files that name a ``src`` instead.

    A source is relative to ``files/`` of the role that gives the fragment, as the variable's *name* says.
    """
    found = _FRAGMENT.fullmatch(name)
    folder = ROLES / found["role"] / "files" if found else Path.cwd()
    files = []
    for file in fragment.get("files") or []:
        entry = dict(file)
        if source := entry.pop("src", None):
            try:
                entry["content"] = (folder / source).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise AnsibleFilterError(f"{name}: src of the file {entry.get('name')}: {error}") from error
        files.append(entry)
    return {**fragment, "files": files}


def slurm_conf_lines(parameters: Mapping[str, Any]) -> str:
    """Return *parameters* as lines of slurm.conf, for a site that writes this file itself."""
    try:
        return slurm_conf.parameter_lines(parameters)
    except slurm_conf.SlurmConfError as error:
        raise AnsibleFilterError(str(error)) from error


def slurm_topology_conf(
    hosts: Sequence[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    switches: Sequence[Mapping[str, Any]],
) -> str:
    """Return topology.conf from slurm_switch of *hosts* and slurm_switches, or nothing if no host has one.

    Raises AnsibleFilterError if some hosts have no switch, as no job would get them with others.
    """
    leaves: dict[str, list[str]] = {}
    for host in hosts:
        leaves.setdefault(str(hostvars[host].get("slurm_switch") or ""), []).append(node_name(host))
    without = leaves.pop("", [])
    if not leaves and not switches:
        return ""
    if without:
        raise AnsibleFilterError(f"slurm_switch is not set for {fold(without)}: give every node one, or none")
    try:
        return slurm_topology.render({name: fold(nodes) for name, nodes in leaves.items()}, switches)
    except slurm_conf.SlurmConfError as error:
        raise AnsibleFilterError(str(error)) from error


def slurmd_environment(
    parameters: Sequence[Mapping[str, Any]], controllers: Sequence[str], variable: str = "SLURMD_OPTIONS"
) -> str:
    """Return the environment file of slurmd from the layers of *parameters*, of which the later ones win.

    *controllers* are Slurm's names of the nodes of slurmctld, *variable* is that of the unit. Raises
    AnsibleFilterError for a bad port.
    """
    try:
        return slurm_conf.render_slurmd_environment(controllers, slurm_conf.merge(*parameters), variable)
    except slurm_conf.SlurmConfError as error:
        raise AnsibleFilterError(str(error)) from error


def slurm_upgrade_check(
    installed: Mapping[str, Mapping[str, str]], target: str, covered: Sequence[str]
) -> bool:
    """Return true if the packages can go to *target*; see slurm_release.check. Raises AnsibleFilterError."""
    try:
        slurm_release.check(installed, target, covered)
    except slurm_release.ReleaseError as error:
        raise AnsibleFilterError(str(error)) from error
    return True


def slurm_conf_server(parameters: Sequence[Mapping[str, Any]], controllers: Sequence[str]) -> str:
    """Return where commands fetch the configuration from. Raises AnsibleFilterError for a bad port."""
    try:
        return slurm_conf.conf_server(controllers, slurm_conf.merge(*parameters))
    except slurm_conf.SlurmConfError as error:
        raise AnsibleFilterError(str(error)) from error


def slurmdbd_conf(
    parameters: Mapping[str, Any], *, host: str, database_host: str, database: str, password: str
) -> str:
    """Return slurmdbd.conf with the site's *parameters*. Raises AnsibleFilterError, without the password."""
    try:
        return slurm_accounting.render(host, database_host, database, password, parameters)
    except slurm_conf.SlurmConfError as error:
        raise AnsibleFilterError(str(error)) from error


def _representative(name: str, hosts: Sequence[str], active: Collection[str], tried: Collection[str]) -> str:
    """Return a host that answers, else (a run for other nodes) one that was not found silent."""
    active, tried = set(active), set(tried)
    for host in (*filter(active.__contains__, hosts), *(host for host in hosts if host not in tried)):
        return host
    raise AnsibleFilterError(
        f"none of the {len(hosts)} nodes of slurm_node_class {name} answers, so its hardware is unknown: "
        f"mend one of {fold(map(node_name, hosts))}"
    )


def _detected(gres: Mapping[str, Any], result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return *gres* with the count, files and flags of what the asked node of the class has.

    Raises AnsibleFilterError if it has none: Slurm would set all nodes of the class to INVAL later.
    """
    if not (maker := gres.get("detect")):
        return gres
    devices = result["devices"][maker]
    if not devices:
        item = result["item"]
        raise AnsibleFilterError(
            f"slurm_gres of class {item['name']}: {item['representative']} has no device of {maker}: "
            "load its driver, or take the resource away"
        )
    flags = {"flags": f"{maker}_gpu_env"} if gres["name"] == "gpu" and maker != "accel" else {}
    return {**flags, **gres, "count": len(devices), "file": fold(devices)}


def _partitions(
    partitions: Sequence[Mapping[str, Any]], known: NodeSet, groups: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str], list[slurm_conf.Partition]]:
    """Return the node sets, hostlists by name, that partitions are made of, and the partitions.

    A partition of whole groups and hostlists names the groups, so that a long list is there once.
    """
    result = []
    node_sets: dict[str, str] = {}
    for partition in partitions:
        name, nodes = str(partition["name"]), str(partition["nodes"])
        if not slurm_names.NAME.fullmatch(name):
            raise AnsibleFilterError(f"slurm_partitions: {name!r} is not a name of a partition")
        if nodes != "ALL":
            named = _PLAIN_GROUPS.fullmatch(nodes) and re.findall(r"@(\w+)", nodes)
            if named and not any(group in known or group in _NO_NODE_SET for group in named):
                for group in named:
                    if group not in node_sets:
                        node_sets[group] = _resolve(name, f"@{group}", known, groups)
                nodes = nodes.replace("@", "").replace(" ", "")
            else:
                nodes = _resolve(name, nodes, known, groups)
        result.append(slurm_conf.Partition(name, nodes, dict(partition.get("parameters") or {})))
    return node_sets, result


def _resolve(partition: str, nodes: str, known: NodeSet, groups: Mapping[str, Sequence[str]]) -> str:
    """Return the hostlist that *nodes* means, in which every node is one of *known*."""
    computing = set(known)
    source = {
        group: fold(name for host in hosts if (name := host.split(".", maxsplit=1)[0]) in computing)
        for group, hosts in groups.items()
        if f"@{group}" in nodes
    }
    try:
        wanted = NodeSet(nodes, resolver=GroupResolver(GroupSource("inventory", source)))
    except NodeSetException as error:
        raise AnsibleFilterError(f"slurm_partitions: nodes of {partition} can't be read: {error}") from error
    if not wanted:
        raise AnsibleFilterError(
            f"slurm_partitions: {nodes!r} of {partition} names no node of group slurm_compute"
        )
    if strangers := wanted - known:
        raise AnsibleFilterError(
            f"slurm_partitions: {partition} has {strangers}, not in group slurm_compute, which is {known}"
        )
    return str(wanted)


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "slurm_node_classes": slurm_node_classes,
            "slurm_files": slurm_files,
            "slurm_conf_lines": slurm_conf_lines,
            "slurm_topology_conf": slurm_topology_conf,
            "slurm_node_name": node_name,
            "slurmd_environment": slurmd_environment,
            "slurm_conf_server": slurm_conf_server,
            "slurmdbd_conf": slurmdbd_conf,
            "slurm_upgrade_check": slurm_upgrade_check,
        }
