"""``fleet site``: bring the nodes of an inventory to what it says, in batches, with one report at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from fleet import converge
from fleet.errors import FleetError
from fleet.inventory import read_groups
from fleet.nodes import inventory_option
from fleet.paths import PROJECT
from fleet.playbook import check_tags, run_playbook

#: The task of validate.yml: after it, nothing was begun.
VALIDATION = "Refuse a wrong inventory"

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
    as_json: bool,
    verbose: bool,
) -> None:
    """Run playbooks/site.yml on the inventory, or a part of it.

    Nodes that fail or can't be reached do not hold up the others; they are named at the end, folded, and kept
    for --retry.

    Exit status 0: every node is as it should be; 2: some failed; 4: some could not be reached, the others are
    as they should be; 3: stopped, because too many failed or the controller of Slurm did; 1: not begun.
    """
    if retry and expression:
        raise FleetError("--retry and --limit exclude each other", "leave one out")
    folder = converge.state_folder(sources)
    groups = read_groups(sources)
    hosts = converge.participants(groups, expression, converge.read_retry(folder) if retry else None)
    bound = converge.parse_share(max_failed, len(hosts))
    options = [f"--forks={forks or converge.forks()}"]
    if tags:
        check_tags(PROJECT / "playbooks/site.yml", tags.split(","))
        options.append(f"--tags={tags}")
    options += ["--check"] * only_check + ["--diff"] * diff + ["--flush-cache"] * fresh_facts
    controllers = groups.get("slurm_controller", [])
    tally = converge.Tally()
    parts = list(converge.batches(hosts, controllers, batch))
    for number, part in enumerate(parts, 1):
        label = f"batch {number} of {len(parts)}" if len(parts) > 1 else ""
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
            label=label,
        )
        if verbose or (diff and not as_json):
            click.echo(result.output, err=as_json)
        if not result.hosts or (not result.ok and not result.lost):
            raise FleetError(f"ansible-playbook ended with status {result.status}:\n{result.output[-4000:]}")
        for failure in result.lost:
            if failure.task == VALIDATION:
                raise FleetError(failure.message)
        tally.add(result)
        waiting = {host for later in parts[number:] for host in later} - tally.hosts
        if waiting and any(host in tally.failures for host in controllers):
            tally.stopped = "the controller of Slurm failed, without which others can't be configured"
        elif waiting and len(tally.failures) > bound:
            tally.stopped = (
                f"{len(tally.failures)} nodes failed or could not be reached, more than --max-failed"
            )
        if tally.stopped:
            tally.left_out = waiting
            break
    click.echo(converge.as_json(tally) if as_json else "\n".join(converge.report(tally, "converged")))
    again = converge.write_retry(folder, [*tally.failures, *tally.left_out])
    if tally.status and not as_json:
        click.echo(f"again, for these nodes: fleet site --retry (or ansible-playbook --limit @{again})")
    sys.exit(tally.status)
