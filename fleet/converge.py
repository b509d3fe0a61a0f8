"""What commands that run a playbook on many nodes share: who takes part, batches, and the report."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from fleet.errors import FleetError
from fleet.hostlist import choose, fold
from fleet.paths import state_home
from fleet.playbook import Failure, PlaybookResult
from module_utils import atomic_file

#: Exit statuses: every node as it should be; some failed; a run that was stopped; some only not reached.
GOOD, FAILED, STOPPED, UNREACHABLE = 0, 2, 3, 4
#: Nodes of one run of ansible-playbook: what a connection to each costs in memory, and it lives 120 s
#: (ansible.cfg), in which a task gets through them all.
BATCH = 500
_FORKS_A_CORE, _MOST_FORKS = 25, 200
#: More different messages than that are said in a line.
_MESSAGES = 20


def forks() -> int:
    """Workers for this machine: most of a worker's time is waiting for a node."""
    return min(_MOST_FORKS, _FORKS_A_CORE * (os.cpu_count() or 1))


@dataclass
class Tally:
    """How the runs ended so far, taken together."""

    hosts: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    stopped: str = ""
    #: What happened to execution nodes, a line for each.
    events: list[str] = field(default_factory=list)

    def add(self, result: PlaybookResult) -> None:
        """Take the result of one run. A node of several runs has failed if it did in the last of them."""
        self.hosts |= result.hosts
        self.changed |= result.changed.keys()
        for host in result.hosts:
            self.failures.pop(host, None)
        self.failures.update({failure.host: failure for failure in result.lost})

    @property
    def unreachable(self) -> list[str]:
        """The nodes that could not be reached."""
        return sorted(host for host, failure in self.failures.items() if failure.unreachable)

    @property
    def failed(self) -> list[str]:
        """The nodes on which a task failed."""
        return sorted(host for host, failure in self.failures.items() if not failure.unreachable)

    @property
    def status(self) -> int:
        """The exit status of the command."""
        if self.stopped:
            return STOPPED
        if self.failed:
            return FAILED
        return UNREACHABLE if self.unreachable else GOOD


def participants(
    groups: Mapping[str, Sequence[str]], expression: str | None, again: Sequence[str] | None
) -> list[str]:
    """The nodes to work on: of an expression, of the retry file, or all."""
    if again is not None:
        strange = set(again) - set(groups["all"])
        if strange:
            raise FleetError(
                f"--retry: {fold(strange)} not in the inventory any more", "name nodes with --limit"
            )
        return list(again)
    return list(choose(expression, groups["all"], groups, "the inventory", "--limit"))


def batches(hosts: Sequence[str], first: Iterable[str], size: int) -> Iterator[list[str]]:
    """Parts of *hosts*, of *size* at the most, each with those of *first*, which all the others need."""
    leading = [host for host in hosts if host in set(first)]
    others = [host for host in hosts if host not in set(leading)]
    for start in range(0, max(len(others), 1), size):
        yield leading + others[start : start + size]


def parse_share(text: str, total: int) -> int:
    """Number of nodes that ``30`` or ``5%`` means, of *total*. Raises FleetError."""
    number = text.removesuffix("%")
    if not number.isdecimal() or (number != text and int(number) > 100):  # noqa: PLR2004 - per cent
        raise FleetError(
            f"--max-failed {text}: is neither a number nor a percentage", "30 or 10%, for example"
        )
    return int(number) if number == text else total * int(number) // 100


def state_folder(sources: Sequence[Path]) -> Path:
    """Where is kept what belongs to an inventory: the retry file, facts."""
    names = "\0".join(str(source.absolute()) for source in sources)
    digest = hashlib.sha256(names.encode()).hexdigest()[:12]
    return state_home() / "inventories" / f"{sources[0].absolute().name}-{digest}"


def write_retry(folder: Path, hosts: Iterable[str]) -> Path:
    """Keep the nodes that another run has to do with, as Ansible's ``--limit @FILE`` reads them."""
    path = folder / "retry"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_file.replace(str(path), ("\n".join(sorted(hosts)) + "\n").encode())
    return path


def read_retry(folder: Path) -> list[str]:
    """The nodes that the last run has left. Raises FleetError if there are none."""
    path = folder / "retry"
    names = path.read_text().split() if path.exists() else []
    if not names:
        raise FleetError(f"--retry: there is nothing to do again in {path}", "run without --retry")
    return names


def report(tally: Tally, verb: str) -> Iterator[str]:
    """The lines at the end of a run: what went wrong, nodes folded by what they said, and the sum."""
    by_message: dict[tuple[str, str], list[str]] = {}
    for failure in tally.failures.values():
        if not failure.unreachable:
            by_message.setdefault((failure.task, failure.message), []).append(failure.host)
    ordered = sorted(by_message.items(), key=lambda item: -len(item[1]))
    for (task, message), hosts in ordered[:_MESSAGES]:
        yield f"FAILED {fold(hosts)}: {task}: {message}"
    rest = [host for _, hosts in ordered[_MESSAGES:] for host in hosts]
    if rest:
        yield f"FAILED {fold(rest)}: with {len(ordered) - _MESSAGES} more messages"
    if tally.unreachable:
        yield f"UNREACHABLE {fold(tally.unreachable)}"
    if tally.left_out:
        yield f"NOT TRIED {fold(tally.left_out)}"
    yield from tally.events
    if tally.stopped:
        yield f"stopped: {tally.stopped}"
    good = len(tally.hosts - tally.failures.keys())
    total = len(tally.hosts | tally.failures.keys() | tally.left_out)
    counts = [f"{len(tally.changed - tally.failures.keys())} of them changed"]
    counts += [f"{len(tally.failed)} failed"] if tally.failed else []
    counts += [f"{len(tally.unreachable)} unreachable"] if tally.unreachable else []
    counts += [f"{len(tally.left_out)} not tried"] if tally.left_out else []
    yield f"{good} of {total} nodes {verb}, {', '.join(counts)}"


def as_json(tally: Tally) -> str:
    """The same for programs."""
    return json.dumps(
        {
            "ok": sorted(tally.hosts - tally.failures.keys()),
            "changed": sorted(tally.changed),
            "failed": {host: str(tally.failures[host].message) for host in tally.failed},
            "unreachable": tally.unreachable,
            "not_tried": sorted(tally.left_out),
            "stopped": tally.stopped,
            "events": tally.events,
        },
        indent=1,
    )


def limit_option(function: click.decorators.FC) -> click.decorators.FC:
    """The option ``-l``, which gives the parameter ``expression``."""
    return click.option(
        "-l", "--limit", "expression", help="Nodes as a hostlist, like n[1-9],@gpu; all without it."
    )(function)


def batch_options(function: click.decorators.FC) -> click.decorators.FC:
    """The options ``--batch`` and ``--forks``."""
    function = click.option(
        "--forks", type=click.IntRange(1), help="Workers; without it, 25 for each processor, 200 at the most."
    )(function)
    return click.option(
        "--batch", type=click.IntRange(1), default=BATCH, show_default=True, help="Nodes at a time."
    )(function)
