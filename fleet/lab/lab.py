"""``up`` and ``down``: look at what is there, plan the steps that are missing, carry them out.

A lab has no state file that could be wrong: what it has on this machine is looked up each time, by names
and marks that follow from the lab's name alone. So a plan after a crash is a plan like any other, and a
plan for a lab that is as it should be is empty.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fleet.errors import FleetError
from fleet.lab import control_groups, network
from fleet.lab.backend import Backend
from fleet.lab.cache import locked
from fleet.lab.host import check_host, debian_mirror, install_packages, missing_packages
from fleet.lab.identity import host_public_key
from fleet.lab.model import LAB_NAME, Lab, Node, bridge_name, check_folders, lab_cache, lab_home, node_home
from fleet.lab.nspawn import Nspawn
from fleet.lab.qemu import Qemu
from fleet.lab.repository import PackageRepository
from fleet.lab.run import kill_processes, marked_processes, run
from fleet.paths import state_home

BACKENDS: dict[str, Backend] = {"nspawn": Nspawn(), "qemu": Qemu()}
#: In the folder of a lab: the path of the inventory that it was made from.
INVENTORY_NOTE = "inventory"
#: Emulated machines are slow, on a busy host very slow; containers answer within a second.
BOOT_DEADLINE = 1200.0


@dataclass(frozen=True)
class Step:
    """One thing to do to this machine.

    :param text: what, for a person; printed by a dry run.
    """

    text: str
    act: Callable[[], object]


@dataclass(frozen=True)
class Stage:
    """Steps that may be carried out side by side, after all stages before."""

    title: str
    steps: list[Step] = field(default_factory=list)

    def run(self) -> None:
        """Carry the steps out; the first error is raised when all have ended."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            for done in [pool.submit(step.act) for step in self.steps]:
                done.result()


def plan_up(lab: Lab) -> list[Stage]:
    """What is missing for the lab to be as its inventory says; stages without steps are left out.

    :raises FleetError: the lab cannot be made here.
    """
    network.check_bridge_is_ours(lab.name)
    check_inventory_is_the_same(lab)
    if not network.bridge_exists(lab.name):
        network.check_network_is_free(lab)
    create, start, remove = _sort_nodes(lab)
    network_lost = not network.bridge_complete(lab)
    kill = [node for node in (n.name for n in lab.nodes) if network_lost and _is_running(lab.name, node)]
    start += [lab.node(name) for name in kill if lab.node(name) not in create]
    repository = PackageRepository(debian_mirror(lab.mirror), lab.name)

    stages = [
        Stage(
            "clean up",
            [_kill_step(lab.name, name, forget=name in remove) for name in sorted({*remove, *kill})],
        ),
        Stage("base image", _image_steps(lab)),
        Stage("package repository", _repository_steps(lab, repository)),
        Stage("network", _network_steps(lab, network_lost)),
        Stage("identity", _identity_steps(lab)),
        Stage(
            "nodes",
            [Step(f"make node {n.name} ({n.release}, {n.backend})", _creator(lab, n)) for n in create],
        ),
        Stage("names", _name_steps(lab, repository, changed=bool(create or remove))),
        Stage(
            "boot", [Step(f"boot node {n.name} at {n.address}", _starter(lab, n)) for n in (*create, *start)]
        ),
    ]
    return [stage for stage in stages if stage.steps]


def plan_down(lab_name: str) -> list[Stage]:
    """What is to be removed for the lab of that name to have left nothing but the cache."""
    network.check_bridge_is_ours(lab_name)
    home = lab_home(lab_name)
    stages = [
        Stage("connections", [_close_step(socket_path) for socket_path in _connections(home)]),
        Stage("nodes", _process_steps(lab_name)),
        Stage("control groups", _control_group_steps(lab_name)),
        Stage("network", _remove_network_steps(lab_name)),
        Stage("files", [Step(f"remove {home}", lambda: _remove(home))] if os.path.lexists(home) else []),
    ]
    return [stage for stage in stages if stage.steps]


def carry_out(stages: list[Stage], report: Callable[[str, float], None]) -> None:
    """Carry the stages out in turn.

    :param report: called after each with its title and its duration in seconds.
    """
    for stage in stages:
        started = time.monotonic()
        stage.run()
        report(stage.title, time.monotonic() - started)


