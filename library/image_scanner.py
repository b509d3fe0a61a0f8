#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the scanner of images on a node, its settings and its timer."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_scanner
short_description: Judge all images of a node from time to time, by a timer of systemd
description:
  - Installs the scanner, its settings and its units, and starts its timer. The scanner is the code that
    M(image_policy_check) runs, in one file; it needs Python and nothing else of this project.
  - The scanner runs at low priority, may read everything and write its own files alone, and has no network.
  - Each run writes C(results), one line of JSON for each image, and C(metrics) for the textfile collector of
    Prometheus' node exporter. Images that are refused are no failure of the service.
options:
  state:
    description: Whether the node has a scanner.
    type: str
    choices: [present, absent]
    default: present
  paths:
    description: As of M(image_policy_check).
    type: list
    elements: path
  patterns:
    description: Names of images in folders.
    type: list
    elements: str
    default: ['*.sif']
  policy:
    description: The policy, as C(docs/images.md) describes it.
    type: dict
  lock:
    description: The content of C(images.lock).
    type: dict
  keyrings:
    description: As of M(image_policy_check). They have to be there when the scanner runs.
    type: list
    elements: path
    default: []
  cache:
    description: As of M(image_policy_check).
    type: path
    default: /var/cache/apptainer-fleet/images.sqlite
  results:
    description: The file for verdicts.
    type: path
    default: /var/lib/apptainer-fleet/image-scan.jsonl
  metrics:
    description: The file for Prometheus.
    type: path
    default: /var/lib/apptainer-fleet/image-scan.prom
  quarantine:
    description: >-
      Folders of stores. Images directly in one of them that the policy refuses are put into its quarantine,
      as M(image_publish) does.
    type: list
    elements: path
    default: []
  quarantine_limit:
    description: >-
      If the policy refuses more images of a store than this, all of them are left where they are: so many
      are rather a mistake in the policy.
    type: int
    default: 3
  scan:
    description: >-
      Whether it also runs now, which is waited for. What it puts into quarantine is a change.
    type: bool
    default: false
  calendar:
    description: When it runs, as systemd.time(7) describes calendar events.
    type: str
    default: daily
  splay:
    description: Seconds within which each node has its own moment, the same every time.
    type: int
    default: 3600
  deadline:
    description: Seconds after which a scan is ended.
    type: int
    default: 21600
  memory_mib:
    description: The most memory that it may use.
    type: int
    default: 2048
  jobs:
    description: How many images are read at a time.
    type: int
    default: 1
attributes:
  check_mode:
    support: full
    description: >-
      Nothing is written or started. With O(scan) images are judged all the same, to say which would go into
      quarantine.
  diff_mode:
    support: full
    description: Of the program, shows its SHA-256.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Judge the images of users every night, and report
  image_scanner:
    paths: ['/scratch/*/images']
    policy: "{{ lookup('ansible.builtin.file', 'image_policy.yml') | from_yaml }}"
    lock: "{{ lookup('ansible.builtin.file', 'images.lock') | from_yaml }}"
    keyrings: [/etc/apptainer/global-pgp-public]
    calendar: '*-*-* 02:00'
    metrics: /var/lib/prometheus/node-exporter/images.prom
"""

RETURN = r"""
paths:
  description: The files that were written or removed, or would be.
  returned: success
  type: list
  elements: str
quarantined:
  description: The images that the scan put into quarantine, or would.
  returned: with O(scan)
  type: list
  elements: str
"""

import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, List

from ansible.module_utils import (
    atomic_file,
    image_cache,
    image_lock,
    image_parameters,
    image_policy,
    image_scan,
    image_scan_units,
    image_store,
    program_bundle,
)
from ansible.module_utils.basic import AnsibleModule

PROGRAM = "/usr/lib/apptainer-fleet/image-scan.pyz"
SETTINGS = "/etc/apptainer-fleet/image-scan.json"
UNITS = "/etc/systemd/system"
SERVICE = "apptainer-fleet-image-scan.service"
TIMER = "apptainer-fleet-image-scan.timer"


def settings(params: Dict[str, Any]) -> Dict[str, Any]:
    """Return the scanner's settings, which it will be able to read. Raises ScanError and what is wrong."""
    taken = ("paths", "patterns", "policy", "lock", "keyrings", "cache", "results", "metrics", "jobs")
    result = {key: params[key] for key in taken}
    if params["quarantine"]:
        result["quarantine"] = {"stores": params["quarantine"], "limit": params["quarantine_limit"]}
    image_scan.read(result)
    image_lock.read(params["lock"])
    image_policy.read(params["policy"], datetime.date.today())
    return result


