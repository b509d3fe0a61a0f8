#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: programs that may create user namespaces although AppArmor restricts that."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apparmor_userns
short_description: Let programs create user namespaces although AppArmor restricts that
description:
  - Owns one file in C(/etc/apparmor.d) with a profile for each program that allows user namespaces and
    confines nothing, and has the kernel load it. Ubuntu since 23.10 demands one from programs of users.
  - Profiles are named by the program's path. The kernel takes those before patterns, so they do not
    contradict the profile of a package for the same program.
  - Does nothing where AppArmor is off, or is not to be managed from the node because that is a container.
options:
  path:
    description: The file to own, for example C(/etc/apparmor.d/apptainer-starter).
    type: path
    required: true
  programs:
    description: Absolute paths; they need not exist. Without one, file and loaded profiles are removed.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
    description: The new file is given to C(apparmor_parser) in check mode, too, without loading it.
  diff_mode:
    support: full
    description: Of each file.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Let Apptainer create user namespaces
  apparmor_userns:
    path: /etc/apparmor.d/apptainer-starter
    programs: [/usr/libexec/apptainer/bin/starter]
"""

RETURN = r"""
enabled:
  description: Whether AppArmor is on and can be managed here.
  returned: success
  type: bool
loaded:
  description: The profiles that the kernel was given, or would be.
  returned: success
  type: list
  elements: str
"""

import os
import tempfile
from pathlib import Path
from typing import List

from ansible.module_utils import apparmor, atomic_file
from ansible.module_utils.basic import AnsibleModule


def parser(module: AnsibleModule) -> str:
    program = module.get_bin_path("apparmor_parser", opt_dirs=["/usr/sbin", "/sbin"])
    if program is None:
        raise apparmor.AppArmorError(
            "AppArmor is on, but there is no apparmor_parser: install the package apparmor"
        )
    return program


def run(module: AnsibleModule, *arguments: str) -> None:
    argv = [parser(module), *arguments]
    code, out, err = module.run_command(argv)
    if code:
        raise apparmor.AppArmorError(f"{' '.join(argv[:-1])} refuses the profiles: {(err or out).strip()}")


def check(module: AnsibleModule, text: str, name: str) -> None:
    """Raise AppArmorError unless the parser compiles *text*, which the kernel does not get to see."""
    with tempfile.TemporaryDirectory(prefix="apparmor-userns-") as folder:
        file = Path(folder, name)
        file.write_text(text)
        run(module, "--skip-kernel-load", "--skip-cache", str(file))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "programs": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    path, programs = module.params["path"], list(dict.fromkeys(module.params["programs"]))
    new: List[str] = []
    try:
        text = apparmor.render(programs)
        there = apparmor.loaded(apparmor.MODULE, apparmor.PROFILES)
        if there is None:
            module.exit_json(changed=False, enabled=False, loaded=[])
        old = (atomic_file.read(path) or b"").decode(errors="surrogateescape")
        if programs:
            missing = [program for program in programs if program not in there]
            changed = old != text or bool(missing)
            new = programs if old != text else missing
            if old != text:
                check(module, text, Path(path).name)
            if old != text and not module.check_mode:
                atomic_file.replace(path, text.encode(), owner=(0, 0) if os.geteuid() == 0 else None)
            if changed and not module.check_mode:
                run(module, "--replace", path)
        else:
            text, changed = "", Path(path).exists()
            if changed and not module.check_mode:
                run(module, "--remove", path)
                Path(path).unlink()
    except apparmor.AppArmorError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(
        changed=changed,
        enabled=True,
        loaded=new,
        diff={"before_header": path, "after_header": path, "before": old, "after": text},
    )


if __name__ == "__main__":
    main()
