# SPDX-License-Identifier: Apache-2.0
"""What a healthy compute node is: a table of checks, each with one entry in the settings of `node_health`.

A check has a reader of its entry (`typed`) and makes probes of it. A probe runs in a process of its own and
may hang there: `bounded`. It returns what is wrong, in words that begin with what it looked at, or nothing.
To add a check is to add a function here and a line to `CHECKS`.

Sources: statvfs(3); chronyc(1), tracking; timedatectl(1).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import atomic_file, bounded, hardware, mounts, typed
from .typed import Field, Reader

#: Where containers are run from; root alone may write there.
SCRATCH = "/var/lib/apptainer-fleet/node-health"
#: The most seconds that a probe may take: Slurm kills its health check after 60.
LONGEST = 40

#: Where programs are looked for; what a daemon has as its PATH says nothing.
PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_PATH = re.compile(r"/[^\0]*")
_CLONE_NEWUSER = 0x10000000
_CONFIGURATION = ("apptainer.conf", "ecl.toml", "global-pgp-public")
_PARAMETERS = (
    *("/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/unprivileged_userns_clone"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
)

#: What a probe keeps for the next time, None for nothing; and what is wrong, empty if nothing is.
Answer = Tuple[str, Any]


class Probe(NamedTuple):
    """A look at one thing: takes what it kept the last time, and may take *seconds*."""

    look: Callable[[Any], Answer]
    seconds: float


class Check(NamedTuple):
    """How an entry of the settings is read, and which probes it makes, by what they look at."""

    read: Reader
    probes: Callable[[Any], Dict[str, Probe]]


def command(argv: Sequence[str]) -> Tuple[int, str, str]:
    """Run a program: exit code, output, errors. 127 if there is none."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": PROGRAMS}
    try:
        ended = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, cwd="/", check=False,
        )  # fmt: skip
    except OSError as error:
        return 127, "", f"{argv[0]}: {error.strerror}"
    return ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")


def _plain(function: Callable[[], str], seconds: float) -> Probe:
    return Probe(lambda kept: (function(), None), seconds)


def _periodic(
    function: Callable[[], str], subject: Callable[[], str], interval: float, seconds: float
) -> Probe:
    """Return a probe that is believed for *interval* seconds if all was well and its subject is the same."""

    def look(kept: Any) -> Answer:
        now, same = time.time(), subject()
        if isinstance(kept, dict) and kept.get("subject") == same and 0 <= now - kept.get("at", 0) < interval:
            return "", kept
        wrong = function()
        return wrong, None if wrong else {"subject": same, "at": now}

    return Probe(look, seconds)


def _apptainer(entry: Mapping[str, Any]) -> Dict[str, Probe]:
    """Apptainer has the exact release, and a setuid starter only if it is to have one."""

    def look() -> str:
        from . import apptainer_packages  # noqa: PLC0415 - many modules, which most probes don't need

        program = apptainer_packages.find(command)
        if program is None:
            return "apptainer is not installed"
        release = (program.version or "").split("-")[0]
        if release != entry["version"]:
            return f"apptainer is {release or 'of no known version'}, not {entry['version']}"
        setuid = bool((program.starter_mode or 0) & stat.S_ISUID)
        if setuid != entry.get("setuid", setuid):
            return f"{program.starter} is {'' if setuid else 'not '}setuid, which the profile does not allow"
        return ""

    return {"apptainer": _plain(look, entry.get("timeout", 10))}


def _user_namespaces(entry: Mapping[str, Any]) -> Dict[str, Probe]:
    """A normal user can create a user namespace, or can't, as the profile demands."""

    def look() -> str:
        _become(entry.get("user", "nobody"))
        libc = ctypes.CDLL(None, use_errno=True)
        possible = libc.unshare(_CLONE_NEWUSER) == 0
        if possible == entry["available"]:
            return ""
        if possible:
            return "users can create user namespaces, in which no list of images binds them"
        return f"users can't create user namespaces: {os.strerror(ctypes.get_errno())}"

    return {"user_namespaces": _plain(look, 5)}


