# SPDX-License-Identifier: Apache-2.0
"""Apptainer's packages on one Debian node: look, plan with the real apt, do, prove.

Planning happens in a scratch directory: apt gets the wanted sources, the node's package lists and room for
new ones there, so that a version that can't be had is found out while the node is as it was, and check mode
can tell the truth on a node that has never heard of the repository.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import struct
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import apptainer_apt, apptainer_version, atomic_file
from .apptainer_apt import MAIN, PREFERENCES, SOURCES, SUID, Repository, Step

#: For every program run here. The PATH is what users get, however root's own may look.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
LISTS = "/var/lib/apt/lists"
#: dpkg's journal: files with digits for names are there while dpkg works, and stay if it was interrupted.
UPDATES = "/var/lib/dpkg/updates"
#: Held by whoever works with dpkg, from the beginning to the end.
DPKG_LOCK = "/var/lib/dpkg/lock-frontend"
#: Seconds to wait for others who are at work on packages, and between two looks.
PATIENCE, PAUSE = 120, 2
#: Where Apptainer looks for its setuid starter, below what ``apptainer buildcfg LIBEXECDIR`` says.
STARTER = "apptainer/bin/starter-suid"

#: Runs a program with `ENVIRONMENT`: argv → return code, output, errors.
Run = Callable[[Sequence[str]], Tuple[int, str, str]]


class PackageError(Exception):
    """The packages can't be brought to the wanted state; the message says why and names the mend."""


class Request(NamedTuple):
    """What is wanted: a version, with or without setuid starter, from a repository or the node's sources."""

    version: apptainer_version.Version
    suid: bool = False
    repository: Optional[Repository] = None
    helpers: Sequence[str] = ()

    @property
    def sources(self) -> str:
        """Return the file for `SOURCES`, empty if there is to be none."""
        return apptainer_apt.sources(self.repository) if self.repository else ""

    @property
    def where(self) -> str:
        """Return where the packages are looked for, in words and with the variable."""
        if not self.repository:
            return "the package sources of this node"
        url, suite, component, _ = self.repository
        return f"the repository {url} {suite} {component} (apptainer_repository)"


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
    """What a node has: package → version, the program if there is one, and the two files of apt."""

    packages: Dict[str, str]
    program: Optional[Program]
    sources: str
    preferences: str

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