def files(params: Dict[str, Any]) -> Dict[str, bytes]:
    """Return what the node has to have: path → content."""
    wanted = json.dumps(settings(params), indent=1, sort_keys=True) + "\n"
    service = image_scan_units.service(PROGRAM, SETTINGS, params)
    return {
        PROGRAM: program_bundle.bundle("image_scan"),
        SETTINGS: wanted.encode(),
        f"{UNITS}/{SERVICE}": service.encode(),
        f"{UNITS}/{TIMER}": image_scan_units.timer(params["calendar"], params["splay"]).encode(),
    }


class Run:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.paths: List[str] = []
        self.diff: List[Dict[str, str]] = []

    def put(self, path: str, content: bytes) -> None:
        """Write a file if it is another one."""
        before = atomic_file.read(path)
        if before == content and Path(path).stat().st_mode & 0o7777 == 0o644:  # noqa: PLR2004
            return
        self._differ(path, before, content)
        if not self.module.check_mode:
            Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            atomic_file.replace(path, content, owner=OWNER)

    def remove(self, path: str) -> None:
        """Remove a file if it is there."""
        before = atomic_file.read(path)
        if before is not None:
            self._differ(path, before, None)
            if not self.module.check_mode:
                Path(path).unlink()

    def systemctl(self, *arguments: str) -> None:
        """Run systemctl. Fails the module if that does."""
        code, out, err = self.module.run_command(["systemctl", *arguments])
        if code:
            self.module.fail_json(msg=f"systemctl {' '.join(arguments)}: {(err or out).strip()}")

    def is_on(self) -> bool:
        """Whether the timer is enabled and running."""
        return not any(
            self.module.run_command(["systemctl", "--quiet", verb, TIMER])[0]
            for verb in ("is-enabled", "is-active")
        )

    def result(self, changed: bool) -> Dict[str, Any]:
        return {"changed": changed or bool(self.paths), "paths": self.paths, "diff": self.diff}

    def _differ(self, path: str, before: Any, after: Any) -> None:
        def shown(content: Any) -> str:
            if content is None:
                return ""
            if path == PROGRAM:
                return f"sha256 {hashlib.sha256(content).hexdigest()}\n"
            return str(content.decode("utf-8", "replace"))

        self.paths.append(path)
        self.diff.append(
            {"before_header": path, "after_header": path, "before": shown(before), "after": shown(after)}
        )


#: Who owns the files.
OWNER = (0, 0)


def present(run: Run) -> Dict[str, Any]:
    """Have a scanner."""
    params = run.module.params
    for path, content in files(params).items():
        run.put(path, content)
    if not run.module.check_mode:
        # Else there would be nothing that the service may write to.
        for name, mode in (("results", 0o755), ("metrics", 0o755), ("cache", 0o700)):
            if params[name] and not Path(params[name]).parent.is_dir():
                Path(params[name]).parent.mkdir(parents=True)
                Path(params[name]).parent.chmod(mode)
    on = run.is_on()
    if not run.module.check_mode and (run.paths or not on):
        run.systemctl("daemon-reload")
        run.systemctl("enable", TIMER)
        # A timer that runs goes by its old calendar until then.
        run.systemctl("restart", TIMER)
    if not params["scan"]:
        return run.result(not on)
    quarantined = foreseen(run) if run.module.check_mode else scanned(run)
    if quarantined:
        shown = "".join(f"{path}\n" for path in quarantined)
        header = {"before_header": "images that are refused", "after_header": "in quarantine"}
        run.diff.append({**header, "before": shown, "after": ""})
    return {**run.result(not on or bool(quarantined)), "quarantined": quarantined}


