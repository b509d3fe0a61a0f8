# SPDX-License-Identifier: Apache-2.0
"""Apptainer's packages with apt, on Debian and its relatives.

It plans in a scratch directory: apt gets the wanted sources, the node's package lists and room for new ones
there.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from . import apptainer_packages
from .apptainer_packages import (
    MAIN,
    PATIENCE,
    PAUSE,
    SUID,
    LocalPackage,
    PackageError,
    Plan,
    Repository,
    Request,
    Run,
    State,
    Step,
)

SOURCES = "/etc/apt/sources.list.d/apptainer.sources"
PREFERENCES = "/etc/apt/preferences.d/apptainer"
LISTS = "/var/lib/apt/lists"
#: dpkg's journal: files with digits for names are there while dpkg works, and stay if it was interrupted.
UPDATES = "/var/lib/dpkg/updates"
#: Held by whoever works with dpkg, from the beginning to the end.
DPKG_LOCK = "/var/lib/dpkg/lock-frontend"
DPKG_FORMAT = "${Package} ${db:Status-Status} ${Version}\n"

_HEADER = "# Written by Ansible (apptainer_package): changes made here are lost.\n"
# "Inst PACKAGE [OLD] (NEW SOURCES)", "Remv PACKAGE [OLD]"
_SIMULATED = re.compile(r"(?P<verb>Inst|Remv) (?P<package>\S+)(?: \[(?P<old>[^]]*)\])?(?: \((?P<new>\S+))?")
# apt waits for dpkg's locks if it is told to, but never for these.
_LOCKED = re.compile(r"^E: (Could not get lock \S+/(?:lists|archives)/lock\b.*)", re.MULTILINE)


class Apt:
    """apt on this node; *scratch* is an empty directory to plan in. A `Manager`."""

    def __init__(self, run: Run, scratch: Path) -> None:
        self._run = run
        self._scratch = scratch

    def installed(self, names: Sequence[str]) -> Dict[str, str]:
        """Return package → version of those of *names* that are installed."""
        # Fails where one of them is not known at all, and shows the others.
        _, shown, _ = self._run(["dpkg-query", "--show", f"--showformat={DPKG_FORMAT}", "--", *names])
        return installed(shown)

    def wanted_files(self, request: Request, version: str) -> Dict[str, str]:
        """Return the two files of apt. Raises ValueError for a key that is none."""
        return {
            SOURCES: sources(request.repository) if request.repository else "",
            PREFERENCES: preferences(version, request.suid),
        }

    def describe(self, path: str) -> LocalPackage:
        """Return what a Debian package file says of itself. Raises PackageError."""
        fields = "${Package} ${Version} ${Architecture}"
        code, out, err = self._run(["dpkg-deb", "--show", f"--showformat={fields}", path])
        if code != 0 or len(out.split(" ")) != 3:  # noqa: PLR2004 - the fields
            said = (err or out).strip()
            raise PackageError(f"apptainer_package_files: dpkg can't read {Path(path).name}: {said}")
        return LocalPackage(path, *out.split(" "))

    def plan(self, request: Request, state: State, broken: bool) -> Plan:
        """Plan within the scratch directory. Raises PackageError where apt can't get there, and OSError."""
        _wait_for_dpkg()
        self._prepare_scratch(request)
        options = self._scratch_options()
        own = _only(self._scratch / "own") if request.repository else []
        wanted_sources = self.wanted_files(request, "")[SOURCES]
        all_lists, fresh = False, bool(own) and state.files[SOURCES] != wanted_sources
        if fresh:
            self._update(request, [*options, *own])
        version = self._choose(request, state, options)
        if version is None and not fresh:
            self._update(request, [*options, *own])
            all_lists = not own
            version = self._choose(request, state, options)
        if version is None:
            raise apptainer_packages.not_offered(request, self._offered(request, options))
        released = self._released(request, state, version)
        if released:
            options = [*options, "--allow-change-held-packages"]
        simulate = _install(request, state, version, broken, ["--simulate", *options])
        code, out, err = self._run(simulate)
        if code != 0 and not all_lists:
            self._update(request, options)
            all_lists = True
            code, out, err = self._run(simulate)
        if code != 0:
            raise PackageError(f"apt can't install {MAIN} {version}:\n{_errors(out, err)}")
        steps = planned(out)
        # That option lets apt move all that is on hold, and only what is ours may move.
        others = sorted({step.package for step in steps} & set(self._held())) if released else []
        others = [name for name in others if name not in released]
        if others:
            names = " ".join(others)
            raise PackageError(
                f"{MAIN} can't be brought to {version} without {names}, which this node holds: run"
                f" `apt-mark unhold {names}` there"
            )
        return Plan(version, steps, all_lists)

    def apply(self, request: Request, state: State, plan: Plan, broken: bool) -> None:
        """Carry out *plan*. Raises PackageError."""
        options = self._scratch_sources()
        if plan.stale:
            self._update(request, options)
        elif request.repository:
            self._update(request, _only(self._scratch / "own"))
        command = _install(request, state, plan.version, broken, options)
        released = self._released(request, state, plan.version)
        if released:
            self._mark("unhold", released)
        code, out, err = self._apt(command)
        if code != 0 and not plan.stale:
            # Lists that are a day old name packages that a mirror has replaced since.
            self._update(request, options)
            code, out, err = self._apt(command)
        if code != 0:
            if released:
                self._mark("hold", released)
            raise PackageError(f"apt could not install {MAIN} {plan.version}:\n{_errors(out, err)}")

    def _prepare_scratch(self, request: Request) -> None:
        """Fill the scratch directory: the node's sources with ours as wanted, and the node's lists."""
        for name in ("sources", "own", "lists/partial"):
            (self._scratch / name).mkdir(parents=True)
        for folder, name in ((Path(SOURCES).parent, "sources"), (Path(LISTS), "lists")):
            for file in folder.iterdir() if folder.is_dir() else ():
                if file.is_file() and file.name not in ("lock", Path(SOURCES).name):
                    (self._scratch / name / file.name).symlink_to(file)
        for name in ("sources", "own") if request.repository else ():
            (self._scratch / name / Path(SOURCES).name).write_text(self.wanted_files(request, "")[SOURCES])

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

        def attempt() -> Tuple[Tuple[int, str, str], Optional[str]]:
            code, out, err = self._run(command)
            return (code, out, err), locked(err) if code != 0 else None

        return apptainer_packages.when_free(attempt)

    def _held(self) -> List[str]:
        """Return the packages that are on hold (apt-mark(8))."""
        return self._run(["apt-mark", "showhold"])[1].split()

    def _mark(self, what: str, names: Sequence[str]) -> None:
        """Run ``apt-mark hold`` or ``unhold``. Raises PackageError."""
        code, out, err = self._run(["apt-mark", what, *names])
        if code != 0:
            raise PackageError(f"`apt-mark {what} {' '.join(names)}` fails: {(err or out).strip()}")

    def _released(self, request: Request, state: State, version: str) -> List[str]:
        """Return what has to move and is on hold, if that may be released. Raises PackageError if not."""
        on_hold = self._held()
        wanted = dict.fromkeys(request.packages, version)
        moved = [
            name for name in (MAIN, SUID) if name in on_hold and state.packages.get(name) != wanted.get(name)
        ]
        if moved and not request.release_hold:
            names = " ".join(moved)
            places = [f"`apt-mark showhold` names {names}"]
            mend = f"Run `apt-mark unhold {names}` there, set apptainer_release_hold to true"
            raise apptainer_packages.held(request, places, mend)
        return moved

    def _update(self, request: Request, options: Sequence[str]) -> None:
        command = ["apt-get", "update", *_options("APT::Update::Error-Mode=any"), *options]
        code, out, err = self._apt(command)
        if code != 0:
            raise PackageError(f"apt can't read {request.where} or another source:\n{_errors(out, err)}")

    def _offered(self, request: Request, options: Sequence[str]) -> List[str]:
        _, out, _ = self._run(["apt-cache", "madison", MAIN, *options])
        return offered(out, request.repository.url if request.repository else None)

    def _choose(self, request: Request, state: State, options: Sequence[str]) -> Optional[str]:
        if request.files:
            return apptainer_packages.file_version(request)
        return apptainer_packages.choose(request, self._offered(request, options), state.packages.get(MAIN))


