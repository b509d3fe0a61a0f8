"""Running the project's playbooks through ansible-runner, with one line of progress instead of a scroll."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner
from rich.console import Console
from rich.status import Status

from fleet.paths import PROJECT


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
    """

    status: int
    changed: dict[str, int]
    failures: list[str]
    output: str
    failed: dict[str, str] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    plays: frozenset[str] = frozenset()

    @property
    def ok(self) -> bool:
        """Whether it ended without any failure."""
        return self.status == 0


class _Progress:
    """Shows the task that is under way, how many nodes are through, and what failed."""

    def __init__(self, status: Status | None, console: Console, wanted: str = "") -> None:
        self._status = status
        self._console = console
        self._wanted = wanted
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
                self._fail(data, self.failed)
            case "runner_on_unreachable":
                self._fail(data, self.unreachable)
            case "playbook_on_stats":
                self.changed = dict(data.get("changed", {}))
        return False  # the event need not be kept as a file of its own

    def _show(self) -> None:
        if self._status:
            self._status.update(f"{self._task} [dim]({self._done} nodes done)[/]")
        elif self._done == 0:
            self._console.print(f"    {self._task}", markup=False, soft_wrap=True)

    def _fail(self, data: dict[str, Any], nodes: dict[str, str]) -> None:
        result = data.get("res", {})
        said = result.get("msg") or result.get("stderr") or "no message"
        self.failures.append(f"{data.get('host')}: {data.get('task')}: {said}")
        nodes.setdefault(str(data.get("host")), f"{data.get('task')}: {said}")
        self.plays.add(str(data.get("play", "")))


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
) -> PlaybookResult:
    """Run a playbook with this project's settings.

    :param extra: further arguments for ansible-playbook.
    :param limit: nodes, by their names in the inventory; all without one.
    :param variables: extra variables, which win over those of the inventory.
    :param folder: where to keep what the run says; without one nothing is kept.
    :param programs: folder with an ansible-playbook to be used instead of the one beside this Python.
    :param wanted: name of the task whose results are asked for.
    """
    showing = console.status(playbook.stem) if console.is_terminal else nullcontext()
    with tempfile.TemporaryDirectory(prefix="fleet-run-") as private, showing as status:
        progress = _Progress(status, console, wanted)
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
            inventory=[str(path) for path in inventories],
            cmdline=" ".join(arguments) or None,
            extravars=dict(variables or {}),
            envvars={
                "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
                "ANSIBLE_FORCE_COLOR": "0",
                # The ansible-playbook beside this Python, also where the environment was not activated.
                "PATH": os.pathsep.join((*paths, os.environ.get("PATH", os.defpath))),
                **(environment or {}),
            },
            event_handler=progress,
            quiet=True,
        )
        with runner.stdout as stdout:
            output = stdout.read()
    return PlaybookResult(
        runner.rc,
        progress.changed,
        progress.failures,
        output,
        progress.failed,
        progress.unreachable,
        progress.results,
        frozenset(progress.plays),
    )
