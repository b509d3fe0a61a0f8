#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: prove that a normal user can run a container."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apptainer_smoke_test
short_description: Prove that a normal user can run a container on this node
description:
  - Builds a small image from a program of the node, needs no network, runs it as a normal user and compares
    the uid inside with the uid outside.
  - Where the execution control list on the node is on, that image, which nobody has signed, has to be
    refused, and O(image) has to run. Without O(image) it is not proved then that a container runs, and the
    module says so.
  - Writes down what has been proved (the version, the configuration, the setuid starter, the user, the
    kernel's settings for user namespaces), and does nothing while all of it is the same. A test that failed
    is tried again the next time.
options:
  user:
    description: Who runs the container. Nobody with privileges.
    type: str
    required: true
  image:
    description: >-
      An image on the node to run, by its absolute path: a SIF with a program C(id). Needed where the
      execution control list is on; it has to be signed for that. Empty for none.
    type: str
    default: ""
  enforced:
    description: >-
      Whether it has to be impossible for the user to create a user namespace, where no execution control list
      binds anybody.
    type: bool
    default: false
  folder:
    description: The folder with Apptainer's configuration. Empty for C(/etc/apptainer).
    type: str
    default: ""
  proof:
    description: File for what has been proved.
    type: path
    default: /var/lib/apptainer-fleet/smoke-test.json
  stale:
    description:
      - Says that the proof doesn't count, because something has just been changed.
      - Check mode needs it, where a change has only been predicted.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Predicts whether the test would run, and does not run it.
  diff_mode:
    support: full
    description: Shows what was proved before, and what now.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Prove that a normal user can run a container
  apptainer_smoke_test:
    user: nobody

- name: Prove that the site's image runs, that an unsigned one doesn't, and that nobody gets around that
  apptainer_smoke_test:
    user: nobody
    image: /opt/containers/smoke-test.sif
    enforced: true
"""

RETURN = r"""
ran:
  description: Whether the container ran, or would run.
  returned: success
  type: bool
"""

import shutil
import tempfile
from pathlib import Path
from typing import List

from ansible.module_utils import apptainer_packages, apptainer_smoke_test, atomic_file
from ansible.module_utils.basic import AnsibleModule


def run(module: AnsibleModule) -> dict:
    """Return the module's result. Raises SmokeTestError and OSError."""

    def command(argv: List[str]) -> tuple:
        environment = apptainer_packages.ENVIRONMENT
        return module.run_command(list(argv), environ_update=environment, expand_user_and_vars=False)

    options = ("user", "image", "enforced", "folder")
    test = apptainer_smoke_test.Test(*(module.params[name] for name in options))
    proof = Path(module.params["proof"])
    proved = (atomic_file.read(str(proof)) or b"").decode(errors="surrogateescape")
    subject = apptainer_smoke_test.subject(test, command)
    stale = module.params["stale"] or subject is None or subject != proved
    if stale and not module.check_mode:
        if subject is None:
            raise apptainer_smoke_test.SmokeTestError("there is no apptainer on this node")
        if not proof.parent.is_dir():
            proof.parent.mkdir()
            # Not as mkdir's mode, of which root's umask would take away.
            proof.parent.chmod(0o755)
        if proof.exists():
            proof.unlink()
        # Not under the module's own directory, which nobody but root may enter.
        scratch = Path(tempfile.mkdtemp(prefix="apptainer-smoke-test-", dir="/var/tmp"))
        try:
            scratch.chmod(0o755)
            if not apptainer_smoke_test.prove(test, command, scratch):
                module.warn(
                    "an unsigned image is refused, as it has to be; that a signed one runs is not proved:"
                    " name one in apptainer_smoke_test_image"
                )
        finally:
            shutil.rmtree(str(scratch))
        atomic_file.replace(str(proof), subject.encode(), owner=(0, 0))
    # What is installed only in prediction can't be described.
    predicted = subject is None or (module.check_mode and module.params["stale"])
    proof_to_be = "the same for the version and the configuration of this run\n" if predicted else subject
    return {
        "changed": stale,
        "ran": stale,
        "diff": {
            "before_header": str(proof),
            "after_header": str(proof),
            "before": proved,
            "after": proof_to_be if stale else proved,
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "image": {"type": "str", "default": ""},
            "enforced": {"type": "bool", "default": False},
            "folder": {"type": "str", "default": ""},
            "proof": {"type": "path", "default": "/var/lib/apptainer-fleet/smoke-test.json"},
            "stale": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except apptainer_smoke_test.SmokeTestError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