def sources(repository: Repository) -> str:
    """Return the file for `SOURCES`: deb822 with the key inside (apt 2.4), so that the two can't part.

    Raises ValueError if the key isn't ASCII-armored.
    """
    key = apptainer_packages.check_key(repository.key)
    # A continuation line must not be empty: a dot stands for it (deb822(5)).
    block = "".join(f" {line.strip() or '.'}\n" for line in key.splitlines())
    return (
        f"{_HEADER}Types: deb\nURIs: {repository.url}\nSuites: {repository.suite}\n"
        f"Components: {repository.component}\nSigned-By:\n{block}"
    )


def preferences(version: str, suid: bool) -> str:
    """Return the file for `PREFERENCES`: these packages stay at *version*, whatever any source offers.

    Above 1000 even a downgrade is taken, below 0 nothing is (apt_preferences(5)). Without *suid* the
    setuid package can't come along as somebody's dependency either.
    """
    pinned = f"{MAIN} {SUID}" if suid else MAIN
    text = f"{_HEADER}Package: {pinned}\nPin: version {version}\nPin-Priority: 1001\n"
    return text if suid else f"{text}\nPackage: {SUID}\nPin: version *\nPin-Priority: -1\n"


def locked(errors: str) -> Optional[str]:
    """Return what apt's *errors* say of a lock that it doesn't wait for, with its holder; None if nothing."""
    match = _LOCKED.search(errors)
    return match.group(1) if match else None


