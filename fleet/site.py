"""``fleet site``: bring the nodes of an inventory to what it says, in batches, with one report at the end."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from fleet import converge
from fleet.errors import FleetError
from fleet.hostlist import choose, expand
from fleet.inventory import read_groups
from fleet.mesh import SOCKET, Mesh
from fleet.nodes import inventory_option
from fleet.paths import PROJECT
from fleet.playbook import Failure, PlaybookResult, check_tags, run_playbook
from fleet.shards import Board, Crew, Job, check_key

#: The task of validate.yml: after it, nothing was begun.
VALIDATION = "Refuse a wrong inventory"
#: Groups that all others of a cluster need.
MASTERS = ("slurm_controller", "slurm_accounting")

console = Console(highlight=False, soft_wrap=True, stderr=True)


@click.command()
@inventory_option
@converge.limit_option
@click.option("--retry", is_flag=True, help="The nodes that the last run with this inventory has left.")
@click.option("--tags", help="Only these roles, like apptainer,slurm.")
@click.option("--check", "only_check", is_flag=True, help="Change nothing, say what would change.")
@click.option("--diff", is_flag=True, help="Show changes of files.")
@click.option(
    "--batch", type=click.IntRange(1), default=converge.BATCH, show_default=True, help="Nodes at a time."
)
@click.option(
    "--forks", type=click.IntRange(1), default=None, help="Workers; without it, 25 for each processor."
)
@click.option(
    "--max-failed",
    default="10%",
    show_default=True,
    help="Begin no other batch when more nodes than that failed or could not be reached: a number, or 5%.",
)
@click.option("--fresh-facts", is_flag=True, help="Ask nodes what they are, which is remembered for a day.")
@click.option("--on", "execution", help="Execution nodes of a Receptor mesh that do the work, like e[1-4].")
@click.option(
    "--shards",
    type=click.IntRange(1),
    help="Parts of the inventory for --on, one at a time on each; without it, one for each of them, and more "
    "if parts were larger than --batch.",
)
@click.option(
    "--mesh",
    type=click.Path(path_type=Path),
    default=SOCKET,
    show_default=True,
    help="Receptor's control socket on this machine.",
)
@click.option(
    "--ssh-key",
    type=click.Path(path_type=Path),
    help="Private key that execution nodes log in with, for this run; without it, they have one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--verbose", is_flag=True, help="Print what ansible-playbook says, too.")
def site(
    *,
    sources: tuple[Path, ...],
    expression: str | None,
    retry: bool,
    tags: str | None,
    only_check: bool,
    diff: bool,
    batch: int,
    forks: int | None,
    max_failed: str,
    fresh_facts: bool,
    execution: str | None,
    shards: int | None,
    mesh: Path,
    ssh_key: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run playbooks/site.yml on the inventory, or a part of it.

    Nodes that fail or can't be reached do not hold up the others; they are named at the end, folded, and kept
    for --retry.

    With --on, execution nodes do the work, each on a part of the inventory. If one is lost, another does its
    part again.

    Exit status 0: every node is as it should be; 2: some failed; 4: some could not be reached, the others are
    as they should be; 3: stopped, because too many failed, the controller of Slurm did, or no execution node
    is left; 1: not begun.
    """
    if retry and expression:
        raise FleetError("--retry and --limit exclude each other", "leave one out")
    if execution is None and (shards or ssh_key):
        raise FleetError("--shards and --ssh-key are for execution nodes", "name some with --on")
    folder = converge.state_folder(sources)
    groups = read_groups(sources)
    hosts = converge.participants(groups, expression, converge.read_retry(folder) if retry else None)
    options = []
    if tags:
        check_tags(PROJECT / "playbooks/site.yml", tags.split(","))
        options.append(f"--tags={tags}")
    options += ["--check"] * only_check + ["--diff"] * diff
    tally = converge.Tally()
    watched = _Watched(tally, groups, converge.parse_share(max_failed, len(hosts)), set(hosts))
    if execution is None:
        options += [f"--forks={forks or converge.forks()}"] + ["--flush-cache"] * fresh_facts
        parts = list(converge.batches(hosts, groups.get("slurm_controller", []), batch))
        results = _in_batches(watched, sources, parts, options, folder)
    else:
        options += [f"--forks={forks}"] if forks else []
        nodes = list(dict.fromkeys(_execution_nodes(execution, groups)))
        size = math.ceil(len(hosts) / shards) if shards else min(batch, math.ceil(len(hosts) / len(nodes)))
        check_key(ssh_key)
        job = Job("playbooks/site.yml", sources, [*options, "--skip-tags=validate"], ssh_key)
        results = _in_shards(watched, _shards(hosts, groups, size), nodes, Mesh(mesh), job)
    for result in results:
        if verbose or (diff and not as_json):
            click.echo(result.output, err=as_json)
    if tally.stopped:
        tally.left_out = watched.waiting - tally.failures.keys()
    click.echo(converge.as_json(tally) if as_json else "\n".join(converge.report(tally, "converged")))
    again = converge.write_retry(folder, [*tally.failures, *tally.left_out])
    if tally.status and not as_json:
        click.echo(f"again, for these nodes: fleet site --retry (or ansible-playbook --limit @{again})")
    sys.exit(tally.status)


