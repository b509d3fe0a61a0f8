"""What makes a node different from the image it boots from, whatever kind of node it is."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from fleet.lab.distribution_sim import DISTRIBUTION_SIMS
from fleet.lab.image import FIRST_UID
from fleet.lab.model import Lab, Node, node_home
from fleet.lab.network import hosts_lines
from fleet.lab.run import run

HOST_KEY = "ssh_host_ed25519_key"


@dataclass(frozen=True)
class NodeFile:
    """A file of a node.

    :param owner: uid and gid; the folders of a login folder's files get them, too, and mode 0700.
    """

    content: str
    mode: int = 0o644
    owner: int = 0


def make_host_key(lab: Lab, node: Node) -> None:
    """Make the node's SSH host key beside its disk, where this machine reads its public half."""
    key = node_home(lab.name, node.name) / HOST_KEY
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", node.name, "-f", key], lab_name=lab.name)


def host_public_key(lab: Lab, node: Node) -> str:
    """Type and base64 of the node's SSH host key, as in known_hosts."""
    text = (node_home(lab.name, node.name) / f"{HOST_KEY}.pub").read_text()
    return " ".join(text.split()[:2])


def identity_files(lab: Lab, node: Node, *, interface: str, link: str = "") -> dict[str, NodeFile]:
    """Files by their absolute path on the node.

    :param interface: the node's name for its end of the lab's network.
    :param link: further lines of the ``[Link]`` section of systemd.network(5).
    """
    key = node_home(lab.name, node.name) / HOST_KEY
    login = (lab.home / "ssh/id_ed25519.pub").read_text()
    users = {"/root": 0, **{f"/home/{user}": uid for uid, user in enumerate(node.users, FIRST_UID)}}
    devices = "".join(f"c {d.path} {d.mode} root root - {d.major}:{d.minor}\n" for d in node.devices)
    sim = DISTRIBUTION_SIMS[node.distribution_sim].node_files() if node.distribution_sim else {}
    return {
        **{path: NodeFile(content) for path, content in sim.items()},
        "/etc/hostname": NodeFile(f"{node.name}\n"),
        "/etc/machine-id": NodeFile(f"{secrets.token_hex(16)}\n"),
        "/etc/resolv.conf": NodeFile(_name_servers()),
        "/etc/hosts": NodeFile(hosts_file(lab)),
        "/etc/tmpfiles.d/lab-devices.conf": NodeFile(devices),
        "/etc/systemd/network/10-lab.network": NodeFile(
            f"[Match]\nName={interface}\n[Link]\n{link}\n[Network]\n"
            f"Address={node.address}/{lab.network.prefixlen}\nGateway={lab.gateway}\nLinkLocalAddressing=no\n"
        ),
        "/etc/ssh/sshd_config.d/lab.conf": NodeFile(f"HostKey /etc/ssh/{HOST_KEY}\nUseDNS no\n"),
        f"/etc/ssh/{HOST_KEY}": NodeFile(key.read_text(), 0o600),
        f"/etc/ssh/{HOST_KEY}.pub": NodeFile(Path(f"{key}.pub").read_text()),
        **{f"{home}/.ssh/authorized_keys": NodeFile(login, 0o600, uid) for home, uid in users.items()},
    }


def hosts_file(lab: Lab) -> str:
    """The whole of a node's /etc/hosts."""
    return f"127.0.0.1 localhost\n::1 localhost\n{hosts_lines(lab)}"


def _name_servers() -> str:
    """This machine's name servers, but for a resolver on its loopback, which a node could not reach."""
    uplink = Path("/run/systemd/resolve/resolv.conf")
    lines = (uplink if uplink.exists() else Path("/etc/resolv.conf")).read_text().splitlines()
    return "".join(
        f"{line}\n" for line in lines if not line.startswith(("nameserver 127.", "nameserver ::1"))
    )
