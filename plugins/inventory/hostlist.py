# SPDX-License-Identifier: Apache-2.0
"""Inventory plugin: Ansible's YAML inventory, whose hosts may be written as hostlists."""

from __future__ import annotations

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory.yaml import InventoryModule as YamlInventory

from fleet import hostlist

DOCUMENTATION = r"""
name: hostlist
short_description: YAML inventories with hostlists
description:
  - Reads what Ansible's own plugin P(ansible.builtin.yaml#inventory) reads.
  - A key below C(hosts) may also be a hostlist of ClusterShell, V(n[0001-4000]), V(n[1-9,12],login1), or with
    several dimensions, V(r[01-20]n[01-36]). Its variables are those of each node. Ansible's own ranges,
    V(n[0001:4000]), go on to work.
  - A port can't stand behind a hostlist; set C(ansible_port).
options:
  yaml_extensions:
    description: Endings of file names that are taken for YAML.
    type: list
    elements: string
    default: [.yaml, .yml, .json]
    env:
      - name: ANSIBLE_YAML_FILENAME_EXT
      - name: ANSIBLE_INVENTORY_PLUGIN_EXTS
    ini:
      - key: yaml_valid_extensions
        section: defaults
      - section: inventory_plugin_yaml
        key: yaml_valid_extensions
requirements:
  - ClusterShell
author: apptainer-fleet
"""

EXAMPLES = r"""
slurm_compute:
  children:
    thin:
      hosts:
        n[0001-4000]:
    gpu:
      hosts:
        r[01-20]g[01-24]:
"""


class InventoryModule(YamlInventory):
    """Ansible's plugin with another way to say many hosts."""

    NAME = "hostlist"

    def _expand_hostpattern(self, hostpattern: str) -> tuple[list[str], int | None]:
        if not hostlist.is_hostlist(hostpattern):
            return super()._expand_hostpattern(hostpattern)
        try:
            return hostlist.expand(hostpattern), None
        except ValueError as error:
            raise AnsibleParserError(str(error)) from error
