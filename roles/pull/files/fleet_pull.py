#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Brings this node to the state that the newest trusted commit of the site's repository describes.

Fetches, refuses a commit that no allowed key has signed or that would take the node back, and runs
ansible-pull on its own copy of exactly that commit. /var/lib/apptainer-fleet/pull.json says how it went. Once
it went well, services start that wait for it (role variable pull_before).

Runs as root from systemd: Python 3.8 or newer, standard library, git 2.34 or newer for signatures of SSH.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Deque, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence

from module_utils import atomic_file, pull

HERE = Path(__file__).resolve().parent
#: For every program that is run: the PATH of an ordinary login, whatever started this one.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Seconds that a program may take for something small, for a fetch or for packages, and between two tries.
SMALL, LARGE, PAUSE = 120, 600, 5
#: Seconds for a collector of results to answer.
DELIVERY = 10
#: Longer than any run: seconds to wait for another one.
LOCK_SECONDS = 7200
COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
#: Nothing is worth more lines in the result.
TAIL = 12


class PullError(Exception):
    """The node has not converged; the message says why and how to mend it. `outcome` stands in the result."""

    outcome = "error"


class UnreachableError(PullError):
    """Git can't get anything from the repository."""

    outcome = "unreachable"


class RefusedError(PullError):
    """The commit is not to be trusted; nothing of it was used."""

    outcome = "refused"


class FailedError(PullError):
    """The playbook did not get to its end."""

    outcome = "failed"


class Places(NamedTuple):
    """Where things are on the node."""

    settings: Path
    signers: Path
    work: Path
    result: Path
    lock: Path
    converged: Path
    policy: Path
    dpkg_journal: Path

    @classmethod
    def below(cls, root: Path) -> Places:
        """Return the places of a node whose file system is at *root*."""
        return cls(
            settings=root / "etc/apptainer-fleet/pull.json",
            signers=root / "etc/apptainer-fleet/allowed_signers",
            work=root / "var/lib/apptainer-fleet/pull",
            result=root / "var/lib/apptainer-fleet/pull.json",
            lock=root / "run/apptainer-fleet/pull.lock",
            # Gone with every boot: it says that this boot has seen a converge that went well.
            converged=root / "run/apptainer-fleet/converged",
            policy=root / "usr/sbin/policy-rc.d",
            dpkg_journal=root / "var/lib/dpkg/updates",
        )


class Ended(NamedTuple):
    """How a program ended: return code and the end of what it said."""

    code: int
    said: str


def environment(**more: str) -> Dict[str, str]:
    """Return the environment of a program: nothing of this process's own but how it reaches a repository."""
    passed = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    # A locale that Ansible accepts; and no byte code, which a power cut could leave half written.
    fixed = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**passed, **fixed, **more}


def run(argv: Sequence[str], seconds: float, env: Mapping[str, str], *, show: bool = False) -> Ended:
    """Run a program and everything that it starts, for *seconds* at the most.

    :param show: pass on what it says, as it comes.
    :raises PullError: it is missing, or was ended because it took too long.
    """
    late = threading.Event()
    said: Deque[str] = collections.deque(maxlen=2000)
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
            # Ansible and git look for their settings where they are started.
            cwd="/",
            encoding="utf-8",
            errors="replace",
            # A process group of its own, so that what it has started ends with it.
            start_new_session=True,
        )
    except FileNotFoundError:
        raise PullError(f"{argv[0]} is not installed") from None

    def end() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        for line in process.stdout or ():
            said.append(line)
            if show:
                sys.stdout.write(line)
                sys.stdout.flush()
        code = process.wait()
    finally:
        timer.cancel()
    if late.is_set():
        raise PullError(f"{' '.join(argv[:2])} did not end within {seconds:.0f} s")
    return Ended(code, "".join(said).strip())


# --- the repository -----------------------------------------------------------------------------------------