def scanned(run: Run) -> List[str]:
    """Let the service scan, within its bounds; return what it has put into quarantine."""
    params = run.module.params
    code, out, err = run.module.run_command(["systemctl", "start", SERVICE])
    if code:
        journal = ["journalctl", f"--unit={SERVICE}", "--lines=20", "--output=cat", "--quiet"]
        said = [line for line in run.module.run_command(journal)[1].splitlines() if "image scan: " in line]
        why = said[-1].partition("image scan: ")[2] if said else (err or out).strip()
        run.module.fail_json(msg=f"the images could not be judged: {why}")
    with open(params["results"], encoding="utf-8") as file:  # noqa: PTH123 - Python 3.8
        verdicts = [json.loads(line) for line in file]
    gone = [verdict["path"] for verdict in verdicts if verdict["quarantined"]]
    stores = [os.path.realpath(store) for store in params["quarantine"]]
    left = [
        verdict["path"]
        for verdict in verdicts
        if verdict["severity"] == "error"
        and not verdict["quarantined"]
        and os.path.realpath(os.path.dirname(verdict["path"])) in stores  # noqa: PTH120
    ]
    if left:
        run.module.warn(too_many(len(left), params["quarantine_limit"]))
    return gone


def foreseen(run: Run) -> List[str]:
    """Judge the images, with a copy of what the scanner remembers; return what would be taken away."""
    if atomic_file.read(SETTINGS) is None:
        # A node that has had no converge: there are neither keys nor stores yet.
        return []
    wanted = image_scan.read(settings(run.module.params))
    copy = str(Path(run.module.tmpdir, "images.sqlite"))
    image_cache.copy(run.module.params["cache"], copy)
    judged = {**wanted.judged, "cache": copy}
    with image_parameters.checker(judged, jobs=wanted.jobs, patterns=wanted.patterns) as checker:
        chosen, held = image_scan.to_take_away(wanted.quarantine, list(checker.check(wanted.paths)))
    if held:
        run.module.warn(too_many(held, run.module.params["quarantine_limit"]))
    return [verdict.path for _, verdict in chosen]


def too_many(count: int, limit: int) -> str:
    return (
        f"{count} images of stores are refused and left where they are, as more than {limit} at once"
        " (image_policy_quarantine_limit) are rather a mistake in the policy"
    )


def absent(run: Run) -> Dict[str, Any]:
    """Have none."""
    there = atomic_file.read(f"{UNITS}/{TIMER}") is not None
    if there and not run.module.check_mode:
        run.systemctl("disable", "--now", TIMER)
    for path in (f"{UNITS}/{TIMER}", f"{UNITS}/{SERVICE}", SETTINGS, PROGRAM):
        run.remove(path)
    if run.paths and not run.module.check_mode:
        run.systemctl("daemon-reload")
    return run.result(False)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "paths": {"type": "list", "elements": "path"},
            "patterns": {"type": "list", "elements": "str", "default": ["*.sif"]},
            "policy": {"type": "dict"},
            "lock": {"type": "dict"},
            "keyrings": {"type": "list", "elements": "path", "default": [], "no_log": False},
            "cache": {"type": "path", "default": "/var/cache/apptainer-fleet/images.sqlite"},
            "results": {"type": "path", "default": "/var/lib/apptainer-fleet/image-scan.jsonl"},
            "metrics": {"type": "path", "default": "/var/lib/apptainer-fleet/image-scan.prom"},
            "quarantine": {"type": "list", "elements": "path", "default": []},
            "quarantine_limit": {"type": "int", "default": 3},
            "scan": {"type": "bool", "default": False},
            "calendar": {"type": "str", "default": "daily"},
            "splay": {"type": "int", "default": 3600},
            "deadline": {"type": "int", "default": 21600},
            "memory_mib": {"type": "int", "default": 2048},
            "jobs": {"type": "int", "default": 1},
        },
        required_if=[("state", "present", ("paths", "policy", "lock"))],
        supports_check_mode=True,
    )
    run = Run(module)
    try:
        module.exit_json(**(present if module.params["state"] == "present" else absent)(run))
    except (image_policy.PolicyError, image_lock.LockError) as error:
        name = "policy" if isinstance(error, image_policy.PolicyError) else "lock"
        module.fail_json(msg="\n".join(f"{name}: {problem}" for problem in error.problems))
    except (
        image_parameters.ParameterError,
        image_scan.ScanError,
        image_scan_units.UnitError,
        image_store.StoreError,
    ) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
