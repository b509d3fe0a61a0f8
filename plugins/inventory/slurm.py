# SPDX-License-Identifier: Apache-2.0
"""Inventory plugin: the nodes that Slurm knows, in groups by partition, feature and GRES."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable

from fleet import hostlist
from module_utils import slurm_conf_nodes

DOCUMENTATION = r"""
name: slurm
short_description: The nodes that Slurm knows
description:
  - Reads a C(slurm.conf), so that no node and no slurmctld has to be up.
  - All nodes are in O(group), and in C(partition_NAME), C(feature_NAME), C(gres_NAME) and
    C(gres_NAME_TYPE), as it applies. What can't be in a group's name becomes C(_).
  - A node whose C(NodeAddr) is not its name gets it as C(ansible_host).
options:
  plugin:
    description: Always V(slurm).
    required: true
    choices: [slurm]
  slurm_conf:
    description: The file; a path that is not absolute begins in the folder of this configuration.
    type: str
    required: true
  group:
    description: The group of all nodes.
    type: str
    default: slurm_compute
extends_documentation_fragment:
  - inventory_cache
requirements:
  - ClusterShell
author: apptainer-fleet
"""

EXAMPLES = r"""
# site.slurm.yml, beside the other files of the inventory
plugin: slurm
slurm_conf: /etc/slurm/slurm.conf
"""


@dataclass
class _Node:
    address: str = ""
    partitions: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    gres: list[str] = field(default_factory=list)

    def groups(self) -> Iterator[str]:
        """The groups it is in, but for the one of all."""
        yield from (f"partition_{name}" for name in self.partitions)
        yield from (f"feature_{name}" for name in self.features)
        for resource in self.gres:
            # NAME[:TYPE]:COUNT[(S:0)], or only a name (gres.conf(5)).
            words = [word for word in resource.split("(")[0].split(":") if word]
            if len(words) > 1 and re.fullmatch(r"\d+[KMGTP]?", words[-1]):
                del words[-1]
            for length in range(1, len(words) + 1):
                yield "gres_" + "_".join(words[:length])


class InventoryModule(BaseInventoryPlugin, Cacheable):  # type: ignore[misc]
    """Reads the source, or what was cached of it, and makes hosts and groups of it."""

    NAME = "slurm"

    def verify_file(self, path: str) -> bool:
        """Whether *path* can be a configuration of this plugin."""
        return super().verify_file(path) and path.endswith((".yml", ".yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the hosts and groups. Raises AnsibleParserError."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        key, keep = self.get_cache_key(path), self.get_option("cache")
        nodes = None
        if keep and cache:
            self.load_cache_plugin()
            nodes = self._cache.get(key)
        if nodes is None:
            nodes = _configured(Path(path).parent / self.get_option("slurm_conf"))
        if keep:
            self._cache[key] = nodes
        self._add({name: _Node(**node) for name, node in nodes.items()})

    def _add(self, nodes: dict[str, _Node]) -> None:
        members: dict[str, list[str]] = {self.get_option("group"): list(nodes)}
        for name, node in nodes.items():
            for group in node.groups():
                members.setdefault(re.sub(r"\W", "_", group), []).append(name)
        for name, node in nodes.items():
            self.inventory.add_host(name)
            if node.address and node.address != name:
                self.inventory.set_variable(name, "ansible_host", node.address)
        for group, names in members.items():
            self.inventory.add_group(group)
            for name in names:
                self.inventory.add_child(group, name)


def _configured(path: Path) -> dict[str, dict[str, Any]]:
    """Name of each node of a slurm.conf → the fields of its _Node, as plain data for the cache."""

    def include(name: str) -> str:
        return (path.parent / name).read_text(errors="replace")

    try:
        found = slurm_conf_nodes.read(path.read_text(errors="replace"), include)
        nodes: dict[str, _Node] = {}
        for line in found.nodes:
            names = hostlist.expand(line["nodename"])
            addresses = hostlist.expand(line["nodeaddr"]) if "nodeaddr" in line else names
            if len(addresses) != len(names):
                addresses = [line["nodeaddr"]] * len(names)  # a template, %h or one front end for all
            features = _words(line.get("features", line.get("feature", "")))
            for name, address in zip(names, addresses, strict=True):
                nodes[name] = _Node(
                    address="" if "%" in address else address,
                    features=features,
                    gres=_words(line.get("gres", "")),
                )
        sets = {line["nodeset"]: _members(line, nodes) for line in found.nodesets}
        for line in found.partitions:
            for name in _in_partition(line.get("nodes", ""), nodes, sets):
                nodes[name].partitions.append(line["partitionname"])
    except OSError as error:
        mend = "slurm_conf names the file, from the folder of this configuration on"
        raise AnsibleParserError(f"{path}: {error.strerror}: {mend}") from error
    except ValueError as error:
        raise AnsibleParserError(f"{path}: {error}") from error
    return {name: vars(node) for name, node in nodes.items()}


def _words(text: str) -> list[str]:
    # The commas of gpu:a100:4(S:0,1) are none between resources.
    return [word for word in re.split(r",(?![^()]*\))", text) if word and word != "(null)"]


def _members(line: dict[str, str], nodes: dict[str, _Node]) -> list[str]:
    """The nodes of a NodeSet line: those it names, and those with its feature."""
    named = hostlist.expand(line["nodes"]) if line.get("nodes") else []
    feature = line.get("feature")
    return [*named, *(name for name, node in nodes.items() if feature in node.features)]


def _in_partition(text: str, nodes: dict[str, _Node], sets: dict[str, list[str]]) -> Iterable[str]:
    if text.upper() == "ALL":
        return nodes
    # Commas between brackets belong to a hostlist, others are between hostlists and names of sets.
    words = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text)
    names = [name for word in words for name in (sets.get(word) or hostlist.expand(word))]
    strange = [name for name in names if name not in nodes]
    if strange:
        raise ValueError(f"a partition has {hostlist.fold(strange)}, which no NodeName line names")
    return dict.fromkeys(names)
