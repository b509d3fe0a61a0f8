# SPDX-License-Identifier: Apache-2.0
"""Prove that a normal user can run a container on this node, with an image made of the node's own files.

The image is a SIF with one program, ``id``, and the libraries it needs: no network, no registry, two
megabytes, a second. Running it takes what every job takes: the starter, a namespace or the setuid bit, a
mount, the configuration with its bind paths.

Where the execution control list is on, it must refuse this image, which nobody has signed. A key on the node
to sign it with would be a key to everything, so the image to run is one that the site has signed elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import pwd
import re
import shutil
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from . import apptainer_ecl, atomic_file
from .apptainer_packages import ENVIRONMENT, Run, find

FOLDER = "/etc/apptainer"
#: The files there that the outcome depends on.
CONFIGURATION = ("apptainer.conf", "ecl.toml", "global-pgp-public")
PROGRAM = "/usr/bin/id"
#: What decides beside Apptainer whether a user gets a user namespace. Kernels differ in what they have.
PARAMETERS = (
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
)
#: Seconds. A FUSE mount that hangs must not hang the run.
PATIENCE = 120

#: Exit status of timeout(1).
TIMED_OUT = 124

_LIBRARY = re.compile(r"(/\S+) \(0x[0-9a-f]+\)$")


class SmokeTestError(Exception):
    """No container runs; the message says what was tried, what was said and where to look."""


def libraries(ldd: str) -> List[str]:
    """Return the files in the output of ``ldd``; the kernel's own (linux-vdso) is none."""
    matches = (_LIBRARY.search(line) for line in ldd.splitlines())
    return [match.group(1) for match in matches if match]


class Test(NamedTuple):
    """What is to be proved.

    user: who runs the container. image: one of the site's own, an absolute path, or empty. enforced: whether
    users must not be able to create user namespaces, in which no list binds them. folder: with Apptainer's
    configuration, empty for the usual one.
    """

    user: str
    image: str = ""
    enforced: bool = False
    folder: str = ""


def subject(test: Test, run: Run) -> Optional[str]:
    """Return all that the test's outcome depends on, as JSON; None on a node without Apptainer.

    Raises SmokeTestError if there is no such user, or if it is root.
    """
    uid = _uid(test.user)
    program = find(run)
    if program is None:
        return None
    parameters = {path: atomic_file.read(path) for path in PARAMETERS}
    facts: Dict[str, object] = {
        **test._asdict(),
        "uid": uid,
        "apptainer": program._asdict(),
        "configuration": {
            name: hashlib.sha256(atomic_file.read(f"{test.folder or FOLDER}/{name}") or b"").hexdigest()
            for name in CONFIGURATION
        },
        "parameters": {
            path: value.decode().strip() for path, value in parameters.items() if value is not None
        },
    }
    return json.dumps(facts, indent=2, sort_keys=True) + "\n"


def prove(test: Test, run: Run, scratch: Path) -> bool:
    """Build an image in *scratch*, an empty directory that the user can read, and prove the node with it.

    Returns whether a container has run: not where the list is on and the site has named no image.
    Raises SmokeTestError and OSError.
    """
    image, home = scratch / "id.sif", scratch / "home"
    home.mkdir(mode=0o700)
    shutil.chown(home, test.user)
    # As root, who can build wherever anything can run; what is to be proved is that others can run it.
    builder = {**ENVIRONMENT, "HOME": str(scratch), "APPTAINER_TMPDIR": str(scratch)}
    _root_file_system(run, scratch / "root")
    _run(run, [*_environment(builder), "apptainer", "build", str(image), str(scratch / "root")])
    image.chmod(0o644)
    # runuser, not su or sudo: no shell, no password, no login. env, because runuser keeps root's environment.
    runner = {**ENVIRONMENT, "HOME": str(home), "APPTAINER_CONFIGDIR": str(home)}
    as_user = ["runuser", "-u", test.user, "--", *_environment(runner)]
    if test.enforced:
        _no_user_namespaces(run, as_user)
    listed = _listed(test.folder or FOLDER)
    if listed:
        _refused(run, [*as_user, "apptainer", "exec", "--no-home", str(image), PROGRAM, "-u"])
    chosen, program = (test.image, "id") if test.image else (str(image), PROGRAM)
    if listed and not test.image:
        return False
    inside = _run(run, [*as_user, "apptainer", "exec", "--no-home", chosen, program, "-u"]).strip()
    if inside != str(_uid(test.user)):
        raise SmokeTestError(
            f"user {test.user} has uid {inside or 'none'} in a container and {_uid(test.user)} outside"
        )
    return True


def _listed(folder: str) -> bool:
    """Whether the execution control list is on; one that can't be read is off for Apptainer."""
    try:
        return apptainer_ecl.read(atomic_file.read(f"{folder}/ecl.toml") or b"").activated
    except apptainer_ecl.EclError:
        return False


def _refused(run: Run, command: List[str]) -> None:
    code, out, err = run(command)
    if code == 0:
        raise SmokeTestError(
            f"the execution control list {FOLDER}/ecl.toml is on, and an image that nobody has signed runs"
        )
    if apptainer_ecl.REFUSED not in err:
        raise SmokeTestError(_complaint(command, code, out, err))


def _no_user_namespaces(run: Run, as_user: List[str]) -> None:
    code, _, _ = run([*as_user, "unshare", "--user", "true"])
    if code == 0:
        raise SmokeTestError(
            "users can create user namespaces on this node, and containers in these are bound by no list: set"
            " user_namespaces_enabled to false, or choose another apptainer_profile"
        )


def _environment(variables: Dict[str, str]) -> List[str]:
    settings = [f"{name}={value}" for name, value in variables.items()]
    return ["env", "--ignore-environment", "--chdir=/", *settings, "timeout", str(PATIENCE)]


def _root_file_system(run: Run, root: Path) -> None:
    for file in (PROGRAM, *libraries(_run(run, ["ldd", PROGRAM]))):
        copy = root / file.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def _run(run: Run, argv: List[str]) -> str:
    code, out, err = run(argv)
    if code != 0:
        raise SmokeTestError(_complaint(argv, code, out, err))
    return out


def _complaint(argv: List[str], code: int, out: str, err: str) -> str:
    silence = f"nothing, for {PATIENCE} seconds" if code == TIMED_OUT else "nothing"
    said = (err or out).strip() or silence
    if apptainer_ecl.REFUSED in said:
        return (
            f"the execution control list {FOLDER}/ecl.toml refuses apptainer_smoke_test_image: it has to lie"
            f" in a directory of apptainer_ecl, signed by the keys of that. Apptainer said: {said}"
        )
    hint = ""
    if "namespace" in said:
        hint = "; can users create user namespaces here? See the role user_namespaces"
    return f"no container runs on this node{hint}. `{' '.join(argv)}` said ({code}): {said}"


def _uid(user: str) -> int:
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise SmokeTestError(f"there is no user {user}: name another in apptainer_smoke_test_user") from None
    if uid == 0:
        raise SmokeTestError(f"{user} proves nothing about users: name another in apptainer_smoke_test_user")
    return uid
