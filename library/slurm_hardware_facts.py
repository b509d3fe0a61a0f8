#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: what Slurm has to know of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_hardware_facts
short_description: Read the hardware, accelerators and cgroup controllers of a node for slurm.conf
description:
  - Runs C(slurmd -C) and reads which cgroup controllers the node really has. Changes nothing.
  - Meant for one node of each class, not for all of them.
options: {}
attributes:
  check_mode:
    support: full
    description: >-
      A node that has no slurmd yet is read from C(/sys) and C(/proc), which gives the same numbers on regular
      hardware. Without check mode a missing slurmd is an error.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Read what kind of node this is
  slurm_hardware_facts:
  register: hardware
"""

RETURN = r"""
hardware:
  description: Parameters of a C(NodeName) line; C(RealMemory) in MiB.
  returned: success
  type: dict
  sample: {CPUs: 64, Boards: 1, SocketsPerBoard: 2, CoresPerSocket: 32, ThreadsPerCore: 1, RealMemory: 515000}
cgroup:
  description: Version of the hierarchy that has controllers (0 if none has), and the controllers.
  returned: success
  type: dict
  sample: {version: 2, controllers: [cpu, cpuset, io, memory, pids]}
devices:
  description: Device files of accelerators by maker; C(accel) are those of TPUs and others.
  returned: success
  type: dict
  sample: {nvidia: [/dev/nvidia0, /dev/nvidia1], amd: [], intel: [], accel: []}
pmix:
  description: Whether Slurm has its plugin for PMIx here, and the library for it.
  returned: success
  type: bool
"""

from ansible.module_utils import slurm_hardware
from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    slurmd = module.get_bin_path("slurmd", opt_dirs=["/usr/sbin"])
    try:
        if slurmd:
            _, output, _ = module.run_command([slurmd, "-C"], check_rc=True)
            hardware = slurm_hardware.parse_slurmd(output)
        elif module.check_mode:
            hardware = slurm_hardware.read_kernel()
        else:
            module.fail_json(msg="slurmd is not installed here: install the package of slurmd first")
        module.exit_json(
            changed=False,
            hardware=hardware,
            cgroup=slurm_hardware.read_cgroup(),
            devices=slurm_hardware.read_devices(),
            pmix=slurm_hardware.has_pmix(),
        )
    except slurm_hardware.HardwareError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename} can't be read: {error.strerror}")


if __name__ == "__main__":
    main()
