"""No scheduler: nodes are given as a list, and nobody else drains them.

What a rollout holds is written into its own folder, so that it outlives the controller. It keeps nobody off a
node and waits for nobody's work: whoever uses this sees to that.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from fleet.rollout.model import Plan, Seen
from fleet.rollout.scheduler import SchedulerError
from module_utils import atomic_file


class NodeList:
    """A list of nodes as a Scheduler.

    :param file: where it keeps who holds which node.
    :param partitions: group of the inventory → its nodes; budgets are by these.
    """

    longest = 200

    def __init__(self, file: Path, partitions: Mapping[str, Collection[str]]) -> None:
        self._file = file
        self._groups: dict[str, set[str]] = {}
        for partition, nodes in partitions.items():
            for node in nodes:
                self._groups.setdefault(node, set()).add(partition)

    def _held(self) -> dict[str, str]:
        try:
            content = atomic_file.read(str(self._file))
            return dict(json.loads(content)) if content else {}
        except (OSError, ValueError) as error:
            raise SchedulerError(f"{self._file}: {error}") from error

    def _save(self, held: Mapping[str, str]) -> None:
        try:
            # As the folder is: for one person, or for a group.
            mode = self._file.parent.stat().st_mode & 0o660
            atomic_file.replace(str(self._file), json.dumps(held, indent=1).encode(), mode=mode)
        except OSError as error:
            raise SchedulerError(f"{self._file}: {error}") from error

    def look(self) -> Mapping[str, Seen]:
        held = self._held()
        return {
            node: Seen(frozenset(groups), node in held, reason=held.get(node, ""))
            for node, groups in self._groups.items()
        }

    def drain(self, nodes: Collection[str], reason: str, plan: Plan) -> None:
        held = self._held()
        free = [node for node in nodes if node not in held or plan.owns(held[node])]
        self._save(held | dict.fromkeys(free, reason))

    def resume(self, nodes: Collection[str], plan: Plan) -> None:
        held = self._held()
        self._save({n: why for n, why in held.items() if n not in nodes or not plan.owns(why)})

    def reboot(self, nodes: Collection[str], plan: Plan) -> None:
        raise SchedulerError(self.no_reboot())

    def no_reboot(self) -> str:
        return "without a scheduler nobody reboots nodes"

    def ends(self) -> Mapping[str, float]:
        return {}
