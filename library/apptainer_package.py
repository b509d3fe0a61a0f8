#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: Apptainer at an exact version."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apptainer_package
short_description: Install Apptainer at an exact version
description:
  - Brings the packages C(apptainer) and C(apptainer-suid) to an exact version, upwards or downwards, in one
    transaction of apt, and pins them there, so that C(apt upgrade) never moves them.
  - Owns C(/etc/apt/sources.list.d/apptainer.sources) and C(/etc/apt/preferences.d/apptainer).
  - Plans with the real apt before it touches anything, in a scratch directory that has the node's package
    lists and the lists of O(repository). A version that can't be had, a key that doesn't fit or a dependency
    that is missing is an error while the node is still as it was; in check mode too, where a node that has
    never heard of the repository gets a true prediction.
  - Waits two minutes for others who work with apt or dpkg. Changes none of its own files before the packages
    are installed.
  - Believes the program, not the package database. C(apptainer --version) has to say the version, or the
    package is installed again, and if that doesn't help either the module fails.
options:
  version:
    description: A release (V(1.4.5)), or that of one package in particular (V(1.4.5-2)).
    type: str
    required: true
  suid:
    description:
      - Whether C(apptainer-suid) is installed, at the same version.
      - If not, no setuid starter is left where Apptainer would find it, even if it belongs to no package, and
        the pin keeps the package away.
    type: bool
    default: false
  repository:
    description: Where the packages are. Without it they come from the package sources that the node has.
    type: dict
    suboptions:
      url:
        description: URL of the repository.
        type: str
        required: true
      suite:
        description: Its suite.
        type: str
        required: true
      component:
        description: Its component.
        type: str
        required: true
      key:
        description: The public key that signs it, ASCII-armored text.
        type: str
        required: true
  helpers:
    description: Names of packages to have beside Apptainer, at any version.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Predicts every package of the transaction, and fails where the run would fail to plan it.
  diff_mode:
    support: full
    description: Shows the packages and the two files of apt.
  platform:
    support: full
    platforms: debian
    description: Debian 12, Ubuntu 22.04 and newer (apt 2.4 for a key inside the source).
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Apptainer without a setuid starter
  apptainer_package:
    version: 1.4.5
    repository:
      url: https://packages.example.org/apptainer/
      suite: stable
      component: main
      key: "{{ lookup('ansible.builtin.file', 'apptainer.asc') }}"

- name: One build in particular from the node's own sources, with the setuid starter
  apptainer_package:
    version: 1.4.5-2
    suid: true
"""

RETURN = r"""
version:
  description: Version of the package that is installed, or would be.
  returned: success
  type: str
  sample: 1.4.5-2
previous_version:
  description: Version of the package before; empty if there was none.
  returned: success
  type: str
  sample: 1.4.4-1
transaction:
  description: What apt planned, one package a line; empty if nothing had to change.
  returned: success
  type: list
  elements: str
  sample: [install apptainer 1.4.5-2, remove apptainer-suid 1.4.4-1]
"""

from pathlib import Path
from typing import Dict, List

from ansible.module_utils import apptainer_apt, apptainer_packages, apptainer_version, atomic_file
from ansible.module_utils.basic import AnsibleModule


def run(module: AnsibleModule) -> dict:
    """Return the module's result. Raises PackageError, VersionError, ValueError for the key, and OSError."""
    given = module.params["repository"]
    try:
        apptainer_apt.check_helpers(module.params["helpers"])
    except ValueError as error:
        raise apptainer_packages.PackageError(f"apptainer_helper_packages: {error}") from error
    request = apptainer_packages.Request(
        apptainer_version.parse(module.params["version"]),
        module.params["suid"],
        apptainer_apt.Repository(**given) if given else None,
        module.params["helpers"],
    )

    def command(argv: List[str]) -> tuple:
        environment = apptainer_packages.ENVIRONMENT
        return module.run_command(list(argv), environ_update=environment, expand_user_and_vars=False)

    packages = apptainer_packages.Packages(request, command, Path(module.tmpdir) / "apt")
    state = packages.state()
    before = state.packages.get(apptainer_apt.MAIN, "")
    result = {"changed": False, "version": before, "previous_version": before, "transaction": []}
    if not packages.wrong(state):
        return result
    plan = packages.plan(state)
    if not module.check_mode:
        packages.apply(state, plan)
    return {
        **result,
        "changed": True,
        "version": plan.version,
        "transaction": [
            f"{step.action} {step.package} {step.version or step.previous}" for step in plan.steps
        ],
        "diff": difference(request, state, plan),
    }


def difference(
    request: apptainer_packages.Request, state: apptainer_packages.State, plan: apptainer_packages.Plan
) -> List[Dict[str, str]]:
    """Return the diff: every package that apt touches, the setuid starter, and the two files of apt."""
    before, after = {**state.packages}, {**state.packages}
    for step in plan.steps:
        if step.previous:
            before[step.package] = step.previous
        if step.action == "install":
            after[step.package] = step.version
        else:
            after.pop(step.package, None)
    starter = f"{state.starter}\n" if state.starter else ""
    parts = [
        ("packages", _lines(before), _lines(after)),
        ("apptainer --version", f"{state.running}\n", f"{request.version.release}\n"),
        ("setuid starter", starter, starter if request.suid else ""),
        (apptainer_apt.SOURCES, state.sources, request.sources),
        (
            apptainer_apt.PREFERENCES,
            state.preferences,
            apptainer_apt.preferences(plan.version, request.suid),
        ),
    ]
    return [
        {"before_header": name, "after_header": name, "before": old, "after": new}
        for name, old, new in parts
        if old != new
    ]


def _lines(packages: Dict[str, str]) -> str:
    return "".join(f"{name} {version}\n" for name, version in sorted(packages.items()))


def refuse_other_systems(module: AnsibleModule) -> None:
    """End the module on a node without apt, naming its system."""
    if module.get_bin_path("apt-get") and module.get_bin_path("dpkg-query"):
        return
    text = (atomic_file.read("/etc/os-release") or b"").decode(errors="replace")
    release = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    name = release.get("PRETTY_NAME", "this system").strip("\"'")
    module.fail_json(msg=f"{name} has no apt: so far Apptainer is installed on Debian and Ubuntu only")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "suid": {"type": "bool", "default": False},
            "repository": {
                "type": "dict",
                "options": {
                    "url": {"type": "str", "required": True},
                    "suite": {"type": "str", "required": True},
                    "component": {"type": "str", "required": True},
                    "key": {"type": "str", "required": True, "no_log": False},
                },
            },
            "helpers": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    refuse_other_systems(module)
    try:
        module.exit_json(**run(module))
    except (apptainer_packages.PackageError, ValueError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