def bring_up(lab: Lab, report: Callable[[str, float], None], *, install_host_packages: bool = False) -> bool:
    """Make and boot what is missing of a lab, and wait until all its nodes can be reached.

    :param report: called after each stage with its title and its duration in seconds.
    :param install_host_packages: first install the packages that this machine lacks.
    :returns: whether there was anything to do.
    :raises FleetError: this machine cannot carry a lab, or a stage failed; ``up`` can be run again then.
    """
    check_folders()
    programs = programs_for(lab)
    missing = missing_packages(programs)
    if install_host_packages and missing and os.geteuid() == 0:
        started = time.monotonic()
        install_packages(missing)
        report("host packages", time.monotonic() - started)
    if lacks := lacks_for(lab):
        raise FleetError("this machine cannot carry a lab yet:\n  " + "\n  ".join(lacks))
    with locked(lab_lock(lab.name)):
        stages = plan_up(lab)
        # Before anything of this lab is on the machine: its folder says that what follows is its own.
        lab.home.mkdir(parents=True, exist_ok=True)
        _replace(lab.home / INVENTORY_NOTE, str(lab.inventory))
        carry_out(stages, report)
        # Also if there was nothing to do: an earlier run may have been killed while it waited.
        waited = wait_for_ssh(lab)
        if stages:
            report("wait for SSH", waited)
    return bool(stages)


def check_inventory_is_the_same(lab: Lab) -> None:
    """Refuse a lab that was made from another inventory: somebody else works with it, in another checkout.

    :raises FleetError: it was, and that inventory is still there.
    """
    note = lab.home / INVENTORY_NOTE
    made_from = Path(note.read_text()) if note.exists() else lab.inventory
    if made_from != lab.inventory and made_from.exists():
        raise FleetError(
            f"lab {lab.name} is there already, made from {made_from} and not from {lab.inventory}",
            f"fleet lab down --name {lab.name}, or another lab_name and lab_network for this one",
        )


def programs_for(lab: Lab) -> dict[str, str]:
    """What the backends of this lab's nodes run on this machine: program → Debian package."""
    backends = {node.backend for node in lab.nodes}
    return {p: package for name in backends for p, package in BACKENDS[name].programs.items()}


def lacks_for(lab: Lab) -> list[str]:
    """What this machine lacks for the nodes of this lab that are not running yet."""
    asleep = [n for n in lab.nodes if n.backend == "nspawn" and not _is_running(lab.name, n.name)]
    return check_host(programs_for(lab), len(asleep))


def take_down(lab_name: str) -> bool:
    """Remove all that the lab of that name has on this machine but the cache.

    :returns: whether there was anything to remove.
    """
    with locked(lab_lock(lab_name)):
        stages = plan_down(lab_name)
        carry_out(stages, lambda *_: None)
    return bool(stages)


def lab_lock(lab_name: str) -> Path:
    """The lock to hold while planning and carrying out; in the cache, since ``down`` leaves nothing else."""
    return lab_cache() / "locks" / f"{lab_home(lab_name).name}.lock"


def wait_for_ssh(lab: Lab) -> float:
    """Wait until every node's SSH server greets.

    :returns: seconds waited.
    :raises FleetError: one does not in time, or is not running any more.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(lambda node: _wait_for_greeting(lab, node, started + BOOT_DEADLINE), lab.nodes))
    return time.monotonic() - started


def is_running(lab: Lab, node: Node) -> bool:
    """Whether the node runs."""
    return BACKENDS[node.backend].is_running(lab.name, node.name)


def known_labs() -> list[str]:
    """Names of the labs in this user's state folder, and of those that left only a bridge."""
    labs = state_home() / "labs"
    names = {path.name for path in labs.glob("*") if path.is_dir()}
    bridges = Path("/sys/class/net").glob("lab-*")
    labels = (Path(network.bridge_label(bridge.name)) for bridge in bridges)
    names |= {label.name for label in labels if label.parent == labs}
    return sorted(name for name in names if LAB_NAME.fullmatch(name))


