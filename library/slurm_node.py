#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: nodes of Slurm, drained, resumed and rebooted by hostlist."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_node
short_description: Drain, resume and reboot nodes of Slurm, and wait for them
description:
  - Does so for a hostlist at once, with one call of C(scontrol), wherever that works; so a play calls this
    module once, not once for each node.
  - A drain belongs to whoever has set its Reason. Nodes that are drained or down for another O(reason), or by
    another user, are never touched, and are an error unless O(foreign=skip). They are looked at in the moment
    before C(scontrol) is called, whatever was seen earlier.
  - Slurm from 22.05 to 26.05 is understood.
options:
  nodes:
    description: Nodes in the hostlist syntax of Slurm, such as V(c[1-100],gpu3). Slurm has to know them all.
    type: str
    required: true
  state:
    description:
      - V(info) reads the nodes.
      - V(drained) lets them take no new jobs, and waits until they have none.
      - V(resumed) ends the drain that has this O(reason), and waits until they take jobs.
      - >-
        V(rebooted) boots them as soon as they have no jobs, and waits until they are back. Those that are
        drained for this O(reason) stay so, the others take jobs again. It boots them each time it is run.
    type: str
    choices: [info, drained, resumed, rebooted]
    default: info
  reason:
    description: >-
      The Reason, exactly. It says who drains and what for, such as V(fleet rollout 7: apptainer 1.4.5): later
      nothing else says whose drain this was. Needed for all states but V(info).
    type: str
  user:
    description: >-
      Who this module is to Slurm. A drain that somebody else has set is not ours, whatever its Reason.
    type: str
    default: root
  timeout:
    description: >-
      Seconds to wait for; the module fails if nodes are not as they should be then, and what was asked of
      Slurm stays. Without waiting, with V(0), it does not fail.
    type: int
    default: 0
  foreign:
    description: >-
      Whether nodes that are drained or down for another reason are an error, before anything is done.
    type: str
    choices: [fail, skip]
    default: fail
attributes:
  check_mode:
    support: full
    description: Slurm is asked, and told nothing.
  diff_mode:
    support: full
    description: Of the state of the nodes that change.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Let two racks take no new jobs, and wait up to a day for those that run
  slurm_node:
    nodes: c[1-96]
    state: drained
    reason: 'rack work: ticket 42'
    timeout: 86400
  run_once: true
  delegate_to: "{{ groups['slurm_controller'] | first }}"

- name: Let those take jobs again that were drained for this, and no others
  slurm_node:
    nodes: c[1-96]
    state: resumed
    reason: 'rack work: ticket 42'
    foreign: skip
  run_once: true
  delegate_to: "{{ groups['slurm_controller'] | first }}"
"""

RETURN = r"""
nodes:
  description: The nodes by name, as they are at the end; in check mode as they are.
  returned: success
  type: dict
  sample:
    c1: {state: IDLE+DRAIN, drain: true, busy: false, available: false, reason: 'rack work: ticket 42',
         user: root, changed_at: 1795528726, boot_time: 1795527161, slurmd_start_time: 1795528431,
         version: 24.11.5, partitions: [main]}
changed_nodes:
  description: Hostlist of the nodes that were changed, or would be.
  returned: success
  type: str
  sample: c[1-95]
foreign_nodes:
  description: Hostlist of the nodes that are drained or down for another reason, and were left alone.
  returned: success
  type: str
  sample: c96
