# SPDX-License-Identifier: Apache-2.0
"""Filter of the role pbs_containers: from its variables to files on nodes of Torque and OpenPBS."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

from module_utils import job_cleanup

PROGRAM = "/usr/lib/apptainer-fleet/job_cleanup"
PROFILE = "/etc/profile.d/apptainer-fleet-pbs.sh"
FOLDER = "/etc/apptainer-fleet/pbs"
HEALTH = "/usr/lib/apptainer-fleet/node-health"
HOOK = "apptainer_fleet"
HOOK_SOURCE = Path(__file__).resolve().parents[2] / "roles/pbs_containers/files/openpbs_hook.py"
EVENTS = "execjob_begin,execjob_launch,execjob_epilogue,execjob_end,exechost_periodic"
#: Script of Torque's mom_priv → what it does. The parallel ones run on the other nodes of a job.
SCRIPTS: Mapping[str, str] = {
    "prologue": "prepare",
    "prologue.parallel": "prepare",
    "epilogue": "clean",
    "epilogue.parallel": "clean",
}

_HEAD = "# Ansible writes this file (apptainer-fleet): what is changed here is lost.\n"


def pbs_containers_files(settings: Mapping[str, Any], *, compute: bool, server: bool) -> list[dict[str, str]]:
    """Return the files of a host for the module managed_files.

    *settings* are the variables of the role without its name. *compute*, *server*: which group the host is
    in. Raises AnsibleFilterError, naming the variable.
    """
    base = settings["base"]
    if not base.startswith("/") or not base.isprintable() or any(c in base for c in "'\"\\ $`"):
        raise AnsibleFilterError(
            f"pbs_containers_base is {base!r}: it must be an absolute path without blanks and quotes"
        )
    if settings["seconds"] < 1:
        raise AnsibleFilterError("pbs_containers_seconds must be at least 1")
    result = []
    if compute:
        text = f"#!/usr/bin/python3 -IS\n{inspect.getsource(job_cleanup)}\nsys.exit(main())\n"
        result.append({"path": PROGRAM, "content": text, "mode": "0755"})
    if compute and settings["flavour"] == "torque":
        result += [
            {
                "path": f"{settings['torque_home']}/mom_priv/{name}",
                "content": _script(action, settings),
                "mode": "0500",
            }
            for name, action in SCRIPTS.items()
        ]
        result.append({"path": PROFILE, "content": _profile(base), "mode": "0644"})
    if server and settings["flavour"] == "openpbs":
        result += _hook_files(settings)
    return result


def _script(action: str, settings: Mapping[str, Any]) -> str:
    """Return a script of mom_priv: its environment is empty, its arguments are the job and the user first."""
    words = ["--base", settings["base"], "--seconds", str(settings["seconds"])]
    return (
        f"#!/bin/sh\n{_HEAD}"
        "# Whatever goes wrong here is no reason to abort a job: the program says it in the system's log.\n"
        'uid=$(/usr/bin/id -u "$2") &&\n'
        f'    /usr/bin/python3 -IS {PROGRAM} {action} --job "$1" --uid "$uid" {shlex.join(words)}\n'
        "exit 0\n"
    )


def _profile(base: str) -> str:
    """Return what a job's shell reads: Torque has no other way to set variables of all jobs."""
    return (
        f"{_HEAD}"
        f'if [ -n "$PBS_JOBID" ] && [ -d "{base}/$PBS_JOBID/tmp" ]; then\n'
        f'    export APPTAINER_TMPDIR="{base}/$PBS_JOBID/tmp"\n'
        f'    export APPTAINER_CACHEDIR="{base}/$PBS_JOBID/cache"\n'
        '    export APPTAINERENV_PBS_JOBID="$PBS_JOBID"\n'
        "fi\n"
    )


def _hook_files(settings: Mapping[str, Any]) -> list[dict[str, str]]:
    configuration = {
        "program": PROGRAM,
        "base": settings["base"],
        "seconds": settings["seconds"],
        "health": [HEALTH] if settings["health_interval"] else [],
    }
    commands = [
        f"create hook {HOOK}",
        f'set hook {HOOK} event = "{EVENTS}"',
        f"set hook {HOOK} alarm = {max(settings['seconds'] + 30, 90)}",
        *([f"set hook {HOOK} freq = {settings['health_interval']}"] if settings["health_interval"] else []),
        f"import hook {HOOK} application/x-python default {FOLDER}/{HOOK}.py",
        f"import hook {HOOK} application/x-config default {FOLDER}/{HOOK}.json",
        f"set hook {HOOK} enabled = True",
    ]
    contents = {
        "py": HOOK_SOURCE.read_text(encoding="utf-8"),
        "json": json.dumps(configuration, indent=1) + "\n",
        "qmgr": "".join(f"{line}\n" for line in commands),
    }
    return [
        {"path": f"{FOLDER}/{HOOK}.{kind}", "content": text, "mode": "0644"}
        for kind, text in contents.items()
    ]


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"pbs_containers_files": pbs_containers_files}
