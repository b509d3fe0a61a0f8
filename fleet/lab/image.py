"""The root file system that nodes start from: made once per release and package list with mmdebstrap."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from fleet.lab.cache import cache_key, cached, check_space
from fleet.lab.host import DEBIAN_KEYRING, Mirror
from fleet.lab.model import Node, lab_cache
from fleet.lab.run import ISOLATED, run

#: What a node needs to boot, to be reached by Ansible and to install packages; nothing a role should bring.
ESSENTIALS = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "systemd-sysv",
)
#: MiB that an image may take, with package archives while it is made.
IMAGE_MIB = 1024
#: Users of the lab get uids from here on, the same on every node.
FIRST_UID = 2000

#: Runs on the new root $1 for the users that follow. What packages set up on their own, the munge key and
#: enabled daemons, would pretend that a role had done it; what makes a node unique (host keys, machine id)
#: must not be shared.
CUSTOMIZE = f"""\
set -eu
root=$1; shift
rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/munge/munge.key "$root"/etc/hostname
: > "$root"/etc/machine-id
for unit in munge sackd slurmd slurmctld slurmdbd; do
    if [ -e "$root/lib/systemd/system/$unit.service" ]; then
        systemctl --quiet --root="$root" disable $unit
    fi
done
systemctl --quiet --root="$root" enable systemd-networkd
systemctl --quiet --root="$root" mask apt-daily.timer apt-daily-upgrade.timer sshd-keygen.service \
    systemd-networkd-wait-online.service
uid={FIRST_UID}
for user in "$@"; do
    chroot "$root" useradd --create-home --shell /bin/bash --uid $uid "$user"
    uid=$((uid + 1))
done
if [ -s /etc/ssl/certs/ca-certificates.crt ]; then
    cp /etc/ssl/certs/ca-certificates.crt "$root"/etc/ssl/certs/ca-certificates.crt
fi
"""


@dataclass(frozen=True)
class BaseImage:
    """What decides a base image.

    :param packages: on top of the essentials.
    :param users: normal users, uids from 2000 in this order.
    """

    release: str
    packages: tuple[str, ...]
    users: tuple[str, ...]
    mirror: Mirror

    @classmethod
    def of(cls, node: Node, mirror: Mirror) -> BaseImage:
        """The image that this node boots from."""
        return cls(node.release, node.packages, node.users, mirror)

    @property
    def folder(self) -> Path:
        """The unpacked root in the cache, there or to be made."""
        key = cache_key(
            {
                "release": self.release,
                "packages": [*ESSENTIALS, *self.packages],
                "users": list(self.users),
                "mirror": self.mirror.url,
                "architecture": platform.machine(),
                "customize": CUSTOMIZE,
            }
        )
        return lab_cache() / "images" / f"{self.release}-{key}"

    def build(self, lab_name: str) -> Path:
        """The unpacked root, made first if the cache has none.

        :raises FleetError: mmdebstrap failed; its log is named.
        """
        return cached(self.folder, lambda part: self._make(part, lab_name))

    def _make(self, part: Path, lab_name: str) -> None:
        check_space(part, IMAGE_MIB)
        log = self.folder.with_suffix(".log")
        script = self.folder.with_suffix(".customize")
        script.write_text(CUSTOMIZE)
        run(
            [
                # Namespaces of its own: a build that is killed leaves no mount and no process.
                *ISOLATED,
                *["mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase"],
                # Kept lists make `apt-get update` on a node a matter of one question to the mirror.
                *["--skip=cleanup/apt/lists", f"--keyring={DEBIAN_KEYRING}"],
                f"--include={','.join((*ESSENTIALS, *self.packages))}",
                f'--customize-hook=sh {script} "$1" {" ".join(self.users)}',
                *[self.release, str(part)],
                f"deb [signed-by={DEBIAN_KEYRING}] {self.mirror.url} {self.release} main",
            ],
            lab_name=lab_name,
            log=log,
            mend="check the mirror and the package names in lab_packages",
        )
        script.unlink()
