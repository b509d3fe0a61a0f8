"""What a lab asks of a kind of node; a new kind is one class beside :class:`fleet.lab.nspawn.Nspawn`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fleet.lab.model import Lab, Node


class Backend(Protocol):
    """A way of having booted nodes on this machine.

    What is needed to find and end a node is its lab's name and its own, never the inventory: after a crash
    or a change of the inventory that may be all that is left.
    """

    @property
    def programs(self) -> Mapping[str, str]:
        """What it runs on this machine besides what every lab does: program → Debian package."""
        ...

    def image_folder(self, lab: Lab, node: Node) -> Path:
        """Where the image this node boots from is, or will be, in the cache."""
        ...

    def has_image(self, lab: Lab, node: Node) -> bool:
        """Whether it is there, whole."""
        ...

    def build_image(self, lab: Lab, node: Node) -> None:
        """Make that image if the cache has none."""
        ...

    def create(self, lab: Lab, node: Node) -> None:
        """Make the node's disk and identity; afterwards :meth:`start` can boot it."""
        ...

    def is_whole(self, lab: Lab, node: Node) -> bool:
        """Whether :meth:`create` came to its end, from this very description and image."""
        ...

    def write_hosts(self, lab: Lab, node: Node) -> None:
        """Bring the node's /etc/hosts up to the lab's nodes, whether it runs or not."""
        ...

    def start(self, lab: Lab, node: Node) -> None:
        """Boot it; returns as soon as it boots, which is before anybody can log in."""
        ...

    def is_running(self, lab_name: str, node_name: str) -> bool:
        """Whether it runs."""
        ...

    def kill(self, lab_name: str, node_name: str) -> None:
        """Cut its power."""
        ...