class Plan(NamedTuple):
    """What apt will do: the version to install, every step, and whether it needs all package lists afresh."""

    version: str
    steps: List[Step]
    all_lists: bool


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
    """The packages of *request* on this node; *scratch* is an empty directory to plan in."""

    def __init__(self, request: Request, run: Run, scratch: Path) -> None:
        self._request = request
        self._run = run
        self._scratch = scratch

    def state(self) -> State:
        """Look at the node. Raises OSError."""
        names = (MAIN, SUID, *self._request.helpers)
        # Fails where one of them is not known at all, and shows the others.
        shape = f"--showformat={apptainer_apt.DPKG_FORMAT}"
        _, shown, _ = self._run(["dpkg-query", "--show", shape, "--", *names])
        return State(apptainer_apt.installed(shown), find(self._run), _text(SOURCES), _text(PREFERENCES))

    def wrong(self, state: State) -> List[str]:
        """Return what of *state* is not as wanted, one phrase each; the pin's version follows the package."""
        wanted = self._request
        package = state.packages.get(MAIN, "missing")
        problems = [f"package {name} is missing" for name in wanted.helpers if name not in state.packages]
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
        if state.sources != wanted.sources:
            problems.append(f"{SOURCES} is another")
        if state.preferences != apptainer_apt.preferences(package, wanted.suid):
            problems.append(f"{PREFERENCES} is another")
        return problems

    def plan(self, state: State) -> Plan:
        """Let apt plan the way from *state* to what is wanted; only the scratch directory is touched.

        Raises PackageError where apt can't get there, and OSError.
        """
        _wait_for_dpkg()
        self._prepare_scratch()
        options = self._scratch_options()
        own = _only(self._scratch / "own") if self._request.repository else []
        all_lists, fresh = False, bool(own) and state.sources != self._request.sources
        if fresh:
            self._update([*options, *own])
        version = self._choose(state, options)
        if version is None and not fresh:
            self._update([*options, *own])
            all_lists = not own
            version = self._choose(state, options)
        if version is None:
            raise PackageError(
                f"{MAIN} {self._request.version} (apptainer_version) can't be had; on offer in"
                f" {self._request.where}: {', '.join(self._offered(options)) or 'none'}"
            )
        simulate = self._install(state, version, ["--simulate", *options])
        code, out, err = self._run(simulate)
        if code != 0 and not all_lists:
            self._update(options)
            all_lists = True
            code, out, err = self._run(simulate)
        if code != 0:
            raise PackageError(f"apt can't install {MAIN} {version}:\n{_errors(out, err)}")
        steps = apptainer_apt.planned(out)
        self._refuse_other_helpers(state, steps)
        return Plan(version, steps, all_lists)

    def apply(self, state: State, plan: Plan) -> None:
        """Do what is planned, and prove it by running ``apptainer``. Raises PackageError and OSError."""
        sources = self._scratch_sources()
        if plan.all_lists:
            self._update(sources)
        elif self._request.repository:
            self._update(_only(self._scratch / "own"))
        command = self._install(state, plan.version, sources)
        code, out, err = self._apt(command)
        if code != 0 and not plan.all_lists:
            # Lists that are a day old name packages that a mirror has replaced since.
            self._update(sources)
            code, out, err = self._apt(command)
        if code != 0:
            raise PackageError(f"apt could not install {MAIN} {plan.version}:\n{_errors(out, err)}")
        # Not before: a source without its packages is a change half done, and a pin to a version that failed
        # to install would let the next `apt upgrade` move to it.
        _write(SOURCES, self._request.sources)
        _write(PREFERENCES, apptainer_apt.preferences(plan.version, self._request.suid))
        after = self.state()
        if not self._request.suid and after.starter:
            # No package owns it any more, and Apptainer would still run it as root.
            Path(after.starter).unlink()
            after = self.state()
        problems = self.wrong(after)
        if problems:
            raise PackageError(
                f"apt has installed {MAIN} {plan.version}, but {'; '.join(problems)}; look for another"
                f" apptainer in {ENVIRONMENT['PATH']}, and at `dpkg-divert --list`"
            )

    def _prepare_scratch(self) -> None:
        """Fill the scratch directory: the node's sources with ours as wanted, and the node's lists."""
        for name in ("sources", "own", "lists/partial"):
            (self._scratch / name).mkdir(parents=True)
        for folder, name in ((Path(SOURCES).parent, "sources"), (Path(LISTS), "lists")):
            for file in folder.iterdir() if folder.is_dir() else ():
                if file.is_file() and file.name not in ("lock", Path(SOURCES).name):
                    (self._scratch / name / file.name).symlink_to(file)
        for name in ("sources", "own") if self._request.repository else ():
            (self._scratch / name / Path(SOURCES).name).write_text(self._request.sources)

    def _scratch_options(self) -> List[str]:
        """Return options that keep apt within the scratch directory."""
        return self._scratch_sources() + _options(
            f"Dir::State::Lists={self._scratch / 'lists'}",
            "Dir::Cache::pkgcache=",
            "Dir::Cache::srcpkgcache=",
            "APT::Sandbox::User=root",
        )

    def _scratch_sources(self) -> List[str]:
        """Return options that give apt the sources as wanted, not as they are on the node."""
        return _options(f"Dir::Etc::SourceParts={self._scratch / 'sources'}")

    def _apt(self, command: Sequence[str]) -> Tuple[int, str, str]:
        """Run apt once nobody else has its locks: apt-daily may come at any time. Raises PackageError."""
        for _ in range(0, PATIENCE, PAUSE):
            code, out, err = self._run(command)
            holder = apptainer_apt.locked(err) if code != 0 else None
            if holder is None:
                return code, out, err
            time.sleep(PAUSE)
        raise PackageError(
            f"another program has been at work on this node's packages for {PATIENCE} seconds, wait for it or"
            f" end it: {holder}"
        )

    def _refuse_other_helpers(self, state: State, steps: Sequence[Step]) -> None:
        # apt takes a name that it doesn't know for a regular expression or a virtual package if it can.
        gained = {step.package for step in steps if step.action == "install"}
        lost = [name for name in self._request.helpers if name not in {*state.packages, *gained}]
        if lost:
            raise PackageError(
                f"apptainer_helper_packages: there is no package {', '.join(lost)}, and apt takes its name"
                " for an expression or a virtual package; name the packages that are meant"
            )

    def _update(self, options: Sequence[str]) -> None:
        command = ["apt-get", "update", *_options("APT::Update::Error-Mode=any"), *options]
        code, out, err = self._apt(command)
        if code != 0:
            raise PackageError(
                f"apt can't read {self._request.where} or another source:\n{_errors(out, err)}"
            )

    def _offered(self, options: Sequence[str]) -> List[str]:
        _, out, _ = self._run(["apt-cache", "madison", MAIN, *options])
        return apptainer_apt.offered(out, self._request.repository.url if self._request.repository else None)

    def _choose(self, state: State, options: Sequence[str]) -> Optional[str]:
        offered = self._offered(options)
        # Another build of the wanted release is no reason to move.
        preferred = [version for version in offered if version == state.packages.get(MAIN)]
        return apptainer_apt.choose(self._request.version, [*preferred, *offered])

    def _install(self, state: State, version: str, options: Sequence[str]) -> List[str]:
        # The right package with something wrong in it: files were changed behind dpkg's back.
        again = state.packages.get(MAIN) == version and self._broken(state)
        return [
            *("apt-get", "install", "--yes", "--allow-downgrades", *(["--reinstall"] if again else [])),
            # The configuration is the site's: dpkg must neither ask nor replace it.
            *_options("Dpkg::Options::=--force-confdef", "Dpkg::Options::=--force-confold"),
            *_options(f"DPkg::Lock::Timeout={PATIENCE}"),
            *options,
            "--",
            *apptainer_apt.packages(version, self._request.suid, self._request.helpers),
        ]

    def _broken(self, state: State) -> bool:
        silent = state.program is not None and not state.program.starter
        dead = SUID in state.packages and not state.setuid
        return silent or dead or state.running != self._request.version.release


