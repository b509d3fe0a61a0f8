"""A playbook on parts of an inventory at a time, each on an execution node of Receptor's mesh.

A part goes through ``ansible-runner transmit`` here, ``ansible-runner worker`` there and ``ansible-runner
process`` here, which gives the events of a run on this machine. An execution node has one part at a time. One
that is lost, or whose work ends without a result, gets no other; the hosts of its part are done elsewhere.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import ansible_runner
from rich.console import Console
from rich.status import Status

from fleet.errors import FleetError
from fleet.hostlist import fold
from fleet.mesh import Mesh, MeshError
from fleet.paths import PROJECT
from fleet.playbook import PlaybookResult, Progress, ended

#: What a playbook needs of the project, beside its settings.
_FOLDERS = ("fleet", "library", "module_utils", "playbooks", "plugins", "roles")
#: What belongs to an inventory that is a file.
_BESIDE = ("group_vars", "host_vars", "files")
#: Seconds between two looks at the mesh, and without a way to a node, after which it is lost. Receptor itself
#: takes 20 s to notice that a node is silent.
LOOK, PATIENCE = 2.0, 10.0
VAULT = "ANSIBLE_VAULT_PASSWORD_FILE"


@dataclass(frozen=True)
class Job:
    """What is run on each part: a playbook of the project, and what execution nodes need for it.

    :param options: of ansible-playbook.
    :param ssh_key: the private key to log in to nodes with; without one, what the execution nodes have.
    """

    playbook: str
    sources: Sequence[Path]
    options: Sequence[str] = ()
    ssh_key: Path | None = None

    def transmit(self, hosts: Sequence[str], folder: Path) -> Path:
        """Make the stream that a worker reads, below *folder*, which only its owner can read."""
        private = folder / "private"
        (private / "env").mkdir(parents=True)
        (private / "project").mkdir()
        shutil.copy(PROJECT / "ansible.cfg", private / "project")
        for part in _FOLDERS:
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(PROJECT / part, private / "project" / part, ignore=leave)
        (private / "limit").write_text("\n".join(hosts))
        words = ["--limit=@../limit", *self.options]
        for number, source in enumerate(self.sources):
            copied = _copy_inventory(source, private / "sources" / str(number))
            words += ["-i", str(Path("..", copied.relative_to(private)))]
        environment = {"PYTHONPATH": ".", "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"}
        if self.ssh_key:
            _secret(private / "env/ssh_key", self.ssh_key.read_text())
        if os.environ.get(VAULT):
            _secret(private / "vault", _vault_password(Path(os.environ[VAULT])))
            environment[VAULT] = "../vault"
        stream = folder / "payload"
        with stream.open("wb") as output:
            ansible_runner.interface.run(
                streamer="transmit",
                _output=output,
                private_data_dir=str(private),
                playbook=self.playbook,
                cmdline=shlex.join(words),
                envvars=environment,
                fact_cache_type="memory",
            )
        shutil.rmtree(private)
        return stream


def _copy_inventory(source: Path, place: Path) -> Path:
    """Copy an inventory and what belongs to it into a folder that is to be made; return the copy."""
    source = source.resolve()
    if source.is_dir():
        shutil.copytree(source, place / source.name)
    else:
        place.mkdir(parents=True)
        shutil.copy(source, place)
        for name in _BESIDE:
            if (source.parent / name).is_dir():
                shutil.copytree(source.parent / name, place / name)
    return place / source.name


def _secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _vault_password(path: Path) -> str:
    """The password itself: a program that asks for it is here, and not on an execution node."""
    path = path.expanduser()
    if os.access(path, os.X_OK):
        return subprocess.run([str(path.absolute())], check=True, stdout=subprocess.PIPE, text=True).stdout
    return path.read_text()


class Lost(Exception):  # noqa: N818 - an execution node that is lost, and why
    """An execution node can't bring a part to its end."""


class Board:
    """One line of progress for all parts that are under way."""

    def __init__(self, status: Status | None) -> None:
        self._status, self._lock, self._texts = status, threading.Lock(), dict[str, str]()

    def line(self, name: str) -> Line | None:
        """The place of one part; None if there is no terminal to show it."""
        return Line(self, name) if self._status else None

    def show(self, name: str, text: str | None) -> None:
        """Put a text in the place of a part, or take it away."""
        with self._lock:
            if text is None:
                self._texts.pop(name, None)
            else:
                self._texts[name] = text
            if self._status:
                self._status.update("  |  ".join(self._texts.values()))


@dataclass(frozen=True)
class Line:
    """The place of one part on the board."""

    board: Board
    name: str

    def update(self, text: str) -> None:
        """Show a text there."""
        self.board.show(self.name, text)


