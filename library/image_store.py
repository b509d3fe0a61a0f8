#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a whole store of images, as a site declares it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_store
short_description: Bring a store of images to what a site declares
description:
  - Publishes declared images as M(image_publish) does, withdraws those that are declared withdrawn, and
    writes the commands and module files by which users find them. All in one call; while nothing changes, an
    image costs one stat.
  - Images that are neither in the store nor in O(sources) are returned as RV(missing), to be brought there.
  - An image that can't be published fails the module when all others are done; its commands and module file
    stay as they are.
  - Commands and module files that this module has written for images that are declared no more are removed,
    and no other file is touched. The images themselves stay until they are declared withdrawn.
options:
  store:
    description: The folder of the store. Made if it is missing; only its owner may be able to write to it.
    type: path
    required: true
  images:
    description: The images, as C(image_store_images) of the role image_store describes them.
    type: list
    elements: dict
    required: true
  sources:
    description: Folders on this host where images to be published lie under the names they get.
    type: list
    elements: path
    default: []
  incoming:
    description: One of O(sources), from which images are removed once they are published.
    type: path
  commands:
    description: Folder for commands, in a folder for each image and version. Made if it is missing.
    type: path
    required: true
  modules:
    description: Folder of module files, for C(MODULEPATH). Made if it is missing.
    type: path
    required: true
  policy:
    description: The policy that images have to keep, as C(docs/images.md) describes it.
    type: dict
    required: true
  lock:
    description: The content of C(images.lock).
    type: dict
    required: true
  keyrings:
    description: >-
      Files on the node with the keys that signatures are verified with; OpenPGP keyrings, or one public key
      in PEM each. Needed if the policy has the rule C(signatures).
    type: list
    elements: path
    default: []
  cache:
    description: As of M(image_policy_check).
    type: path
    default: /var/cache/apptainer-fleet/images.sqlite
  mode:
    description: The permissions of published images, octal.
    type: str
    default: '0644'
  fail_on:
    description: The least severity of a finding, not waived, that keeps an image out.
    type: str
    choices: [info, warning, error]
    default: error
attributes:
  check_mode:
    support: full
    description: Images that are to be made and brought here first are not judged, but returned as missing.
  diff_mode:
    support: full
    description: Shows the images of the store, and each file that is written or removed.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Publish the images of the site
  image_store:
    store: /opt/containers
    images:
      - name: python
        version: '3.13'
        source: docker://docker.io/library/python:3.13-slim@sha256:…
        commands: [python3, pip]
      - name: old
        version: '0.9'
        withdrawn: holds a private key
    sources: [/var/lib/apptainer-fleet/images]
    commands: /opt/containers/commands
    modules: /opt/containers/modulefiles
    policy: "{{ lookup('ansible.builtin.file', 'image_policy.yml') | from_yaml }}"
    lock: "{{ lookup('ansible.builtin.file', 'images.lock') | from_yaml }}"
    keyrings: [/etc/apptainer/global-pgp-public]
"""

RETURN = r"""
published:
  description: File names of images that were published, or would be.
  returned: always
  type: list
  elements: str
withdrawn:
  description: File names of images that went into quarantine, or would.
  returned: always
  type: list
  elements: str
missing:
  description: File names of images that are neither in the store nor in O(sources).
  returned: always
  type: list
  elements: str
undeclared:
  description: File names of images in the store that nobody declares.
  returned: always
  type: list
  elements: str
