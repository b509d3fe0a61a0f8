"""``fleet nodes``: which nodes an expression means, folded, expanded or counted."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fleet.hostlist import choose, fold
from fleet.inventory import read_groups
from fleet.paths import PROJECT


def inventory_option(function: click.decorators.FC) -> click.decorators.FC:
    """The option ``-i``, which gives the parameter ``sources``."""
    return click.option(
        "-i",
        "--inventory",
        "sources",
        multiple=True,
        type=click.Path(path_type=Path),
        default=[PROJECT / "inventories/lab"],
        show_default="inventories/lab",
        help="Inventory file or folder; may be given repeatedly.",
    )(function)


@click.command()
@inventory_option
@click.option("--fold", "form", flag_value="fold", default=True, help="As a hostlist, the default.")
@click.option("--expand", "form", flag_value="expand", help="One name a line.")
@click.option("--count", "form", flag_value="count", help="How many.")
@click.option("--json", "form", flag_value="json", help="As a JSON list.")
@click.option("--groups", is_flag=True, help="The groups these nodes are in, instead of the nodes.")
@click.argument("expression", default="@all")
def nodes(sources: tuple[Path, ...], form: str, groups: bool, expression: str) -> None:
    """Print the nodes of EXPRESSION, all without one; exit 1 if there are none.

    EXPRESSION is a hostlist with groups of the inventory: n[1-99],@gpu for both, @gpu&@rack1 for nodes in
    both groups, @gpu!n7 for all but one. An inventory from Slurm has groups by partition, feature, GRES
    and state: @gres_gpu&@state_idle.
    """
    known = read_groups(sources)
    chosen = list(choose(expression, known["all"], known, "the inventory", "EXPRESSION"))
    if groups:
        _print_groups(known, chosen, form)
    elif form == "count":
        click.echo(len(chosen))
    elif form == "expand":
        click.echo("\n".join(chosen))
    else:
        click.echo(json.dumps(chosen) if form == "json" else fold(chosen))


def _print_groups(known: dict[str, list[str]], chosen: list[str], form: str) -> None:
    wanted = set(chosen)
    inside = {name: [host for host in hosts if host in wanted] for name, hosts in sorted(known.items())}
    inside = {name: hosts for name, hosts in inside.items() if hosts}
    if form == "json":
        click.echo(json.dumps(inside))
        return
    width = max(map(len, inside))
    for name, hosts in inside.items():
        which = "\n".join(hosts) if form == "expand" else fold(hosts)
        click.echo(f"{name:{width}} {len(hosts):5}" + ("" if form == "count" else f"  {which}"))
