"""The main job, acted out on a lab and asserted at every step: build → transfer → run.

Real parts throughout: booted nodes, SSH, Apptainer, Slurm, a signature. Each step returns its evidence or
raises; the first that fails ends the demo, since every later one stands on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
from ClusterShell.NodeSet import NodeSet
from rich.console import Console
from rich.table import Table

from fleet.errors import FleetError
from fleet.lab.lab import bring_up
from fleet.lab.model import Lab, load_lab
from fleet.lab.remote import RemoteError, fetch, run_on, send
from fleet.paths import PROJECT
from fleet.playbook import run_playbook

DEFINITION = PROJECT / "docs/examples/hello.def"
USER = "alice"
LOGIN = "head"
COMPUTE = ("c1", "c2")
PUBLISHED = "/opt/containers/hello.sif"
#: Set by `make demo` before it creates the environment: seconds since the epoch.
STARTED = "FLEET_DEMO_STARTED"


@dataclass
class Demo:
    """One run of the demo.

    :param phases: seconds per phase, in the order they ended.
    :param rows: (step, passed, evidence or error, seconds).
    """

    lab: Lab
    console: Console
    install_host_packages: bool = False
    phases: dict[str, float] = field(default_factory=dict)
    rows: list[tuple[str, bool, str, float]] = field(default_factory=list)
    digest: str = ""
    fingerprint: str = ""

    def run(self) -> bool:
        """Run all steps, print the tables.

        :returns: whether every assertion held.
        """
        with tempfile.TemporaryDirectory(prefix="fleet-demo-") as folder:
            self._here = Path(folder)
            steps: list[tuple[str, str, Callable[[], str]]] = [
                ("lab", "nodes booted and reachable", self._lab_up),
                ("validate", "inventory valid", lambda: self._playbook("validate")),
                ("converge", "nodes configured", lambda: self._playbook("site")),
                ("job", f"build: {USER} builds an image without root", self._build),
                ("job", f"sign: {USER} signs it, its SHA-256 is recorded", self._sign),
                ("job", "transfer: to every compute node, same SHA-256", self._transfer),
                ("job", "publish: root installs it, having verified it", self._publish),
                ("job", f"run: srun -N2 as {USER}, one task a node", self._run_job),
                ("job", "same SHA-256 on every node, seen by the job", self._same_digest),
                ("job", f"verify: apptainer verify says so for {USER}", self._verify),
                ("job", f"inside, {USER} is {USER} and not root", self._user_is_the_user),
                ("job", "a tampered copy is refused by verify", self._tampered_is_refused),
            ]
            passed = all(self._step(*step) for step in steps)
        self._print(passed, [title for _, title, _ in steps[len(self.rows) :]])
        return passed

    def _step(self, phase: str, title: str, act: Callable[[], str]) -> bool:
        self.console.print(f"[bold]{title}[/]")
        started = time.monotonic()
        try:
            evidence, passed = act(), True
        except FleetError as error:
            evidence, passed = str(error), False
        seconds = time.monotonic() - started
        self.rows.append((title, passed, evidence, seconds))
        if phase != "lab":
            self.phases[phase] = self.phases.get(phase, 0) + seconds
        return passed

    # the cluster

    def _lab_up(self) -> str:
        bring_up(self.lab, self._count_lab_stage, install_host_packages=self.install_host_packages)
        return str(NodeSet.fromlist([node.name for node in self.lab.nodes]))

    def _count_lab_stage(self, title: str, seconds: float) -> None:
        phase = title if title in ("host packages", "base image", "package repository") else "boot"
        self.phases[phase] = self.phases.get(phase, 0) + seconds

    def _playbook(self, name: str) -> str:
        result = run_playbook(PROJECT / f"playbooks/{name}.yml", self.lab.inventory, self.console)
        if not result.ok:
            raise FleetError("\n".join(result.failures) or result.output[-2000:])
        changed = ", ".join(f"{node} {count}" for node, count in sorted(result.changed.items()))
        return f"changed: {changed}" if changed else "nothing changed"

    # the user's job

    def _build(self) -> str:
        send(self.lab, LOGIN, DEFINITION, "hello.def", user=USER)
        self._as_user(["apptainer", "build", "--force", "hello.sif", "hello.def"])
        owner = self._as_user(["stat", "--format=%U", "hello.sif"]).strip()
        self._expect("owner of the image", owner, USER)
        return f"hello.sif from {DEFINITION.name}, on {LOGIN}"

    def _sign(self) -> str:
        new_key = [
            *["apptainer", "key", "newpair", "--name", USER, "--email", f"{USER}@example.org"],
            *["--comment", "", "--password", "", "--push=false"],
        ]
        keyring = ".apptainer/keys/pgp-secret"
        try:
            self._as_user(["test", "-s", keyring])
        except RemoteError:
            self._as_user(new_key)
        self._as_user(["apptainer", "sign", "hello.sif"])
        self.fingerprint = self._signer(LOGIN, "hello.sif")
        self.digest = self._sha256(LOGIN, "hello.sif")
        return f"SHA-256 {self.digest[:16]}…, signed by {self.fingerprint[:16]}…"

    def _transfer(self) -> str:
        image, key = self._here / "hello.sif", self._here / "signer.asc"
        fetch(self.lab, LOGIN, "hello.sif", image, user=USER)
        self._expect("SHA-256 here", hashlib.sha256(image.read_bytes()).hexdigest(), self.digest)
        self._as_user(["rm", "-f", "signer.asc"])
        # It asks which key, even where there is only one.
        self._as_user(["apptainer", "key", "export", "--armor", "signer.asc"], stdin="0\n")
        fetch(self.lab, LOGIN, "signer.asc", key, user=USER)
        for node in COMPUTE:
            run_on(self.lab, node, ["install", "-d", "-m", "0755", str(Path(PUBLISHED).parent)])
            send(self.lab, node, image, f"{PUBLISHED}.part")
            send(self.lab, node, key, "/root/signer.asc")
            self._expect(f"SHA-256 on {node}", self._sha256(node, f"{PUBLISHED}.part", "root"), self.digest)
        return f"{image.stat().st_size} bytes to {NodeSet.fromlist(list(COMPUTE))}"

    def _publish(self) -> str:
        for node in COMPUTE:
            self._trust_signer(node)
            signer = self._signer(node, f"{PUBLISHED}.part", "root")
            self._expect(f"signer on {node}", signer, self.fingerprint)
            run_on(self.lab, node, ["chmod", "0644", f"{PUBLISHED}.part"])
            run_on(self.lab, node, ["mv", "--no-target-directory", f"{PUBLISHED}.part", PUBLISHED])
        return f"{PUBLISHED}, root's and read-only to users"

    def _trust_signer(self, node: str) -> None:
        try:
            run_on(self.lab, node, ["apptainer", "key", "import", "--global", "/root/signer.asc"])
        except RemoteError as refused:
            if "already belongs to the keyring" not in refused.said:
                raise

    def _run_job(self) -> str:
        said = self._job(["apptainer", "run", PUBLISHED])
        self._expect("greetings", sorted(said), [f"hello from {node} as {USER}" for node in COMPUTE])
        return "; ".join(sorted(said))

    def _same_digest(self) -> str:
        digests = {line.split()[0] for line in self._job(["sha256sum", PUBLISHED])}
        self._expect("digests that the job saw", digests, {self.digest})
        return f"{self.digest[:16]}… on {NodeSet.fromlist(list(COMPUTE))} and at the start"

    def _verify(self) -> str:
        for node in COMPUTE:
            self._expect(f"signer on {node}", self._signer(node, PUBLISHED), self.fingerprint)
        return f"signed by {self.fingerprint[:16]}…, all objects intact"

    def _user_is_the_user(self) -> str:
        outside = run_on(self.lab, COMPUTE[0], ["id", "-u"], user=USER).strip()
        inside = set(self._job(["apptainer", "exec", PUBLISHED, "id", "-u"]))
        self._expect("uid inside", inside, {outside})
        try:
            self._job(
                ["apptainer", "exec", "--bind", "/etc/shadow:/opt/shadow", PUBLISHED, "cat", "/opt/shadow"]
            )
        except RemoteError as refused:
            if "Permission denied" not in refused.said:
                raise
        else:
            raise FleetError(f"{USER} read /etc/shadow of a node through a container")
        return f"uid {outside} outside and inside; /etc/shadow stays closed"

    def _tampered_is_refused(self) -> str:
        flip = (
            "import sys; f = open(sys.argv[1], 'r+b'); f.seek(-4096, 2); b = f.read(1); "
            "f.seek(-4096, 2); f.write(bytes([b[0] ^ 1]))"
        )
        node = COMPUTE[0]
        run_on(self.lab, node, ["cp", PUBLISHED, "tampered.sif"], user=USER)
        run_on(self.lab, node, ["/usr/bin/python3", "-c", flip, "tampered.sif"], user=USER)
        try:
            self._signer(node, "tampered.sif")
        except RemoteError as refused:
            if "integrity" not in refused.said:
                raise
            return f"{node}: object integrity compromised"
        finally:
            run_on(self.lab, node, ["rm", "-f", "tampered.sif"], user=USER)
        raise FleetError("apptainer verify accepted a tampered image")

    # the ways of asking

    def _as_user(self, argv: list[str], *, stdin: str | None = None) -> str:
        return run_on(self.lab, LOGIN, argv, user=USER, stdin=stdin)

    def _job(self, argv: list[str]) -> list[str]:
        """Lines that a two-node job printed; it must have run on both nodes or srun fails."""
        srun = ["srun", "--nodes=2", "--ntasks-per-node=1", "--immediate=30", *argv]
        return [line for line in self._as_user(srun).splitlines() if line]

    def _sha256(self, node: str, path: str, user: str = USER) -> str:
        return run_on(self.lab, node, ["sha256sum", path], user=user).split()[0]

    def _signer(self, node: str, path: str, user: str = USER) -> str:
        """Fingerprint of the one key that all objects are signed with, by Apptainer and local keys alone."""
        said = run_on(self.lab, node, ["apptainer", "verify", "--local", "--json", path], user=user)
        signers = [entry["Signer"] for entry in json.loads(said)["SignerKeys"] or []]
        if not signers or not all(s["KeyCheck"] and s["DataCheck"] for s in signers):
            raise FleetError(f"{node}: {path} is not wholly signed: {signers}")
        fingerprints = {str(s["Fingerprint"]).upper() for s in signers}
        self._expect(f"number of signers of {path} on {node}", len(fingerprints), 1)
        return fingerprints.pop()

    @staticmethod
    def _expect(what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise FleetError(f"{what}: {found!r}, wanted {wanted!r}")

    def _print(self, passed: bool, not_run: list[str]) -> None:
        table = Table("step", "", "evidence", "seconds", title="demo", title_justify="left")
        for title, ok, evidence, seconds in self.rows:
            table.add_row(title, "[green]ok[/]" if ok else "[red]FAILED[/]", evidence, f"{seconds:.1f}")
        for title in not_run:
            table.add_row(title, "[yellow]not run[/]", "", "")
        self.console.print(table)
        split = [f"{phase} {seconds:.1f} s" for phase, seconds in self.phases.items()]
        self.console.print(" · ".join([*split, f"all {sum(self.phases.values()):.1f} s"]), soft_wrap=True)
        if passed:
            self.console.print("The lab stays up: fleet lab ssh -u alice head · fleet lab down")


def run_demo(inventory: Path, console: Console, *, install_host_packages: bool) -> bool:
    """Act the main job out on the lab of an inventory.

    :returns: whether every assertion held.
    """
    started = float(os.environ.get(STARTED, "0"))
    demo = Demo(load_lab(inventory), console, install_host_packages)
    if started:
        demo.phases["environment"] = time.time() - started
    return demo.run()


@click.command(name="demo")
@click.option(
    "--install-host-packages", is_flag=True, help="Install what this machine lacks (Debian, Ubuntu)."
)
def command(install_host_packages: bool) -> None:
    """Act out the main job on a lab: build, sign, transfer, publish, run through Slurm."""
    # A log has no width of its own; what stands in it should not be folded at 80.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 132)
    inventory = PROJECT / "inventories/lab"
    sys.exit(not run_demo(inventory, console, install_host_packages=install_host_packages))
