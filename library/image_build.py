#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: make an image on a build host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_build
short_description: Make a SIF from a registry, a definition or a file, on a build host
description:
  - Makes a SIF image from an image of a registry that is named by its digest, from a definition file whose
    sources are pinned, or from a file whose SHA-256 is known; and signs it.
  - Builds as a user without privileges, as a service of systemd with a folder, a cache and a C(/tmp) of its
    own and with a deadline. When it ends nothing of it is left but the image.
  - What was fetched from a registry is compared with the manifest under the digest, blob by blob.
  - C(DEST.json) says what an image was made from, and by which Apptainer. While that is the same, nothing is
    done. C(DEST.log) has Apptainer's messages, also while it builds.
options:
  dest:
    description: The image. Its folder has to be there, and to belong to root alone.
    type: path
    required: true
  reference:
    description: >-
      C(docker://) for a container, C(oras://) for a SIF, then registry, repository and digest, such as
      V(docker://quay.io/org/tool:1.2@sha256:…). A tag alone is refused; beside a digest it means nothing.
    type: str
  recipe:
    description: >-
      A definition file with the files it takes, as the module M(image_plan) packs them on the controller.
    type: path
  file:
    description: A SIF on this host.
    type: path
  digest:
    description: >-
      For O(recipe) its digest, as M(image_plan) says; for O(file) its SHA-256. Hexadecimal digits.
    type: str
  lock:
    description: >-
      The content of C(images.lock). A definition may begin from images beside O(dest) that are in it, or were
      made here, with C(Bootstrap: localimage).
    type: dict
    default: {images: []}
  policy:
    description: >-
      A policy, as C(docs/images.md) describes it, that the finished image has to keep as if it were in
      O(store). An image that does not is thrown away. Without a policy nothing is judged.
    type: dict
  store:
    description: The folder that it will be published in.
    type: path
    default: /opt/containers
  bootstrap:
    description: >-
      With which agents stages of a definition may begin. The default ones are pinned by a digest, or have no
      content; others fetch whatever is there on that day.
    type: list
    elements: str
    default: [docker, localimage, oras, scratch]
  locked:
    description: >-
      The SHA-256 that C(images.lock) has for the image. With it the image is the one of this digest, or the
      module fails.
    type: str
  signer:
    description: >-
      Fingerprint of the key to sign with, 40 hexadecimal digits. Without it the image stays as it is. An
      image that this key has signed already is not signed again.
    type: str
  signing_key:
    description: The secret key, ASCII-armored, alone. It is in memory alone, C(/run) included.
    type: str
  signing_key_file:
    description: A file on this host with the secret key, which nobody but root may read.
    type: path
  signing_passphrase:
    description: The passphrase of the secret key. It reaches Apptainer through a pipe.
    type: str
    default: ''
  keyrings:
    description: >-
      Files on this host with the keys that signatures of fetched images are verified with; OpenPGP keyrings,
      or one public key in PEM each.
    type: list
    elements: path
    default: []
  user:
    description: >-
      Who builds: a user without privileges, for this alone. Definitions with C(%post) need a range of
      subordinate IDs for most of what they install.
    type: str
    required: true
  work:
    description: Folder for builds. It needs room for some times the unpacked image.
    type: path
    default: /var/lib/apptainer-fleet/build
  authfile:
    description: >-
      File on this host with the credentials of registries, in the form of Docker's C(config.json), which
      nobody but root may read. The build user can read a copy of it while it builds.
    type: path
  plain_http:
    description: >-
      Registries without TLS. Digests still tell what comes from them; they are never sent credentials.
    type: list
    elements: str
    default: []
  deadline:
    description: Seconds after which a build is ended.
    type: int
    default: 3600
  memory_mib:
    description: The most memory a build may use.
    type: int
  cache:
    description: As of M(image_policy_check).
    type: path
    default: /var/cache/apptainer-fleet/images.sqlite
attributes:
  check_mode:
    support: full
    description: Says whether an image would be made, and asks no registry.
  diff_mode:
    support: full
    description: Shows what an image was made from, and what it will be made from.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Convert a container of a registry
  image_build:
    dest: /var/lib/apptainer-fleet/images/tool_1.2.sif
    reference: docker://quay.io/org/tool:1.2@sha256:{{ digest }}
    user: apptainer-build
    authfile: /etc/apptainer-fleet/registries.json
    signer: A1B2C3D4E5F60718293A4B5C6D7E8F9001122334
    signing_key: "{{ lookup('ansible.builtin.file', 'files/signing-key.asc') }}"
    signing_passphrase: "{{ vault_signing_passphrase }}"
"""

RETURN = r"""
sha256:
  description: SHA-256 of the image; empty in check mode if it would be made.
  returned: success
  type: str
size:
  description: Its size in bytes; 0 in check mode if it would be made.
  returned: success
  type: int
architecture:
  description: Its architecture.
  returned: success
  type: str
  sample: amd64
signers:
  description: Full fingerprints of those who signed all of it.
  returned: success
  type: list
  elements: str
source:
  description: What it is made from, on one line.
  returned: success
  type: str
  sample: docker://quay.io/org/tool:1.2@sha256:…
log:
  description: The file with Apptainer's messages.
  returned: success
  type: str
"""

import json
import os
import re
from pathlib import Path
from typing import Optional

from ansible.module_utils import (
    image_build,
    image_lock,
    image_parameters,
    image_store,
    oci_reference,
    openpgp,
)
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.definition_file import DefinitionError
from ansible.module_utils.image_build import BuildError, Record, Source, Surroundings
from ansible.module_utils.image_keys import KeyFileError
from ansible.module_utils.image_lock import Locked, LockError
from ansible.module_utils.image_parameters import ParameterError
from ansible.module_utils.image_signing import Signing, SigningError
from ansible.module_utils.oci_registry import RegistryError
from ansible.module_utils.sif import SifError


def sha256(name: str, value: object) -> str:
    """Return *value*. Raises BuildError unless it is a SHA-256."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise BuildError(f"{name}: must be 64 lower-case hexadecimal digits, not {value!r}")
    return value


def source(params: dict) -> Source:
    """Return what the image is made from. Raises BuildError."""
    if params["reference"] is not None:
        try:
            return Source(reference=oci_reference.parse(params["reference"]))
        except ValueError as error:
            raise BuildError(f"reference: {error}") from error
    digest = sha256("digest", params["digest"])
    if params["file"] is not None:
        return Source(file=Path(params["file"]), digest=digest)
    lock = image_lock.read(params["lock"])
    return Source(recipe=Path(params["recipe"]), digest=digest, agents=params["bootstrap"], lock=lock)


def approver(params: dict, name: str) -> image_build.Approve:
    """Return what holds a finished image, to be published as *name*, against the policy."""

    def approve(part: Path, made: Record) -> None:
        title = image_lock.name_and_version(name)
        if title is None:
            raise BuildError(f"dest: {name} must be NAME_VERSION.sif")
        # As it will be when it is published.
        entry = Locked(*title, made.sha256, made.size)
        lock = image_lock.read(params["lock"]).with_image(entry)
        with image_parameters.checker({**params, "lock": lock.as_dict()}) as checker:
            place = f"{params['store']}/{name}"
            _, verdict = image_store.judge_elsewhere(checker, str(part), place, 0o644, ())
        if verdict.refused("error"):
            findings = "\n".join(map(str, verdict.counting("error")))
            raise BuildError(f"{name} was made, and the policy refuses it:\n{findings}")

    return approve


def signing(params: dict) -> Optional[Signing]:
    """Return how the image is signed. Raises BuildError."""
    if params["signer"] is None:
        return None
    try:
        fingerprint = openpgp.check_fingerprint(params["signer"])
    except openpgp.OpenPGPError as error:
        raise BuildError(f"signer: {error}") from error
    key = params["signing_key"]
    if params["signing_key_file"] is not None:
        key = image_build.read_secret(Path(params["signing_key_file"])).decode("utf-8", "replace")
    if not key:
        raise BuildError("signer: needs signing_key or signing_key_file, with the key to sign with")
    return Signing(fingerprint, key, params["signing_passphrase"])


def check_folder(folder: Path) -> None:
    """Raise BuildError unless *folder* is root's alone."""
    try:
        status = folder.lstat()
    except OSError as error:
        raise BuildError(f"dest: {folder}: {error.strerror}") from error
    if not folder.is_dir() or folder.is_symlink() or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise BuildError(f"dest: {folder} must be a folder that belongs to root, and others can't write to")


def run(params: dict, *, check_mode: bool) -> dict:
    """Return the module's result. Raises BuildError, and what the parts raise."""
    image = Path(params["dest"])
    made_from = source(params)
    key = signing(params)
    locked = None if params["locked"] is None else sha256("locked", params["locked"])
    if params["deadline"] < 1:
        raise BuildError(f"deadline: must be at least one second, not {params['deadline']}")
    around = Surroundings(
        user=params["user"],
        work=Path(params["work"]),
        deadline=params["deadline"],
        authfile=None if params["authfile"] is None else Path(params["authfile"]),
        plain_http=params["plain_http"],
        memory_mib=params["memory_mib"],
        keyrings=[Path(path) for path in params["keyrings"]],
    )
    if not (check_mode and not image.parent.exists()):
        check_folder(image.parent)
    before = Record.of(image)
    wanted = image_build.inputs(made_from, key.fingerprint if key else "")
    record = image_build.unchanged(image, wanted, locked)
    changed = record is None
    if record is not None and record != before and not check_mode:
        # Restored, or touched: the next look costs one stat again.
        record.write(image)
    if record is None:
        if locked is not None and (key is not None or made_from.converted):
            raise BuildError(
                f"{image.name} is in images.lock with the SHA-256 {locked}, and {image} is not there any "
                "more; made anew it would be another file. Put it back from a store, or give the image "
                "another version"
            )
        if not check_mode:
            approve = approver(params, image.name) if params["policy"] is not None else None
            record = image_build.build(image, made_from, wanted, key, around, approve=approve)
            if locked is not None and record.sha256 != locked:
                raise BuildError(f"{image} has the SHA-256 {record.sha256}, and images.lock has {locked}")
    return {
        "changed": changed,
        "sha256": record.sha256 if record else "",
        "size": record.size if record else 0,
        "architecture": record.architecture if record else image_build.architecture(),
        "signers": list(record.signers) if record else [],
        "source": made_from.text,
        "log": str(image_build.log_path(image)),
        "diff": {
            "before_header": str(image),
            "after_header": str(image),
            "before": _shown(before.inputs if before else {}),
            "after": _shown(wanted if changed or before is None else before.inputs),
        },
    }


def _shown(values: object) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "reference": {"type": "str"},
            "recipe": {"type": "path"},
            "file": {"type": "path"},
            "digest": {"type": "str"},
            "lock": {"type": "dict", "default": {"images": []}},
            "policy": {"type": "dict"},
            "store": {"type": "path", "default": "/opt/containers"},
            "bootstrap": {
                "type": "list",
                "elements": "str",
                "default": ["docker", "localimage", "oras", "scratch"],
            },
            "locked": {"type": "str"},
            "signer": {"type": "str"},
            "signing_key": {"type": "str", "no_log": True},
            "signing_key_file": {"type": "path", "no_log": False},
            "signing_passphrase": {"type": "str", "no_log": True, "default": ""},
            "keyrings": {"type": "list", "elements": "path", "default": [], "no_log": False},
            "cache": {"type": "path", "default": "/var/cache/apptainer-fleet/images.sqlite"},
            "user": {"type": "str", "required": True},
            "work": {"type": "path", "default": "/var/lib/apptainer-fleet/build"},
            "authfile": {"type": "path"},
            "plain_http": {"type": "list", "elements": "str", "default": []},
            "deadline": {"type": "int", "default": 3600},
            "memory_mib": {"type": "int"},
        },
        mutually_exclusive=[("signing_key", "signing_key_file")],
        required_one_of=[("reference", "recipe", "file")],
        required_by={"recipe": "digest", "file": "digest"},
        supports_check_mode=True,
    )
    given = [name for name in ("reference", "recipe", "file") if module.params[name] is not None]
    if len(given) > 1:
        module.fail_json(msg=f"an image is made from one thing, not from {' and '.join(given)}")
    try:
        module.exit_json(**run(module.params, check_mode=module.check_mode))
    except LockError as error:
        module.fail_json(msg="\n".join(f"lock: {problem}" for problem in error.problems))
    except (BuildError, SigningError, DefinitionError, RegistryError, SifError) as error:
        module.fail_json(msg=str(error))
    except (KeyFileError, ParameterError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
