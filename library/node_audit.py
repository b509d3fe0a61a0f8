#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: everything that an audit wants to know of a node, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_audit
short_description: Say what a node is and what is wrong with it
description:
  - Compares the node with the record of its last converge, with the version and the security profile that
    it should have, with the rules of Apptainer and the security advisories, and looks for setuid programs of
    no package; judges the images of its stores, asks its health checks, and how its last pull ended.
  - Changes nothing on the node, and never fails because of what it finds.
  - Stores on file systems of the network are only named, unless O(shared_stores) has them, so that one node
    judges them for all.
  - "`fleet audit` runs it on all nodes, and makes reports of what it returns."
options:
  apptainer:
    description: What the node should have of Apptainer. Without it, Apptainer is not judged.
    type: dict
    suboptions:
      version:
        description: The version.
        type: str
        required: true
      profile:
        description: The security profile.
        type: str
        choices: [rootless, enforced, compatible]
        required: true
      waivers:
        description: As of M(apptainer_lint).
        type: list
        elements: dict
        default: []
  images:
    description: How images are judged. Without it, none are.
    type: dict
    suboptions:
      paths:
        description: As of M(image_policy_check).
        type: list
        elements: str
        required: true
      patterns:
        description: As of M(image_policy_check).
        type: list
        elements: str
        default: ['*.sif']
      policy:
        description: As of M(image_policy_check).
        type: dict
        required: true
      lock:
        description: As of M(image_policy_check).
        type: dict
        required: true
      keyrings:
        description: As of M(image_policy_check).
        type: list
        elements: str
        default: []
  setuid_allowed:
    description: Setuid programs of no package that are meant to be there.
    type: list
    elements: str
    default: []
  deadline:
    description: Seconds for the search for setuid programs of old installations.
    type: int
    default: 60
  shared_stores:
    description: Judge these stores, by their RV(stores[].id), and nothing else.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Does in check mode what it always does, since it changes nothing.
  diff_mode:
    support: none
    description: There is nothing to show a difference of.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Look at the node
  node_audit:
    apptainer:
      version: 1.4.5
      profile: rootless
"""

RETURN = r"""
findings:
  description: What is wrong.
  returned: success
  type: list
  elements: dict
  contains:
    source:
      description: >-
        What found it - V(drift), V(version), V(profile), V(rule), V(advisory), V(waiver), V(setuid),
        V(image), V(health), V(pull), or V(audit) if it could not be looked at.
      type: str
    rule:
      description: What is broken, by the name that it has there.
      type: str
    severity:
      description: V(error), V(warning) or V(info), whether or not it is waived.
      type: str
    subject:
      description: The directive, package, unit, mount point, image or whatever it is about.
      type: str
    message:
      description: What is wrong.
      type: str
    mend:
      description: What to do about it.
      type: str
    file:
      description: Where; empty if it is about no file.
      type: str
    line:
      description: The line of it, from 1; 0 for the whole file.
      type: int
    evidence:
      description: What was seen.
      type: str
    reference:
      description: Where to read on.
      type: str
    waived:
      description: Until when and for which reason it is waived; empty if it is not.
      type: str
facts:
  description: What the node is, as text by name - versions, profile, user namespaces, health, pull.
  returned: success
  type: dict
stores:
  description: Places with images, shared ones included.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The same on all nodes that share it.
      type: str
    path:
      description: Where it is on this node.
      type: str
    shared:
      description: Whether it is on a file system of the network.
      type: bool
    images:
      description: How many images were judged; missing if none were.
      type: int
    refused:
      description: How many of them the policy refuses.
      type: int