def _wait_for_dpkg() -> None:
    """Return once dpkg's journal is empty: a simulation of apt does not look, its installation refuses.

    Raises PackageError if dpkg was interrupted, or doesn't come to an end.
    """
    for _ in range(0, PATIENCE, PAUSE):
        at_work, folder = _locked(DPKG_LOCK), Path(UPDATES)
        journal = [file for file in folder.iterdir() if file.name.isdigit()] if folder.is_dir() else []
        if not journal:
            return
        if not at_work:
            raise PackageError(
                f"dpkg was interrupted on this node ({journal[0]} is there): run `dpkg --configure -a` there"
            )
        time.sleep(PAUSE)
    raise PackageError(
        f"another program has had {DPKG_LOCK} for {PATIENCE} seconds: wait for it, or end it and run"
        " `dpkg --configure -a`"
    )


def _locked(path: str) -> bool:
    """Whether another process has a lock (fcntl(2)) on *path*; nobody is disturbed by the question."""
    try:
        with Path(path).open("rb") as file:
            question = struct.pack("hhlli", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    except FileNotFoundError:
        return False
    return bool(struct.unpack("hhlli", answer)[0] != fcntl.F_UNLCK)


def _options(*settings: str) -> List[str]:
    return [word for setting in settings for word in ("-o", setting)]


def _only(folder: Path) -> List[str]:
    """Return options of ``apt-get update`` for the sources in *folder* alone, the other lists kept."""
    return _options(
        "Dir::Etc::SourceList=/dev/null", f"Dir::Etc::SourceParts={folder}", "APT::Get::List-Cleanup=false"
    )


def _mode(path: str) -> Optional[int]:
    try:
        return Path(path).stat().st_mode if path else None
    except FileNotFoundError:
        return None


def _text(path: str) -> str:
    return (atomic_file.read(path) or b"").decode(errors="surrogateescape")


def _write(path: str, text: str) -> None:
    if text == _text(path):
        return
    if text:
        atomic_file.replace(path, text.encode(), owner=(0, 0))
    else:
        Path(path).unlink()


def _errors(out: str, err: str) -> str:
    """Return the lines of apt's output that say what is wrong."""
    lines = [*out.splitlines(), *err.splitlines()]
    return "\n".join(
        [line for line in lines if line.startswith(("E:", "W:", "Err:", "dpkg:"))] or lines[-10:]
    )
