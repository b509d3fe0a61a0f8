#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a daemon of Slurm, or its database, running with the files that it is given."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_daemon
short_description: Keep a Slurm daemon running with the given configuration files
description:
  - Writes the files atomically, keeps the daemon enabled and running, and makes it use
    them. A file that it was given before and is not given any more is removed; where there was one before the
    first of these, such as the C(plugstack.conf) of a package, that one is put back.
  - What the daemon last ran with is recorded in C(/var/lib/apptainer-fleet). Files that were written but
    never used, because a run was interrupted for example, are applied by the next run.
  - slurmctld is reconfigured, which leaves it running, and hands the files on to every slurmd. It is
    restarted before that if parameters differ that a reconfiguration can't change (scontrol(1),
    C(reconfigure)), or if it does not answer where the new files say that it is.
  - A slurmctld that has run without slurmdbd, and is to have one, is restarted without the number of its
    cluster, as slurmdbd gives it another; since 24.11 it ends otherwise (CLUSTER ID MISMATCH). Jobs stay.
  - Any other is restarted; jobs run on.
  - If slurmctld can't use the files, those that it ran with are put back, so that it survives a reboot.
options:
  name:
    description: The daemon, which is its systemd unit too.
    type: str
    choices: [slurmctld, slurmd, slurmdbd, sackd, mariadb]
    required: true
  files:
    description: All files that the daemon is to be given. Their folders exist.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where it is. A C(slurm.conf) is read by C(scontrol) before it gets there.
        type: path
        required: true
      content:
        description: What is in it.
        type: str
        required: true
      mode:
        description:
          - The mode; that of a script is C('0755').
          - What is in a file with C('0600') is secret. It stands in no diff, and only its digest is recorded.
        type: str
        choices: ['0600', '0644', '0755']
        default: '0644'
      owner:
        description: The user and group that it belongs to.
        type: str
        default: root
  absent:
    description: Files that the daemon, or Slurm's commands, would prefer to those; they are removed.
    type: list
    elements: path
    default: []
  standby:
    description:
      - Whether this slurmctld is a backup, which waits for the first one to fail.
      - It is restarted and not reconfigured, as C(scontrol) speaks to the first one.
    type: bool
    default: false
  port:
    description: Where the daemon has to listen before the task ends, in up to O(wait) seconds after a start.
    type: int
  wait:
    description:
      - Seconds to wait for O(port). slurmdbd may convert its tables for hours after an upgrade.
      - Also for a slurmctld that reconfigures itself longer than C(scontrol) waits for.
    type: int
    default: 300
  start:
    description:
      - Whether a daemon that doesn't run is started.
      - If not, its unit is enabled all the same, and something else starts it. A daemon that runs is
        restarted or reconfigured as ever.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Works on a node without Slurm.
  diff_mode:
    support: full
    description: Of each file.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Run slurmctld with its configuration
  slurm_daemon:
    name: slurmctld
    files:
      - path: /etc/slurm/slurm.conf
        content: "{{ slurm_conf }}"
"""

RETURN = r"""
actions:
  description: What was done to the daemon, or would be, in this order.
  returned: success
  type: list
  elements: str
  sample: [restart, reconfigure]
"""

import hashlib
import json
import os
import pwd
import socket
import time
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ansible.module_utils import atomic_file, slurm_conf
from ansible.module_utils.basic import AnsibleModule

RECORDS = "/var/lib/apptainer-fleet"
OWNER = (0, 0)
CONFIDENTIAL = "0600"

Files = Dict[str, Optional[str]]


class DaemonError(Exception):
    """The daemon can't be had as it is wanted; the message says why."""


class Access(NamedTuple):
    """Who may read a file: its mode, and uid and gid; None for a user that check mode finds missing."""

    mode: int
    owner: Optional[Tuple[int, int]]


