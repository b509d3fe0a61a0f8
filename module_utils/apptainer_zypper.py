# SPDX-License-Identifier: Apache-2.0
"""Apptainer's packages with zypper, on SUSE Linux Enterprise and openSUSE Leap.

zypper plans as it acts, but for ``--dry-run``, with repositories and locks from a scratch directory. Versions
are held with locks of its own (zypper(8), package lock management), which carry a comment that says whose.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple
from xml.etree import ElementTree  # noqa: S405 - of zypper's own output

from . import apptainer_packages, apptainer_rpm
from .apptainer_packages import MAIN, SUID, LocalPackage, PackageError, Plan, Request, Run, State, Step

REPOSITORY = "/etc/zypp/repos.d/apptainer.repo"
LOCKS = "/etc/zypp/locks"
CONF = "/etc/zypp/zypp.conf"

_COMMENT = "comment: kept by Ansible (apptainer_package)"
#: What zypper answers where another one is at work (zypper(8), exit codes), and from which on all went well.
_LOCKED, _FINE = 7, 100
#: The same after a package's script has failed.
_SCRIPT_FAILED = 107
_SUMMARY = {
    "to-install": "install",
    "to-upgrade": "install",
    "to-downgrade": "install",
    "to-reinstall": "install",
    "to-upgrade-change-vendor": "install",
    "to-downgrade-change-vendor": "install",
    "to-change-vendor": "install",
    "to-change-arch": "install",
    "to-remove": "remove",
}


class Zypper:
    """zypper on this node; *scratch* is an empty directory to work in. A `Manager`."""

    def __init__(self, run: Run, scratch: Path) -> None:
        self._run = run
        self._scratch = scratch

    def installed(self, names: Sequence[str]) -> Dict[str, str]:
        """Return package → version of those of *names* that are installed."""
        return apptainer_rpm.installed(self._run, names)

    def wanted_files(self, request: Request, version: str) -> Dict[str, str]:  # noqa: ARG002 - of `Manager`
        """Return the repository, its key, and the locks. Raises ValueError for a key that is none."""
        own = request.repository
        return {
            apptainer_rpm.KEY: apptainer_rpm.key_file(own) if own else "",
            # zypper wants either metadata or packages to be signed; packages are, in every repository.
            REPOSITORY: apptainer_rpm.repository_file(
                own, "repo_gpgcheck=0", "pkg_gpgcheck=1", "autorefresh=1"
            )
            if own
            else "",
            LOCKS: hold(apptainer_packages.read_text(LOCKS)),
        }

    def describe(self, path: str) -> LocalPackage:
        """Return what a package file says of itself. Raises PackageError."""
        return apptainer_rpm.describe(self._run, path)

    def plan(self, request: Request, state: State, broken: bool) -> Plan:
        """Plan with zypper, and download what is ours. Raises PackageError and OSError."""
        self._prepare_scratch(request)
        version, stale = self._choose(request, state)
        self._refuse_hold(request, state, version)
        words = _change(request, state, version)
        # Keys would be imported. They are for packages, and those are looked at below.
        tree = self._zypper(
            request, ["--no-gpg-checks"], ["install", "--dry-run", *_options(broken), "--", *words]
        )
        if request.repository:
            own = [f"{apptainer_rpm.ID}:{name}={version}" for name in request.packages]
            fetched = self._zypper(request, ["--no-gpg-checks"], ["download", *own])
            paths = [file.get("path") or "" for file in fetched.iter("localfile")]
            keyring = self._scratch / "keyring"
            keyring.mkdir()
            apptainer_rpm.check_signatures(self._run, paths, self._scratch / "key", keyring)
        return Plan(version, planned(tree), stale)

    def apply(self, request: Request, state: State, plan: Plan, broken: bool) -> None:
        """Carry out *plan*. Raises PackageError."""
        if request.repository:
            code, out, err = self._run(["rpm", "--import", str(self._scratch / "key")])
            if code != 0:
                raise PackageError(f"apptainer_repository: rpm can't read its key: {(err or out).strip()}")
        words = _change(request, state, plan.version)
        self._zypper(request, [], ["install", *_options(broken), "--", *words])

    def _prepare_scratch(self, request: Request) -> None:
        """Fill the scratch directory: repositories as wanted, and the node's settings without our locks."""
        repositories, own = self._scratch / "repositories", Path(REPOSITORY)
        repositories.mkdir()
        for file in own.parent.glob("*.repo") if own.parent.is_dir() else ():
            if file.name != own.name:
                (repositories / file.name).symlink_to(file)
        if request.repository:
            key = self._scratch / "key"
            key.write_text(apptainer_rpm.key_file(request.repository))
            text = self.wanted_files(request, "")[REPOSITORY].replace(apptainer_rpm.KEY, str(key))
            (repositories / own.name).write_text(text)
        if request.files:
            # Their digests have been compared, so nobody needs to have signed them.
            folder = self._scratch / "files"
            folder.mkdir()
            for one in request.files:
                (folder / Path(one.path).name).symlink_to(one.path)
            (repositories / own.name).write_text(
                f"[{apptainer_rpm.ID}]\nname=apptainer_package_files\nbaseurl=dir://{folder}\n"
                "type=plaindir\nenabled=1\ngpgcheck=0\nrepo_gpgcheck=0\npkg_gpgcheck=0\nautorefresh=1\n"
            )
        (self._scratch / "locks").write_text(release(apptainer_packages.read_text(LOCKS)))
        setting = f"\n[main]\nlocksfile.path = {self._scratch / 'locks'}\n"
        (self._scratch / "zypp.conf").write_text(apptainer_packages.read_text(CONF) + setting)

    def _choose(self, request: Request, state: State) -> Tuple[str, bool]:
        """Return the version to install, and whether only fresh metadata had it. Raises PackageError."""
        offered: List[str] = []
        for refresh in (False, True):
            if refresh:
                self._zypper(request, ["--no-gpg-checks"], ["refresh"])
            offered = self._offered(request)
            version = apptainer_packages.choose(request, offered, state.packages.get(MAIN))
            if version is not None:
                return version, refresh
        raise apptainer_packages.not_offered(request, offered)

    def _offered(self, request: Request) -> List[str]:
        own = ["--repo", apptainer_rpm.ID] if request.repository or request.files else []
        search = ["search", "--details", "--match-exact", "--type", "package", *own, MAIN]
        # Finding nothing is an answer, too.
        tree = self._zypper(request, ["--no-gpg-checks"], search, fine=(104,))
        found = [
            solvable.get("edition") or ""
            for solvable in tree.iter("solvable")
            if solvable.get("name") == MAIN and solvable.get("repository") != "(System Packages)"
        ]
        return list(dict.fromkeys(found))

    def _refuse_hold(self, request: Request, state: State, version: str) -> None:
        """Refuse to move what the site has locked. Raises PackageError."""
        wanted = dict.fromkeys(request.packages, version)
        moved = [name for name in (MAIN, SUID) if state.packages.get(name) != wanted.get(name)]
        patterns = [lock["solvable_name"] for lock in _locks(release(apptainer_packages.read_text(LOCKS)))]
        holders = [p for p in patterns if any(fnmatch.fnmatchcase(name, p) for name in moved)]
        if holders:
            places = [f"{LOCKS} has a lock of {', '.join(holders)}"]
            raise apptainer_packages.held(
                request, places, f"Run `zypper removelock {' '.join(holders)}` there"
            )

    def _zypper(
        self, request: Request, options: Sequence[str], command: Sequence[str], fine: Sequence[int] = ()
    ) -> ElementTree.Element:
        """Run zypper, once nobody else does, and return what it prints. Raises PackageError."""
        argv = [
            *("env", f"ZYPP_CONF={self._scratch / 'zypp.conf'}", "zypper", "--non-interactive", "--xmlout"),
            *("--reposd-dir", str(self._scratch / "repositories")),
            *("--pkg-cache-dir", str(self._scratch / "packages"), *options, *command),
        ]

        def attempt() -> Tuple[Tuple[int, str, str], Optional[str]]:
            code, out, err = self._run(argv)
            return (
                code,
                out,
                err,
            ), "zypper says that another process has its lock" if code == _LOCKED else None

        code, out, err = apptainer_packages.when_free(attempt)
        tree = _parse(out)
        good = code in (0, *fine) or (code > _FINE and code not in (104, _SCRIPT_FAILED))
        if not good or tree is None:
            said = [] if tree is None else [*tree.iter("message"), *tree.iter("text")]
            bad = [text.text or "" for text in said if text.get("type") in (None, "error", "warning")]
            problem = "\n".join(bad).strip() or err.strip() or out[-1000:].strip()
            raise PackageError(f"zypper says of {MAIN} {request.version} from {request.where}: {problem}")
        return tree


