"""Running the project's playbooks through ansible-runner, with one line of progress instead of a scroll."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ansible_runner
from rich.console import Console

from fleet.errors import FleetError
from fleet.paths import PROJECT


@dataclass(frozen=True)
class Failure:
    """What kept a node from getting to the end of a run.

    :param task: the task it was in.
    :param message: what it said, a sentence or more.
    :param unreachable: it was never reached, or no longer.
    :param result: all that the task returned.
    """

    host: str
    task: str
    message: str
    unreachable: bool = False
    result: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class PlaybookResult:
    """How a run ended.

    :param status: exit status of ansible-playbook.
    :param changed: node → number of changed tasks; nodes without any are left out.
    :param failures: one line for each failed or unreachable node and task.
    :param output: everything ansible-playbook printed.
    :param failed: node → what was said; *unreachable* likewise.
    :param results: node → what the task that was asked for returned.
    :param plays: names of the plays in which something failed.
    :param lost: what was last with each node that did not get to the end, whatever was rescued before it.
    :param hosts: the nodes that the run had to do with.
    """

    status: int
    changed: dict[str, int]
    failures: list[str]
    output: str
    failed: dict[str, str] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    plays: frozenset[str] = frozenset()
    lost: list[Failure] = field(default_factory=list)
    hosts: frozenset[str] = frozenset()

    @property
    def ok(self) -> bool:
        """Whether it ended without any failure."""
        return self.status == 0


class Line(Protocol):
    """Where progress is shown on a terminal."""

    def update(self, text: str) -> None:
        """Show a text in place of the one before."""


class Progress:
    """Takes the events of a run: shows the task that is under way, and keeps what failed.

    :param wanted: name of the task whose results are kept.
    :param label: stands before the task, for a run that is one of several.
    """

    def __init__(self, status: Line | None, console: Console, wanted: str = "", label: str = "") -> None:
        self._status = status
        self._console = console
        self._wanted = wanted
        self._label = f"{label}: " if label else ""
        self._last: dict[str, Failure] = {}
        self._stats: dict[str, dict[str, int]] = {}
        self._task = ""
        self._done = 0
        self.failed: dict[str, str] = {}
        self.unreachable: dict[str, str] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.plays: set[str] = set()
        self.failures: list[str] = []
        self.changed: dict[str, int] = {}

    def __call__(self, event: dict[str, Any]) -> bool:
        data = event.get("event_data", {})
        match event["event"]:
            case "playbook_on_task_start" | "playbook_on_handler_task_start":
                self._task, self._done = data.get("name") or data.get("task", ""), 0
                self._show()
            case "runner_on_ok" | "runner_on_skipped":
                self._done += 1
                if self._wanted and data.get("task") == self._wanted:
                    self.results[data["host"]] = data.get("res", {})
                self._show()
            case "runner_on_failed" if not data.get("ignore_errors"):
                self._fail(data, self.failed, unreachable=False)
            case "runner_on_unreachable":
                self._fail(data, self.unreachable, unreachable=True)
            case "playbook_on_stats":
                self.changed = dict(data.get("changed", {}))
                self._stats = {name: data.get(name) or {} for name in ("failures", "dark", "processed")}
        return False  # the event need not be kept as a file of its own

    @property
    def lost(self) -> list[Failure]:
        """The last failure of each node that did not get to the end; of all nodes if the run was cut off."""
        if not self._stats:
            return list(self._last.values())
        dark = self._stats["dark"]
        unsaid = "no message"
        return [
            self._last.get(host) or Failure(host, "", unsaid, host in dark)
            for host in {**self._stats["failures"], **dark}
        ]

    @property
    def hosts(self) -> frozenset[str]:
        """The nodes that the run had to do with."""
        return frozenset(self._stats.get("processed", {}))

    @property
    def under_way(self) -> str:
        """Where a run was that is cut off, as the end of a sentence."""
        return f" in task {self._task}, with which {self._done} nodes were done" if self._task else ""

    def _show(self) -> None:
        if self._status:
            self._status.update(f"{self._label}{self._task} [dim]({self._done} nodes done)[/]")
        elif self._done == 0:
            self._console.print(f"    {self._label}{self._task}", markup=False, soft_wrap=True)

    def _fail(self, data: dict[str, Any], nodes: dict[str, str], *, unreachable: bool) -> None:
        result = data.get("res", {})
        said = result.get("msg") or result.get("stderr") or "no message"
        self.failures.append(f"{data.get('host')}: {data.get('task')}: {said}")
        nodes.setdefault(str(data.get("host")), f"{data.get('task')}: {said}")
        self.plays.add(str(data.get("play", "")))
        host = str(data.get("host"))
        self._last[host] = Failure(host, data.get("task") or "", str(said), unreachable, result)


def check_tags(playbook: Path, tags: Collection[str]) -> None:
    """Refuse tags that a playbook does not have: with them it does nothing, and succeeds.

    :raises FleetError: which one is unknown, and those that are there.
    """
    ended = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "--inventory=localhost,",
            "--list-tags",
            playbook,
        ],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_INVENTORY_ENABLED": "host_list",
            "ANSIBLE_NOCOLOR": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise FleetError(f"{playbook.name}: {ended.stderr.strip() or ended.stdout.strip()}")
    known = {
        tag for line in re.findall(r"TASK TAGS: \[(.*)\]", ended.stdout) for tag in line.split(", ") if tag
    }
    if unknown := [tag for tag in tags if tag not in known]:
        raise FleetError(
            f"--tags: {playbook.name} has no {unknown[0]!r}",
            f"one of {', '.join(sorted(known - {'always'}))}",
        )


def run_playbook(
    playbook: Path,
    inventory: Path | Sequence[Path],
    console: Console,
    *,
    extra: Iterable[str] = (),
    limit: Iterable[str] = (),
    variables: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    programs: Path | None = None,
    environment: Mapping[str, str] | None = None,
    wanted: str = "",
    facts: Path | None = None,
    label: str = "",
) -> PlaybookResult:
    """Run a playbook with this project's settings.

    :param extra: further arguments for ansible-playbook.
    :param limit: nodes, by their names in the inventory; all without one.
    :param variables: extra variables, which win over those of the inventory.
    :param folder: where to keep what the run says; without one nothing is kept.
    :param programs: folder with an ansible-playbook to be used instead of the one beside this Python.
    :param wanted: name of the task whose results are asked for.
    :param facts: folder in which facts of nodes are kept, and taken from for a day; None asks nodes.
    :param label: stands before each task in the progress.
    """
    showing = console.status(playbook.stem) if console.is_terminal else nullcontext()
    with tempfile.TemporaryDirectory(prefix="fleet-run-") as private, showing as status:
        progress = Progress(status, console, wanted, label)
        arguments = list(extra)
        if names := list(limit):
            # A file, because a list of thousands of nodes is longer than an argument may be.
            listed = Path(private, "limit")
            listed.write_text("\n".join(names))
            arguments.append(f"--limit=@{listed}")
        inventories = [inventory] if isinstance(inventory, Path) else inventory
        paths = [str(path) for path in (programs, Path(sys.executable).parent) if path]
        runner = ansible_runner.run(
            private_data_dir=private,
            artifact_dir=str(folder.parent) if folder else None,
            ident=folder.name if folder else None,
            project_dir=str(PROJECT),
            playbook=str(playbook),
            inventory=[str(path.absolute()) for path in inventories],
            cmdline=shlex.join(arguments) or None,
            extravars=dict(variables or {}),
            envvars={
                "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
                # It has a terminal of its own there, which nobody looks at.
                "ANSIBLE_FORCE_COLOR": "0",
                "ANSIBLE_NOCOLOR": "1",
                # The ansible-playbook beside this Python, also where the environment was not activated.
                "PATH": os.pathsep.join((*paths, os.environ.get("PATH", os.defpath))),
                **({"ANSIBLE_GATHERING": "smart"} if facts else {}),
                **(environment or {}),
            },
            # ansible-runner takes an absolute path as it is; by default it keeps facts of each run, in vain.
            **({"fact_cache": str(facts)} if facts else {"fact_cache_type": "memory"}),
            event_handler=progress,
            quiet=True,
        )
        with runner.stdout as stdout:
            output = stdout.read()
    return ended(runner.rc, progress, output)


def ended(status: int, progress: Progress, output: str) -> PlaybookResult:
    """How a run ended of which *progress* has seen all events."""
    return PlaybookResult(
        status,
        progress.changed,
        progress.failures,
        output,
        progress.failed,
        progress.unreachable,
        progress.results,
        frozenset(progress.plays),
        progress.lost,
        progress.hosts,
    )
