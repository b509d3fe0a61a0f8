"""Running the project's playbooks through ansible-runner, with one line of progress instead of a scroll."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
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
    """

    status: int
    changed: dict[str, int]
    failures: list[str]
    output: str

    @property
    def ok(self) -> bool:
        """Whether it ended without any failure."""
        return self.status == 0


class _Progress:
    """Shows the task that is under way, how many nodes are through, and what failed."""

    def __init__(self, status: Status | None, console: Console) -> None:
        self._status = status
        self._console = console
        self._task = ""
        self._done = 0
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
                self._show()
            case "runner_on_failed" if not data.get("ignore_errors"):
                self._fail(data)
            case "runner_on_unreachable":
                self._fail(data)
            case "playbook_on_stats":
                self.changed = dict(data.get("changed", {}))
        return False  # the event need not be kept as a file of its own

    def _show(self) -> None:
        if self._status:
            self._status.update(f"{self._task} [dim]({self._done} nodes done)[/]")
        elif self._done == 0:
            self._console.print(f"    {self._task}", markup=False, soft_wrap=True)

    def _fail(self, data: dict[str, Any]) -> None:
        result = data.get("res", {})
        said = result.get("msg") or result.get("stderr") or "no message"
        self.failures.append(f"{data.get('host')}: {data.get('task')}: {said}")


def run_playbook(
    playbook: Path, inventory: Path, console: Console, *, extra: Iterable[str] = ()
) -> PlaybookResult:
    """Run a playbook with this project's settings.

    :param extra: further arguments for ansible-playbook.
    """
    showing = console.status(playbook.stem) if console.is_terminal else nullcontext()
    with tempfile.TemporaryDirectory(prefix="fleet-run-") as private, showing as status:
        progress = _Progress(status, console)
        runner = ansible_runner.run(
            private_data_dir=private,
            project_dir=str(PROJECT),
            playbook=str(playbook),
            inventory=str(inventory),
            cmdline=" ".join(extra) or None,
            envvars={
                "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
                "ANSIBLE_FORCE_COLOR": "0",
                # The ansible-playbook beside this Python, also where the environment was not activated.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            },
            event_handler=progress,
            quiet=True,
        )
        with runner.stdout as stdout:
            output = stdout.read()
    return PlaybookResult(runner.rc, progress.changed, progress.failures, output)
