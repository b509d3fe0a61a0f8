# SPDX-License-Identifier: Apache-2.0
"""Inventory plugin: the nodes that Slurm knows, in groups by partition, feature, GRES and state."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable

from fleet import hostlist
from module_utils import slurm_conf_nodes, slurm_nodes

DOCUMENTATION = r"""
name: slurm
short_description: The nodes that Slurm knows
description:
  - Asks slurmctld with C(scontrol show node --json), reads what that printed from a file, or reads a
    C(slurm.conf), for which no node and no slurmctld has to be up.
  - All nodes are in O(group), and in C(partition_NAME), C(feature_NAME), C(gres_NAME) and
    C(gres_NAME_TYPE), as it applies; from slurmctld also in C(state_NAME), such as C(state_idle), and one for
    each flag, such as C(state_drain). What can't be in a group's name becomes C(_).
  - A node whose C(NodeAddr) is not its name gets it as C(ansible_host).
options:
  plugin:
    description: Always V(slurm).
    required: true
    choices: [slurm]
  slurm_conf:
    description: >-
      A C(slurm.conf) to read instead of asking; a path that is not absolute begins in the folder of this
      configuration.
    type: str
    default: ""
  nodes_json:
    description: A file with the output of C(scontrol show node --json) of 23.02 or later; likewise.
    type: str
    default: ""
  through:
    description: >-
      A command and its arguments that runs another one where scontrol is, such as V([ssh, ctl1]). Without
      one it is run here.
    type: list
    elements: str
    default: []
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

---
# or, from a machine without scontrol
plugin: slurm
through: [ssh, ctl1]
"""


#: Seconds for slurmctld to answer.
DEADLINE = 60


@dataclass
class _Node:
    address: str = ""
    partitions: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    gres: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    def groups(self) -> Iterator[str]:
        """The groups it is in, but for the one of all."""
        yield from (f"partition_{name}" for name in self.partitions)
        yield from (f"feature_{name}" for name in self.features)
        yield from (f"state_{name.lower()}" for name in self.states)
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
            nodes = self._read(Path(path).parent)
        if keep:
            self._cache[key] = nodes
        self._add({name: _Node(**node) for name, node in nodes.items()})

    def _read(self, folder: Path) -> dict[str, dict[str, Any]]:
        conf, listed, through = map(self.get_option, ("slurm_conf", "nodes_json", "through"))
        if bool(conf) + bool(listed) + bool(through) > 1:
            raise AnsibleParserError(
                "slurm_conf, nodes_json and through exclude each other: give one of them"
            )
        if conf:
            return _configured(folder / conf)
        try:
            if listed:
                known = slurm_nodes.parse((folder / listed).read_text(errors="replace"))
            else:
                known = slurm_nodes.SlurmNodes(lambda argv: _run(argv, through)).read_all()
        except OSError as error:
            raise AnsibleParserError(f"{folder / listed}: {error.strerror}") from error
        except slurm_nodes.SlurmError as error:
            raise AnsibleParserError(
                f"{error}: see the options through, nodes_json and slurm_conf"
            ) from error
        return {name: vars(_known(node)) for name, node in known.items()}

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


def _run(argv: list[str], through: list[str]) -> tuple[int, str, str]:
    """Run a program of Slurm, as module_utils.slurm_nodes wants it."""
    # A shell takes it apart again at the other end.
    whole = [*through, shlex.join(argv)] if through else argv
    try:
        ended = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=DEADLINE)
    except FileNotFoundError:
        return 127, "", f"{whole[0]} is not installed here"
    except subprocess.TimeoutExpired:
        return 1, "", f"did not answer within {DEADLINE} s"
    return ended.returncode, ended.stdout, ended.stderr


def _known(node: slurm_nodes.Node) -> _Node:
    return _Node(
        address=node.address,
        partitions=list(node.partitions),
        features=list(node.features),
        gres=list(node.gres),
        states=[node.base, *sorted(node.flags)],
    )


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
            features = list(slurm_nodes.parts(line.get("features", line.get("feature", ""))))
            for name, address in zip(names, addresses, strict=True):
                nodes[name] = _Node(
                    address="" if "%" in address else address,
                    features=features,
                    gres=list(slurm_nodes.parts(line.get("gres"))),
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