def planned(tree: ElementTree.Element) -> List[Step]:
    """Return the steps in the summary that ``zypper --xmlout install --details`` prints."""
    return [
        Step(
            action,
            solvable.get("name") or "",
            solvable.get("edition") or "" if action == "install" else "",
            (solvable.get("edition-old") if action == "install" else solvable.get("edition")) or "",
        )
        for kind, action in _SUMMARY.items()
        for part in tree.iter(kind)
        for solvable in part.iter("solvable")
    ]


def hold(locks: str) -> str:
    """Return the file of locks with ours in it; zypper itself may have put it in another order."""
    names = {lock["solvable_name"] for lock in _locks(locks) if _is_ours(lock["text"])}
    missing = [name for name in (MAIN, SUID) if name not in names]
    stanzas = [
        f"\ntype: package\nmatch_type: glob\ncase_sensitive: on\nsolvable_name: {name}\n{_COMMENT}\n"
        for name in missing
    ]
    return locks + "\n".join(stanzas)


def release(locks: str) -> str:
    """Return the file of locks without ours."""
    kept = [lock["text"] for lock in _locks(locks) if not _is_ours(lock["text"])]
    return "".join(f"\n{text}\n" for text in kept)


def _is_ours(stanza: str) -> bool:
    return _COMMENT in stanza.splitlines()


def _locks(text: str) -> Iterator[Dict[str, str]]:
    """Yield ``solvable_name`` and ``text`` of each lock; one of no name is of all."""
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
        if lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("solvable_name:")]
            yield {"solvable_name": names[0] if names else "*", "text": "\n".join(lines)}


def _change(request: Request, state: State, version: str) -> List[str]:
    """Return what zypper has to be told, so that all packages change in one transaction."""
    own = f"{apptainer_rpm.ID}:" if request.repository or request.files else ""
    return [
        *(f"{own}{name}={version}" for name in request.packages),
        *(f"{own}{one.name}={one.version}" for one in request.files if one.name not in request.packages),
        *(
            f"!{name}"
            for name in (SUID, *request.replaced)
            if name in state.packages and name not in request.packages
        ),
        *(name for name in request.helpers if name not in state.packages),
    ]


def _options(broken: bool) -> List[str]:
    # A site's repository has its own vendor.
    return ["--details", "--oldpackage", "--allow-vendor-change", *(["--force"] if broken else [])]


def _parse(out: str) -> Optional[ElementTree.Element]:
    # Scripts of packages may print before or behind it.
    found = re.search(r"<stream>.*</stream>", out, re.DOTALL)
    try:
        return ElementTree.fromstring(found.group()) if found else None  # noqa: S314
    except ElementTree.ParseError:
        return None
