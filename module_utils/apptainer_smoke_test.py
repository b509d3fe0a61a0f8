# SPDX-License-Identifier: Apache-2.0
"""Prove that a normal user can run a container on this node, with an image made of the node's own files.

The image is a SIF with one program, ``id``, and the libraries it needs: no network, no registry, two
megabytes, a second. Running it takes what every job takes: the starter, a namespace or the setuid bit, a
FUSE mount, the configuration with its bind paths.
"""

from __future__ import annotations

import hashlib
import json
import pwd
import re
import shutil
from pathlib import Path
from typing import Dict, List, Optional

from . import atomic_file
from .apptainer_packages import ENVIRONMENT, Run, find

CONFIGURATION = "/etc/apptainer/apptainer.conf"
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
#: What Apptainer says of an image that the ECL doesn't let run; not of an ECL that it can't use.
REFUSED_BY_ECL = "while checking container image with ECL"

_LIBRARY = re.compile(r"(/\S+) \(0x[0-9a-f]+\)$")


class SmokeTestError(Exception):
    """No container runs; the message says what was tried, what was said and where to look."""


def libraries(ldd: str) -> List[str]:
    """Return the files in the output of ``ldd``; the kernel's own (linux-vdso) is none."""
    matches = (_LIBRARY.search(line) for line in ldd.splitlines())
    return [match.group(1) for match in matches if match]


def subject(user: str, run: Run) -> Optional[str]:
    """Return all that the test's outcome depends on, as JSON; None on a node without Apptainer.

    Raises SmokeTestError if there is no such user, or if it is root.
    """
    uid = _uid(user)
    program = find(run)
    if program is None:
        return None
    parameters = {path: atomic_file.read(path) for path in PARAMETERS}
    facts: Dict[str, object] = {
        "user": user,
        "uid": uid,
        "apptainer": program._asdict(),
        "configuration": hashlib.sha256(atomic_file.read(CONFIGURATION) or b"").hexdigest(),
        "parameters": {
            path: value.decode().strip() for path, value in parameters.items() if value is not None
        },
    }
    return json.dumps(facts, indent=2, sort_keys=True) + "\n"


def prove(user: str, run: Run, scratch: Path) -> None:
    """Build an image in *scratch*, an empty directory that *user* can read, and run it as *user*.

    Raises SmokeTestError and OSError.
    """
    image, home = scratch / "id.sif", scratch / "home"
    home.mkdir(mode=0o700)
    shutil.chown(home, user)
    # As root, who can build wherever anything can run; what is to be proved is that others can run it.
    builder = {**ENVIRONMENT, "HOME": str(scratch), "APPTAINER_TMPDIR": str(scratch)}
    _root_file_system(run, scratch / "root")
    _run(run, [*_environment(builder), "apptainer", "build", str(image), str(scratch / "root")])
    image.chmod(0o644)
    # runuser, not su or sudo: no shell, no password, no login. env, because runuser keeps root's environment.
    runner = {**ENVIRONMENT, "HOME": str(home), "APPTAINER_CONFIGDIR": str(home)}
    command = [*_environment(runner), "apptainer", "exec", "--no-home", str(image), PROGRAM, "-u"]
    inside = _run(run, ["runuser", "-u", user, "--", *command]).strip()
    if inside != str(_uid(user)):
        raise SmokeTestError(
            f"user {user} has uid {inside or 'none'} in a container and {_uid(user)} outside"
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
    if code == 0:
        return out
    silence = f"nothing, for {PATIENCE} seconds" if code == TIMED_OUT else "nothing"
    said = (err or out).strip() or silence
    if REFUSED_BY_ECL in said:
        raise SmokeTestError(
            "nothing is known of containers on this node: its execution control list /etc/apptainer/ecl.toml"
            " refuses the image of the smoke test, which nobody has signed. That is its purpose, and no fault"
            f" of Apptainer; an empty apptainer_smoke_test_user switches the test off. Apptainer said: {said}"
        )
    hint = ""
    if "namespace" in said:
        hint = "; can users create user namespaces here? See the role user_namespaces"
    raise SmokeTestError(f"no container runs on this node{hint}. `{' '.join(argv)}` said ({code}): {said}")


def _uid(user: str) -> int:
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        raise SmokeTestError(f"there is no user {user}: name another in apptainer_smoke_test_user") from None
    if uid == 0:
        raise SmokeTestError(f"{user} proves nothing about users: name another in apptainer_smoke_test_user")
    return uid
