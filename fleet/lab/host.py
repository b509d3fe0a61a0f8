"""What this machine must have, and what it says about itself."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import FleetError
from fleet.lab.cache import cache_key
from fleet.lab.model import lab_cache

#: Program → Debian and Ubuntu package that has it.
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "unshare": "util-linux",
    "mount": "mount",
    "apt-ftparchive": "apt-utils",
    "dpkg-deb": "dpkg",
    "gpg": "gnupg",
    "rpmbuild": "rpm",
    "createrepo_c": "createrepo-c",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: inotify instances that systemd as the first process of a container has, all of them root's: counted.
INOTIFY_PER_CONTAINER = 5
INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")


def check_host(programs: Mapping[str, str], containers: int = 0) -> list[str]:
    """Everything this machine lacks to carry a lab, each as one line with its mend; empty when nothing.

    :param programs: program → Debian package, besides those that every lab needs.
    :param containers: so many nodes share this machine's kernel and are not running yet.
    """
    lacks = []
    if os.geteuid() != 0:
        lacks.append("not root: nodes need mounts, a bridge and NAT; mend: run it with sudo")
    missing = missing_packages(programs)
    if missing:
        lacks.append(
            f"packages missing on this machine: {' '.join(missing)}; "
            "mend: fleet lab up --install-host-packages"
        )
    lacks.extend(_missing_kernel_features())
    lacks.extend(_missing_inotify(containers))
    return lacks


def missing_packages(programs: Mapping[str, str]) -> list[str]:
    """Debian packages whose programs are not on the path; the parameter as above."""
    wanted = {**PROGRAMS, **programs}
    missing = {package for program, package in wanted.items() if not shutil.which(program)}
    if not DEBIAN_KEYRING.exists():
        missing.add("debian-archive-keyring")
    return sorted(missing)


def _missing_kernel_features() -> list[str]:
    lacks = []
    filesystems = Path("/proc/filesystems").read_text().split()
    for name, package_hint in (("overlay", "modprobe overlay"), ("fuse", "modprobe fuse")):
        if name not in filesystems:
            lacks.append(f"kernel: no {name} file system; mend: {package_hint}")
    for name in ("net", "pid", "mnt", "user", "cgroup"):
        if not Path("/proc/self/ns", name).exists():
            lacks.append(f"kernel: no {name} namespaces; mend: a kernel that has them (all of Debian's do)")
    return lacks


def _missing_inotify(containers: int) -> list[str]:
    wanted = containers * INOTIFY_PER_CONTAINER
    free = _free_inotify(wanted)
    if free >= wanted:
        return []
    most = int(INOTIFY_LIMIT.read_text())
    return [
        f"fs.inotify.max_user_instances is {most}, of which {free} are left: {containers} nodes to boot "
        f"need {wanted}; mend: take another lab down, or "
        f"sysctl fs.inotify.max_user_instances={most + wanted - free}"
    ]


def _free_inotify(wanted: int) -> int:
    """How many inotify instances this user can still make, *wanted* at most.

    The kernel counts them by user and tells nobody, so they are made, and given back at once.
    """
    make = ctypes.CDLL(None).inotify_init1
    # A process without file descriptors for them is refused by the same error.
    tried = min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    made: list[int] = []
    while len(made) < tried and (descriptor := make(os.O_CLOEXEC)) >= 0:
        made.append(descriptor)
    for descriptor in made:
        os.close(descriptor)
    return wanted if len(made) == tried else len(made)


def install_packages(packages: list[str]) -> None:
    """Install packages on this machine, without their recommendations.

    :raises FleetError: not a Debian or Ubuntu machine, or APT failed.
    """
    if not shutil.which("apt-get"):
        raise FleetError(
            "this machine has no apt-get: packages can be installed on Debian and Ubuntu only",
            f"install by hand what has the programs of {' '.join(packages)}",
        )
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        result = subprocess.run(
            ["apt-get", "--quiet", *arguments], env=env, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise FleetError(
                f"apt-get {arguments[0]}: {(result.stderr or result.stdout).strip()}", "see APT's message"
            )


@dataclass(frozen=True)
class Mirror:
    """Where Debian packages come from.

    :param url: of the archive, as in a ``deb`` line.
    """

    url: str


def debian_mirror(configured: str) -> Mirror:
    """The mirror to build from: the configured one, else the one this machine's APT sources name.

    :raises FleetError: neither is there.
    """
    url = configured or _mirror_of_this_machine()
    if url:
        return Mirror(url.rstrip("/"))
    raise FleetError(
        "no Debian mirror: this machine's APT sources name none, or its lists were never fetched",
        "run apt-get update, or set lab_mirror in the inventory",
    )


@functools.cache
def _mirror_of_this_machine() -> str:
    """URL of the first Debian archive in this machine's APT sources; empty if there is none.

    APT takes 0.7 s for the answer, so it is kept until the sources or the fetched lists change.
    """
    state = [
        (str(path), path.stat().st_mtime_ns)
        for place in ("/etc/apt/sources.list", "/etc/apt/sources.list.d", "/var/lib/apt/lists")
        for path in (Path(place), *sorted(Path(place).glob("*.[ls]*")))
        if path.exists()
    ]
    note = lab_cache() / "mirror.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(note.read_text())
        if known["key"] == cache_key({"sources": state}):
            return str(known["url"])
    if not shutil.which("apt-get"):
        return ""
    answer = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    lines = (line.split("|", 2) for line in answer.splitlines())
    url = next((url for origin, label, url in lines if (origin, label) == ("Debian", "Debian")), "")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"key": cache_key({"sources": state}), "url": url}))
    return url


def debian_architecture() -> str:
    """This machine's architecture in Debian's words."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