def _become(user: str) -> None:
    """Become a normal user, for good. Raises OSError; where this is no root, it stays who it is."""
    if os.geteuid() == 0:
        try:
            account = pwd.getpwnam(user)
        except KeyError:
            raise OSError(f"there is no user {user}") from None
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def _container(entry: Mapping[str, Any]) -> Dict[str, Probe]:
    """A normal user runs a container: the image of the site, or one that is made here for it."""
    folder = entry.get("folder", "/etc/apptainer")
    files = (*(f"{folder}/{name}" for name in _CONFIGURATION), *_PARAMETERS)

    def look() -> str:
        from . import apptainer_smoke_test  # noqa: PLC0415 - only when it is time for it

        scratch = _scratch()
        user, enforced = entry.get("user", "nobody"), entry.get("enforced", False)
        test = apptainer_smoke_test.Test(user, entry.get("image", ""), enforced, folder)
        try:
            apptainer_smoke_test.prove(test, command, scratch)
        except apptainer_smoke_test.SmokeTestError as error:
            return str(error)
        finally:
            shutil.rmtree(str(scratch), ignore_errors=True)
        return ""

    def subject() -> str:
        """Return a digest of what the outcome depends on, as far as a stat of files shows."""
        programs = (shutil.which("apptainer", path=PROGRAMS) or "", entry.get("image", ""))
        state = [sorted(entry.items()), *map(_identity, programs), *map(atomic_file.read, files)]
        return hashlib.sha256(repr(state).encode()).hexdigest()

    seconds = entry.get("timeout", LONGEST)
    return {"container": _periodic(look, subject, entry.get("interval", 3600), seconds)}


def _scratch() -> Path:
    """Return a new folder of this process, having removed those of processes that were killed."""
    base = Path(SCRATCH)
    base.mkdir(parents=True, exist_ok=True)
    for left in base.iterdir():
        pid = left.name.split("-")[0]
        if not pid.isdigit() or bounded.identity(int(pid)).replace(" ", "-") != left.name:
            shutil.rmtree(str(left), ignore_errors=True)
    scratch = base / bounded.identity(os.getpid()).replace(" ", "-")
    scratch.mkdir()
    for folder in (base, scratch):
        # Not as mkdir's mode, of which root's umask would take away.
        folder.chmod(0o755)
    return scratch


def _identity(path: str) -> Optional[Tuple[int, ...]]:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _mounts(entries: Sequence[Mapping[str, Any]]) -> Dict[str, Probe]:
    """File systems are mounted and answer."""

    def probe(entry: Mapping[str, Any]) -> Probe:
        def look() -> str:
            path, wanted = entry["path"], entry.get("type")
            kind = mounted(path)
            if kind is None:
                return f"{path} is not mounted"
            os.statvfs(path)
            with os.scandir(path) as names:
                next(names, None)
            # An automount is followed by what it mounts.
            kind = mounted(path) if kind == "autofs" else kind
            return f"{path} is of type {kind}, not {wanted}" if wanted and kind != wanted else ""

        return _plain(_named(entry["path"], look), entry.get("timeout", 5))

    return {entry["path"]: probe(entry) for entry in entries}


def mounted(path: str) -> Optional[str]:
    """Return the type of the file system that is mounted at *path*, the last one; None if none is."""
    return next((mount.type for mount in reversed(mounts.listed()) if mount.path == path), None)


def _named(name: str, look: Callable[[], str]) -> Callable[[], str]:
    """Return *look* with errors of the operating system as what is wrong, beginning with *name*."""

    def looked() -> str:
        try:
            return look()
        except OSError as error:
            return f"{name}: {error.strerror or error}"

    return looked