"""

from typing import Any, Callable, Dict, List, Mapping

from ansible.module_utils import slurm_nodes
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slurm_nodes import Node, Outcome, SlurmError, SlurmNodes

SHOWN = ("state", "drain", "busy", "available", "reason", "user", "changed_at", "boot_time",
         "slurmd_start_time", "version", "partitions")  # fmt: skip


class NodesError(Exception):
    """Nodes are not as they should be; the message says which, and *nodes* how they are."""

    def __init__(self, message: str, nodes: Mapping[str, Node]) -> None:
        super().__init__(message)
        self.nodes = nodes


def act(module: AnsibleModule, slurm: SlurmNodes, names: List[str]) -> Dict[str, Any]:
    """Bring the nodes to the wanted state. Raises NodesError and SlurmError."""
    params = module.params
    before = slurm.read(names)
    request: Callable[..., Outcome] = {
        "drained": slurm.drain,
        "resumed": slurm.resume,
        "rebooted": slurm.reboot,
    }[params["state"]]
    planned = request(names, params["reason"], check=True)
    if planned.foreign and params["foreign"] == "fail":
        raise NodesError(f"{of_others(planned.foreign)}: nothing was done", planned.foreign)
    outcome = planned if module.check_mode else request(names, params["reason"])
    ours = [name for name in names if name not in outcome.foreign]
    if params["timeout"] and not module.check_mode:
        wait(slurm, params["state"], ours, before, params["timeout"])
    after = before if module.check_mode else slurm.read(names)
    return {
        **shown(after),
        "changed": bool(outcome.changed),
        "changed_nodes": slurm_nodes.fold(outcome.changed),
        "foreign_nodes": slurm_nodes.fold(outcome.foreign),
        "diff": diff(params, before, outcome.changed),
    }


def wait(slurm: SlurmNodes, state: str, ours: List[str], before: Mapping[str, Node], timeout: float) -> None:
    """Wait until the nodes are as they should be. Raises NodesError after *timeout* seconds."""
    done: Callable[[Node], bool] = {
        "drained": lambda node: node.drained,
        "resumed": lambda node: node.available,
        "rebooted": lambda node: node.rebooted_since(before[node.name]),
    }[state]
    left = slurm_nodes.wait(lambda: slurm.read(ours), done, timeout)
    if left:
        raise NodesError(f"after {timeout} seconds, not {state}: {by_state(left)}", left)


def of_others(foreign: Mapping[str, Node]) -> str:
    """Return a sentence on nodes that are not ours, by Reason and user."""
    groups: Dict[str, List[str]] = {}
    for node in foreign.values():
        groups.setdefault(f"{node.state} by {node.user or 'nobody'} for {node.reason!r}", []).append(
            node.name
        )
    return "drained or down for another reason: " + "; ".join(
        f"{slurm_nodes.fold(names)} is {what}" for what, names in groups.items()
    )


def by_state(nodes: Mapping[str, Node]) -> str:
    """Return nodes by their state."""
    groups: Dict[str, List[str]] = {}
    for node in nodes.values():
        groups.setdefault(node.state, []).append(node.name)
    return "; ".join(f"{slurm_nodes.fold(names)} is {state}" for state, names in groups.items())


def shown(nodes: Mapping[str, Node]) -> Dict[str, Any]:
    return {"nodes": {name: {key: getattr(node, key) for key in SHOWN} for name, node in nodes.items()}}


def diff(params: Mapping[str, Any], before: Mapping[str, Node], changed: Any) -> List[Dict[str, str]]:
    """Return what Slurm is asked for, node by node."""
    words = {"drained": f"drain, {params['reason']}", "resumed": "no drain", "rebooted": "boots anew"}
    now = "".join(
        f"{name}: {f'drain, {node.reason}' if node.drain else 'no drain'}\n"
        for name, node in before.items()
        if name in changed
    )
    then = "".join(f"{name}: {words[params['state']]}\n" for name in before if name in changed)
    header = f"nodes of Slurm {slurm_nodes.fold(changed)}"
    return (
        [{"before_header": header, "after_header": header, "before": now, "after": then}] if changed else []
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "nodes": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["info", "drained", "resumed", "rebooted"],
                "default": "info",
            },
            "reason": {"type": "str"},
            "user": {"type": "str", "default": "root"},
            "timeout": {"type": "int", "default": 0},
            "foreign": {"type": "str", "choices": ["fail", "skip"], "default": "fail"},
        },
        required_if=[("state", name, ("reason",)) for name in ("drained", "resumed", "rebooted")],
        supports_check_mode=True,
    )
    slurm = SlurmNodes(module.run_command, module.params["user"])
    try:
        names = slurm.names(module.params["nodes"])
        if module.params["state"] == "info":
            module.exit_json(changed=False, changed_nodes="", foreign_nodes="", **shown(slurm.read(names)))
        if module.params["timeout"] < 0:
            module.fail_json(msg=f"timeout: must not be less than 0, not {module.params['timeout']}")
        module.exit_json(**act(module, slurm, names))
    except SlurmError as error:
        module.fail_json(msg=str(error))
    except NodesError as error:
        module.fail_json(msg=str(error), **shown(error.nodes))


if __name__ == "__main__":
    main()
