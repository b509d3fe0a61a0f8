"""The same command on many nodes over SSH, through ClusterShell: one process a node, without Ansible."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ClusterShell.Event import EventHandler
from ClusterShell.NodeSet import NodeSet
from ClusterShell.Task import task_self

#: What SSH itself ends with when it can't get through.
SSH_FAILED = 255


@dataclass(frozen=True)
class Answer:
    """What a node answered: exit status, None if it took too long, and output with standard error."""

    status: int | None
    text: str

    @property
    def reached(self) -> bool:
        """Whether the command ran to its end."""
        return self.status not in (None, SSH_FAILED)


class _Count(EventHandler):  # type: ignore[misc]
    def __init__(self, report: Callable[[int], None]) -> None:
        self._report, self._done = report, 0

    def ev_hup(self, _worker: Any, _node: str, _status: int) -> None:
        self._done += 1
        self._report(self._done)


def run_on_nodes(
    nodes: Iterable[str],
    command: str,
    *,
    options: Sequence[str] = (),
    user: str = "",
    at_once: int = 64,
    seconds: float = 0,
    report: Callable[[int], None] | None = None,
) -> dict[str, Answer]:
    """Run a shell command line on nodes, on *at_once* of them at the same time.

    :param options: of ssh, for all of them.
    :param seconds: what a node may take; 0 for as long as it likes.
    :param report: is told how many are done, as they are.
    """
    names = list(nodes)
    task = task_self()
    task.set_info("ssh_options", " ".join(map(shlex.quote, options)))
    task.set_info("ssh_user", user or None)
    task.set_info("fanout", at_once)
    handler = _Count(report) if report else None
    task.run(command, nodes=NodeSet.fromlist(names), stderr=False, timeout=seconds or None, handler=handler)
    texts: dict[str, str] = {}
    for buffer, who in task.iter_buffers():
        texts.update(dict.fromkeys(who, bytes(buffer).decode(errors="replace")))
    statuses: dict[str, int] = {}
    for status, who in task.iter_retcodes():
        statuses.update(dict.fromkeys(who, status))
    late = set(task.iter_keys_timeout())
    return {name: Answer(None if name in late else statuses.get(name), texts.get(name, "")) for name in names}


@dataclass(frozen=True)
class Reach:
    """How one node of an inventory is reached: the variables that Ansible's SSH connection has, resolved."""

    address: str = ""
    user: str = ""
    port: str = ""
    key: str = ""
    arguments: str = ""
    become: bool = False


def ssh_config(reaches: Mapping[str, Reach]) -> str:
    """A configuration of ssh for nodes by their inventory names, as Ansible would reach each of them.

    A file that their arguments name with ``-F`` is included: ssh reads one such file, and this is it.
    """
    lines = []
    for names, reach in _alike(reaches):
        if reach.user or reach.port or reach.key:
            lines += [f"Host {' '.join(names)}"]
            lines += [f"  User {reach.user}"] if reach.user else []
            lines += [f"  Port {reach.port}"] if reach.port else []
            lines += [f'  IdentityFile "{reach.key}"'] if reach.key else []
    for name, reach in reaches.items():
        if reach.address and reach.address != name:
            lines += [f"Host {name}", f"  HostName {reach.address}"]
    included: dict[str, None] = {}
    for reach in reaches.values():
        words = shlex.split(reach.arguments)
        included.update({words[at + 1]: None for at, word in enumerate(words[:-1]) if word == "-F"})
    return "\n".join(
        [*lines, "Match all", *(f'  Include "{Path(path).absolute()}"' for path in included), ""]
    )


def options(arguments: str) -> list[str]:
    """Further options of ssh that a node's arguments have, without ``-F FILE``, which ssh_config includes."""
    words, kept = shlex.split(arguments), []
    while words:
        word = words.pop(0)
        if word == "-F":
            words[:1] = []
        else:
            kept.append(word)
    return kept


def _alike(reaches: Mapping[str, Reach]) -> Iterator[tuple[list[str], Reach]]:
    found: dict[Reach, list[str]] = {}
    for name, reach in reaches.items():
        same = Reach(user=reach.user, port=reach.port, key=reach.key)
        found.setdefault(same, []).append(name)
    yield from ((names, reach) for reach, names in found.items())
