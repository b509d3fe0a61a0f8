# SPDX-License-Identifier: Apache-2.0
"""Apptainer's packages on one node: what is wanted, what is there, what is wrong, and the way between.

What all package managers have in common. Each of them has a module of its own (`apptainer_apt`,
`apptainer_dnf`) with a class that has the methods of `Manager`. They plan before anything is touched, with
the real package manager, so that a version that can't be had is found out while the node is as it was, and
check mode can tell the truth on a node that has never heard of the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from pathlib import Path
from typing import (
    Callable,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    TypeVar,
)

from . import apptainer_transition, apptainer_version, atomic_file, singularity_conf

MAIN, SUID = "apptainer", "apptainer-suid"
#: For every program run here. The PATH is what users get, however root's own may look.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
#: Seconds to wait for others who are at work on packages, and between two looks.
PATIENCE, PAUSE = 120, 2
#: Where Apptainer looks for its setuid starter, below what ``apptainer buildcfg LIBEXECDIR`` says.
STARTER = "apptainer/bin/starter-suid"

#: Where `apptainer_tree` puts a link for users of a node, and what marks the tree that it leads to.
TREE_LINK, TREE_MARK = "/usr/local/bin/apptainer", ".apptainer-fleet.json"

_ARMOR = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
# Debian Policy 5.6.1 and rpm's habits. Debian allows a hyphen at the end too, which no package has and apt
# reads as a removal. A plus there is part of the name (g++), as long as there is such a package.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*[A-Za-z0-9_.+]")

#: Runs a program with `ENVIRONMENT`: argv → return code, output, errors.
Run = Callable[[Sequence[str]], Tuple[int, str, str]]
_T = TypeVar("_T")


class PackageError(Exception):
    """The packages can't be brought to the wanted state; the message says why and names the mend."""


class Repository(NamedTuple):
    """A package repository; *key* is the ASCII-armored public key that signs it.

    suite, component: of an APT repository; empty for one of dnf or zypper.
    """

    url: str
    key: str
    suite: str = ""
    component: str = ""


class LocalPackage(NamedTuple):
    """A package file on the node, and what it says of itself."""

    path: str
    name: str
    version: str
    architecture: str


class Request(NamedTuple):
    """What is wanted: a version, with or without setuid starter, from a repository or the node's sources."""

    version: apptainer_version.Version
    suid: bool = False
    repository: Optional[Repository] = None
    helpers: Sequence[str] = ()
    #: What to say of a distribution that has no such version.
    hint: str = ""
    #: Instead of a repository: files, of which `with_files` has seen that they are what is wanted.
    files: Sequence[LocalPackage] = ()
    #: Packages of which none is to be there.
    replaced: Sequence[str] = ()
    #: Whether what somebody has on hold is moved all the same.
    release_hold: bool = False

    @property
    def packages(self) -> List[str]:
        """Return the names of Apptainer's packages to be installed."""
        return [MAIN, SUID] if self.suid else [MAIN]

    @property
    def where(self) -> str:
        """Return where the packages are looked for, in words and with the variable."""
        if self.files:
            return "apptainer_package_files"
        if not self.repository:
            return "the package sources of this node"
        words = (self.repository.url, self.repository.suite, self.repository.component)
        return f"the repository {' '.join(filter(None, words))} (apptainer_repository)"


class Program(NamedTuple):
    """Apptainer as it runs.

    path: the program that users get. version: what ``apptainer --version`` says, None if nothing sensible.
    starter: where it looks for the setuid starter, empty if it can't say. starter_mode: mode of that file,
    None if there is none.
    """

    path: str
    version: Optional[str]
    starter: str
    starter_mode: Optional[int]


class State(NamedTuple):
    """What a node has: package → version, the program if there is one, and path → package manager's file."""

    packages: Dict[str, str]
    program: Optional[Program]
    files: Dict[str, str]

    @property
    def running(self) -> str:
        """Return the release that the program says it is, empty if none: packagers add to it or not."""
        return (self.program and self.program.version or "").split("-")[0]

    @property
    def starter(self) -> str:
        """Return the path of the setuid starter, empty if there is none."""
        return self.program.starter if self.program and self.program.starter_mode is not None else ""

    @property
    def setuid(self) -> bool:
        """Whether the setuid starter can do its work."""
        return bool(self.program and (self.program.starter_mode or 0) & stat.S_ISUID)


