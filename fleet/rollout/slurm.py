"""Slurm, asked through ``module_utils.slurm_nodes``: one call for any number of nodes."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from fleet.errors import FleetError
from fleet.rollout.commands import Paced, Run
from fleet.rollout.model import Plan, Seen
from fleet.rollout.scheduler import SchedulerError
from module_utils import slurm_names, slurm_nodes

_LEFT = re.compile(r"(?:([0-9]+)-)?(?:([0-9]+):)?([0-9]+):([0-9]+)")
_ALL = (["scontrol", "show", "node", "--json"], ["sinfo", "--json"])
#: Seconds for which nodes are taken to be as they were shown.
FRESH = 0.5
_SQUEUE = ["squeue", "--noheader", "--states=RUNNING,SUSPENDED", "--format=%N|%L"]


class _Recent:
    """Commands of Slurm that don't ask what nodes are if all were shown just now, and nothing was changed.

    A change is made right behind a look: between them time passes only where calls are kept apart, and it is
    this wait that would make a second look necessary.
    """

    def __init__(self, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._shown: tuple[float, tuple[int, str, str]] | None = None

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        asks = argv[-1] == "--json"
        if asks and self._shown and self._clock() < self._shown[0] + FRESH:
            return self._shown[1]
        self._shown = None
        answer = self._run(argv)
        if argv in _ALL and answer[0] == 0:
            self._shown = self._clock(), answer
        return answer


class Slurm:
    """Slurm as a Scheduler.

    :param run: runs its commands as a user that may update nodes.
    :param hosts: all hosts of the inventory; each is a node by the name that ``hostname -s`` prints there.
    """

    longest = slurm_nodes.REASON_LENGTH

    def __init__(self, run: Run, hosts: Collection[str], user: str = "root") -> None:
        self._run = _Recent(Paced(run))
        self._nodes = slurm_nodes.SlurmNodes(self._run, user)
        self._name: dict[str, str] = {}
        for host in hosts:
            try:
                self._name[host] = slurm_names.node_name(host)
            except ValueError as error:
                raise FleetError(str(error)) from error
        self._host = {name: host for host, name in self._name.items()}
        self._last: Mapping[str, slurm_nodes.Node] = {}

    def look(self) -> Mapping[str, Seen]:
        with _errors():
            self._last = self._nodes.read_all()
        return {self._host.get(name, name): _seen(node) for name, node in self._last.items()}

    def drain(self, nodes: Collection[str], reason: str, plan: Plan) -> None:
        with _errors():
            known = self._known(nodes)
            ours = _by_reason(known, plan)
            for (present, user), names in ours.items():
                if present != reason:
                    self._as(user).change_reason(names, present, reason)
            fresh = [name for name in known if not any(name in names for names in ours.values())]
            self._nodes.drain(fresh, reason, also_down=plan.kind == "provision")

    def resume(self, nodes: Collection[str], plan: Plan) -> None:
        with _errors():
            for (reason, user), names in _by_reason(self._known(nodes), plan).items():
                self._as(user).resume(names, reason)

    def reboot(self, nodes: Collection[str], plan: Plan) -> None:
        with _errors():
            for (reason, user), names in _by_reason(self._known(nodes), plan).items():
                self._as(user).reboot(names, reason)

    def no_reboot(self) -> str:
        code, out, err = self._run(["scontrol", "show", "config"])
        if code:
            raise SchedulerError(f"scontrol show config: {err.strip() or code}")
        found = re.search(r"^RebootProgram\s*=\s*(.*)$", out, re.MULTILINE)
        return "" if found and found[1] not in ("", "(null)") else "slurm.conf has no RebootProgram"

    def _as(self, user: str) -> slurm_nodes.SlurmNodes:
        """Nodes that *user* has drained: the plan's Reason says whose they are, whoever carried it out."""
        return slurm_nodes.SlurmNodes(self._run, user)

    def ends(self) -> Mapping[str, float]:
        code, out, err = self._run(_SQUEUE)
        if code:
            raise SchedulerError(f"squeue: {err.strip() or code}")
        return {self._host.get(name, name): seconds for name, seconds in parse_ends(out).items()}

    def _known(self, nodes: Collection[str]) -> dict[str, slurm_nodes.Node]:
        """Those that Slurm had at the last look: one that vanished must not spoil a call for the others.

        One that vanished since then does, which Slurm says; the next look is without it.
        """
        if not self._last:
            self.look()
        names = {self._name.get(host, host) for host in nodes}
        return {name: node for name, node in self._last.items() if name in names}


def _by_reason(known: Mapping[str, slurm_nodes.Node], plan: Plan) -> Mapping[tuple[str, str], list[str]]:
    """Those that the plan holds, by the Reason they have and who has set it: as a rule there is one."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, node in known.items():
        if node.drain and plan.owns(node.reason):
            reasons[slurm_nodes.without_slurms_own(node.reason), node.user].append(name)
    return reasons


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except slurm_nodes.SlurmError as error:
        raise SchedulerError(str(error)) from error


def _seen(node: slurm_nodes.Node) -> Seen:
    held = node.drain or "FAIL" in node.flags or node.down_by_hand
    return Seen(
        partitions=frozenset(node.partitions),
        held=held,
        busy=node.busy,
        up=node.up,
        reason=node.reason if held else "",
        by=node.user if held else "",
        booted=node.boot_time,
    )


def parse_ends(text: str) -> dict[str, float]:
    """Seconds until the last job of each node has to end, from lines ``c[1-2]|1-02:00:00`` of squeue."""
    ends: dict[str, float] = {}
    for line in text.splitlines():
        nodes, _, left = line.strip().partition("|")
        match = _LEFT.fullmatch(left)
        # UNLIMITED, NOT_SET and INVALID: nobody knows.
        seconds = float("inf")
        if match:
            days, hours, minutes, rest = (int(part or 0) for part in match.groups())
            seconds = ((days * 24 + hours) * 60 + minutes) * 60.0 + rest
        try:
            names = NodeSet(nodes, resolver=RESOLVER_NOGROUP)
        except NodeSetException:
            continue
        for name in names:
            ends[name] = max(seconds, ends.get(name, 0.0))
    return ends
