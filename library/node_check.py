#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: whether a node is as its last converge left it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_check
short_description: Record what a converge left, and see whether it is still so
description:
  - With O(state=recorded), the last task of a converge writes what is on the node to
    C(/var/lib/apptainer-fleet/record.json), mode C(0600) - versions of packages, digests of files, running
    kernel parameters, units, mounts, and which programs have a setuid bit. Nothing else is changed without
    O(disarm).
  - With O(state=compared), nothing is changed and nothing needs to be given. What the record says was looked
    at is looked at again. The task fails if anything differs, or if there is no record.
  - A converge of a part of the roles does not write it, so what that part has changed counts as a difference
    until the next whole one.
options:
  state:
    description: What to do.
    type: str
    choices: [recorded, compared]
    default: compared
  watch:
    description: What is recorded, lists of text.
    type: dict
    suboptions:
      files:
        description: Patterns of files and folders; V(**) is any depth.
        type: list
        elements: str
        default: []
      exclude:
        description: Patterns of what is not recorded, although O(watch.files) has it.
        type: list
        elements: str
        default: []
      packages:
        description: Packages, by the names of all distributions.
        type: list
        elements: str
        default: []
      sysctl_files:
        description: Patterns of files of sysctl.d(5), whose parameters are read from the running kernel.
        type: list
        elements: str
        default: []
      units:
        description: systemd units.
        type: list
        elements: str
        default: []
      mount_types:
        description: Types of file systems whose mounts are recorded.
        type: list
        elements: str
        default: []
      setuid:
        description: Patterns of programs of which those with a setuid or setgid bit are recorded.
        type: list
        elements: str
        default: []
  disarm:
    description:
      - With O(state=recorded), take the setuid bit from programs of Singularity and Apptainer that nobody
        answers for, before it is on record. The files stay where they are.
      - Those are known by their names, such as C(starter-suid), and are on local file systems, root's, of no
        package, and not in O(setuid_allowed). One with a second name, or of which no package manager can say
        whose it is, keeps the bit, with a warning.
    type: bool
    default: false
  setuid_allowed:
    description: Paths of setuid programs that are meant to be there.
    type: list
    elements: str
    default: []
  deadline:
    description: Seconds after which O(disarm) looks no further.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Compares with what is there now; what tasks before it would change, it can't know.
  diff_mode:
    support: full
    description: Of what is recorded, and of what is no longer as recorded.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Say what the converge left
  node_check:
    state: recorded
    watch:
      files: [/etc/apptainer/**]
      packages: [apptainer]

- name: See whether it is still so
  node_check:
"""

RETURN = r"""
disarmed:
  description: Programs that have lost their setuid bit, or would.
  returned: O(state=recorded)
  type: list
  elements: str
differences:
  description: What is not as it was.
  returned: O(state=compared), also when that fails
  type: list
  elements: dict
  contains:
    topic:
      description: One of V(files), V(packages), V(sysctls), V(units), V(mounts), V(setuid), or V(record).
      type: str
    name:
      description: The file, package, parameter, unit or mount point.
      type: str
    was:
      description: What the record says.
      type: str
    now:
      description: What it is.
      type: str
"""

import os
from pathlib import Path
from typing import List, Tuple

from ansible.module_utils import atomic_file, mounts, node_record, setuid_audit
from ansible.module_utils.basic import AnsibleModule

SHOWN = 3


def main() -> None:
    texts = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["recorded", "compared"], "default": "compared"},
            "watch": {"type": "dict", "options": dict.fromkeys(node_record.Watch._fields, texts)},
            "disarm": {"type": "bool", "default": False},
            "setuid_allowed": texts,
            "deadline": {"type": "int", "default": 60},
        },
        required_if=[("state", "recorded", ["watch"])],
        supports_check_mode=True,
    )

    def run(argv: List[str]) -> Tuple[int, str]:
        if module.get_bin_path(argv[0]) is None:
            return 127, ""
        code, output, _ = module.run_command(argv)
        return code, output

    try:
        content = (atomic_file.read(node_record.PATH) or b"").decode(errors="replace")
        if module.params["state"] == "recorded":
            record(module, run, content)
        compare(module, run, content)
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


def record(module: AnsibleModule, run: node_record.Run, old: str) -> None:
    """Write what is there, and end."""
    disarmed = disarm(module, run) if module.params["disarm"] else []
    watch = node_record.Watch.of(module.params["watch"])
    state = node_record.started(node_record.look(watch, run))
    for path in disarmed:
        # In check mode they have it still.
        state["setuid"].pop(path, None)
    new = node_record.text(watch, state, node_record.lines(state))
    if new != old and not module.check_mode:
        Path(node_record.PATH).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        atomic_file.replace(node_record.PATH, new.encode(), 0o600)
    diff = [("setuid programs", "".join(f"{path}\n" for path in disarmed), ""), (node_record.PATH, old, new)]
    module.exit_json(
        changed=bool(disarmed) or new != old,
        disarmed=disarmed,
        diff=[
            {"before_header": name, "after_header": name, "before": before, "after": after}
            for name, before, after in diff
            if before != after
        ],
    )


def disarm(module: AnsibleModule, run: node_record.Run) -> List[str]:
    """Take setuid bits away; return from which programs, and warn of those that keep it."""
    mountinfo = os.fsdecode(Path(mounts.MOUNTINFO).read_bytes())
    audit = setuid_audit.audit(module.params["deadline"], mountinfo)
    done, kept = setuid_audit.disarm(
        audit,
        module.params["setuid_allowed"],
        lambda paths: setuid_audit.packages(run, paths),
        dry_run=module.check_mode,
    )
    for path, why in kept.items():
        module.warn(f"{path} keeps its setuid bit: {why}")
    if audit.stopped_at is not None:
        module.warn(f"Setuid programs were looked for until the time was over at {audit.stopped_at}")
    return done


def compare(module: AnsibleModule, run: node_record.Run, content: str) -> None:
    """Say what differs, and end."""
    if not content:
        absent = {"topic": "record", "name": node_record.PATH, "was": "", "now": "absent"}
        module.fail_json(msg="this node has no record: a whole converge writes it", differences=[absent])
    try:
        watch, before = node_record.read(content)
    except (ValueError, KeyError) as error:
        strange = {"topic": "record", "name": node_record.PATH, "was": "", "now": f"unreadable: {error}"}
        module.fail_json(
            msg=f"{node_record.PATH}: {error}: a whole converge writes it anew", differences=[strange]
        )
    found = node_record.differences(before, node_record.look(watch, run))
    if found:
        names = ", ".join(difference.name for difference in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        module.fail_json(
            msg=f"not as the last converge left it: {names}{more}",
            differences=[difference._asdict() for difference in found],
        )
    module.exit_json(changed=False, differences=[])


if __name__ == "__main__":
    main()
