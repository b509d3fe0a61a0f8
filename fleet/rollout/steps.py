"""Steps on nodes: the project's playbooks, through ansible-runner."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from rich.console import Console

from fleet.paths import PROJECT
from fleet.playbook import PlaybookResult, run_playbook
from fleet.rollout.driver import Result
from fleet.rollout.journal import is_locked
from fleet.rollout.model import Plan, Step

VERIFY = "rollout_verify.yml"
PLAY_LOCK = "play.lock"
_PROGRAMS = Path(__file__).parent / "programs"
_VALIDATION = "Validate the inventory"
# Exit statuses of ansible-playbook that are about nodes: failed, unreachable, both.
_LONGEST = 300  # characters that one node may say
_ABOUT_NODES = frozenset((0, 2, 4, 6))


class Playbooks:
    """Playbooks as Steps.

    :param home: folder of the cluster's journal.
    :param tell: called with a sentence when it has to wait.
    """

    def __init__(self, home: Path, tell: Callable[[str], None] = lambda _: None) -> None:
        self._lock = home / PLAY_LOCK
        self._tell = tell

    def run(self, plan: Plan, step: Step, nodes: Collection[str], folder: Path) -> Result:
        self.wait_for_orphans()
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        result = run_playbook(
            PROJECT / "playbooks" / step.playbook,
            [Path(path) for path in plan.inventories],
            # What is to be said is said by whoever watches the journal.
            Console(file=Path(os.devnull).open("w"), force_terminal=False),  # noqa: SIM115 - as long as it
            extra=[f"--tags={','.join(step.tags)}"] if step.tags else [],
            limit=nodes,
            variables={"apptainer_version": plan.version} if plan.version else {},
            folder=folder,
            programs=_PROGRAMS,
            environment={
                "FLEET_PLAY_LOCK": str(self._lock),
                "FLEET_PLAY_PROGRAM": str(Path(sys.executable).parent / "ansible-playbook"),
            },
            wanted="Proved" if step.playbook == VERIFY else "",
        )
        return judge(result, nodes, proof=step.playbook == VERIFY)

    def wait_for_orphans(self) -> None:
        """Wait until the run of a controller that died has ended: it may still be at work on nodes."""
        told = False
        while is_locked(self._lock.parent, self._lock.name):
            if not told:
                self._tell(
                    "a run of the controller before this one is still at work on nodes; waiting for its end"
                )
                told = True
            time.sleep(1)


def judge(result: PlaybookResult, nodes: Collection[str], *, proof: bool) -> Result:
    """What a run says of its nodes.

    :param proof: whether a node is good only if it came to the last task.
    """
    said = "; ".join(result.failures) or " ".join(result.output.split())[-500:]
    if result.status not in _ABOUT_NODES or _VALIDATION in result.plays:
        return Result(broken=said or f"ansible-playbook ended with {result.status}")
    failed = {name: _short(text) for name, text in result.failed.items() if name in nodes}
    unreachable = {name: _short(text) for name, text in result.unreachable.items() if name in nodes}
    if proof:
        silent = [n for n in nodes if n not in result.results and n not in failed and n not in unreachable]
        failed |= dict.fromkeys(silent, _short(said) if result.status else "nothing proves it")
    elif result.status and not failed and not unreachable:
        return Result(broken=said)
    return Result(failed, unreachable)


def _short(text: str) -> str:
    words = " ".join(text.split())
    # A program says what is wrong at the end, and its command line stands before that.
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST // 3]} … {words[-_LONGEST * 2 // 3 :]}"
