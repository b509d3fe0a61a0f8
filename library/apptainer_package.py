#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: Apptainer at an exact version."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apptainer_package
short_description: Install Apptainer at an exact version
description:
  - Brings the packages C(apptainer) and C(apptainer-suid) to an exact version, upwards or downwards, in one
    transaction of apt or dnf, and holds them there, so that no upgrade of the node moves them.
  - Plans with the real package manager before it touches anything. A version that can't be had, a key that
    doesn't fit or a dependency that is missing is an error while the node is still as it was; in check mode
    too, where a node that has never heard of the repository gets a true prediction.
  - Never moves what the site itself holds (C(apt-mark hold) without O(release_hold), C(dnf versionlock),
    C(excludepkgs)), and removes no package but Apptainer's own.
  - Waits two minutes for others who work with the package manager. Changes none of its own files before the
    packages are installed.
  - With apt it plans in a scratch directory that has the node's package lists and the lists of O(repository).
    It owns C(/etc/apt/sources.list.d/apptainer.sources) and C(/etc/apt/preferences.d/apptainer).
  - With dnf it owns C(/etc/yum.repos.d/apptainer.repo), C(/etc/pki/rpm-gpg/RPM-GPG-KEY-apptainer-fleet) and
    one line of C(/etc/dnf/dnf.conf), C(excludepkgs) or C(exclude), which holds the version without a plugin.
    Packages of O(repository) have to be signed by its own key, whatever other keys the node trusts; they are
    downloaded for this in check mode, too.
  - Takes lines out of C(apptainer.conf) that the other release could not read, before it is there. Such a
    file would stop every command of every user until M(apptainer_config) writes it anew.
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
        description: Its suite, if it is one of APT.
        type: str
      component:
        description: Its component, if it is one of APT.
        type: str
      key:
        description: The public key that signs it, or its packages if it is one of dnf; ASCII-armored text.
        type: str
        required: true
  files:
    description:
      - Package files, Debian's or RPM's, to install instead of what O(repository) or the node's sources have.
        That is C(apptainer), C(apptainer-suid) if O(suid), and whatever they need that the node's sources
        lack. A setuid starter that is not wanted is left out.
      - A node looks at them only when it is not as it should be.
    type: list
    elements: dict
    default: []
    suboptions:
      sha256:
        description: >-
          Its SHA-256, 64 hexadecimal digits. A file with another one is refused before anything is touched.
        type: str
        required: true
      file:
        description: The file on the controller, by its absolute path. It is copied when it is needed.
        type: str
      url:
        description: Where the node gets it, C(https://), C(http://), or C(file:///) of the node.
        type: str
      path:
        description: Where on the node O(files[].file) has been put; the action plugin says so.
        type: str
  tree:
    description:
      - Unpack O(files) to PATH/VERSION instead of installing them, without root's privileges for anything in
        it, and let C(/usr/local/bin/apptainer) lead there. Refuses nodes that have packages of Apptainer, or
        a directory of that name that is made of something else.
      - Several nodes may install the same tree at the same time.
    type: dict
    suboptions:
      path:
        description: An existing directory.
        type: path
        required: true
  replace_singularity:
    description: >-
      Whether the packages C(singularity), C(singularity-ce) and C(singularity-container) are removed in the
      same transaction. Their C(singularity.conf) is kept in C(/var/lib/apptainer-fleet), for
      M(apptainer_config). If not, a version of Apptainer that they are in the way of is refused.
    type: bool
    default: false
  release_hold:
    description: >-
      Whether C(apptainer) and C(apptainer-suid) are taken off C(apt-mark hold) where they have to move.
      Nothing else that is on hold moves, and what is excluded or locked with dnf or zypper stays there. If it
      then can't be installed, the hold is there again.
    type: bool
    default: false
  helpers:
    description: Packages to have beside Apptainer, at any version. Without it, those of O(distributions).
    type: list
    elements: str
  distributions:
    description:
      - The distributions that there are packages for, as the files in C(roles/apptainer/vars/main) describe
        them. A node with none of them is refused.
    type: list
    elements: dict
    required: true
attributes:
  check_mode:
    support: full
    description: Predicts every package of the transaction, and fails where the run would fail to plan it.
  diff_mode:
    support: full
    description: Shows the packages and the files of the package manager.
  platform:
    support: full
    platforms: debian, ubuntu, rhel
    description: With apt 2.4 or newer, or dnf 4.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Apptainer without a setuid starter
  apptainer_package:
    version: 1.4.5
    distributions: "{{ __apptainer_distributions }}"
    repository:
      url: https://packages.example.org/apptainer/
      suite: stable
      component: main
      key: "{{ lookup('ansible.builtin.file', 'apptainer.asc') }}"

- name: Upstream's files, from the controller and from a server of the site
  apptainer_package:
    version: 1.4.5
    distributions: "{{ __apptainer_distributions }}"
    suid: true
    files:
      - file: /srv/packages/apptainer_1.4.5_amd64.deb
        sha256: 3df8b8b1a3a58b3d6fb0c1e9a0c9e1a9b4c6c5d5c6a3f7c9b9d1a1d2e3f40516
      - url: https://packages.example.org/apptainer-suid_1.4.5_amd64.deb
        sha256: 9c1185a5c5e9fc54612808977ee8f548b2258d31e6f5c3c0a6a7a5d6b8c0d1e2

- name: One build in particular from the node's own sources, with the setuid starter
  apptainer_package:
    version: 1.4.5-2
    distributions: "{{ __apptainer_distributions }}"
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
  description: What the package manager planned, one package a line; empty if nothing had to change.
  returned: success
  type: list
  elements: str
  sample: [install apptainer 1.4.5-2, remove apptainer-suid 1.4.4-1]
"""

import platform
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Sequence

from ansible.module_utils import (
    apptainer_apt,
    apptainer_dnf,
    apptainer_package_files,
    apptainer_packages,
    apptainer_tree,
    apptainer_version,
    apptainer_zypper,
    node_distribution,
    singularity_conf,
)
from ansible.module_utils.basic import AnsibleModule

MANAGERS: Mapping[str, Callable[[apptainer_packages.Run, Path], apptainer_packages.Manager]] = {
    "apt": apptainer_apt.Apt,
    "dnf": apptainer_dnf.Dnf,
    "zypper": apptainer_zypper.Zypper,
}


def run(module: AnsibleModule) -> dict:
    """Return the module's result.

    Raises PackageError, PackageFileError, DistributionError, ValueError, and OSError.
    """
    try:
        apptainer_packages.check_helpers(module.params["helpers"] or ())
    except ValueError as error:
        raise apptainer_packages.PackageError(f"apptainer_helper_packages: {error}") from error
    os_release = apptainer_packages.read_text(node_distribution.OS_RELEASE)
    distribution = node_distribution.choose(module.params["distributions"], os_release, platform.machine())
    request = wanted(module.params, distribution)

    def command(argv: List[str]) -> tuple:
        environment = apptainer_packages.ENVIRONMENT
        return module.run_command(list(argv), environ_update=environment, expand_user_and_vars=False)

    scratch = Path(module.tmpdir) / "packages"
    scratch.mkdir()
    manager = MANAGERS[distribution.package_manager](command, scratch)
    packages = apptainer_packages.Packages(request, command, manager)
    if module.params["tree"]:
        return run_tree(module, request, packages.state())
    state = packages.state()
    before = state.packages.get(apptainer_packages.MAIN, "")
    result = {"changed": False, "version": before, "previous_version": before, "transaction": []}
    if not packages.wrong(state):
        return result
    given = module.params["files"]
    if missing(given):
        return {**result, "missing_files": missing(given)}
    if given:
        found = [manager.describe(str(path)) for path in fetched(module)]
        architectures = (distribution.architecture, "all", "noarch")
        request = apptainer_packages.with_files(request, found, architectures)
        packages = apptainer_packages.Packages(request, command, manager)
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
        "diff": difference(request, state, plan, packages.wanted_files(plan.version)),
    }


def run_tree(
    module: AnsibleModule, request: apptainer_packages.Request, state: apptainer_packages.State
) -> dict:
    """Return the module's result where Apptainer is a tree.

    Raises TreeError, PackageFileError and OSError.
    """
    given, release = module.params["files"], request.version.release
    there = [name for name in (apptainer_packages.MAIN, apptainer_packages.SUID) if name in state.packages]
    if there:
        raise apptainer_tree.TreeError(
            f"apptainer_tree: this node has the packages {', '.join(there)}: remove them first, as no package"
            " is touched where Apptainer is a tree"
        )
    digests = [one["sha256"] for one in given]
    tree = apptainer_tree.Tree(module.params["tree"]["path"], request.version, digests)
    unpacked, linked = apptainer_tree.is_there(tree), apptainer_tree.linked(tree)
    result = {"changed": False, "version": str(request.version), "previous_version": state.running}
    result["transaction"] = [] if unpacked else [f"unpack {tree.path}"]
    result["transaction"] += [] if linked else [f"link {apptainer_tree.LINK} to {tree.path}"]
    if unpacked and linked:
        if state.running != release:
            raise apptainer_tree.TreeError(
                f"apptainer_tree: {tree.path} is as it was made, and `apptainer --version` says"
                f" {state.running or 'nothing'}; look for another apptainer in"
                f" {apptainer_packages.ENVIRONMENT['PATH']}"
            )
        return result
    if not unpacked and missing(given):
        return {**result, "missing_files": missing(given)}
    entries = {} if unpacked else apptainer_tree.read(fetched(module))
    if not module.check_mode:
        if not unpacked:
            apptainer_tree.install(tree, entries, platform.node())
        apptainer_tree.put_link(tree)
    diff = {"before_header": "apptainer_tree", "after_header": "apptainer_tree", "before": ""}
    diff["after"] = "".join(f"{step}\n" for step in result["transaction"])
    return {**result, "changed": True, "diff": diff}


def missing(given: Sequence[Mapping[str, str]]) -> List[str]:
    """Return those of the option *files* that the action plugin has to bring; it does, and calls again."""
    return [one["sha256"] for one in given if one["file"] and not one["path"]]


def fetched(module: AnsibleModule) -> List[Path]:
    """Return the files of the option *files*, in a folder of their own.

    Raises PackageFileError and OSError.
    """
    given, folder = module.params["files"], Path(module.tmpdir) / "files"
    good, problems = apptainer_package_files.read(given, bool(module.params["tree"]))
    if problems:
        raise apptainer_package_files.PackageFileError(f"apptainer_package_files{problems[0]}")
    folder.mkdir()
    brought = {one["sha256"]: one["path"] for one in given}
    return [apptainer_package_files.fetch(one, brought[one.sha256], folder) for one in good]


def wanted(
    params: Mapping[str, object], distribution: node_distribution.Distribution
) -> apptainer_packages.Request:
    """Return what the module's parameters ask for. Raises PackageError for a repository of another kind."""
    given = params["repository"]
    helpers = distribution.helpers if params["helpers"] is None else params["helpers"]
    repository = apptainer_packages.Repository(**{k: v or "" for k, v in given.items()}) if given else None
    is_apt = distribution.package_manager == "apt"
    if repository and is_apt != bool(repository.suite and repository.component):
        mend = "give it its suite and component" if is_apt else "leave suite and component out"
        raise apptainer_packages.PackageError(
            f"apptainer_repository: {distribution.name} has {distribution.package_manager}: {mend}, or name"
            " another one for this node"
        )
    return apptainer_packages.Request(
        apptainer_version.parse(params["version"]),
        params["suid"],
        repository,
        helpers,
        distribution.hint,
        replaced=singularity_conf.PACKAGES if params["replace_singularity"] else (),
        release_hold=params["release_hold"],
    )


def difference(
    request: apptainer_packages.Request,
    state: apptainer_packages.State,
    plan: apptainer_packages.Plan,
    files: Dict[str, str],
) -> List[Dict[str, str]]:
    """Return the diff: every package of the transaction, the setuid starter, and the *files* to be."""
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
        *((path, state.files[path], text) for path, text in files.items()),
    ]
    return [
        {"before_header": name, "after_header": name, "before": old, "after": new}
        for name, old, new in parts
        if old != new
    ]


def _lines(packages: Dict[str, str]) -> str:
    return "".join(f"{name} {version}\n" for name, version in sorted(packages.items()))


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
                    "suite": {"type": "str"},
                    "component": {"type": "str"},
                    "key": {"type": "str", "required": True, "no_log": False},
                },
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "sha256": {"type": "str", "required": True},
                    "file": {"type": "str"},
                    "url": {"type": "str"},
                    "path": {"type": "str"},
                },
            },
            "tree": {"type": "dict", "options": {"path": {"type": "path", "required": True}}},
            "replace_singularity": {"type": "bool", "default": False},
            "release_hold": {"type": "bool", "default": False},
            "helpers": {"type": "list", "elements": "str"},
            "distributions": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (
        apptainer_packages.PackageError,
        apptainer_package_files.PackageFileError,
        apptainer_tree.TreeError,
        node_distribution.DistributionError,
        ValueError,
    ) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