"""

import os
from pathlib import Path
from typing import Any, Dict, List, Optional

from ansible.module_utils import atomic_file, image_declaration, image_lock, image_modules, image_parameters
from ansible.module_utils import image_policy as policies
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.image_check import Checker
from ansible.module_utils.image_declaration import DeclarationError, Declared
from ansible.module_utils.image_lock import Lock, Locked
from ansible.module_utils.image_policy import Policy
from ansible.module_utils.image_store import Store, StoreError, check_folder


class Run:
    """One call of the module: what it found and did, and what went wrong."""

    def __init__(self, params: Dict[str, Any], *, check_mode: bool) -> None:
        self.params, self.check_mode = params, check_mode
        self.images = image_declaration.read(params["images"])
        self.lock: Lock = image_lock.read(params["lock"])
        self.mode: int = policies.RULES["mode"].read(params["mode"])
        self.published: List[str] = []
        self.withdrawn: List[str] = []
        self.missing: List[str] = []
        self.errors: List[str] = []
        # Images whose files stay as they are.
        self.unsettled: List[Declared] = []
        self.diff: List[Dict[str, str]] = []
        self.changed = False

    def run(self) -> None:
        """Bring the store to what is declared. Raises ParameterError, StoreError and OSError."""
        store, commands, modules = (self.params[name] for name in ("store", "commands", "modules"))
        for folder in (store, commands, modules):
            self._make_folder(folder)
        before = self._listed()
        if Path(store).is_dir():
            with image_parameters.checker(self.params) as checker:
                self._publish(Store(store, checker, self.mode, self.params["fail_on"]))
        else:
            self.missing = [one.file_name for one in self.images if not one.withdrawn]
            self.unsettled = [one for one in self.images if not one.withdrawn]
        # Before an image goes away, so that nobody is led to what is not there.
        self._write_files()
        if Path(store).is_dir():
            self._withdraw(Store(store, Checker(Policy())))
        after = sorted({*before, *self.published}.difference(self.withdrawn))
        self.changed = self.changed or bool(self.published or self.withdrawn)
        if self.published or self.withdrawn:
            self._differ(store, *("".join(f"{name}\n" for name in names) for names in (before, after)))

    def result(self) -> Dict[str, Any]:
        """Return what the module returns."""
        declared = {one.file_name for one in self.images}
        undeclared = [name for name in self._listed() if name not in declared]
        return {
            **{name: getattr(self, name) for name in ("published", "withdrawn", "missing")},
            **{"undeclared": undeclared, "changed": self.changed, "diff": self.diff},
        }

    # --- images ---------------------------------------------------------------------------------------------

    def _listed(self) -> List[str]:
        try:
            names = [path.name for path in Path(self.params["store"]).iterdir()]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name.endswith(image_lock.SUFFIX) and name[0] != ".")

    def _publish(self, store: Store) -> None:
        for declared in self.images:
            if declared.withdrawn:
                continue
            locked = self.lock.find(declared.name, declared.version)
            source = self._source(declared)
            if locked is None:
                # It is made before it is published, and a prediction has made nothing.
                if not self.check_mode:
                    self.errors.append(f"{declared.title} is not in images.lock: make it first, or lock it")
                self._unsettle(declared, missing=self.check_mode)
            elif source is None and not os.path.lexists(store.place(locked)):
                self._unsettle(declared, missing=True)
            else:
                self._publish_one(store, declared, locked, source or "")

    def _publish_one(self, store: Store, declared: Declared, locked: Locked, source: str) -> None:
        try:
            if store.publish(locked, source, dry_run=self.check_mode):
                self.published.append(locked.file_name)
        except StoreError as error:
            self.errors.append(str(error))
            self._unsettle(declared, missing=False)
            return
        incoming = self.params["incoming"]
        if incoming and source.startswith(f"{incoming}/") and not self.check_mode:
            Path(source).unlink()

    def _unsettle(self, declared: Declared, *, missing: bool) -> None:
        self.unsettled.append(declared)
        if missing:
            self.missing.append(declared.file_name)

    def _source(self, declared: Declared) -> Optional[str]:
        places = [f"{folder}/{declared.file_name}" for folder in self.params["sources"]]
        return next((place for place in places if os.path.lexists(place)), None)

    def _withdraw(self, store: Store) -> None:
        for declared in self.images:
            if declared.withdrawn and store.quarantine(
                declared.name, declared.version, declared.withdrawn, dry_run=self.check_mode
            ):
                self.withdrawn.append(declared.file_name)

    # --- commands and module files --------------------------------------------------------------------------

    def _files(self, images: List[Declared]) -> Dict[str, str]:
        params = self.params
        return image_modules.files(images, params["store"], params["commands"], params["modules"])

    def _write_files(self) -> None:
        unsettled = set(self.unsettled)
        settled = [one for one in self.images if one not in unsettled and not one.withdrawn]
        wanted, kept = self._files(settled), self._files(self.unsettled)
        for path, text in wanted.items():
            mode = 0o755 if path.startswith(f"{self.params['commands']}/") else 0o644
            self._write_file(path, text, mode)
        # A module file goes before the commands that it leads to.
        for folder in (self.params["modules"], self.params["commands"]):
            for path in image_modules.own(folder):
                if path not in wanted and path not in kept:
                    self._remove_file(path, folder)

    def _write_file(self, path: str, text: str, mode: int) -> None:
        before = atomic_file.read(path) if os.path.lexists(path) else None
        if before is not None and image_modules.MARK.encode() not in before:
            self.errors.append(f"{path} was written by somebody else: move it away")
            return
        same = before == text.encode()
        if same and Path(path).stat().st_mode & 0o7777 == mode:
            return
        self.changed = True
        if not same:
            self._differ(path, (before or b"").decode("utf-8", "replace"), text)
        if not self.check_mode:
            self._make_folder(str(Path(path).parent))
            atomic_file.replace(path, text.encode(), mode)

    def _remove_file(self, path: str, top: str) -> None:
        self.changed = True
        self._differ(path, (atomic_file.read(path) or b"").decode("utf-8", "replace"), "")
        if self.check_mode:
            return
        Path(path).unlink()
        folder = Path(path).parent
        while folder != Path(top) and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def _make_folder(self, path: str) -> None:
        if os.path.lexists(path):
            check_folder(path)
            return
        self.changed = True
        if not self.check_mode:
            for folder in [*reversed(Path(path).parents), Path(path)]:
                if not folder.exists():
                    folder.mkdir()
                    # Not as mkdir's mode, of which root's umask would take away.
                    folder.chmod(0o755)

    def _differ(self, header: str, before: str, after: str) -> None:
        self.diff.append({"before_header": header, "after_header": header, "before": before, "after": after})


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **image_parameters.SPEC,
            "policy": {"type": "dict", "required": True},
            "lock": {"type": "dict", "required": True},
            "store": {"type": "path", "required": True},
            "images": {"type": "list", "elements": "dict", "required": True},
            "sources": {"type": "list", "elements": "path", "default": []},
            "incoming": {"type": "path"},
            "commands": {"type": "path", "required": True},
            "modules": {"type": "path", "required": True},
            "mode": {"type": "str", "default": "0644"},
            "fail_on": {"type": "str", "choices": ["info", "warning", "error"], "default": "error"},
        },
        supports_check_mode=True,
    )
    try:
        run = Run(module.params, check_mode=module.check_mode)
    except DeclarationError as error:
        module.fail_json(msg="\n".join(f"images: {problem}" for problem in error.problems))
    except image_lock.LockError as error:
        module.fail_json(msg="\n".join(f"lock: {problem}" for problem in error.problems))
    except ValueError as error:
        module.fail_json(msg=f"mode: {error}")
    try:
        run.run()
    except (image_parameters.ParameterError, StoreError) as error:
        module.fail_json(msg=str(error), **run.result())
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}", **run.result())
    if run.errors:
        module.fail_json(msg="\n".join(run.errors), **run.result())
    module.exit_json(**run.result())


if __name__ == "__main__":
    main()
