"""A stand-in for scontrol(1) over nodes in memory, which behaves as Slurm 24.11 was seen to behave.

It proves nothing about Slurm: what it imitates was seen there, see module_utils/slurm_nodes.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from ClusterShell.NodeSet import NodeSet

from module_utils.slurm_nodes import Node


@dataclass
class Cluster:
    """Nodes by name, and the calls of scontrol as argv. `run` is what `slurm_nodes.SlurmNodes` takes."""

    nodes: dict[str, Node] = field(default_factory=dict)
    user: str = "root"
    calls: list[list[str]] = field(default_factory=list)
    #: Called before a call is carried out, for what others do in between.
    meanwhile: Callable[[list[str]], None] = lambda argv: None

    @classmethod
    def of(cls, hostlist: str, base: str = "IDLE") -> Cluster:
        """Return a cluster whose nodes are all alike."""
        return cls({name: Node(name, base) for name in NodeSet(hostlist)})

    @property
    def updates(self) -> list[list[str]]:
        """The calls that change something."""
        return [argv for argv in self.calls if "show" not in argv]

    def change(self, hostlist: str, **values: object) -> None:
        """Set attributes of nodes, behind Slurm's back."""
        for name in NodeSet(hostlist):
            self.nodes[name] = replace(self.nodes[name], **values)  # type: ignore[arg-type]

    def drain(self, hostlist: str, reason: str, user: str = "root") -> None:
        """What somebody else does."""
        for name in NodeSet(hostlist):
            node = self.nodes[name]
            self.change(name, flags=node.flags | {"DRAIN"}, reason=reason, user=user)

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        """Carry out a call of scontrol."""
        self.meanwhile(argv)
        self.calls.append(argv)
        verb, *rest = argv[1:]
        if (verb, rest[0]) == ("show", "hostnames"):
            try:
                return 0, "".join(f"{name}\n" for name in NodeSet(rest[1])), ""
            except Exception:
                return 0, "", f"Invalid hostlist: {rest[1]}\n"
        if (verb, rest[0]) == ("show", "node"):
            known = [self.nodes[name] for name in NodeSet(rest[1]) if name in self.nodes]
            return 0, json.dumps({"nodes": [_data(node) for node in known]}), ""
        if verb == "update":
            return self._update(dict(word.split("=", 1) for word in rest))
        if verb == "reboot":
            return self._reboot(NodeSet(rest[-1]), dict(word.split("=", 1) for word in rest if "=" in word))
        raise AssertionError(argv)

    def _update(self, words: dict[str, str]) -> tuple[int, str, str]:
        for name in NodeSet(words["nodename"]):
            if name not in self.nodes:  # those before it are done
                return 1, "", "slurm_update error: Invalid node name specified\n"
            node = self.nodes[name]
            if "state" not in words:
                self.change(name, reason=words["reason"], user=self.user)
            elif words["state"] == "DRAIN":
                self.drain(name, words["reason"], self.user)
            elif "DRAIN" not in node.flags and node.base != "DOWN":
                return 1, "", "slurm_update error: Invalid node state specified\n"
            else:
                base = "IDLE" if words["state"] == "RESUME" else node.base
                self.change(name, flags=node.flags - {"DRAIN"}, base=base)
        return 0, "", ""

    def _reboot(self, names: Iterable[str], words: dict[str, str]) -> tuple[int, str, str]:
        for name in names:
            node = self.nodes[name]
            reason = f"{words.get('reason') or node.reason} : reboot issued"
            flags = node.flags | {"DRAIN", "REBOOT_ISSUED"}
            self.change(name, base="DOWN", flags=flags, reason=reason, user="slurm")
        return 0, "", ""


def _data(node: Node) -> dict[str, object]:
    def number(value: int) -> dict[str, object]:
        return {"set": True, "infinite": False, "number": value}

    return {
        "name": node.name,
        "state": [node.base, *sorted(node.flags)],
        "reason": node.reason,
        "reason_set_by_user": node.user,
        "reason_changed_at": number(node.changed_at),
        "boot_time": number(node.boot_time),
        "slurmd_start_time": number(node.slurmd_start_time),
        "version": node.version,
        "partitions": list(node.partitions),
    }
