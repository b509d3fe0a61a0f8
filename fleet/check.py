"""``fleet check``: whether each node is exactly as its last converge left it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from fleet import converge
from fleet.errors import FleetError
from fleet.hostlist import fold
from fleet.inventory import read_groups
from fleet.nodes import inventory_option
from fleet.paths import PROJECT
from fleet.playbook import Failure, run_playbook
from fleet.validate.vocabulary import GROUPS

console = Console(highlight=False, soft_wrap=True, stderr=True)


@click.command()
@inventory_option
@converge.limit_option
@click.option(
    "--batch", type=click.IntRange(1), default=converge.BATCH, show_default=True, help="Nodes at a time."
)
@click.option(
    "--forks", type=click.IntRange(1), default=None, help="Workers; without it, 25 for each processor."
)
@click.option("--json", "as_json", is_flag=True, help="Differences by node, as JSON.")
def check(
    sources: tuple[Path, ...], expression: str | None, batch: int, forks: int | None, as_json: bool
) -> None:
    """Compare nodes with what their last converge recorded; change nothing.

    Files, versions of packages, kernel parameters, units, mounts and setuid programs, in one task a node.
    What differs is printed with the nodes that it differs on. `fleet site` mends it, and writes new records.

    Exit status 0: nothing differs; 2: something does, or a node has no record; 4: some nodes could not be
    reached, nothing differs on the others; 1: nothing was begun.
    """
    groups = read_groups(sources)
    chosen = converge.participants(groups, expression, None)
    recorded = {host for name in recorded_groups() for host in groups.get(name, [])}
    hosts = [host for host in chosen if host in recorded]
    if not hosts:
        raise FleetError("none of these nodes is configured by site.yml", "see fleet nodes --groups")
    tally = converge.Tally()
    for number, part in enumerate(parts := list(converge.batches(hosts, (), batch)), 1):
        result = run_playbook(
            PROJECT / "playbooks/check.yml",
            sources,
            console,
            extra=[f"--forks={forks or converge.forks()}"],
            limit=part,
            label=f"batch {number} of {len(parts)}" if len(parts) > 1 else "",
        )
        if not result.hosts or (not result.ok and not result.lost):
            raise FleetError(f"ansible-playbook ended with status {result.status}:\n{result.output[-4000:]}")
        tally.add(result)
    click.echo(_as_json(tally) if as_json else "\n".join(_lines(tally)))
    sys.exit(tally.status)


def recorded_groups() -> list[str]:
    """Return the groups whose hosts are on record, those of playbooks/record.yml."""
    return [name for name, roles in GROUPS.items() if "node_record" in roles]


def _differences(failure: Failure) -> list[dict[str, str]]:
    found = failure.result.get("differences")
    return found if isinstance(found, list) else []


def _lines(tally: converge.Tally) -> Iterator[str]:
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for host in tally.failed:
        failure = tally.failures[host]
        if not _differences(failure):
            alike.setdefault(("", failure.message, "", ""), []).append(host)
        for one in _differences(failure):
            alike.setdefault((one["topic"], one["name"], one["was"], one["now"]), []).append(host)
    for (topic, name, was, now), hosts in sorted(alike.items(), key=lambda item: (-len(item[1]), item[0])):
        yield f"{fold(hosts)}: {_describe(topic, name, was, now)}"
    if tally.unreachable:
        yield f"UNREACHABLE {fold(tally.unreachable)}"
    good = len(tally.hosts - tally.failures.keys())
    yield f"{good} of {len(tally.hosts | tally.failures.keys())} nodes are as their last converge left them"


def _describe(topic: str, name: str, was: str, now: str) -> str:
    if not topic:
        return name
    if topic == "record":
        return f"{name} is {now}: fleet site writes it"
    shown = {"files": "file", "packages": "package", "sysctls": "kernel parameter", "units": "unit"}
    words = f"{shown.get(topic, topic)} {name}"
    before, after = was.split(), now.split()
    if before[0] == after[0] == "sha256":
        # Digests say nothing to people, but that they differ.
        changes = ["content differs"] if before[1] != after[1] else []
        changes += [f"{' '.join(before[2:])} → {' '.join(after[2:])}"] if before[2:] != after[2:] else []
        return f"{words}: {', '.join(changes)}"
    was, now = ("a file" if text.startswith("sha256") else text for text in (was, now))
    return f"{words}: {was} → {now}"


def _as_json(tally: converge.Tally) -> str:
    return json.dumps(
        {
            "ok": sorted(tally.hosts - tally.failures.keys()),
            "differences": {host: _differences(tally.failures[host]) for host in tally.failed},
            "unreachable": tally.unreachable,
        },
        indent=1,
    )