class Step(NamedTuple):
    """One step of a transaction that a package manager has planned.

    action: ``install`` or ``remove``. version: the new one, empty if removed. previous: empty if new.
    """

    action: str
    package: str
    version: str
    previous: str


class Plan(NamedTuple):
    """What the package manager will do: the version to install, and every step.

    stale: whether it found only with fresh lists of all its sources what is planned.
    """

    version: str
    steps: List[Step]
    stale: bool = False


class Manager(Protocol):
    """A package manager on a node."""

    def installed(self, names: Sequence[str]) -> Dict[str, str]:
        """Return package → version of those of *names* that are installed."""

    def wanted_files(self, request: Request, version: str) -> Dict[str, str]:
        """Return the content that its files have to have, by path; empty for none.

        version: of the package that is to stay where it is.
        """

    def describe(self, path: str) -> LocalPackage:
        """Return what a package file says of itself. Raises PackageError if it is none of its kind."""

    def plan(self, request: Request, state: State, broken: bool) -> Plan:
        """Plan the way to what is wanted and leave the node as it is.

        broken: install what is there already again. Raises PackageError and OSError.
        """

    def apply(self, request: Request, state: State, plan: Plan, broken: bool) -> None:
        """Carry out what has been planned with the same arguments. Raises PackageError and OSError."""


def find(run: Run) -> Optional[Program]:
    """Look for Apptainer where users get it from; None if there is none."""
    path = shutil.which("apptainer", path=ENVIRONMENT["PATH"])
    if path is None:
        return None
    # /dev/null, because a configuration that Apptainer refuses must not keep it from being mended.
    code, out, _ = run([path, "--config", os.devnull, "buildcfg", "LIBEXECDIR"])
    starter = f"{out.strip()}/{STARTER}" if code == 0 and out.startswith("/") else ""
    return Program(path, apptainer_version.printed(run([path, "--version"])[1]), starter, _mode(starter))


