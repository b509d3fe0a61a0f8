#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: file systems of the network, mounted by units of systemd."""

from __future__ import annotations

DOCUMENTATION = r"""
module: file_systems
short_description: Mount file systems of the network by units of systemd, and never under a job
description:
  - Writes a mount unit for each file system, and an automount unit unless that is switched off, and has them
    started now and at every boot. Units that it has written for the same O(owner) and that are not wanted any
    more are removed. C(docs/file-systems.md) is the how-to.
  - What is mounted is never unmounted, or mounted otherwise, unless O(change=unmount). That is refused as
    long as a process uses the file system; nothing is killed and nothing is unmounted lazily.
  - Looks into no file system but those that it has just begun to mount, and waits for none beyond its
    timeout.
options:
  owner:
    description: The role that mounts. It decides what a source is, and whose units these are.
    type: str
    choices: [lustre, nfs_mounts, other_mounts]
    required: true
  file_systems:
    description: As the variable of that role has them, with path, source, type, options, automount, idle,
      timeout, bind and requires.
    type: list
    elements: dict
    default: []
  change:
    description: What to do where a mounted file system is to be mounted otherwise, or not at all.
      V(refuse) fails before anything is touched. V(unmount) is for drained nodes.
    type: str
    choices: [refuse, unmount]
    default: refuse
attributes:
  check_mode:
    support: full
    description: Predicts units, and what would be mounted. What would be refused is refused.
  diff_mode:
    support: full
    description: Of each unit.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Mount the scratch file system once somebody looks
  file_systems:
    owner: lustre
    file_systems:
      - path: /lustre/scratch
        source: 10.0.0.1@tcp,10.1.0.1@o2ib:10.0.0.2@tcp,10.1.0.2@o2ib:/scratch
        options: [flock]
        bind: true
"""

RETURN = r"""
units:
  description: Units that were written or removed, or would be.
  returned: success
  type: list
  elements: str
  sample: [lustre-scratch.automount, lustre-scratch.mount]
actions:
  description: What was done to systemd, or would be, in this order.
  returned: success
  type: list
  elements: str
  sample: [daemon-reload, enable lustre-scratch.automount, start lustre-scratch.automount]
"""

import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ansible.module_utils import atomic_file, file_systems, mounts, unmounting
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.file_systems import FileSystem, Mounted

OWNER = (0, 0)
MODE = 0o644


class MountError(Exception):
    """What can't be mounted as it is wanted; the message says which, why, and the mend."""


def present_units() -> Dict[str, str]:
    """Return the mount units that the administrator of the node has, name → text."""
    found = {}
    for suffix in ("mount", "automount"):
        for path in Path(file_systems.UNITS).glob(f"*.{suffix}"):
            found[path.name] = (atomic_file.read(str(path)) or b"").decode(errors="replace")
    return found


class Plan:
    """What there is, what is wanted, and what has to go for it."""

    def __init__(self, owner: str, wanted: Sequence[FileSystem]) -> None:
        self.mounted = [one for one in wanted if one.source]
        self.unmanaged = [one for one in wanted if not one.source]
        every = present_units()
        self.present = file_systems.owned(every, owner)
        self.wanted: Dict[str, str] = {}
        for one in self.mounted:
            self.wanted.update(file_systems.units(one, owner))
        self.now = mounts.listed()
        self._refuse_others(every)
        #: path → why what is mounted there can't stay.
        self.disturbed: Dict[str, str] = {}
        for one in self.mounted:
            why = self._why(one)
            if why:
                self.disturbed[one.path] = why
        paths = {one.path for one in self.mounted}
        for name in self.present:
            path = file_systems.unescape(name.rpartition(".")[0])
            if path not in paths and self.at(path).mount:
                self.disturbed[path] = "it is not wanted any more"

    def at(self, path: str) -> Mounted:
        return file_systems.mounted(path, self.now)

    @property
    def stale(self) -> List[str]:
        return sorted(set(self.present) - set(self.wanted))

    def _refuse_others(self, every: Mapping[str, str]) -> None:
        others = sorted(name for name in self.wanted if name in every and name not in self.present)
        if others:
            raise MountError(
                f"{file_systems.UNITS}/{others[0]} is a unit of the site or of another role; remove it, or"
                f" leave {file_systems.unescape(others[0].rpartition('.')[0])} to it"
            )
        fstab = (atomic_file.read(file_systems.FSTAB) or b"").decode(errors="replace")
        twice = file_systems.in_fstab(fstab, [one.path for one in self.mounted])
        if twice:
            raise MountError(
                f"{file_systems.FSTAB} mounts {', '.join(twice)}, too: remove the line there; what is mounted"
                " stays, if it is the same"
            )

    def _why(self, one: FileSystem) -> str:
        """Return why what is mounted at a path is not what is wanted there, empty if it is, or nothing is."""
        there = self.at(one.path)
        if there.mount is None:
            return ""
        different = file_systems.same_mount(one, there.mount)
        name = file_systems.escape(one.path)
        before, after = self.present.get(f"{name}.mount"), self.wanted[f"{name}.mount"]
        if not different and before:
            old, new = (file_systems.section(text, "Mount") for text in (before, after))
            different = "its options are others" if _what(old) != _what(new) else ""
        if not different and there.watched:
            old, new = (texts.get(f"{name}.automount") for texts in (self.present, self.wanted))
            if file_systems.section(old, "Automount") != file_systems.section(new, "Automount"):
                different = "its automount is to be another"
        return different


def _what(section: str) -> List[str]:
    # A deadline is for the next time.
    return [line for line in section.splitlines() if not line.startswith("TimeoutSec=")]


