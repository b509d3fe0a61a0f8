#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the hardware of a node that containers use."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hardware_facts
short_description: Read accelerators, fabrics and file systems of a node, and hold them against its class
description:
  - Reads what the kernel says of PCI devices, GPUs and other accelerators, RDMA devices and their ports,
    network interfaces, device nodes, modules and mounts, and whether users can start containers.
    Changes nothing.
  - Runs no program. Looks into no file system but those of O(probe), and waits for none of them.
options:
  expect:
    description: What a node of its class has. What it lacks of that is in RV(mismatches).
    type: dict
    default: {}
    suboptions:
      gpus:
        description: GPUs or other accelerators that a driver has taken.
        type: dict
        suboptions:
          vendor:
            description: Whose they are.
            type: str
            choices: [amd, google, habana, intel, nvidia]
            required: true
          count:
            description: How many there are, no more and no less.
            type: int
            required: true
          model:
            description: A part of what the driver calls each of them, for example V(H100).
            type: str
          driver:
            description: The oldest version of the driver.
            type: str
          apptainer:
            description: >-
              The folder of Apptainer's configuration. What its list for V(nvidia) or V(amd) brings into
              containers has to be on the node, and of the driver that is loaded.
            type: path
          container_cli:
            description: >-
              Whether C(apptainer.conf) asks for C(nvidia-container-cli), which then has to be root's alone.
            type: bool
            default: false
      infiniband:
        description: Ports of RDMA devices, of InfiniBand, RoCE or software.
        type: dict
        suboptions:
          ports:
            description: How many are active, at the least.
            type: int
            default: 1
          gigabits:
            description: Gb/s of each of the active ones, at the least.
            type: float
            default: 0
      device_nodes:
        description: Device nodes, by their paths.
        type: list
        elements: path
        default: []
      modules:
        description: Loaded kernel modules, of those that RV(hardware) has.
        type: list
        elements: str
        default: []
      mounts:
        description: Where something is mounted.
        type: list
        elements: path
        default: []
  probe:
    description: Paths whose file systems are asked to answer. What does not is in RV(mismatches), too.
    type: list
    elements: path
    default: []
  deadline:
    description: Seconds that all of O(probe) have together.
    type: float
    default: 2
attributes:
  check_mode:
    support: full
    description: It is the same as without.
  diff_mode:
    support: none
    description: There is nothing to differ.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Read what the node has, and refuse one that is not of its class
  hardware_facts:
    expect:
      gpus: {vendor: nvidia, count: 8, model: H100, driver: '550.54'}
      infiniband: {ports: 4, gigabits: 400}
    probe: [/scratch]
  register: node
  failed_when: node.mismatches | length > 0
"""

RETURN = r"""
hardware:
  description: What there is.
  returned: success
  type: dict
  contains:
    pci:
      description: PCI devices by address, with kind, vendor, id, driver, numa_node.
      type: list
      elements: dict
      returned: always
    gpus:
      description: Vendor, then count, models and driver version of what a driver has taken.
      type: dict
      returned: always
    device_nodes:
      description: Path, then mode, uid, gid, major and minor.
      type: dict
      returned: always
    modules:
      description: Loaded kernel modules that say which stack a node has, with the versions that they have.
      type: dict
      returned: always
    infiniband:
      description: RDMA devices, with name, firmware, board, parent, interfaces and ports.
      type: list
      elements: dict
      returned: always
    networks:
      description: Interfaces with a device behind them, and those of IPoIB.
      type: list
      elements: dict
      returned: always
    mounts:
      description: What is mounted but for the kernel's own, with path, type, source and options.
      type: list
      elements: dict
      returned: always
    user_namespaces:
      description: Whether users can create them, null if that can't be known.
      type: bool
      returned: always
    setuid:
      description: Whether there is a setuid starter of Apptainer where packages put it.
      type: bool
      returned: always
mismatches:
  description: What the node lacks of O(expect), and what does not answer, as sentences.
  returned: success
  type: list
  elements: str
  sample: ["8 x nvidia H100 in its class, 2 there"]
"""

from ansible.module_utils import hardware, mounts
from ansible.module_utils.basic import AnsibleModule

GPUS = {
    "vendor": {"type": "str", "choices": ["amd", "google", "habana", "intel", "nvidia"], "required": True},
    "count": {"type": "int", "required": True},
    "model": {"type": "str"},
    "driver": {"type": "str"},
    "apptainer": {"type": "path"},
    "container_cli": {"type": "bool", "default": False},
}
EXPECT = {
    "gpus": {"type": "dict", "options": GPUS},
    "infiniband": {
        "type": "dict",
        "options": {"ports": {"type": "int", "default": 1}, "gigabits": {"type": "float", "default": 0}},
    },
    "device_nodes": {"type": "list", "elements": "path", "default": []},
    "modules": {"type": "list", "elements": "str", "default": []},
    "mounts": {"type": "list", "elements": "path", "default": []},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "expect": {"type": "dict", "options": EXPECT, "default": {}},
            "probe": {"type": "list", "elements": "path", "default": []},
            "deadline": {"type": "float", "default": 2},
        },
        supports_check_mode=True,
    )
    expect = module.params["expect"]
    unknown = [name for name in expect.get("modules") or () if name not in hardware.MODULES]
    if unknown:
        module.fail_json(
            msg=f"expect.modules: {', '.join(unknown)} is none of those that are looked for: "
            f"{', '.join(sorted(hardware.MODULES))}"
        )
    facts = hardware.read()
    answers = mounts.probe(module.params["probe"], module.params["deadline"])
    module.exit_json(
        changed=False,
        hardware=facts,
        mismatches=hardware.mismatches(expect, facts) + [wrong for wrong in answers.values() if wrong],
    )


if __name__ == "__main__":
    main()