class Packages:
    """The packages of *request* on this node, which *manager* takes care of."""

    def __init__(self, request: Request, run: Run, manager: Manager) -> None:
        self._request = request
        self._run = run
        self._manager = manager

    def state(self) -> State:
        """Look at the node. Raises OSError."""
        packages = self._manager.installed((MAIN, SUID, *self._request.helpers, *self._request.replaced))
        paths = self._manager.wanted_files(self._request, "")
        return State(packages, find(self._run), {path: read_text(path) for path in paths})

    def wrong(self, state: State) -> List[str]:
        """Return what of *state* is not as wanted, one phrase each; the pin's version follows the package."""
        wanted = self._request
        package = state.packages.get(MAIN, "missing")
        problems = [f"package {name} is missing" for name in wanted.helpers if name not in state.packages]
        if leads_to_tree(TREE_LINK):
            problems.append(f"{TREE_LINK} leads to a tree")
        problems += [f"package {name} is there" for name in wanted.replaced if name in state.packages]
        if not wanted.version.matches(package):
            problems.append(f"package {MAIN} is {package}")
        if state.running != wanted.version.release:
            problems.append(f"`apptainer --version` says {state.running or 'nothing'}")
        suid = state.packages.get(SUID)
        if wanted.suid and suid != package:
            problems.append(f"package {SUID} is {suid or 'missing'}")
        if state.program and not state.program.starter:
            problems.append("`apptainer buildcfg LIBEXECDIR` names no directory")
        if wanted.suid and not state.setuid:
            problems.append(f"{state.starter or 'the setuid starter'} has no setuid bit")
        if not wanted.suid and suid:
            problems.append(f"package {SUID} is {suid}")
        if not wanted.suid and state.starter:
            problems.append(f"{state.starter} is there")
        files = self.wanted_files(package)
        problems += [f"{path} is another" for path, text in state.files.items() if text != files[path]]
        return problems

    def wanted_files(self, version: str) -> Dict[str, str]:
        """Return the files of the package manager as they are to be when Apptainer's package is *version*."""
        return self._manager.wanted_files(self._request, version)

    def plan(self, state: State) -> Plan:
        """Plan the way from *state* to what is wanted; the node stays as it is.

        Raises PackageError where there is no way, and OSError.
        """
        try:
            plan = self._manager.plan(self._request, state, self._broken(state))
        except PackageError as error:
            # Not every package manager says what is in the way.
            there = () if self._request.replaced else self._manager.installed(singularity_conf.PACKAGES)
            if not there:
                raise
            raise PackageError(
                f"{error}; this node has {', '.join(there)}, and where that is in the way: set"
                " apptainer_replace_singularity to true, which carries its settings over"
            ) from error
        self._refuse_other_helpers(state, plan.steps)
        self._refuse_other_removals(plan.steps)
        return plan

    def apply(self, state: State, plan: Plan) -> None:
        """Do what is planned, and prove it by running ``apptainer``. Raises PackageError and OSError."""
        if any(name in state.packages for name in self._request.replaced):
            singularity_conf.keep()
        with apptainer_transition.readable_by(self._request.version.release):
            self._manager.apply(self._request, state, plan, self._broken(state))
        # Not before: a source without its packages is a change half done, and a pin to a version that failed
        # to install would let the next upgrade move to it.
        for path, text in self.wanted_files(plan.version).items():
            _write(path, text)
        if leads_to_tree(TREE_LINK):
            Path(TREE_LINK).unlink()
        after = self.state()
        if not self._request.suid and after.starter:
            # No package owns it any more, and Apptainer would still run it as root.
            Path(after.starter).unlink()
            after = self.state()
        problems = self.wrong(after)
        if problems:
            raise PackageError(
                f"{MAIN} {plan.version} has been installed, but {'; '.join(problems)}; look for another"
                f" apptainer in {ENVIRONMENT['PATH']}, or a diversion or alternative of it"
            )

    def _broken(self, state: State) -> bool:
        """Whether the right package has something wrong in it: files were changed behind its back."""
        silent = state.program is not None and not state.program.starter
        dead = SUID in state.packages and not state.setuid
        return silent or dead or state.running != self._request.version.release

    def _refuse_other_helpers(self, state: State, steps: Sequence[Step]) -> None:
        # A package manager may take a name that it doesn't know for an expression or a virtual package.
        gained = {step.package for step in steps if step.action == "install"}
        lost = [name for name in self._request.helpers if name not in {*state.packages, *gained}]
        if lost:
            raise PackageError(
                f"apptainer_helper_packages: there is no package {', '.join(lost)}, only others that the"
                " package manager takes its name for; name the packages that are meant"
            )

    def _refuse_other_removals(self, steps: Sequence[Step]) -> None:
        lost = [f"{step.package} {step.previous}" for step in steps if step.action == "remove"]
        removable = (MAIN, SUID, *self._request.replaced)
        others = [name for name in lost if name.split(" ")[0] not in removable]
        if others:
            singularity = all(name.split(" ")[0] in singularity_conf.PACKAGES for name in others)
            mend = "remove what nobody needs, or choose another version"
            if singularity:
                mend = "set apptainer_replace_singularity to true, which carries its settings over"
            raise PackageError(
                f"{MAIN} {self._request.version} can't be installed beside {', '.join(others)}, which would"
                f" be removed for it: {mend}"
            )


def choose(request: Request, offered: Sequence[str], installed: Optional[str]) -> Optional[str]:
    """Return the version of those *offered* (newest first) that will do, None if there is none.

    Another build of the wanted release is no reason to move from the one that is *installed*.
    """
    preferred = [version for version in offered if version == installed]
    return next((version for version in [*preferred, *offered] if request.version.matches(version)), None)