"""

import datetime
import os
import platform
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ansible.module_utils import (
    apptainer_facts,
    apptainer_packages,
    apptainer_rules,
    apptainer_waivers,
    atomic_file,
    image_cache,
    image_parameters,
    mounts,
    node_audit,
    node_distribution,
    node_record,
    setuid_audit,
)
from ansible.module_utils.basic import AnsibleModule

CACHE = "/var/cache/apptainer-fleet/images.sqlite"
#: Seconds that the server of a shared store may take to answer.
PATIENCE = 20


class Audit:
    """One call of the module: what it found so far."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.findings: List[node_audit.Finding] = []
        self.facts: Dict[str, str] = {}
        self.stores: List[Dict[str, Any]] = []

    def run(self, argv: List[str]) -> Tuple[int, str]:
        """Exit status and output of a program; 127 if there is none."""
        if self.module.get_bin_path(argv[0]) is None:
            return 127, ""
        environment = apptainer_packages.ENVIRONMENT
        ended = self.module.run_command(argv, environ_update=environment, expand_user_and_vars=False)
        return ended[0], ended[1]

    def system(self) -> None:
        """What runs here."""
        fields = node_distribution.read(apptainer_packages.read_text(node_distribution.OS_RELEASE) or "")
        self.facts["os"] = f"{fields.get('ID', 'unknown')} {fields.get('VERSION_ID', '')}".strip()
        self.facts["kernel"] = platform.release()

    def apptainer(self, wanted: Optional[Dict[str, Any]]) -> None:
        """Versions, profile, rules, advisories."""
        if not wanted:
            return

        def command(argv: List[str]) -> tuple:
            environment = apptainer_packages.ENVIRONMENT
            return self.module.run_command(list(argv), environ_update=environment, expand_user_and_vars=False)

        waivers, problems = apptainer_waivers.read(
            wanted["waivers"], apptainer_rules.WAIVABLE, datetime.date.today()
        )
        node = apptainer_facts.gather(command, wanted["profile"])
        path = f"{node.files[0].path}/apptainer.conf" if node.files else ""
        text = apptainer_packages.read_text(path) or "" if path else ""
        found = node_audit.apptainer(node, wanted["version"], waivers, problems, (path, text))
        self.findings += found
        self.facts["apptainer"] = node.package_version or node.version or "none"
        self.facts["profile"] = wanted["profile"]
        broken = any(one.source == "profile" for one in found) or not node.version
        self.facts["profile_holds"] = "no" if broken else "yes"
        if node.user_namespaces is not None:
            self.facts["user_namespaces"] = "on" if node.user_namespaces else "off"

    def local(self) -> None:
        """Drift and setuid programs."""
        record = (atomic_file.read(node_record.PATH) or b"").decode(errors="replace")
        drifted, programs = node_audit.drift(record, self.run)
        mountinfo = os.fsdecode(Path(mounts.MOUNTINFO).read_bytes())
        walked = setuid_audit.audit(self.module.params["deadline"], mountinfo)
        allowed = self.module.params["setuid_allowed"]
        stray = list(
            node_audit.setuid(walked, programs, allowed, lambda paths: setuid_audit.packages(self.run, paths))
        )
        known = {one.file for one in stray}
        self.findings += [one for one in drifted if one.rule != "setuid" or one.file not in known]
        self.findings += stray

    def services(self) -> None:
        """Health and pull."""
        for name, (found, state) in (("health", node_audit.health()), ("pull", node_audit.pull())):
            self.findings += found
            if state:
                self.facts[name] = state

    def images(self, wanted: Optional[Dict[str, Any]], shared: List[str]) -> None:
        """Verdicts on images: of local stores, or of those of *shared*."""
        if not wanted:
            return
        mountinfo = os.fsdecode(Path(mounts.MOUNTINFO).read_bytes())
        known = node_audit.stores(wanted["paths"], mountinfo)
        mine = [store for store in known if (store.id in shared if shared else not store.shared)]
        self.stores = [store._asdict() for store in known if store not in mine and not shared]
        if not shared:
            self.findings += node_audit.other_policy(wanted)
        silent = mounts.probe([store.path for store in mine if store.shared], PATIENCE)
        parameters = {**wanted, "cache": self._cache()}
        with image_parameters.checker(parameters, jobs=2, patterns=wanted["patterns"]) as checker:
            for store in mine:
                if silent.get(store.path):
                    self._not_judged(store, silent[store.path])
                    continue
                found, counted = node_audit.images(checker.check([store.path]), store)
                self.findings += found
                self.stores.append(counted)

    def _not_judged(self, store: node_audit.Store, why: str) -> None:
        mend = f"see to the mount of {store.path}"
        message = f"the images of {store.path} could not be judged: {why}"
        self.findings.append(
            node_audit.Finding("audit", "images", node_audit.ERROR, store.path, message, mend)
        )
        self.stores.append(store._asdict())

    def _cache(self) -> str:
        """A copy of what the scanner remembers, so that its own stays as it is."""
        copy = str(Path(self.module.tmpdir, "images.sqlite"))
        image_cache.copy(CACHE, copy)
        return copy


def main() -> None:
    """Run the module."""
    texts = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "apptainer": {
                "type": "dict",
                "options": {
                    "version": {"type": "str", "required": True},
                    "profile": {
                        "type": "str",
                        "choices": ["rootless", "enforced", "compatible"],
                        "required": True,
                    },
                    "waivers": {"type": "list", "elements": "dict", "default": []},
                },
            },
            "images": {
                "type": "dict",
                "options": {
                    "paths": {**texts, "required": True},
                    "patterns": {**texts, "default": ["*.sif"]},
                    "policy": {"type": "dict", "required": True},
                    "lock": {"type": "dict", "required": True},
                    "keyrings": {**texts, "default": [], "no_log": False},
                },
            },
            "setuid_allowed": {**texts, "default": []},
            "deadline": {"type": "int", "default": 60},
            "shared_stores": {**texts, "default": []},
        },
        supports_check_mode=True,
    )
    if module.params["deadline"] <= 0:
        module.fail_json(msg="deadline: give at least one second")
    audit, shared = Audit(module), module.params["shared_stores"]
    try:
        if not shared:
            audit.system()
            audit.apptainer(module.params["apptainer"])
            audit.local()
            audit.services()
        audit.images(module.params["images"], shared)
    except image_parameters.ParameterError as error:
        module.fail_json(msg=f"images: {error}")
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(
        changed=False,
        findings=[finding._asdict() for finding in audit.findings],
        facts=audit.facts,
        stores=audit.stores,
    )


if __name__ == "__main__":
    main()