class Run:
    """One call of the module."""

    def __init__(self, module: AnsibleModule, plan: Plan) -> None:
        self.module, self.plan = module, plan
        self.units: List[str] = []
        self.actions: List[str] = []
        self.diff: List[Dict[str, str]] = []

    def systemctl(self, *words: str, seconds: float = 90) -> str:
        """Run systemctl, or say that it would be; return what went wrong."""
        self.actions.append(" ".join(words))
        return "" if self.module.check_mode else unmounting.systemctl(words, seconds)

    def asked(self, verb: str, unit: str) -> bool:
        return self.module.run_command(["systemctl", "--quiet", verb, unit])[0] == 0

    def put(self, name: str, text: Optional[str]) -> None:
        """Write a unit, or remove it."""
        path = f"{file_systems.UNITS}/{name}"
        before = self.plan.present.get(name)
        if before == text and (text is None or Path(path).stat().st_mode & 0o7777 == MODE):
            return
        self.units.append(name)
        self.diff.append(
            {"before_header": path, "after_header": path, "before": before or "", "after": text or ""}
        )
        if self.module.check_mode:
            return
        if text is None:
            Path(path).unlink()
        else:
            atomic_file.replace(path, text.encode(), MODE, OWNER)

    def release(self) -> None:
        """Unmount what can't stay. Raises MountError; what could not be unmounted is mounted then."""
        refused = [f"{path}: {why}" for path, why in self.plan.disturbed.items()]
        if refused and self.module.params["change"] == "refuse":
            raise MountError(
                f"{'; '.join(refused)}. Nothing was touched: what is mounted is changed on drained nodes"
                " alone, by playbooks/change_file_systems.yml"
            )
        for path in self.plan.disturbed:
            self.actions.append(f"unmount {path}")
            check = self.module.check_mode
            problem = unmounting.in_use(path) if check else unmounting.unmount(path)
            if problem:
                raise MountError(problem)

    def stop_automounts(self) -> None:
        """Stop automounts that are to be others, or none; nothing is mounted on them."""
        for name, text in self.plan.present.items():
            if not name.endswith(".automount"):
                continue
            path = file_systems.unescape(name.rpartition(".")[0])
            same = file_systems.section(text, "Automount") == file_systems.section(
                self.plan.wanted.get(name), "Automount"
            )
            if self.plan.at(path).watched and not same and path not in self.plan.disturbed:
                self.systemctl("stop", name)

    def disable_stale(self) -> None:
        for name in self.plan.stale:
            if self.asked("is-enabled", name):
                self.systemctl("disable", name)

    def start(self) -> List[str]:
        """Have everything enabled and started; return what went wrong."""
        problems, begun = [], []
        for one in self.plan.mounted:
            name = file_systems.escape(one.path)
            unit = f"{name}.{'automount' if one.automount else 'mount'}"
            if not self.asked("is-enabled", unit):
                self.systemctl("enable", unit)
            there = self.plan.at(one.path)
            gone = one.path in self.plan.disturbed
            # An automount can't begin below what is mounted: it does at the next boot.
            up = (
                (there.watched and not gone and not self._stopped(f"{name}.automount"))
                if one.automount
                else False
            )
            if up or (there.mount and not gone):
                continue
            problem = self.systemctl("start", unit, seconds=one.timeout + 30)
            if problem:
                problems.append(f"{one.path}: {problem}")
            else:
                begun.append(one)
        if not self.module.check_mode:
            for one in begun:
                answer = mounts.probe([one.path], one.timeout + 5)[one.path]
                problems += (
                    [f"{answer} (journalctl -u {file_systems.escape(one.path)}.mount)"] if answer else []
                )
        return problems

    def _stopped(self, automount: str) -> bool:
        return f"stop {automount}" in self.actions

    def make_folders(self) -> None:
        """Have the mount points, so that what is above them can be bound; nothing mounted is looked at."""
        known = {mount.path for mount in self.plan.now}
        for path in [one.path for one in self.plan.mounted] + [
            os.path.dirname(one.path)  # noqa: PTH120
            for one in self.plan.unmanaged
            if one.bind
        ]:
            if path not in known and not Path(path).is_dir():
                self.actions.append(f"mkdir {path}")
                if not self.module.check_mode:
                    Path(path).mkdir(mode=0o755, parents=True)


def run(module: AnsibleModule) -> Dict[str, Any]:
    """Bring the node to what is wanted. Raises MountError, OSError, and ValueError for wrong entries."""
    wanted = file_systems.read(module.params["file_systems"], module.params["owner"])
    plan = Plan(module.params["owner"], wanted)
    this = Run(module, plan)
    this.release()
    this.stop_automounts()
    this.disable_stale()
    for name in plan.stale:
        this.put(name, None)
    for name, text in plan.wanted.items():
        this.put(name, text)
    this.make_folders()
    if this.units:
        this.systemctl("daemon-reload")
    problems = this.start()
    result = {"changed": bool(this.units or this.actions), "units": this.units, "actions": this.actions}
    if problems:
        module.fail_json(msg="; ".join(problems), diff=this.diff, **result)
    return {**result, "diff": this.diff}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "owner": {"type": "str", "choices": list(file_systems.OWNERS), "required": True},
            "file_systems": {"type": "list", "elements": "dict", "default": []},
            "change": {"type": "str", "choices": ["refuse", "unmount"], "default": "refuse"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except MountError as error:
        module.fail_json(msg=str(error))
    except ValueError as error:
        module.fail_json(msg=f"file_systems{error}".replace("\n", "; "))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