@dataclass
class _Watched:
    """How a run goes, and what ends it before its time; *waiting* are the nodes that it has not tried yet."""

    tally: converge.Tally
    groups: Mapping[str, Sequence[str]]
    bound: int
    waiting: set[str]

    def add(self, part: Sequence[str], result: PlaybookResult) -> None:
        """Take the result of one part. Raises FleetError if it is none."""
        if not result.hosts or (not result.ok and not result.lost):
            raise FleetError(f"ansible-playbook ended with status {result.status}:\n{result.output[-4000:]}")
        for failure in result.lost:
            if failure.task == VALIDATION:
                raise FleetError(failure.message)
        tally = self.tally
        tally.add(result)
        self.waiting.difference_update(part)
        if self.waiting and any(host in tally.failures for host in self.groups.get("slurm_controller", [])):
            tally.stopped = "the controller of Slurm failed, without which others can't be configured"
        elif self.waiting and len(tally.failures) > self.bound:
            tally.stopped = (
                f"{len(tally.failures)} nodes failed or could not be reached, more than --max-failed"
            )


def _in_batches(
    watched: _Watched,
    sources: Sequence[Path],
    parts: Sequence[Sequence[str]],
    options: Sequence[str],
    folder: Path,
) -> Iterator[PlaybookResult]:
    for number, part in enumerate(parts, 1):
        # The inventory is the same as a moment before.
        seen = ["--skip-tags=validate"] if number > 1 else []
        result = run_playbook(
            PROJECT / "playbooks/site.yml",
            sources,
            console,
            extra=[*options, *seen],
            limit=part,
            # Kept for this inventory: other clusters have other nodes of the same names.
            facts=folder / "facts",
            label=f"batch {number} of {len(parts)}" if len(parts) > 1 else "",
        )
        watched.add(part, result)
        yield result
        if watched.tally.stopped:
            return


def _execution_nodes(expression: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Nodes of a mesh need not be in the inventory, but may be."""
    if "@" in expression:
        yield from choose(expression, groups["all"], groups, "the inventory", "--on")
        return
    try:
        yield from expand(expression)
    except ValueError as error:
        raise FleetError(f"--on: {error}", "like e[1-4]") from error


def _shards(hosts: Sequence[str], groups: Mapping[str, Sequence[str]], size: int) -> list[list[list[str]]]:
    """Parts that may be under way at the same time; first what all others need, alone."""
    first = {host for name in MASTERS for host in groups.get(name, [])}
    leading = [host for host in hosts if host in first]
    others = [host for host in hosts if host not in first]
    return [[leading] if leading else [], [others[at : at + size] for at in range(0, len(others), size)]]


def _in_shards(
    watched: _Watched, shards: Sequence[Sequence[Sequence[str]]], nodes: list[str], mesh: Mesh, job: Job
) -> Iterator[PlaybookResult]:
    mesh.check(nodes)
    judged = run_playbook(PROJECT / "playbooks/validate.yml", list(job.sources), console)
    if not judged.ok:
        raise FleetError(judged.lost[0].message if judged.lost else judged.output[-4000:])
    tally = watched.tally

    def happened(what: str) -> None:
        tally.events.append(what)
        console.print(what, markup=False)

    with console.status("shards") if console.is_terminal else nullcontext() as status:
        crew = Crew(mesh, nodes, job, console, Board(status), happened)
        for parts in shards:
            for part, result in crew.run(parts, lambda: not tally.stopped):
                watched.add(part, result)
                yield result
    for host, what in crew.broken_off.items():
        tally.failures[host] = Failure(host, "", f"how far it got is not known: {what}")
    if not crew.nodes and watched.waiting:
        tally.stopped = "no execution node is left"