def _disk(entries: Sequence[Mapping[str, Any]]) -> Dict[str, Probe]:
    """There is space for what jobs write."""

    def probe(entry: Mapping[str, Any]) -> Probe:
        def look() -> str:
            path, status = entry["path"], os.statvfs(entry["path"])
            mib = status.f_bavail * status.f_frsize >> 20
            percent = 100 * status.f_bavail / max(1, status.f_blocks)
            # File systems without a table of inodes say 0.
            inodes = 100 * status.f_favail / status.f_files if status.f_files else 100
            if mib < entry.get("free_mib", 0):
                return f"{path} has {mib} MiB free, less than {entry['free_mib']:g}"
            if percent < entry.get("free_percent", 0):
                return f"{path} has {percent:.1f} % free, less than {entry['free_percent']:g}"
            if inodes < entry.get("free_inodes_percent", 0):
                wanted = entry["free_inodes_percent"]
                return f"{path} has {inodes:.1f} % of its inodes free, less than {wanted:g}"
            return ""

        return _plain(_named(entry["path"], look), entry.get("timeout", 5))

    return {entry["path"]: probe(entry) for entry in entries}


def _writable(paths: Sequence[str]) -> Dict[str, Probe]:
    """File systems are not read-only, which the kernel makes them after an error."""

    def probe(path: str) -> Probe:
        def look() -> str:
            return f"{path} is read-only" if os.statvfs(path).f_flag & os.ST_RDONLY else ""

        return _plain(_named(path, look), 5)

    return {path: probe(path) for path in paths}


def _clock(entry: Mapping[str, Any]) -> Dict[str, Probe]:
    """The clock is right, or else credentials are refused: by a file, by chrony, or by what systemd knows."""

    def look() -> str:
        most, file = entry["offset"], entry.get("file")
        if file:
            words = Path(file).read_text().split()
            offset = float(words[0]) if words else float("nan")
        else:
            code, out, _ = command(["chronyc", "-c", "tracking"])
            fields = out.strip().split(",")
            if code:
                synchronized = command(["timedatectl", "show", "--property=NTPSynchronized", "--value"])[1]
                return "" if synchronized.strip() == "yes" else "nothing keeps the clock right"
            if fields[-1] == "Not synchronised":
                return "chrony is not synchronised"
            offset = float(fields[4])
        # Not the other way round: what is no number is no good offset.
        return "" if abs(offset) <= most else f"the clock is off by {offset:.3f} s, more than {most:g}"

    return {"clock": _plain(_named("clock", look), 5)}


def _devices(entries: Sequence[Mapping[str, Any]]) -> Dict[str, Probe]:
    """There are as many devices as the class of the node has, and they can be opened."""

    def probe(entry: Mapping[str, Any]) -> Probe:
        def look() -> str:
            pattern, wanted = entry["path"], entry.get("count", 1)
            found = [path for path in Path("/").glob(pattern.lstrip("/")) if path.is_char_device()]
            if len(found) != wanted:
                return f"{pattern}: there are {len(found)} devices, not {wanted}"
            for path in sorted(found) if entry.get("open") else ():
                try:
                    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY))
                except OSError as error:
                    return f"{path} can't be opened: {error.strerror}"
            return ""

        return _plain(_named(entry["path"], look), entry.get("timeout", 5))

    return {entry["path"]: probe(entry) for entry in entries}


def _hardware(entry: Mapping[str, Any]) -> Dict[str, Probe]:
    """The node has the accelerators and the ports of the fabric, up and at full rate, of its class."""

    def look() -> str:
        return "; ".join(hardware.mismatches(entry, hardware.read()))

    return {"hardware": _plain(look, entry.get("timeout", 10))}


def _lustre(entry: Mapping[str, Any]) -> Dict[str, Probe]:
    """Lustre says that it is healthy, and LNet is up on the networks of the node."""

    def look() -> str:
        from . import lustre  # noqa: PLC0415 - of few nodes

        code, out, _ = command(["lctl", "get_param", "-n", "health_check"])
        # While nothing is mounted there is no such parameter.
        if code == 0 and out.strip() != "healthy":
            return f"lustre says of itself: {' '.join(out.split())}"
        code, out, err = command(["lnetctl", "net", "show"])
        if code:
            return f"LNet is not there: {' '.join(err.split())}"
        return "; ".join(lustre.down(out, entry["networks"]))

    return {"lustre": _plain(look, entry.get("timeout", 10))}


