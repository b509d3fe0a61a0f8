#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: files that are whole at any moment, also after a power cut."""

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Files that are whole at any moment, also after a power cut
description:
  - Brings a list of files to the given content, owned by root, in one call. Whoever opens one of them finds
    the old content or the new one, never a part, also on the disk of a node that lost its power meanwhile.
    C(copy) and C(template) don't promise that; they rename a new file without having it written out first.
  - If a file is not as wanted by the program that reads it, none of them is touched.
  - Missing folders are made, with mode C(0755).
options:
  files:
    description: The files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where it is. A symbolic link there is replaced, not followed.
        type: path
        required: true
      content:
        description: What is in it.
        type: str
        required: true
      encoding:
        description: What O(files[].content) is. C(base64) is for files that are no text.
        type: str
        choices: [utf-8, base64]
        default: utf-8
      mode:
        description: Its mode, octal digits in quotes.
        type: str
        default: "0644"
      validate:
        description: >-
          A program and its arguments that has to accept the new content, with V(%s) in place of the file. It
          is run if the content changes, and in check mode only where it is installed.
        type: list
        elements: str
        default: []
  absent:
    description: Files that are not to be there. With V(*) and V(?) all that match; those of O(files) stay.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
    description: Predicts each file as it then is.
  diff_mode:
    support: full
    description: Of each file.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: Write the settings, and see them read first
  managed_files:
    files:
      - path: /etc/example/example.conf
        content: "{{ lookup('ansible.builtin.template', 'example.conf.j2') }}"
        validate: [example, --check, "%s"]
    absent:
      - /etc/example/old.conf
"""

RETURN = r"""
paths:
  description: The files that were written or removed, or would be.
  returned: success
  type: list
  elements: str
  sample: [/etc/example/example.conf]
"""

import base64
import glob
import hashlib
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Dict, List

from ansible.module_utils import atomic_file
from ansible.module_utils.basic import AnsibleModule

OWNER = (0, 0)


class FileError(Exception):
    """A file can't be had as it is wanted; the message names it and says why."""


def decode(wanted: Dict) -> bytes:
    """Return the content that *wanted* says. Raises FileError."""
    if wanted["encoding"] == "utf-8":
        return wanted["content"].encode()
    try:
        return base64.b64decode(wanted["content"], validate=True)
    except ValueError as error:
        raise FileError(f"{wanted['path']}: `content` is not base64: {error}") from error


class File:
    """One file as it is wanted: path, content (bytes), mode (int)."""

    def __init__(self, wanted: Dict) -> None:
        self.path = wanted["path"]
        self.content = decode(wanted)
        self.is_text = wanted["encoding"] == "utf-8"
        self.validate = wanted["validate"]
        if not Path(self.path).is_absolute():
            raise FileError(f"{self.path}: name it from the root on")
        if not re.fullmatch("0?[0-7]{3}", wanted["mode"]):
            raise FileError(
                f"{self.path}: {wanted['mode']!r} is no mode: write digits in quotes, such as '0644'"
            )
        self.mode = int(wanted["mode"], 8)

    def present(self) -> str:
        """Return the content that is there, as text; empty if there is none."""
        if Path(self.path).is_symlink():
            return f"a symbolic link to {os.readlink(self.path)}\n"
        return self.shown(atomic_file.read(self.path) or b"")

    def shown(self, content: bytes) -> str:
        """Return what a diff shows of *content*: of what is no text, its digest."""
        if self.is_text or not content:
            return content.decode(errors="replace")
        return f"{len(content)} bytes with SHA-256 {hashlib.sha256(content).hexdigest()}\n"

    def properties(self) -> str:
        """Return mode and owner of what is there, as text."""
        status = os.lstat(self.path)
        return f"{stat.S_IMODE(status.st_mode):04o} {status.st_uid}:{status.st_gid}"

    def is_there(self) -> bool:
        return os.path.lexists(self.path)

    def is_as_wanted(self) -> bool:
        if not self.is_there() or Path(self.path).is_symlink():
            return False
        return atomic_file.read(self.path) == self.content and self.properties() == self.wanted_properties()

    def wanted_properties(self) -> str:
        return f"{self.mode:04o} {OWNER[0]}:{OWNER[1]}"

    def check(self, module: AnsibleModule) -> None:
        """Raise FileError unless the program that reads it accepts the new content."""
        if not self.validate or (module.check_mode and not shutil.which(self.validate[0])):
            return
        if not any("%s" in word for word in self.validate):
            raise FileError(f"{self.path}: `validate` has no %s in place of the file")
        candidate = Path(module.tmpdir) / Path(self.path).name
        candidate.write_bytes(self.content)
        argv = [word.replace("%s", str(candidate)) for word in self.validate]
        code, output, errors = module.run_command(argv)
        if code:
            said = (errors + output).strip().replace(str(candidate), self.path)
            raise FileError(f"{self.path}: {self.validate[0]} refuses the new content: {said}")

    def write(self) -> None:
        Path(self.path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        atomic_file.replace(self.path, self.content, self.mode, OWNER)

    def difference(self) -> Dict[str, str]:
        before, after = self.present(), self.shown(self.content)
        if before == after and self.is_there():
            before, after = f"{self.properties()}\n", f"{self.wanted_properties()}\n"
        return {"before_header": self.path, "after_header": self.path, "before": before, "after": after}


def run(module: AnsibleModule) -> Dict:
    files = [File(wanted) for wanted in module.params["files"]]
    paths = [file.path for file in files]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise FileError(f"{twice[0]} is named twice")
    different = [file for file in files if not file.is_as_wanted()]
    found = {path for pattern in module.params["absent"] for path in glob.glob(pattern)}  # noqa: PTH207 - absolute patterns
    surplus = sorted(found.difference(paths))
    for file in different:
        file.check(module)
    diff: List[Dict[str, str]] = [file.difference() for file in different]
    for path in surplus:
        content = (atomic_file.read(path) or b"").decode(errors="replace") if Path(path).is_file() else ""
        diff.append({"before_header": path, "after_header": path, "before": content, "after": ""})
    if not module.check_mode:
        for file in different:
            file.write()
        for path in surplus:
            Path(path).unlink()
    changed = [file.path for file in different] + surplus
    return {"changed": bool(changed), "paths": changed, "diff": diff}


def main() -> None:
    file = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
        "encoding": {"type": "str", "choices": ["utf-8", "base64"], "default": "utf-8"},
        "mode": {"type": "str", "default": "0644"},
        "validate": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "default": [], "options": file},
            "absent": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
        # Not in the journal of the node, with all that is in the files.
        no_log=True,
    )
    try:
        module.exit_json(**run(module))
    except FileError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