class Daemon:
    """The systemd unit, and the record of the files that it last ran with."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.name: str = module.params["name"]
        self.record = Path(RECORDS) / f"{self.name}.json"
        self.before = Path(RECORDS) / f"{self.name}.before.json"

    def succeeds(self, *argv: str) -> bool:
        return self.module.run_command(list(argv))[0] == 0

    @property
    def running(self) -> bool:
        return self.succeeds("systemctl", "--quiet", "is-active", self.name)

    @property
    def starting(self) -> bool:
        """Whether it has begun to start, and is not ready, as sackd that knows of no controller."""
        return "activating" in self.module.run_command(["systemctl", "is-active", self.name])[1]

    @property
    def enabled(self) -> bool:
        return self.succeeds("systemctl", "--quiet", "is-enabled", self.name)

    def recorded(self) -> Files:
        """Return path → content of what the daemon last ran with; empty if that is not known."""
        return _load(self.record)

    def replaced(self, new: Sequence[str]) -> Files:
        """Return path → content of what was there before this module's first file, None for nothing.

        Of the *new* paths it is what is there now, unless an interrupted run has seen it before.
        """
        return {**{path: read(path) for path in new}, **_load(self.before)}

    def save(self, files: Files, record: Optional[Path] = None) -> None:
        record = record or self.record
        if files != _load(record):
            record.parent.mkdir(mode=0o755, exist_ok=True)
            atomic_file.replace(str(record), json.dumps(files).encode(), 0o600, OWNER)

    def await_port(self, port: int, seconds: int) -> None:
        """Return once something listens on *port*.

        Raises DaemonError if the daemon ends, is too slow, or goes on asking a database that refuses it.
        """
        since, deadline = int(time.time()), time.monotonic() + seconds
        while True:
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    return
            said = self.said(since)
            if refused := [line for line in said if "Access denied" in line]:
                raise DaemonError(f"{self.name} is not let into its database: {refused[-1]}")
            if not self.running:
                raise DaemonError(f"{self.name} ended: see `journalctl --unit {self.name}`")
            if time.monotonic() > deadline:
                slow = f"{self.name} does not listen on port {port} after {seconds} s"
                raise DaemonError("; ".join([slow, *said[-1:]]))
            time.sleep(0.5)

    def said(self, since: int) -> List[str]:
        """Return the errors that the daemon has written since then, in seconds since 1970."""
        journal = ["journalctl", "--quiet", "--output=cat", f"--since=@{since}", f"--unit={self.name}"]
        lines = self.module.run_command(journal)[1].splitlines()
        return [line for line in lines if "error:" in line or "fatal:" in line]

    def act(self, action: str) -> None:
        """Reconfigure, start or restart. Raises DaemonError with what the daemon says of it."""
        argv = ["scontrol", action] if action == "reconfigure" else ["systemctl", action, self.name]
        since = int(time.time())
        code, output, errors = self.module.run_command(argv)
        # With many nodes, or on a busy machine, slurmctld takes longer than commands wait (MessageTimeout). A
        # second reconfiguration does what the first one did, and says how that ended.
        while code and "timed out" in output + errors and time.time() < since + self.module.params["wait"]:
            time.sleep(1)
            code, output, errors = self.module.run_command(argv)
        # A start is no error for systemctl if a condition of the unit is not met.
        if code == 0 and (action == "reconfigure" or self.running):
            return
        raise DaemonError(
            "; ".join([f"{' '.join(argv)} fails", *(output + errors).splitlines(), *self.said(since)])
        )


def _load(record: Path) -> Files:
    try:
        return dict(json.loads(atomic_file.read(str(record)) or b"{}"))
    except (ValueError, TypeError):
        return {}


def read(path: str) -> Optional[str]:
    """Return the text of the file *path*, or None if there is none."""
    content = atomic_file.read(path)
    return None if content is None else content.decode(errors="replace")


def access_of(path: str) -> Access:
    """Return how *path* may be read, to be put back so; that of a new file if there is none."""
    if not Path(path).exists():
        return Access(0o644, OWNER)
    status = Path(path).stat()
    return Access(status.st_mode & 0o7777, (status.st_uid, status.st_gid))


def owner_of(name: str, check_mode: bool) -> Optional[Tuple[int, int]]:
    """Return uid and gid of the user *name*. Raises DaemonError if there is none, which check mode bears."""
    if name == "root":
        return OWNER
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        if check_mode:
            return None
        raise DaemonError(f"there is no user {name}: install the package of the daemon first") from None
    return user.pw_uid, user.pw_gid


def digest(content: str) -> str:
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def put(files: Files, access: Mapping[str, Access]) -> None:
    """Write *files*, in their order; None stands for no file."""
    for path, content in files.items():
        if content is not None:
            atomic_file.replace(path, content.encode(), access[path].mode, access[path].owner)
        elif os.path.lexists(path):
            Path(path).unlink()


def is_slurm_conf(path: str) -> bool:
    return Path(path).name == "slurm.conf"


def check_slurm_conf(module: AnsibleModule, files: Files) -> None:
    """Raise DaemonError unless scontrol can read slurm.conf; Slurm has no check of its own for the rest."""
    if not module.get_bin_path("scontrol"):
        return
    for path, content in files.items():
        if is_slurm_conf(path) and content is not None:
            candidate = Path(module.tmpdir) / "slurm.conf"
            candidate.write_text(content)
            code, output, errors = module.run_command(
                ["scontrol", "show", "hostnames", "check"], environ_update={"SLURM_CONF": str(candidate)}
            )
            if code:
                raise DaemonError(f"scontrol can't read the new {path}: {(output + errors).strip()}")


def port_or_authentication_differ(before: Files, after: Files) -> bool:
    return any(
        slurm_conf.fixed_settings(before.get(path) or "") != slurm_conf.fixed_settings(content or "")
        for path, content in after.items()
        if is_slurm_conf(path)
    )


def run(module: AnsibleModule) -> dict:
    daemon = Daemon(module)
    files = module.params["files"]
    given: Files = {file["path"]: file["content"] for file in files}
    secrets = {file["path"] for file in files if file["mode"] == CONFIDENTIAL}
    access = {
        file["path"]: Access(int(file["mode"], 8), owner_of(file["owner"], module.check_mode))
        for file in files
    }
    recorded = daemon.recorded()
    to_record = {
        path: digest(content or "") if path in secrets else content for path, content in given.items()
    }
    replaced = daemon.replaced([path for path in given if path not in recorded and path not in secrets])
    # A file that is not wanted any more goes last, when none of the others names it.
    gone = [path for path in [*module.params["absent"], *recorded] if path not in given]
    wanted: Files = {**given, **{path: replaced.get(path) for path in gone}}
    present: Files = {path: read(path) for path in wanted}
    access.update({path: access_of(path) for path in wanted if path not in access})
    # What it runs with, as far as that is known: a file that is present may never have been read.
    used: Files = {path: recorded.get(path, present[path]) for path in wanted}

    different = [
        path
        for path in wanted
        if present[path] != wanted[path] or (path in given and access_of(path) != access[path])
    ]
    pending = bool(different) or recorded != to_record
    running, enabled = daemon.running, daemon.enabled
    if different:
        check_slurm_conf(module, wanted)

    actions: List[str] = []
    reconfigures = daemon.name == "slurmctld" and not module.params["standby"]
    start = not running and module.params["start"]
    if start:
        # A start would join the one that has begun, with the files of before.
        actions.append("restart" if pending and daemon.starting else "start")
    elif running and pending and (not reconfigures or port_or_authentication_differ(used, wanted)):
        actions.append("restart")
    if reconfigures and (running or start) and accounting_begins(used, wanted):
        actions = ["identify"]
    if pending and reconfigures and (running or start):
        actions.append("reconfigure")

    header = {"before_header": daemon.name, "after_header": daemon.name}
    if pending and not different:
        diff = [{**header, "before": "not known to use its files\n", "after": "uses its files\n"}]
    else:
        diff = [
            {**dict.fromkeys(header, path), **change(present[path], wanted[path], path in secrets)}
            for path in different
        ]
    if not module.check_mode:
        # First: a run that is interrupted would take its own files for those of somebody else.
        daemon.save(replaced, daemon.before)
        put({path: wanted[path] for path in different}, access)
        actions = apply(daemon, actions, used, wanted, access)
        if module.params["port"] and daemon.running:
            daemon.await_port(module.params["port"], module.params["wait"])
        if not enabled:
            module.run_command(["systemctl", "enable", daemon.name], check_rc=True)
        if recorded != to_record:
            daemon.save({path: content for path, content in replaced.items() if path in given}, daemon.before)
            daemon.save(to_record)
    return {"changed": pending or start or not enabled, "actions": actions, "diff": diff}


def accounting_begins(before: Files, after: Files) -> bool:
    """Whether a cluster that has run without slurmdbd is to have one."""

    def asked(files: Files) -> List[bool]:
        texts = [content for path, content in files.items() if is_slurm_conf(path) and content]
        return [bool(slurm_conf.settings(text, ["accountingstoragehost"])) for text in texts]

    return asked(before) == [False] and asked(after) == [True]


def identity(files: Files) -> Optional[Path]:
    """Return the file in which slurmctld keeps the number of its cluster, if the files say where it is."""
    for path, content in files.items():
        if is_slurm_conf(path):
            folder = slurm_conf.settings(content or "", ["statesavelocation"]).get("statesavelocation")
            return Path(folder) / "clustername" if folder else None
    return None


def change(before: Optional[str], after: Optional[str], secret: bool) -> Dict[str, str]:
    """Return the difference of a file as Ansible shows it; of one that is secret, only that it differs."""
    if not secret:
        return {"before": before or "", "after": after or ""}
    return {"before": "other content, owner or mode\n" if before else "", "after": "secret, and as wanted\n"}


def apply(
    daemon: Daemon, actions: List[str], used: Files, wanted: Files, access: Mapping[str, Access]
) -> List[str]:
    """Do *actions* and return what was done. If slurmctld can't, it goes on with the files *used*, as before.

    Raises DaemonError.
    """
    # It may listen elsewhere, if the file was changed without it.
    if actions == ["reconfigure"] and not daemon.succeeds("scontrol", "ping"):
        actions = ["restart", *actions]
    number = identity(wanted) if "identify" in actions else None
    aside = number.with_name("clustername.before") if number else None
    try:
        for action in actions:
            if action == "identify":
                daemon.succeeds("systemctl", "stop", daemon.name)
                if number and aside and number.exists():
                    number.rename(aside)
                daemon.act("start")
            else:
                daemon.act(action)
    except DaemonError as error:
        if daemon.name != "slurmctld" or used == wanted:
            raise
        put(used, access)
        if number and aside and aside.exists():
            daemon.succeeds("systemctl", "stop", daemon.name)
            aside.rename(number)
        # After a reconfiguration that failed, it has never stopped.
        had_one = any(content is not None for path, content in used.items() if is_slurm_conf(path))
        if had_one and (actions != ["reconfigure"] or not daemon.running):
            daemon.succeeds("systemctl", "restart", daemon.name)
        raise DaemonError(f"{error}. Files are as they were when it last ran; mend the variables") from error
    return actions


def main() -> None:
    file = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
        "mode": {"type": "str", "choices": [CONFIDENTIAL, "0644", "0755"], "default": "0644"},
        "owner": {"type": "str", "default": "root"},
    }
    module = AnsibleModule(
        argument_spec={
            "name": {
                "type": "str",
                "choices": ["slurmctld", "slurmd", "slurmdbd", "sackd", "mariadb"],
                "required": True,
            },
            "files": {"type": "list", "elements": "dict", "required": True, "options": file},
            "absent": {"type": "list", "elements": "path", "default": []},
            "start": {"type": "bool", "default": True},
            "standby": {"type": "bool", "default": False},
            "port": {"type": "int"},
            "wait": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except DaemonError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