@dataclass
class Crew:
    """The execution nodes that are left, and what happened to the others.

    :param say: is told what happens, as it does.
    """

    mesh: Mesh
    nodes: list[str]
    job: Job
    console: Console
    board: Board
    say: Callable[[str], None]
    gone: dict[str, str] = field(default_factory=dict)
    #: Hosts of parts that were broken off, and that no other node has done since → what is said of it.
    broken_off: dict[str, str] = field(default_factory=dict)
    _ending: threading.Event = field(default_factory=threading.Event)

    def run(
        self, parts: Sequence[Sequence[str]], go_on: Callable[[], bool]
    ) -> Iterator[tuple[Sequence[str], PlaybookResult]]:
        """Run the job on all parts, and yield each with its result as it comes.

        :param go_on: is asked before a part is begun.
        """
        waiting = deque(enumerate(parts, 1))
        free = deque(self.nodes)
        with ThreadPoolExecutor(max_workers=max(len(self.nodes), 1)) as pool:
            running: dict[Future[PlaybookResult], tuple[str, int, Sequence[str]]] = {}
            try:
                while True:
                    while waiting and free and go_on():
                        node, (number, hosts) = free.popleft(), waiting.popleft()
                        label = f"shard {number} of {len(parts)} on {node}"
                        running[pool.submit(self._run_part, node, hosts, label)] = (node, number, hosts)
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        node, number, hosts = running.pop(future)
                        try:
                            result = future.result()
                        except Lost as lost:
                            self._lose(node, hosts, str(lost))
                            waiting.appendleft((number, hosts))
                        else:
                            free.append(node)
                            for host in hosts:
                                self.broken_off.pop(host, None)
                            yield hosts, result
            finally:
                # An interrupt leaves nothing behind on execution nodes either.
                self._ending.set()
                self._ending = threading.Event()

    def _lose(self, node: str, hosts: Sequence[str], why: str) -> None:
        self.nodes.remove(node)
        self.gone[node] = why
        what = f"execution node {node}: {why}"
        self.broken_off.update(dict.fromkeys(hosts, what))
        after = f"done again on {fold(self.nodes)}" if self.nodes else "left, as no execution node is"
        self.say(f"{what}; {fold(hosts)} {after}")

    def _run_part(self, node: str, hosts: Sequence[str], label: str) -> PlaybookResult:
        progress = Progress(self.board.line(label), self.console, label=label)
        try:
            with tempfile.TemporaryDirectory(prefix="fleet-shard-") as name:
                folder = Path(name)
                payload = self.job.transmit(hosts, folder)
                unit = self.mesh.submit(node, payload)
                payload.unlink()
                try:
                    return self._process(node, unit, progress, folder / "result")
                finally:
                    self.mesh.release(unit)
        except MeshError as error:
            raise Lost(str(error)) from error
        finally:
            self.board.show(label, None)

    def _process(self, node: str, unit: str, progress: Progress, folder: Path) -> PlaybookResult:
        finished, reasons = threading.Event(), list[str]()
        with self.mesh.results(unit) as (connection, stream):

            def watch() -> None:
                why = self._watch(node, finished, self._ending)
                if why:
                    reasons.append(why)
                    with suppress(OSError):
                        connection.shutdown(2)

            watcher = threading.Thread(target=watch, daemon=True)
            watcher.start()
            try:
                ansible_runner.interface.run(
                    streamer="process",
                    _input=stream,
                    private_data_dir=str(folder),
                    event_handler=progress,
                    quiet=True,
                )
            finally:
                finished.set()
                watcher.join()
        rc = folder / "artifacts/rc"
        if reasons or not rc.exists():
            said = reasons or [f"its work ended without a result ({self.mesh.detail(unit)})"]
            raise Lost(f"{said[0]}{progress.under_way}")
        return ended(int(rc.read_text()), progress, (folder / "artifacts/stdout").read_text())

    def _watch(self, node: str, finished: threading.Event, ending: threading.Event) -> str:
        """Look after a node until its part is finished; returns why it is given up, if it is."""
        missing = 0.0
        while not finished.wait(LOOK):
            if ending.is_set():
                return "was told to end"
            try:
                here = self.mesh.reaches(node)
                why = "lost, the mesh has no way to it"
            except MeshError as error:
                here, why = False, str(error)
            missing = 0.0 if here else missing or time.monotonic()
            if missing and time.monotonic() - missing > PATIENCE:
                return why
        return ""


def check_key(path: Path | None) -> None:
    """Raise FleetError for a key that can't be used without somebody who types."""
    if path is None:
        return
    if not path.is_file():
        raise FleetError(f"--ssh-key {path}: no such file", "name a private key")
    asked = ["ssh-keygen", "-y", "-P", "", "-f", str(path)]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        raise FleetError(
            f"--ssh-key {path}: no private key, or one with a passphrase",
            "a key of its own for execution nodes",
        )