def _commands(entries: Sequence[Mapping[str, Any]]) -> Dict[str, Probe]:
    """Programs of the site succeed; the last line that one says is what is wrong."""

    def probe(entry: Mapping[str, Any]) -> Probe:
        def look() -> str:
            code, out, err = command(entry["argv"])
            lines = [line for line in (out + "\n" + err).splitlines() if line.strip()]
            said = lines[-1].strip() if lines else "it said nothing"
            return f"{entry['name']} failed ({code}): {said}" if code else ""

        subject = repr(sorted(entry.items()))
        return _periodic(look, lambda: subject, entry.get("interval", 0), entry.get("timeout", 30))

    return {entry["name"]: probe(entry) for entry in entries}


def number(value: object) -> float:
    """Read a number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"must be a number of at least 0, not {typed.shown(value)}")
    return float(value)


_path = typed.text(_PATH, "an absolute path")
_seconds = typed.integer(1, LONGEST)
_release = typed.text(re.compile(r"[0-9]+\.[0-9]+\.[0-9]+"), "a release such as 1.4.5")
_word = typed.text(re.compile(r"[A-Za-z0-9_-]+"), "a name of letters, digits, _ and -")

# As `hardware.mismatches` takes them.
_ports = typed.nested({"ports": Field(typed.integer(0)), "gigabits": Field(number)})
_gpus = typed.nested(
    {
        "vendor": Field(typed.choice("amd", "google", "habana", "intel", "nvidia"), required=True),
        "count": Field(typed.integer(0), required=True),
        "model": Field(typed.text()),
        "driver": Field(typed.text()),
        "apptainer": Field(_path),
        "container_cli": Field(typed.boolean),
    }
)


def _one(fields: Mapping[str, Field]) -> Reader:
    return typed.nested(fields)


def _many(fields: Mapping[str, Field]) -> Reader:
    return typed.items(typed.nested({**fields, "timeout": Field(_seconds)}))


#: They do something on the node, and more than look at it: who only wants to look takes what they last said.
ACTING = ("container", "commands")
CHECKS: Mapping[str, Check] = {
    "writable": Check(typed.items(_path), _writable),
    "disk": Check(
        _many({
            "path": Field(_path, required=True),
            "free_mib": Field(number),
            "free_percent": Field(number),
            "free_inodes_percent": Field(number),
        }),
        _disk,
    ),
    "clock": Check(_one({"offset": Field(number, required=True), "file": Field(_path)}), _clock),
    "mounts": Check(_many({"path": Field(_path, required=True), "type": Field(typed.text())}), _mounts),
    "devices": Check(
        _many({
            "path": Field(_path, required=True),
            "count": Field(typed.integer(0)),
            "open": Field(typed.boolean),
        }),
        _devices,
    ),
    "hardware": Check(
        _one(
            {
                "gpus": Field(_gpus),
                "infiniband": Field(_ports),
                "device_nodes": Field(typed.items(_path)),
                "modules": Field(typed.items(_word)),
                "timeout": Field(_seconds),
            }
        ),
        _hardware,
    ),
    "lustre": Check(
        _one({"networks": Field(typed.items(_word), required=True), "timeout": Field(_seconds)}), _lustre
    ),
    "user_namespaces": Check(
        _one({"available": Field(typed.boolean, required=True), "user": Field(typed.text())}),
        _user_namespaces,
    ),
    "apptainer": Check(
        _one({
            "version": Field(_release, required=True),
            "setuid": Field(typed.boolean),
            "timeout": Field(_seconds),
        }),
        _apptainer,
    ),
    "container": Check(
        _one({
            "user": Field(typed.text()),
            "image": Field(_path),
            "folder": Field(_path),
            "enforced": Field(typed.boolean),
            "interval": Field(number),
            "timeout": Field(_seconds),
        }),
        _container,
    ),
    "commands": Check(
        _many({
            "name": Field(_word, required=True),
            "argv": Field(typed.texts, required=True),
            "interval": Field(number),
        }),
        _commands,
    ),
}  # fmt: skip
