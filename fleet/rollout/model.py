"""What a rollout is made of: the plan, the steps of a node, and what a scheduler shows of one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet import hostlist
from module_utils import slurm_nodes

#: How a rollout ends, and the exit status of the command that says so.
OUTCOMES: Mapping[str, int] = {"complete": 0, "incomplete": 3, "stopped": 3, "aborted": 3, "paused": 4}
# Characters that a Reason keeps for its text beside the path of a log.
_TEXT = 40


def fold(nodes: Iterable[str]) -> str:
    """Node names as people write many of them: ``c1``, ``c2`` → ``c[1-2]``; ``-`` for none."""
    return hostlist.fold(nodes) or "-"


def brief(nodes: Collection[str], length: int = 48) -> str:
    """Node names as :func:`fold` has them; where that is longer than *length*, how many they are."""
    text = fold(nodes)
    return text if len(text) <= length else f"{len(nodes)} nodes"


def is_of(reason: str, tags: Iterable[str]) -> bool:
    """Whether a rollout with one of these tags has written this Reason, and nobody has changed it since."""
    found = slurm_nodes.without_slurms_own(reason)
    return any(slurm_nodes.is_sealed(tag, found) for tag in tags)


@dataclass(frozen=True, slots=True)
class Seen:
    """One node as a scheduler shows it.

    :param partitions: the partitions (queues) it is in.
    :param held: it takes no new jobs because somebody said so: drained, offline, set down by hand.
    :param busy: jobs run on it, or are being cleaned up.
    :param up: it answers and could run jobs if it were not held.
    :param reason: why it is held, and *by* whom, as far as that is known.
    :param booted: seconds since the epoch, 0 if unknown.
    """

    partitions: frozenset[str] = frozenset()
    held: bool = False
    busy: bool = False
    up: bool = True
    reason: str = ""
    by: str = ""
    booted: float = 0

    @property
    def available(self) -> bool:
        """Whether it counts as there for users' jobs."""
        return self.up and not self.held


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done to a drained node.

    :param name: for people and the journal.
    :param playbook: file in the project's playbooks; empty for a reboot by the scheduler.
    :param tags: of the playbook; none for all.
    """

    name: str
    playbook: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """How careful a rollout is.

    :param unavailable: partition → ``"10%"`` or ``"3"``; ``*`` for those that are not named.
    :param failures: so many nodes may fail (canaries: none); one more, and nothing new is begun.
    :param drain_timeout: seconds to wait for jobs of a node before it is given back; 0 is for ever.
    :param node_timeout: seconds to wait for a node that rebooted or does not answer.
    :param gather: seconds to wait for more drained nodes before a step is run on those that are.
    :param poll: seconds between two looks at the scheduler.
    :param soak: seconds to wait after the canaries.
    :param windows: when it may work; none is always.
    """

    unavailable: Mapping[str, str] = field(default_factory=lambda: {"*": "10%"})
    failures: int = 1
    drain_timeout: float = 0
    node_timeout: float = 900
    gather: float = 20
    poll: float = 5
    soak: float = 0
    windows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done to which nodes, and how; nothing in it changes once a rollout has begun.

    :param kind: ``upgrade``, ``change`` or ``provision``.
    :param version: of Apptainer; empty where it is not about one.
    :param canary: nodes of the first batch.
    :param batches: the others, as planned; which nodes a batch really takes depends on when jobs end.
    :param classes: name of each class of nodes → its nodes; each has to be proved by one node first.
    :param left: node → why it is not part of it.
    :param before: version that nodes have now → hostlist.
    :param adopts: tags of earlier rollouts whose drains this one takes for its own.
    :param inventories: as for ``ansible-playbook -i``.
    """

    id: str
    cluster: str
    kind: str
    steps: tuple[Step, ...]
    canary: tuple[str, ...]
    batches: tuple[tuple[str, ...], ...]
    version: str = ""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, str] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    adopts: tuple[str, ...] = ()
    inventories: tuple[str, ...] = ()
    scheduler: Mapping[str, str] = field(default_factory=lambda: {"kind": "list"})
    created: float = 0
    by: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes it is about, in the order of the plan."""
        return (*self.canary, *(node for batch in self.batches for node in batch))

    @property
    def tag(self) -> str:
        """What each Reason of this rollout begins with."""
        return f"fleet {self.id}"

    @property
    def title(self) -> str:
        """What it does, in a few words."""
        if self.version:
            return f"apptainer {self.version}"
        return self.kind if self.kind == "provision" else f"change {','.join(self.steps[0].tags) or 'all'}"

    def reason(self, text: str, length: int, tail: str = "") -> str:
        """What nodes are held for, in *length* characters; *tail* is kept whole if the text keeps room, too.

        It names the rollout, and :meth:`owns` knows it again only as it is: what somebody changes or adds
        makes the drain theirs.
        """
        room = length - len(slurm_nodes.sealed(self.tag, "?")) + 1
        kept = tail if room - len(tail) >= _TEXT else ""
        return slurm_nodes.sealed(self.tag, text[: room - len(kept)] + kept, length)

    def owns(self, reason: str) -> bool:
        """Whether a node with this Reason was drained by this rollout, or by one that it continues."""
        return is_of(reason, (self.tag, *self.adopts))

    def dumps(self) -> str:
        """The plan as JSON, the same text for the same plan."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)

    @classmethod
    def loads(cls, text: str) -> Plan:
        """Read what :meth:`dumps` wrote. Raises ValueError, TypeError, KeyError."""
        data: dict[str, Any] = json.loads(text)
        data["settings"] = Settings(
            **(data["settings"] | {"windows": tuple(data["settings"].get("windows", ()))})
        )
        data["steps"] = tuple(Step(**(step | {"tags": tuple(step["tags"])})) for step in data["steps"])
        data["batches"] = tuple(map(tuple, data["batches"]))
        data["classes"] = {name: tuple(nodes) for name, nodes in data["classes"].items()}
        for name in ("canary", "adopts", "inventories"):
            data[name] = tuple(data[name])
        return cls(**data)