def _sort_nodes(lab: Lab) -> tuple[list[Node], list[Node], list[str]]:
    """Nodes to make anew, whole nodes to boot, and names of nodes to kill and forget."""
    create, start, remove = [], [], []
    for node in lab.nodes:
        if not BACKENDS[node.backend].is_whole(lab, node):
            create.append(node)
            if node_home(lab.name, node.name).exists():
                remove.append(node.name)
        elif not is_running(lab, node):
            start.append(node)
    wanted = {node.name for node in lab.nodes}
    remove += [p.name for p in (lab.home / "nodes").glob("*") if p.name not in wanted]
    return create, start, remove


def _is_running(lab_name: str, node_name: str) -> bool:
    return any(backend.is_running(lab_name, node_name) for backend in BACKENDS.values())


def _kill_step(lab_name: str, node_name: str, *, forget: bool) -> Step:
    def act() -> None:
        for backend in BACKENDS.values():
            backend.kill(lab_name, node_name)
        if forget:
            _remove(node_home(lab_name, node_name))

    return Step(f"{'remove' if forget else 'switch off'} node {node_name}", act)


def _creator(lab: Lab, node: Node) -> Callable[[], None]:
    return lambda: BACKENDS[node.backend].create(lab, node)


def _starter(lab: Lab, node: Node) -> Callable[[], None]:
    return lambda: BACKENDS[node.backend].start(lab, node)


def _image_steps(lab: Lab) -> list[Step]:
    wanted = {
        BACKENDS[n.backend].image_folder(lab, n): n
        for n in lab.nodes
        if not BACKENDS[n.backend].has_image(lab, n)
    }
    return [
        Step(
            f"build base image {folder} with {1 + len(node.packages)} packages and what they need",
            lambda node=node: BACKENDS[node.backend].build_image(lab, node),  # type: ignore[misc]
        )
        for folder, node in wanted.items()
    ]


def _repository_steps(lab: Lab, repository: PackageRepository) -> list[Step]:
    if not lab.repository_server or repository.folder.exists():
        return []
    return [Step(f"build package repository {repository.folder}", repository.build)]


def _network_steps(lab: Lab, network_lost: bool) -> list[Step]:
    steps = []
    if network_lost:
        steps.append(
            Step(
                f"create bridge {lab.bridge} with {lab.gateway}/{lab.network.prefixlen}",
                lambda: network.create_bridge(lab),
            )
        )
    if not network.nat_complete(lab):
        steps.append(
            Step(
                f"create nft table ip {network.nat_table(lab.name)} (masquerade {lab.network})",
                lambda: network.create_nat(lab),
            )
        )
    if not network.forwarding_is_on():
        steps.append(
            Step("set net.ipv4.ip_forward to 1 until the last lab is down", network.switch_forwarding_on)
        )
    if not network.hosts_block_complete(lab):
        steps.append(
            Step(
                f"write {len(lab.nodes)} names to {network.HOSTS_FILE}",
                lambda: network.write_hosts_block(lab),
            )
        )
    return steps


def _identity_steps(lab: Lab) -> list[Step]:
    key = lab.home / "ssh/id_ed25519"
    if key.with_suffix(".pub").exists():
        return []

    def act() -> None:
        shutil.rmtree(key.parent, ignore_errors=True)
        key.parent.mkdir(parents=True, mode=0o700)
        run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {lab.name}", "-f", key],
            lab_name=lab.name,
        )

    return [Step(f"make SSH key {key}", act)]