def with_files(request: Request, found: Sequence[LocalPackage], architectures: Sequence[str]) -> Request:
    """Return *request* with the package files *found*, but for a setuid starter that is not wanted.

    architectures: those that the node takes, its own first. Raises PackageError where they don't fit the
    node, each other, or what is wanted.
    """
    chosen = [one for one in found if one.name != SUID or request.suid]
    problems = [
        f"{one.name} is for {one.architecture}, and this node takes {architectures[0]}"
        for one in chosen
        if one.architecture not in architectures
    ]
    names = [one.name for one in chosen]
    problems += [f"{name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    problems += [f"{name} is missing" for name in request.packages if name not in names]
    main = next((one.version for one in chosen if one.name == MAIN), None)
    for one in chosen:
        if one.name == MAIN and not request.version.matches(one.version):
            problems.append(f"{MAIN} is {one.version}, and apptainer_version is {request.version}")
        if one.name == SUID and main is not None and one.version != main:
            problems.append(f"{SUID} is {one.version}, and {MAIN} is {main}")
    if problems:
        raise PackageError(f"apptainer_package_files: {'; '.join(problems)}")
    return request._replace(files=chosen)


def file_version(request: Request) -> str:
    """Return the version of Apptainer's package among the files of *request*."""
    return next(one.version for one in request.files if one.name == MAIN)


def not_offered(request: Request, offered: Sequence[str]) -> PackageError:
    """Return the error that the wanted version can't be had, with those that can."""
    hint = f"; {request.hint}" if request.hint and not request.repository else ""
    return PackageError(
        f"{MAIN} {request.version} (apptainer_version) can't be had; on offer in {request.where}:"
        f" {', '.join(offered) or 'none'}{hint}"
    )


def held(request: Request, holders: Sequence[str], mend: str) -> PackageError:
    """Return the error that the site keeps Apptainer where it is; *holders* are the places that say so."""
    return PackageError(
        f"{MAIN} can't be brought to {request.version} (apptainer_version), because this node holds it:"
        f" {'; '.join(holders)}. {mend}, or set apptainer_version to what is installed"
    )


def check_key(key: str) -> str:
    """Return the *key* of a repository without blanks around it. Raises ValueError if it isn't armored."""
    if not key.strip().startswith(_ARMOR):
        raise ValueError(
            "apptainer_repository: the file with the key is no ASCII-armored public key: it must begin with"
            f" {_ARMOR}"
        )
    return key.strip()


def check_helpers(names: Iterable[object]) -> None:
    """Refuse what is no name of a package to have beside Apptainer. Raises ValueError."""
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name of a package, like 'fuse2fs'; versions, architectures, options"
                " and removals ('fuse2fs-') can't stand here"
            )
        if name in (MAIN, SUID):
            raise ValueError(f"{name} is no helper: apptainer_version and apptainer_profile decide on it")


def when_free(attempt: Callable[[], Tuple[_T, Optional[str]]]) -> _T:
    """Return what *attempt* returns, once nobody else is at work on the node's packages.

    attempt: returns its result and who holds the package manager's locks, None for nobody.
    Raises PackageError if that doesn't end in `PATIENCE` seconds.
    """
    for _ in range(0, PATIENCE, PAUSE):
        result, holder = attempt()
        if holder is None:
            return result
        time.sleep(PAUSE)
    raise PackageError(
        f"another program has been at work on this node's packages for {PATIENCE} seconds, wait for it or"
        f" end it: {holder}"
    )


def leads_to_tree(link: str) -> bool:
    """Whether *link* leads to the program of a tree that `apptainer_tree` has made."""
    if not Path(link).is_symlink():
        return False
    target = Path(os.readlink(link))  # noqa: PTH115 - Path can since 3.9
    return (target.parent.parent / TREE_MARK).exists()


def read_text(path: str) -> str:
    """Return the text of a file, empty if there is none. Raises OSError."""
    return (atomic_file.read(path) or b"").decode(errors="surrogateescape")


def _mode(path: str) -> Optional[int]:
    try:
        return Path(path).stat().st_mode if path else None
    except FileNotFoundError:
        return None


def _write(path: str, text: str) -> None:
    if text == read_text(path):
        return
    if text:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        atomic_file.replace(path, text.encode(errors="surrogateescape"), owner=(0, 0))
    else:
        Path(path).unlink()
