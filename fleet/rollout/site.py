"""The inventory as a rollout needs it: hosts, groups, values, and how to reach the scheduler."""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.errors import FleetError
from fleet.paths import PROJECT
from fleet.rollout.commands import Host
from fleet.rollout.journal import folder
from fleet.rollout.nodelist import NodeList
from fleet.rollout.pbs import Pbs
from fleet.rollout.scheduler import Scheduler
from fleet.rollout.slurm import Slurm
from fleet.validate import Severity, apptainer, check_inventory, report
from fleet.validate.resolve import Resolved, UnresolvedError
from fleet.validate.vocabulary import Vocabulary
from fleet.validate.written import read

SCHEDULERS = ("auto", "slurm", "openpbs", "torque", "list")
COMPUTE, CONTROLLER, APPTAINER = "slurm_compute", "slurm_controller", "apptainer"
HERE = "localhost"


@dataclass(frozen=True, slots=True)
class Site:
    """One inventory, or several together."""

    sources: tuple[Path, ...]
    resolved: Resolved

    @classmethod
    def of(cls, sources: Sequence[Path], *, check: bool = True) -> Site:
        """Read an inventory. With *check*, raises FleetError for one that `fleet validate` refuses."""
        findings = check_inventory(sources, PROJECT) if check else []
        if any(finding.severity is Severity.ERROR for finding in findings):
            raise FleetError(report(findings), "mend the inventory first")
        defaults = Vocabulary.of(PROJECT).defaults.values()
        paths = tuple(path.absolute() for path in sources)
        return cls(paths, Resolved.of(read(paths), PROJECT, defaults))

    @property
    def hosts(self) -> list[str]:
        """All hosts."""
        return list(self.resolved.manager.hosts)

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group → its hosts."""
        return {name: self.resolved.members(name) for name in self.resolved.manager.groups}

    def value(self, host: str, name: str, default: Any = None) -> Any:
        """What a variable of a host is; *default* where it is not set, or not known before a run."""
        try:
            value = self.resolved.lookup(host, name)
        except UnresolvedError:
            return default
        return default if value is None else value

    def cluster(self) -> str:
        """A name for the cluster, under which its journal is kept."""
        names = {str(self.value(host, "slurm_cluster_name", "cluster")) for host in self.hosts}
        labs = {str(self.value(host, "lab_name", "")) for host in self.hosts} - {""}
        # All labs have the cluster name that is the default.
        return min(labs) if labs else min(names or {"cluster"})

    def kind(self, asked: str) -> str:
        """Which scheduler it has."""
        if asked != "auto":
            return asked
        return "slurm" if self.groups.get(COMPUTE) or self.groups.get(CONTROLLER) else "list"

    def scheduler_host(self, asked: str | None) -> str:
        """Where the scheduler's commands are."""
        if asked is None:
            return next(iter(self.groups.get(CONTROLLER, ())), HERE)
        if asked != HERE and asked not in self.hosts:
            raise FleetError(
                f"--scheduler-host {asked}: no host of the inventory", f"one of its hosts, or {HERE}"
            )
        return asked

    def login(self, host: str) -> tuple[Host, str]:
        """How to run commands on a host as Ansible would, and as whom."""
        if host == HERE:
            return Host(), getpass.getuser()
        user = self.value(host, "ansible_user") or self.value(host, "ansible_ssh_user")
        become = bool(self.value(host, "ansible_become", False))
        argv = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"]
        for variable in ("ansible_ssh_common_args", "ansible_ssh_extra_args"):
            argv += shlex.split(str(self.value(host, variable, "")))
        for option, variable in (("-p", "ansible_port"), ("-i", "ansible_ssh_private_key_file")):
            value = self.value(host, variable)
            argv += [option, str(Path(str(value)).expanduser())] if value else []
        argv += ["-l", str(user)] if user else []
        argv += ["--", str(self.value(host, "ansible_host", host))]
        return Host(tuple(argv), become), "root" if become else str(user or getpass.getuser())

    def scheduler(self, kind: str, host: str, state: Path | None) -> Scheduler:
        """The scheduler of this cluster."""
        if kind == "list":
            groups = {name: nodes for name, nodes in self.groups.items() if name != "ungrouped"}
            return NodeList(folder(self.cluster(), state) / "held.json", groups)
        login, user = self.login(host)
        if kind == "slurm":
            return Slurm(login.run, self.hosts, user)
        return Pbs(login.run, torque=kind == "torque")

    def judge(self, hosts: Sequence[str], version: str) -> Iterator[str]:
        """What the rules have against a version on some nodes, security advisories and waivers included."""
        said: dict[str, list[str]] = {}
        for host in hosts:
            values = {name: self.value(host, name) for name in apptainer.VARIABLES}
            for one in apptainer.judge({**values, "apptainer_version": version}):
                if one.severity is Severity.ERROR:
                    said.setdefault(f"{one.variable}: {one.what}\n  {one.mend}", []).append(host)
        for text, concerned in said.items():
            yield f"{', '.join(concerned)}: {text}"