def _name_steps(lab: Lab, repository: PackageRepository, *, changed: bool) -> list[Step]:
    """Files by which this machine and the nodes find the nodes; a note says for which they were written."""
    note = lab.home / "named.json"
    if not changed and note.exists() and note.read_text() == _named(lab):
        return []

    def act() -> None:
        known, config = [], []
        for node in lab.nodes:
            names = [node.name, f"{node.name}.{lab.name}.internal", node.address]
            known.append(f"{','.join(names)} {host_public_key(lab, node)}\n")
            config.append(f"Host {node.name} {names[1]}\n    HostName {node.address}\n")
        config.append(
            f"Host *\n    User root\n    IdentityFile {lab.home}/ssh/id_ed25519\n    IdentitiesOnly yes\n"
            f"    UserKnownHostsFile {lab.home}/known_hosts\n    GlobalKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking yes\n    PasswordAuthentication no\n    LogLevel ERROR\n"
        )
        _replace(lab.home / "known_hosts", "".join(known))
        _replace(lab.home / "ssh_config", "".join(config))
        (lab.home / "cp").mkdir(exist_ok=True, mode=0o700)
        facts = repository.facts(lab) if lab.repository_server else {}
        _replace(lab.home / "repository.json", json.dumps(facts, indent=2) + "\n")
        for node in lab.nodes:
            BACKENDS[node.backend].write_hosts(lab, node)
        _replace(note, _named(lab))

    return [Step(f"write {lab.home}/ssh_config and known_hosts", act)]


def _named(lab: Lab) -> str:
    """What the files follow from: the nodes, and when each was made, since that made its host key."""
    made = {node.name: node_home(lab.name, node.name) / "node.json" for node in lab.nodes}
    times = {name: path.stat().st_mtime_ns for name, path in made.items() if path.exists()}
    servers = [node.name for node in lab.nodes if node.serves_repository]
    return json.dumps([[[n.name, n.address] for n in lab.nodes], times, servers])


def _process_steps(lab_name: str) -> list[Step]:
    """Cut the power of all nodes, and end what a killed ``up`` may have left running besides."""
    count = len(marked_processes(lab_name))
    text = f"switch off all nodes and end {count} processes of the lab"
    return [Step(text, lambda: kill_processes(lambda: marked_processes(lab_name)))] if count else []


def _control_group_steps(lab_name: str) -> list[Step]:
    there = control_groups.there(lab_name)
    return [Step("remove control groups", lambda: control_groups.remove(lab_name))] if there else []


def _remove_network_steps(lab_name: str) -> list[Step]:
    steps = []
    if network.bridge_exists(lab_name):
        steps.append(Step(f"delete bridge {bridge_name(lab_name)}", lambda: network.remove_bridge(lab_name)))
    if shutil.which("nft") and network.nat_exists(lab_name):
        steps.append(
            Step(f"delete nft table ip {network.nat_table(lab_name)}", lambda: network.remove_nat(lab_name))
        )
    if network.hosts_block_exists(lab_name):
        steps.append(
            Step(
                f"take the lab's names out of {network.HOSTS_FILE}",
                lambda: network.remove_hosts_block(lab_name),
            )
        )
    if network.forwarding_must_be_restored(leaving=lab_name):
        steps.append(Step("set net.ipv4.ip_forward back", lambda: network.restore_forwarding(lab_name)))
    return steps


def _connections(home: Path) -> list[Path]:
    """Sockets of SSH connections that Ansible keeps open; a new node of the same name would inherit them."""
    return [path for path in (home / "cp").glob("*") if path.is_socket()]


def _close_step(socket_path: Path) -> Step:
    argv = ["ssh", "-S", str(socket_path), "-O", "exit", "node"]
    # Without a process at the other end it fails, which is what was wanted.
    return Step(
        f"close SSH connection {socket_path.name}",
        lambda: subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False),
    )


def _wait_for_greeting(lab: Lab, node: Node, deadline: float) -> None:
    while time.monotonic() < deadline:
        # First this: something else may answer at the address of a node that has ended.
        if not is_running(lab, node):
            log = node_home(lab.name, node.name) / "console.log"
            tail = "\n    ".join(log.read_text(errors="replace").splitlines()[-8:]) if log.exists() else ""
            raise FleetError(
                f"node {node.name}: ended while booting ({log}):\n    {tail}", "see its console log"
            )
        with suppress(OSError), socket.create_connection((node.address, 22), timeout=1) as connection:
            connection.settimeout(2)
            if connection.recv(4) == b"SSH-":
                return
        time.sleep(0.05)
    raise FleetError(f"node {node.name}: no SSH greeting from {node.address}", f"fleet lab logs {node.name}")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.chmod(0o644)
    part.rename(path)


def _remove(path: Path) -> None:
    """Remove a folder and what is below it, or whatever stands in its place; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)