def installed(dpkg_query: str) -> Dict[str, str]:
    """Return package → version from ``dpkg-query --show`` with the format `DPKG_FORMAT`."""
    rows = [line.split(" ") for line in dpkg_query.splitlines()]
    return {package: version for package, status, version in rows if status == "installed"}


def offered(madison: str, url: Optional[str] = None) -> List[str]:
    """Return the versions in the output of ``apt-cache madison``, newest first; with *url*, only its own."""
    versions = []
    for line in madison.splitlines():
        columns = [column.strip() for column in line.split("|")]
        if len(columns) != 3 or not columns[2].endswith(" Packages"):  # noqa: PLR2004 - package, version, source
            continue
        if url is None or columns[2].split(" ")[0].rstrip("/") == url.rstrip("/"):
            versions.append(columns[1])
    return list(dict.fromkeys(versions))


def planned(simulation: str) -> List[Step]:
    """Return the steps in the output of ``apt-get --simulate install``."""
    matches = (_SIMULATED.match(line) for line in simulation.splitlines())
    return [
        Step(
            "install" if match.group("verb") == "Inst" else "remove",
            match.group("package"),
            match.group("new") or "",
            match.group("old") or "",
        )
        for match in matches
        if match
    ]


def _install(request: Request, state: State, version: str, broken: bool, options: Sequence[str]) -> List[str]:
    """Return the command that brings all packages to where they are to be, in one transaction."""
    again = state.packages.get(MAIN) == version and broken
    return [
        *("apt-get", "install", "--yes", "--allow-downgrades", *(["--reinstall"] if again else [])),
        # The configuration is the site's: dpkg must neither ask nor replace it.
        *_options("Dpkg::Options::=--force-confdef", "Dpkg::Options::=--force-confold"),
        *_options(f"DPkg::Lock::Timeout={PATIENCE}"),
        *options,
        "--",
        *([one.path for one in request.files] or [f"{name}={version}" for name in request.packages]),
        # Where no source has it, apt knows the name only if it is installed.
        *([f"{SUID}-"] if not request.suid and (SUID in state.packages or not request.files) else []),
        *(f"{name}-" for name in request.replaced if name in state.packages),
        *request.helpers,
    ]


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


def _errors(out: str, err: str) -> str:
    """Return the lines of apt's output that say what is wrong."""
    lines = [*out.splitlines(), *err.splitlines()]
    return "\n".join(
        [line for line in lines if line.startswith(("E:", "W:", "Err:", "dpkg:"))] or lines[-10:]
    )
