#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the whole configuration of Apptainer on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apptainer_config
short_description: Write the whole configuration of Apptainer in one call
description:
  - Owns the files in C(/etc/apptainer) that its options describe, and leaves those alone whose option has no
    value. They are complete, C(0644 root:root), and regular files.
  - Renders on the node, for the release that is installed there. A setting that this release would ignore or
    misread is an error that names it.
  - Shows all new files to the installed Apptainer before the first is in place, in a mount namespace of its
    own, so that nobody else sees them. It has to read C(apptainer.conf), to list the capabilities, remotes
    and keys, and to refuse an unsigned image if the execution control list is on. What no program can be
    asked about, the lists of libraries, is judged by this project's own readers alone.
  - All files are written before the first is renamed.
options:
  version:
    description:
      - The release to write for (V(1.4.5)), or the version of its package (V(1.4.5-2)). Without it, the
        release that is installed.
      - Another one than that which is installed is possible in check mode only, to predict.
    type: str
  config:
    description: >-
      C(apptainer.conf). Directives that are not to have their default, by their names there. Booleans for yes
      and no, lists for lists. All others are written with their defaults.
    type: dict
  ecl:
    description: C(ecl.toml), the execution control list, which says which SIF images run.
    type: dict
    suboptions:
      enabled:
        description: Whether it is on.
        type: bool
        default: true
      legacy_insecure:
        description: Whether signatures of before 2020 count. They leave all but the file system unsigned.
        type: bool
        default: false
      execgroups:
        description: Which keys the images of one directory need.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: What these images are, for people.
            type: str
            required: true
          mode:
            description: >-
              Whether all of the keys have to have signed (V(whitestrict)), one of them (V(whitelist)), or
              none (V(blacklist), with which unknown signers and changed images pass).
            type: str
            choices: [whitestrict, whitelist, blacklist]
            default: whitestrict
          dirpath:
            description: >-
              The directory itself, not those below it, by its real path. Empty for all that no other group
              has.
            type: str
            required: true
          fingerprints:
            description: Full fingerprints of the primary keys.
            type: list
            elements: str
            required: true
  keys:
    description: >-
      C(global-pgp-public), all keys of the global keyring. An empty list leaves an empty keyring, with which
      no signature is trusted.
    type: list
    elements: dict
    suboptions:
      fingerprint:
        description: 40 hexadecimal digits; blanks as gpg prints them may be there.
        type: str
        required: true
      content:
        description: The public key, ASCII-armored, or its binary form in base64.
        type: str
        required: true
  capabilities:
    description: >-
      C(capability.json). C(users) and C(groups), each name → list of capabilities like V(CAP_NET_RAW) that
      they may have in containers, in setuid mode.
    type: dict
  nv_libraries:
    description: >-
      C(nvliblist.conf). Programs, libraries (V(libcuda.so)) and, since 1.4.0, absolute paths that C(--nv)
      brings into containers.
    type: list
    elements: str
  rocm_libraries:
    description: C(rocmliblist.conf), the same for C(--rocm).
    type: list
    elements: str
  remotes:
    description: >-
      C(remote.yaml). The remote endpoints of all users; the first is the one that they have unless they
      choose another. Without tokens, as all users can read the file.
    type: list
    elements: dict
    suboptions:
      name:
        description: One word.
        type: str
        required: true
      uri:
        description: Its host, without C(https://).
        type: str
        required: true
      exclusive:
        description: Whether users can choose no other.
        type: bool
        default: false
      insecure:
        description: Whether it is asked without TLS.
        type: bool
        default: false
      keyservers:
        description: Where keys are looked for, in this order. Without any, where the endpoint says.
        type: list
        elements: dict
        default: []
        suboptions:
          uri:
            description: Like V(https://keys.openpgp.org).
            type: str
            required: true
          insecure:
            description: Whether its certificate is not checked.
            type: bool
            default: false
  dmtcp:
    description: C(dmtcp-conf.yaml), what checkpoints with DMTCP bring into containers.
    type: dict
    suboptions:
      programs:
        description: Names of programs.
        type: list
        elements: str
        default: []
      libraries:
        description: Names of libraries, with C(.so) at the end.
        type: list
        elements: str
        default: []
  inherit:
    description:
      - Take over what the site has changed in the C(singularity.conf) of a Singularity that is on this node,
        or that M(apptainer_package) has removed from it, as far as this release has such directives.
        O(config) wins.
      - Give O(config), too.
    type: bool
    default: false
  path:
    description: The folder.
    type: path
    default: /etc/apptainer
attributes:
  check_mode:
    support: full
    description: >-
      Works on a node without Apptainer if O(version) says what it will be. Where that is installed, the new
      files are shown to it, too.
  diff_mode:
    support: full
    description: Each file; of the keyring a line for each key.
author: apptainer-fleet
"""

EXAMPLES = r"""
- name: A larger session directory, and images of one directory alone
  apptainer_config:
    config:
      sessiondir max size: 256
      allow container squashfs: false
      allow container extfs: false
      allow container dir: false
    ecl:
      execgroups:
        - name: images of the site
          dirpath: /opt/containers
          fingerprints: [5994BE54C31CF1B5E1994F987C52CF6D055F072B]
    keys:
      - fingerprint: 5994BE54C31CF1B5E1994F987C52CF6D055F072B
        content: "{{ lookup('ansible.builtin.file', 'keys/site.asc') }}"
"""

RETURN = r"""
release:
  description: The release that the files are for.
  returned: success
  type: str
  sample: 1.4.5
files:
  description: Names of the files that were changed, or would be.
  returned: success
  type: list
  elements: str
  sample: [ecl.toml, apptainer.conf]
proved:
  description: Whether the installed Apptainer has taken the new files; false if there were none.
  returned: success
  type: bool
inherited:
  description: Directive → value, of what O(inherit) has taken over.
  returned: success
  type: dict
not_inherited:
  description: What it has not, a sentence each.
  returned: success
  type: list
  elements: str
leftovers:
  description: Files that packages have left beside those of the site, like C(apptainer.conf.rpmnew).
  returned: success
  type: list
  elements: str
"""

import errno
import os
import stat
from pathlib import Path
from typing import Dict, List

from ansible.module_utils import (
    apptainer_conf,
    apptainer_files,
    apptainer_keyring,
    apptainer_packages,
    apptainer_version,
    atomic_file,
    file_systems,
    mounts,
    openpgp,
    private_view,
    singularity_conf,
)
from ansible.module_utils.apptainer_files import FilesError
from ansible.module_utils.basic import AnsibleModule

#: What every container gets has to answer in this time.
BIND_SECONDS = 5
MODE = 0o644
FOLDER_MODE = 0o755


def run(module: AnsibleModule) -> dict:
    """Return the module's result. Raises OSError, and ValueErrors that say what is wrong."""

    def command(argv: List[str]) -> tuple:
        environment = apptainer_packages.ENVIRONMENT
        return module.run_command(list(argv), environ_update=environment, expand_user_and_vars=False)

    folder, program = Path(module.params["path"]), apptainer_packages.find(command)
    installed = ((program and program.version) or "").split("-")[0]
    if not (module.params["version"] or installed):
        raise FilesError([("version", "there is no Apptainer on this node, so say which it will be")])
    release = apptainer_version.parse(module.params["version"] or installed).release
    if installed != release and not module.check_mode:
        there = f"Apptainer {installed}" if installed else "no Apptainer"
        raise FilesError([("version", f"{release} is asked for, and on this node is {there}")])

    inherited = singularity_conf.Inherited({}, [])
    parameters = dict(module.params)
    if parameters["inherit"] and parameters["config"] is not None:
        inherited = singularity_conf.translate(singularity_conf.find(), release, parameters["config"])
        parameters["config"] = {**inherited.settings, **parameters["config"]}
    contents = wanted(parameters, release)
    changed = {name: content for name, content in contents.items() if differs(folder / name, content)}
    if not module.check_mode:
        for warning in refuse_missing_binds(contents, release):
            module.warn(warning)
    opened = is_open(folder)
    proved = False
    if changed and installed == release:
        try:
            apptainer_files.prove(program.path, contents, str(folder))
            proved = True
        except private_view.NoViewError as error:
            module.warn(f"the new files are judged by this project's readers alone: {error}")
    diff = [open_folder(folder)] if opened else []
    diff += [difference(folder / name, content) for name, content in changed.items()]
    if not module.check_mode:
        if opened:
            folder.chmod(FOLDER_MODE)
            os.chown(folder, *owner())
        paths = {str(folder / name): content for name, content in changed.items()}
        atomic_file.replace_all(paths, MODE, owner())
    return {
        "changed": bool(changed or opened),
        "release": release,
        "files": list(changed),
        "proved": proved,
        "inherited": inherited.settings,
        # Not by its path: it is another one where a package has taken its file along.
        "not_inherited": [f"singularity.conf: {problem}" for problem in inherited.left_out],
        "leftovers": apptainer_files.leftovers(str(folder)),
        "diff": diff,
    }


def wanted(parameters: dict, release: str) -> Dict[str, bytes]:
    """Return name of a file → content, in the order in which they are put in place: keys, then their list."""
    contents = {}
    if parameters["keys"] is not None:
        keys = apptainer_keyring.selected(parameters["keys"])
        contents[apptainer_files.KEYRING] = openpgp.keyring(keys)
    return {**contents, **apptainer_files.render(apptainer_files.check(parameters, release), release)}


def refuse_missing_binds(contents: Dict[str, bytes], release: str) -> List[str]:
    """Raise FilesError if what every container gets is not on this node, as none would start then.

    Returns what does not answer, as sentences: that is a matter of its server.
    """
    conf = contents.get("apptainer.conf")
    binds = apptainer_conf.parse(conf.decode(), release)["bind path"] if conf is not None else ()
    sources = {bind.partition(":")[0] for bind in binds} - set(file_systems.DEFAULT_BINDS)
    answers = mounts.probe(sorted(sources), BIND_SECONDS)
    missing = [path for path in answers if answers[path].endswith(os.strerror(errno.ENOENT))]
    if missing:
        what = f"'bind path' has {', '.join(missing)}, which is not on this node: no container would start"
        raise FilesError([("config", f"{what}; make it, or leave it out for nodes that lack it")])
    return [f"'bind path': {answer}" for answer in answers.values() if answer]


def owner() -> tuple:
    """Return root, or whoever runs this where it is not root."""
    return (0, 0) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def differs(path: Path, content: bytes) -> bool:
    """Whether *path* is anything but a file of root with this content that others can only read."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return True
    as_it_should_be = stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == MODE
    return not as_it_should_be or (status.st_uid, status.st_gid) != owner() or path.read_bytes() != content


def is_open(folder: Path) -> bool:
    """Whether others than root can change what is in *folder*. Raises FilesError if it is none."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        raise FilesError([("path", f"{folder} is no directory, but must be one and no link to one")])
    return bool(status.st_mode & 0o022) or (status.st_uid, status.st_gid) != owner()


def open_folder(folder: Path) -> Dict[str, str]:
    """Return the part of the diff for a folder that is mended."""
    status = folder.stat()
    uid, gid = owner()
    return {
        "before_header": str(folder),
        "after_header": str(folder),
        "before": f"mode {stat.S_IMODE(status.st_mode):04o}, uid {status.st_uid}, gid {status.st_gid}\n",
        "after": f"mode {FOLDER_MODE:04o}, uid {uid}, gid {gid}\n",
    }


def difference(path: Path, content: bytes) -> Dict[str, str]:
    """Return the part of the diff for one file."""
    before = path.read_bytes() if path.is_file() else None
    texts = [shown(path.name, side) for side in (before, content)]
    header = str(path)
    if before is not None and texts[0] == texts[1]:
        header += " (owner, mode or kind of the file)"
    return {"before_header": header, "after_header": header, "before": texts[0], "after": texts[1]}


def shown(name: str, content: "bytes | None") -> str:
    if name == apptainer_files.KEYRING:
        return "".join(f"{line}\n" for line in apptainer_keyring.present(content)[1])
    return (content or b"").decode(errors="backslashreplace")


def main() -> None:
    """Run the module."""
    text = {"type": "str", "required": True}
    group = {
        "name": text,
        "mode": {
            "type": "str",
            "choices": ["whitestrict", "whitelist", "blacklist"],
            "default": "whitestrict",
        },
        "dirpath": text,
        "fingerprints": {"type": "list", "elements": "str", "required": True},
    }
    server = {"uri": text, "insecure": {"type": "bool", "default": False}}
    remote = {
        "name": text,
        "uri": text,
        "exclusive": {"type": "bool", "default": False},
        "insecure": {"type": "bool", "default": False},
        "keyservers": {"type": "list", "elements": "dict", "default": [], "no_log": False, "options": server},
    }
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str"},
            "config": {"type": "dict"},
            "ecl": {
                "type": "dict",
                "options": {
                    "enabled": {"type": "bool", "default": True},
                    "legacy_insecure": {"type": "bool", "default": False},
                    "execgroups": {"type": "list", "elements": "dict", "default": [], "options": group},
                },
            },
            "keys": {
                "type": "list",
                "elements": "dict",
                "no_log": False,
                "options": {"fingerprint": text, "content": text},
            },
            "capabilities": {"type": "dict"},
            "nv_libraries": {"type": "list", "elements": "str"},
            "rocm_libraries": {"type": "list", "elements": "str"},
            "remotes": {"type": "list", "elements": "dict", "options": remote},
            "dmtcp": {
                "type": "dict",
                "options": {
                    "programs": {"type": "list", "elements": "str", "default": []},
                    "libraries": {"type": "list", "elements": "str", "default": []},
                },
            },
            "inherit": {"type": "bool", "default": False},
            "path": {"type": "path", "default": apptainer_files.FOLDER},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except ValueError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