class Repository:
    """The copy of the site's repository on this node.

    It is a cache: what can't be trusted to be whole is thrown away and fetched again. What has to be
    remembered, the commit that was accepted last, is a file beside it.
    """

    def __init__(self, places: Places, settings: pull.Settings) -> None:
        self.folder = places.work / "repository.git"
        self._accepted = places.work / "accepted"
        self._incomplete = places.work / "incomplete"
        self._signers = places.signers
        self._settings = settings
        self._config = places.work / "gitconfig"

    @property
    def environment(self) -> Dict[str, str]:
        """What git needs wherever it is run for this repository, by ansible-pull too."""
        return environment(
            GIT_CONFIG_NOSYSTEM="1",
            GIT_CONFIG_GLOBAL=str(self._config),
            GIT_TERMINAL_PROMPT="0",
            GIT_ALLOW_PROTOCOL=":".join(pull.TRANSPORTS),
            # Nobody is there to be asked for a host key or a password.
            GIT_SSH_COMMAND="ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=30",
        )

    @property
    def accepted(self) -> Optional[str]:
        """The commit that was accepted last, None if there was none yet."""
        text = (atomic_file.read(str(self._accepted)) or b"").decode(errors="replace").strip()
        return text if COMMIT.fullmatch(text) else None

    def accept(self, commit: str) -> None:
        """Remember that *commit* is what this node is to be."""
        # Its name is what ansible-pull's clone gets.
        self._git("update-ref", "refs/heads/accepted", commit)
        atomic_file.replace(str(self._accepted), f"{commit}\n".encode())

    def fetch(self) -> str:
        """Return the newest commit, which nobody has judged yet. Raises UnreachableError and PullError."""
        atomic_file.replace(str(self._config), self._configuration().encode())
        if self._incomplete.exists():
            # A power cut: objects may be named, and empty.
            self._forget()
        atomic_file.replace(str(self._incomplete), b"")
        try:
            ended = self._fetch()
            if ended.code != 0:
                self._check_that_it_is_there()
                self._forget()
                ended = self._fetch()
        finally:
            self._incomplete.unlink()
        if ended.code != 0:
            raise PullError(f"git can't fetch from {self._settings.repository}: {_tail(ended.said)}")
        commit = self._git("rev-parse", "--verify", "refs/fetched^{commit}").said
        if not COMMIT.fullmatch(commit):
            raise PullError(f"git names no commit: {commit}")
        return commit

    def verify(self, commit: str) -> str:
        """Return the name of who has signed *commit*, one of the allowed. Raises RefusedError."""
        ended = self._try("verify-commit", "--raw", commit)
        if ended.code != 0:
            raise RefusedError(
                f"commit {commit} is not signed by a key in {self._signers}"
                f" ({_tail(ended.said) or 'it has no signature'}): sign it with one of them, or have the key"
                " added by a commit that is"
            )
        accepted = self.accepted
        if accepted and self._try("merge-base", "--is-ancestor", accepted, commit).code != 0:
            # An old commit is signed as well as the newest; whoever can replay it could bring back a hole.
            raise RefusedError(
                f"commit {commit} does not descend from {accepted}, which this node had before: go back with"
                f" a new commit (git revert), or remove {self._accepted} if history was rewritten on purpose"
            )
        return self._git("log", "--max-count=1", "--no-show-signature", "--format=%GS", commit).said

    def _fetch(self) -> Ended:
        if not self.folder.is_dir():
            empty = ["--quiet", "--bare", "--template=", "--initial-branch=accepted"]
            self._git("init", *empty, str(self.folder))
        known = self.accepted or self._try("rev-parse", "--verify", "refs/fetched").code == 0
        # Without a commit to compare with, the history is of no use.
        depth = [] if known else ["--depth=1"]
        options = ["--quiet", "--force", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
        source = [self._settings.repository, f"{self._settings.reference}:refs/fetched"]
        return self._try("fetch", *options, *depth, "--", *source, seconds=LARGE)

    def _check_that_it_is_there(self) -> None:
        where = [self._settings.repository, self._settings.reference]
        ended = self._try("ls-remote", "--exit-code", "--", *where)
        if ended.code != 0:
            raise UnreachableError(
                f"{where[0]} can't be reached, or has no branch or tag {where[1]}:"
                f" {_tail(ended.said) or 'there is none'}"
            )

    def _forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configuration(self) -> str:
        # The only settings of git that count here. A signature of OpenPGP by any key in root's keyring would
        # be as good as one by an allowed key: so there is no program that could find one good.
        lines = [
            "[core]\n\tfsync = all\n\thooksPath = /dev/null",
            "[gc]\n\tautoDetach = false",
            "[maintenance]\n\tautoDetach = false",
            "[transfer]\n\tfsckObjects = true",
            "[advice]\n\tdetachedHead = false",
            "[gpg]\n\tminTrustLevel = fully\n\tprogram = /bin/false",
            '[gpg "openpgp"]\n\tprogram = /bin/false',
            '[gpg "x509"]\n\tprogram = /bin/false',
            f'[gpg "ssh"]\n\tallowedSignersFile = {self._signers}',
        ]
        if self._settings.repository.startswith("/"):
            # On a shared file system it need not belong to root. Only this file may say so, and git's own
            # upload-pack reads no other.
            lines.append(f"[safe]\n\tdirectory = {self._settings.repository}")
        return "\n".join(lines) + "\n"

    def _try(self, *arguments: str, seconds: float = SMALL) -> Ended:
        return run(["git", f"--git-dir={self.folder}", *arguments], seconds, self.environment)

    def _git(self, *arguments: str) -> Ended:
        ended = self._try(*arguments)
        if ended.code != 0:
            raise PullError(f"git {arguments[0]}: {_tail(ended.said)}")
        return ended


# --- the converge -------------------------------------------------------------------------------------------


def names_of_this_host() -> str:
    """Return how the inventory may call this node, as one pattern for --limit."""
    name, full = socket.gethostname(), socket.getfqdn()
    names = {name, name.split(".")[0], full}
    return "~({})$".format("|".join(sorted(re.escape(n) for n in names if not n.startswith("localhost"))))


def converge(places: Places, settings: pull.Settings, repository: Repository, commit: str) -> Dict[str, Any]:
    """Run the playbook of *commit* on this node, and return its counts: ok, changed, failed.

    :raises PullError: FailedError if a task failed or none was for this node.
    """
    tree, counts = places.work / "tree", places.work / "counts.json"
    # A power cut may have left half a file of it. And ansible-pull is not to read the site's ansible.cfg
    # before it has fetched it: its own inventory of one host need not be allowed there.
    shutil.rmtree(tree, ignore_errors=True)
    if counts.exists():
        counts.unlink()
    env = {
        **repository.environment,
        "ANSIBLE_CONFIG": str(tree / "ansible.cfg"),
        "ANSIBLE_HOME": str(places.work / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        # What it prints is in the journal; modules need not write their arguments there, too.
        "ANSIBLE_NO_TARGET_SYSLOG": "1",
        "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "pull_counts",
        "PULL_COUNTS": str(counts),
        # Filters of the project share modules with its program `fleet`.
        "PYTHONPATH": str(tree),
        "PYTHONUNBUFFERED": "1",
    }
    # Whatever the inventory says of how others reach this node: it is here, and root.
    here = {"ansible_connection": "local", "ansible_become": False}
    ended = run(
        [
            *("ansible-pull", "--url", str(repository.folder), "--full", "--checkout", commit),
            *("--directory", str(tree), "--inventory", str(tree / settings.inventory)),
            *("--limit", names_of_this_host(), "--extra-vars", json.dumps(here), settings.playbook),
        ],
        settings.timeout,
        env,
        show=True,
    )
    result = _counts(counts)
    if ended.code != 0:
        raise FailedError(result.pop("message", "") or _tail(ended.said), result)
    if not result.get("ok"):
        raise FailedError(
            f"no task was for this node: the inventory {settings.inventory} has to have"
            f" {names_of_this_host()} in a group that the playbook works on",
            result,
        )
    return result


def _counts(path: Path) -> Dict[str, Any]:
    """Return what the callback wrote, nothing if it did not get to that."""
    try:
        return dict(json.loads(atomic_file.read(str(path)) or b"{}"))
    except ValueError:
        return {}


def _tail(text: str) -> str:
    return " | ".join(line.strip() for line in text.splitlines()[-TAIL:] if line.strip())


# --- what an interrupted run left ---------------------------------------------------------------------------

#: What Ansible's apt writes to keep packages from starting services (`policy_rc_d`), and takes away then.
POLICY = b"#!/bin/sh\nexit 101\n"


@contextlib.contextmanager
def traces(places: Places) -> Iterator[None]:
    """Mend what an interrupted run left, and note what there is, in case that this one is interrupted, too.

    One that took too long was interrupted as well; one that failed has cleaned up behind itself.
    """
    note = places.work / "running"
    before = atomic_file.read(str(note))
    if before is not None:
        print("The run before was interrupted; mending what it left.", flush=True)
    finish_packages(places)
    if before == b"no policy" and atomic_file.read(str(places.policy)) == POLICY:
        places.policy.unlink()
    atomic_file.replace(str(note), b"policy" if places.policy.exists() else b"no policy")
    try:
        yield
    except FailedError:
        note.unlink()
        raise
    note.unlink()


def finish_packages(places: Places) -> None:
    """Let dpkg do what it was interrupted in, as apt asks people to. Raises PullError."""
    if not shutil.which("dpkg", path=PATH):
        return
    quiet = environment(DEBIAN_FRONTEND="noninteractive")
    journal = places.dpkg_journal
    pending = journal.is_dir() and any(file.name.isdigit() for file in journal.iterdir())
    if not pending and not run(["dpkg", "--audit"], SMALL, quiet).said:
        return
    # A service that a package starts now would wait for this very run to end.
    strange = places.policy.exists()
    if not strange:
        atomic_file.replace(str(places.policy), POLICY, 0o755)
    try:
        keep = ["--force-confdef", "--force-confold"]
        ended = run(["dpkg", "--configure", "--pending", *keep], LARGE, quiet, show=True)
    finally:
        if not strange:
            places.policy.unlink()
    if ended.code != 0:
        # Packages that were cut off while they were unpacked: apt unpacks them again if a role asks for them.
        print(f"dpkg could not finish all packages: {_tail(ended.said)}", flush=True)


# --- one run ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(lock: Path, seconds: float) -> Iterator[None]:
    """Wait until no other run is under way, and keep others waiting. Raises PullError."""
    lock.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PullError(f"another run holds {lock} for {seconds:.0f} s") from None
                time.sleep(0.2)
        yield


def read_settings(path: Path) -> pull.Settings:
    """Return the checked settings in the file *path*. Raises PullError."""
    content = atomic_file.read(str(path))
    if content is None:
        raise PullError(f"{path} is missing: role pull writes it")
    try:
        return pull.Settings.read(content.decode())
    except ValueError as error:
        raise PullError(f"{path}: {error}") from error


def fetched(repository: Repository, patience: float) -> str:
    """Return the newest commit, tried for *patience* seconds: after a power cut, everything boots at once."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return repository.fetch()
        except UnreachableError as error:
            if time.monotonic() + PAUSE > deadline:
                raise
            print(f"{error}; trying again", flush=True)
            time.sleep(PAUSE)


def attempt(places: Places, settings: pull.Settings, patience: float, result: Dict[str, Any]) -> None:
    """Fetch, verify, converge; *result* is filled on the way. Raises PullError."""
    repository = Repository(places, settings)
    result["commit"] = fetched(repository, patience)
    result["signer"] = repository.verify(result["commit"])
    repository.accept(result["commit"])
    with traces(places):
        try:
            result.update(converge(places, settings, repository, result["commit"]))
        except FailedError as error:
            result.update(error.args[1])
            raise


def start_waiting(units: Sequence[str]) -> None:
    """Start the units that were waiting for this, without waiting for them: at boot they wait for our end."""
    for unit in units:
        if run(["systemctl", "is-enabled", "--quiet", unit], SMALL, environment()).code == 0:
            run(["systemctl", "start", "--no-block", unit], SMALL, environment(), show=True)


def deliver(results: str, result: Mapping[str, Any]) -> None:
    """Put a copy of the result where others look for it. What goes wrong is said and counts for nothing."""
    name = socket.gethostname().split(".")[0]
    content = json.dumps({"node": name, **result}).encode()
    try:
        if results.startswith("/"):
            # The folder has to be there: where a mount is missing, the node's own disk is no place for it.
            atomic_file.replace(f"{results}/{name}.json", content)
        elif results:
            url = f"{results.rstrip('/')}/{name}.json"
            headers = {"Content-Type": "application/json"}
            # Settings are checked to have http or https.
            request = urllib.request.Request(url, content, headers, method="PUT")  # noqa: S310
            with urllib.request.urlopen(request, timeout=DELIVERY):  # noqa: S310
                pass
    except (OSError, ValueError) as error:
        print(f"the result could not be put to {results}: {error}", file=sys.stderr, flush=True)


def one_run(places: Places, patience: float) -> Dict[str, Any]:
    """Do all of it and return the result, which is written too."""
    began, clock = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    places.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    before = _counts(places.result)
    result: Dict[str, Any] = {
        **{
            "outcome": "converged",
            "message": "",
            "when": began.isoformat(timespec="seconds"),
            "duration": 0.0,
        },
        **{"commit": None, "signer": None, "ok": 0, "changed": 0, "failed": 0},
        "converged": before.get("converged"),
    }
    settings = None
    try:
        settings = read_settings(places.settings)
        attempt(places, settings, patience, result)
    except (PullError, OSError) as error:
        result["outcome"] = getattr(error, "outcome", "error")
        result["message"] = str(error.args[0] if isinstance(error, PullError) else error)
    result["duration"] = round(time.monotonic() - clock, 1)
    if result["outcome"] == "converged":
        result["converged"] = {"commit": result["commit"], "when": result["when"]}
    atomic_file.replace(str(places.result), (json.dumps(result, indent=2) + "\n").encode())
    if settings and result["outcome"] == "converged":
        atomic_file.replace(str(places.converged), f"{result['commit']}\n".encode())
        start_waiting(settings.before)
    if settings:
        deliver(settings.results, result)
    return result


def summary(result: Mapping[str, Any]) -> str:
    """Return the result in one line, for the journal."""
    counts = ", ".join(f"{result[name]} {name}" for name in ("ok", "changed", "failed"))
    commit = result["commit"] or "no commit"
    end = f": {result['message']}" if result["message"] else ""
    return f"{result['outcome']} at {commit} in {result['duration']} s, {counts}{end}"


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the program; returns its exit status, 0 if the node has converged."""
    parser = argparse.ArgumentParser(description="Converge this node to the newest trusted commit.")
    parser.add_argument(
        "--patience", type=float, default=0, metavar="S", help="try an unreachable repository for S seconds"
    )
    options = parser.parse_args(arguments)
    places = Places.below(Path("/"))
    try:
        with alone(places.lock, LOCK_SECONDS):
            result = one_run(places, options.patience)
    except PullError as error:
        print(error, file=sys.stderr)
        return 1
    print(summary(result), flush=True)
    return 0 if result["outcome"] == "converged" else 1


if __name__ == "__main__":
    sys.exit(main())
