"""The groups of an inventory, as Ansible sees them."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fleet.errors import FleetError
from fleet.paths import PROJECT


def read_groups(sources: Sequence[Path]) -> dict[str, list[str]]:
    """Names of groups → hosts; ``all`` has every host.

    In this process: `ansible-inventory` would write out the variables of thousands of hosts.
    Raises FleetError if there is no such inventory, or Ansible refuses it.
    """
    for source in sources:
        if not source.exists():
            raise FleetError(f"inventory {source}: no such file or folder", "name one with -i")
    # Ansible reads its settings when it is imported.
    os.environ["ANSIBLE_CONFIG"] = str(PROJECT / "ansible.cfg")
    from ansible.errors import AnsibleError  # noqa: PLC0415
    from ansible.inventory.manager import InventoryManager  # noqa: PLC0415
    from ansible.parsing.dataloader import DataLoader  # noqa: PLC0415
    from ansible.plugins.loader import init_plugin_loader  # noqa: PLC0415

    said = io.StringIO()
    try:
        init_plugin_loader()
        with quiet() as said:
            manager = InventoryManager(DataLoader(), [str(source) for source in sources])
        return {name: [host.name for host in group.get_hosts()] for name, group in manager.groups.items()}
    except AnsibleError as error:
        names = ", ".join(map(str, sources))
        why = _reasons(said.getvalue()) or str(error)
        raise FleetError(f"inventory {names}: {why}", "see what it names, or fleet validate") from error


def _reasons(said: str) -> str:
    """Why the plugin that a file is meant for refused it; those that it isn't meant for refuse it, too."""
    refusals = re.findall(r"Failed to parse inventory with '(\w+)' plugin: (.+)", said)
    meant = [why for plugin, why in refusals if plugin != "ini" and "'plugin' key" not in why]
    return "; ".join(why for why in meant if not why.startswith("Plugin configuration YAML file"))


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep Ansible's warnings off the screen, and give what it said: what matters comes back as findings."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        yield said
