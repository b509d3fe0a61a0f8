# SPDX-License-Identifier: Apache-2.0
"""Apptainer's packages with dnf 4, on Enterprise Linux 8 to 10.

`dnf_transaction` plans and acts with dnf's own library. Versions are held with dnf's setting ``excludepkgs``,
which needs no plugin.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import apptainer_packages, apptainer_rpm, dnf_transaction
from .apptainer_packages import MAIN, SUID, LocalPackage, PackageError, Plan, Request, Run, State, Step

REPOSITORY = "/etc/yum.repos.d/apptainer.repo"
CONF = "/etc/dnf/dnf.conf"

_COMMENT = "# Ansible (apptainer_package) keeps these packages where they are:"
_HOLD = re.compile(rf"(?m)^{re.escape(_COMMENT)}\n(?:exclude|excludepkgs)=.*\n")
_MAIN = re.compile(r"(?m)^\[main\][ \t]*\n")


class Dnf:
    """dnf on this node; *scratch* is an empty directory to work in. A `Manager`."""

    def __init__(self, run: Run, scratch: Path) -> None:
        self._run = run
        self._scratch = scratch

    def installed(self, names: Sequence[str]) -> Dict[str, str]:
        """Return package → version of those of *names* that are installed."""
        return apptainer_rpm.installed(self._run, names)

    def wanted_files(self, request: Request, version: str) -> Dict[str, str]:  # noqa: ARG002 - of `Manager`
        """Return the repository, its key, and dnf.conf with the hold. Raises ValueError for a wrong key."""
        own = request.repository
        return {
            apptainer_rpm.KEY: apptainer_rpm.key_file(own) if own else "",
            REPOSITORY: apptainer_rpm.repository_file(own) if own else "",
            CONF: hold(apptainer_packages.read_text(CONF)),
        }

    def describe(self, path: str) -> LocalPackage:
        """Return what a package file says of itself. Raises PackageError."""
        return apptainer_rpm.describe(self._run, path)

    def plan(self, request: Request, state: State, broken: bool) -> Plan:
        """Plan with dnf, which looks at the repositories and downloads what is ours.

        Raises PackageError where dnf can't get there, and OSError.
        """
        version, stale = self._choose(request, state)
        answer = self._dnf(request, **_change(request, state, version, broken), action="plan")
        moved = {step[1] for step in answer["steps"]} & {MAIN, SUID}
        if request.files and moved and answer["holders"]:
            raise _held(request, answer["holders"])
        if request.repository:
            keyring = self._scratch / "keyring"
            keyring.mkdir()
            apptainer_rpm.check_signatures(self._run, answer["downloads"], self._key(request), keyring)
        return Plan(version, [Step(*step) for step in answer["steps"]], stale)

    def apply(self, request: Request, state: State, plan: Plan, broken: bool) -> None:
        """Carry out *plan*. Raises PackageError."""
        self._dnf(request, **_change(request, state, plan.version, broken), action="apply")

    def _choose(self, request: Request, state: State) -> Tuple[str, bool]:
        """Return the version to install, and whether only fresh metadata had it. Raises PackageError."""
        if request.files:
            return apptainer_packages.file_version(request), False
        answer: Dict[str, Any] = {}
        for refresh in (False, True):
            answer = self._dnf(request, action="offer", refresh=refresh)
            version = apptainer_packages.choose(request, answer["offered"], state.packages.get(MAIN))
            if version is not None:
                return version, refresh
            if apptainer_packages.choose(request, answer["hidden"], None):
                raise _held(request, answer["holders"] or ["a plugin or a module stream of dnf"])
        raise apptainer_packages.not_offered(request, answer["offered"])

    def _dnf(self, request: Request, **wanted: Any) -> Dict[str, Any]:
        """Run `dnf_transaction`, once nobody else has dnf's locks, and return its answer.

        Raises PackageError with what dnf says that is wrong.
        """
        own = None
        if request.repository:
            self._key(request).write_text(apptainer_rpm.key_file(request.repository))
            own = {"id": apptainer_rpm.ID, "url": request.repository.url, "key": str(self._key(request))}
        program, file = self._scratch / "dnf_transaction.py", self._scratch / "request.json"
        program.write_text(inspect.getsource(dnf_transaction))
        asked = {
            "repository": own,
            "own_excludes": held_words(apptainer_packages.read_text(CONF)),
            "name": MAIN,
            "refresh": False,
            "folder": str(self._scratch),
            **wanted,
        }
        file.write_text(json.dumps(asked))
        command = [*interpreter(), str(program), str(file)]

        def attempt() -> Tuple[Tuple[int, str, str], Optional[str]]:
            code, out, err = self._run(command)
            return (code, out, err), json.loads(out).get("locked") if code == 0 else None

        code, out, err = apptainer_packages.when_free(attempt)
        if code != 0:
            raise PackageError(f"dnf's library can't be used on this node: {(err or out).strip()[-1000:]}")
        answer: Dict[str, Any] = json.loads(out)
        if "problem" in answer:
            raise PackageError(
                f"dnf says of {MAIN} {request.version} from {request.where}: {answer['problem']}"
            )
        return answer

    def _key(self, request: Request) -> Path:  # noqa: ARG002
        return self._scratch / "repository.asc"


def _held(request: Request, holders: Sequence[str]) -> PackageError:
    mend = "Take Apptainer out there, or `dnf versionlock delete` it"
    return apptainer_packages.held(request, holders, mend)


def _change(request: Request, state: State, version: str, broken: bool) -> Dict[str, Any]:
    """Return what `dnf_transaction` has to change, so that all packages change in one transaction."""
    return {
        "install": [] if request.files else [f"{name}-{version}" for name in request.packages],
        "files": [one.path for one in request.files],
        "again": state.packages.get(MAIN) == version and broken,
        "helpers": [name for name in request.helpers if name not in state.packages],
        "remove": [
            name
            for name in (SUID, *request.replaced)
            if name in state.packages and name not in request.packages
        ],
    }


def interpreter() -> List[str]:
    """Return the command for the Python that dnf runs under. Raises PackageError."""
    program = shutil.which("dnf", path=apptainer_packages.ENVIRONMENT["PATH"])
    with Path(program).open("rb") if program else Path("/dev/null").open("rb") as file:
        words = file.readline().decode(errors="replace").split()
    if not words or not words[0].startswith("#!") or "python" not in " ".join(words):
        raise PackageError(
            "this node has no dnf of version 4, a program in Python: install it (package dnf), or give the"
            " node Apptainer from a shared file system (apptainer_tree)"
        )
    return [words[0][2:], *words[1:]] if words[0] != "#!" else words[1:]


def hold(conf: str) -> str:
    """Return the text of dnf.conf with our hold in it: no transaction but ours touches the packages.

    dnf adds ``exclude`` and ``excludepkgs`` up, so ours is that of the two which the site doesn't use.
    Raises PackageError if it uses both.
    """
    bare = release(conf)
    bare += "" if bare.endswith("\n") or not bare else "\n"
    used = set(re.findall(r"(?m)^(exclude|excludepkgs)[ \t]*=", bare))
    free = [name for name in ("excludepkgs", "exclude") if name not in used]
    if not free:
        raise PackageError(
            f"{CONF} has both excludepkgs and exclude, which are the same to dnf: put all into one of them,"
            " so that the other is free to hold Apptainer's version"
        )
    block = f"{_COMMENT}\n{free[0]}={MAIN},{SUID}\n"
    header = _MAIN.search(bare)
    if header:
        return bare[: header.end()] + block + bare[header.end() :]
    return f"[main]\n{block}{bare}"


def release(conf: str) -> str:
    """Return the text of dnf.conf without our hold."""
    return _HOLD.sub("", conf)


def held_words(conf: str) -> List[str]:
    """Return the excludes in dnf.conf that are ours."""
    return [MAIN, SUID] if _HOLD.search(conf) else []
