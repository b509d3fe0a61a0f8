"""``fleet lab``: bring a virtual cluster up, look at it, take it down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
from ClusterShell.NodeSet import NodeSet
from rich.console import Console
from rich.table import Table

from fleet.errors import FleetError
from fleet.hostlist import choose
from fleet.lab.fanout import run_on_nodes
from fleet.lab.host import missing_packages
from fleet.lab.lab import (
    Stage,
    bring_up,
    check_inventory_is_the_same,
    is_running,
    known_labs,
    lacks_for,
    plan_down,
    plan_up,
    programs_for,
    take_down,
)
from fleet.lab.model import Lab, Node, load_lab, node_home
from fleet.paths import PROJECT

DEFAULT_INVENTORY = PROJECT / "inventories/lab"

console = Console(highlight=False, soft_wrap=True)


def _inventory_option(function: click.decorators.FC) -> click.decorators.FC:
    return click.option(
        "-i",
        "--inventory",
        type=click.Path(path_type=Path),
        default=DEFAULT_INVENTORY,
        show_default="inventories/lab",
        help="Ansible inventory that describes the lab.",
    )(function)


@click.group()
def lab() -> None:
    """A real cluster on this machine: booted nodes, made from an Ansible inventory."""
    # Folders made here become folders of the nodes, whatever the administrator's umask is.
    os.umask(0o022)


@lab.command()
@_inventory_option
@click.option("--dry-run", is_flag=True, help="Say what would be done to this machine, and do nothing.")
@click.option(
    "--install-host-packages", is_flag=True, help="Install what this machine lacks (Debian, Ubuntu)."
)
def up(inventory: Path, dry_run: bool, install_host_packages: bool) -> None:
    """Make and boot the nodes that are missing; change nothing that is as it should be."""
    wanted = load_lab(inventory)
    if dry_run:
        _say_what_up_would_do(wanted, install_host_packages)
    elif bring_up(wanted, _report, install_host_packages=install_host_packages):
        console.print(f"lab {wanted.name} is up: {NodeSet.fromlist([node.name for node in wanted.nodes])}")
    else:
        console.print(f"lab {wanted.name}: {len(wanted.nodes)} nodes, nothing to change")


def _say_what_up_would_do(wanted: Lab, install_host_packages: bool) -> None:
    missing = missing_packages(programs_for(wanted))
    if missing and install_host_packages:
        console.print(f"would install on this machine: {' '.join(missing)}")
    for line in lacks_for(wanted):
        console.print(f"this machine: {line}", markup=False)
    if not missing:  # without these programs nobody knows what is there already
        _show(plan_up(wanted), f"lab {wanted.name}")


@lab.command()
@_inventory_option
@click.option("--name", help="Name of the lab, where its inventory is gone or broken.")
@click.option("--all", "all_labs", is_flag=True, help="All labs of this user (XDG_STATE_HOME).")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
def down(inventory: Path, name: str | None, all_labs: bool, dry_run: bool) -> None:
    """Remove everything a lab has on this machine but the cache; also after a crash."""
    if all_labs:
        names = known_labs()
    elif name:
        names = [name]
    else:
        wanted = load_lab(inventory)
        check_inventory_is_the_same(wanted)
        names = [wanted.name]
    for lab_name in names:
        if dry_run:
            _show(plan_down(lab_name), f"lab {lab_name}")
        elif take_down(lab_name):
            console.print(f"lab {lab_name}: down")
        else:
            console.print(f"lab {lab_name}: nothing to remove")


@lab.command()
@_inventory_option
def status(inventory: Path) -> None:
    """Show the lab's nodes; exit 3 unless all of them run."""
    wanted = load_lab(inventory)
    table = Table(
        "node", "state", "address", "release", "backend", title=f"lab {wanted.name}", title_justify="left"
    )
    states = [is_running(wanted, node) for node in wanted.nodes]
    for node, running in zip(wanted.nodes, states, strict=True):
        table.add_row(node.name, "running" if running else "off", node.address, node.release, node.backend)
    console.print(table)
    sys.exit(0 if all(states) else 3)


@lab.command(name="exec", context_settings={"allow_interspersed_args": False})
@_inventory_option
@click.option("-w", "--nodes", help="Nodes as a hostlist, like c[1-2],@slurm_compute; all without it.")
@click.option("-u", "--user", default="root", show_default=True, help="Who to be: root or one of lab_users.")
@click.argument("command", nargs=-1, required=True)
def execute(inventory: Path, nodes: str | None, user: str, command: tuple[str, ...]) -> None:
    """Run a command on nodes side by side, equal output folded; exit with the worst status."""
    wanted = _up(inventory)
    chosen = _choose(wanted, nodes)
    for name in chosen:
        _login(wanted, user, wanted.node(name))
    results = run_on_nodes(wanted, chosen, " ".join(command), user)
    for names, text in results.outputs:
        console.print(f"[bold]{names}[/]")
        click.echo(text)
    for names, code in results.failures:
        click.echo(f"{names}: exit status {code}", err=True)
    sys.exit(results.worst)


@lab.command(context_settings={"allow_interspersed_args": False})
@_inventory_option
@click.option("-u", "--user", default="root", show_default=True, help="Who to be: root or one of lab_users.")
@click.argument("node")
@click.argument("command", nargs=-1)
def ssh(inventory: Path, user: str, node: str, command: tuple[str, ...]) -> None:
    """Log in to a node, or run a command there."""
    wanted = _up(inventory)
    chosen = wanted.node(node)
    argv = ["ssh", "-F", str(wanted.home / "ssh_config"), "-l", _login(wanted, user, chosen), node, *command]
    os.execvp(argv[0], argv)  # noqa: S606 - the SSH client takes over this terminal


@lab.command()
@_inventory_option
@click.argument("node")
@click.option("-f", "--follow", is_flag=True, help="Keep printing what comes.")
def logs(inventory: Path, node: str, follow: bool) -> None:
    """Print a node's console from its first boot on."""
    wanted = load_lab(inventory)
    log = node_home(wanted.name, wanted.node(node).name) / "console.log"
    if not log.exists():
        raise FleetError(f"node {node}: was never booted", "fleet lab up")
    sys.exit(
        subprocess.run(["tail", "-n", "+1", *(["-f"] if follow else []), str(log)], check=False).returncode
    )


def _up(inventory: Path) -> Lab:
    """The lab of an inventory, which has to be there already."""
    wanted = load_lab(inventory)
    if not (wanted.home / "ssh_config").exists():
        raise FleetError(f"lab {wanted.name}: is not up", f"fleet lab up -i {inventory}")
    return wanted


def _login(wanted: Lab, user: str, node: Node) -> str:
    if user not in ("root", *node.users):
        raise FleetError(f"--user {user}: node {node.name} has no such user", "root, or one of lab_users")
    return user


def _choose(wanted: Lab, hostlist: str | None) -> NodeSet:
    names = [node.name for node in wanted.nodes]
    return choose(hostlist, names, wanted.groups, f"lab {wanted.name}", "--nodes")


def _show(stages: list[Stage], subject: str) -> None:
    if not stages:
        console.print(f"{subject}: nothing to do")
    for stage in stages:
        console.print(f"[bold]{stage.title}[/]")
        for step in stage.steps:
            console.print(f"  would {step.text}", markup=False)


def _report(title: str, seconds: float) -> None:
    console.print(f"  {title:20} {seconds:6.1f} s")
