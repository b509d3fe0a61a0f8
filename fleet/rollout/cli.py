"""``fleet rollout`` and ``fleet provision``."""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from fleet.errors import FleetError
from fleet.hostlist import choose
from fleet.paths import PROJECT
from fleet.rollout import budget, controller, view
from fleet.rollout.journal import Journal, folder
from fleet.rollout.model import OUTCOMES, Plan, Settings, fold
from fleet.rollout.planner import SPACE, Planner, Wish, compute_nodes, examine, later
from fleet.rollout.site import SCHEDULERS, Site
from fleet.rollout.state import Stage, State
from fleet.rollout.window import Window
from module_utils import apptainer_version

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Seconds(click.ParamType):  # type: ignore[type-arg]
    """``90``, ``90s``, ``15m``, ``2h``, ``1d``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        unit = _UNITS.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            self.fail(f"{text!r} is no time like 90s, 15m, 2h or 1d", param, ctx)
        if not 0 <= seconds < float("inf"):
            self.fail(f"{text!r} is no time that can be waited for", param, ctx)
        return seconds


class _Checked(click.ParamType):  # type: ignore[type-arg]
    """A text that something else can read."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name, self._check = name, check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            self._check(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def _check_limit(text: str) -> None:
    budget.check(text.rpartition("=")[2])


class _Group(click.Group):
    """Ends with a status of its own where another controller is at work."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except controller.BusyError as error:
            click.secho(f"fleet: {error}", fg="red", err=True)
            sys.exit(controller.BUSY)


_inventory = click.option(
    "-i",
    "--inventory",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    default=[PROJECT / "inventories/lab"],
    show_default="inventories/lab",
    help="Inventory file or folder; may be given repeatedly.",
)
_state = click.option(
    "--state",
    type=click.Path(path_type=Path),
    envvar="FLEET_ROLLOUT_STATE",
    help="Folder of the journals, the same for all who roll out."
    "  [default: ~/.local/state/apptainer-fleet/rollout]",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_yes = click.option("-y", "--yes", is_flag=True, help="Don't ask.")
_one = click.argument("rollout_id", metavar="[ROLLOUT]", required=False)


def _options(*, provision: bool) -> Callable[[click.decorators.FC], click.decorators.FC]:
    """The options that make a plan."""
    carefulness = [
        click.option("--exclude", help="Nodes to leave out, as a hostlist."),
        click.option("--canary", help="Nodes of the first batch; one of each class without it."),
        click.option("--no-canary", is_flag=True, help="Begin with the first batch."),
        click.option(
            "--batch",
            type=click.IntRange(1),
            help="Nodes in a batch at most.  [default: what the budgets allow]",
        ),
        click.option(
            "--max-unavailable",
            multiple=True,
            metavar="[PARTITION=]N|N%",
            type=_Checked("limit", _check_limit),
            default=["10%"],
            show_default=True,
            help="So many nodes of each partition, or of one, may be missing, for whatever reason.",
        ),
        click.option(
            "--max-failures", type=click.IntRange(0), default=1, show_default=True, help="More, and it stops."
        ),
        click.option(
            "--drain-timeout",
            type=_Seconds(),
            default=0.0,
            help="Give a node back if its jobs take longer.  [default: never]",
        ),
        click.option(
            "--node-timeout",
            type=_Seconds(),
            default="15m",
            show_default=True,
            help="For a node that reboots or does not answer.",
        ),
        click.option(
            "--gather",
            type=_Seconds(),
            default="20s",
            show_default=True,
            help="Wait so long for more drained nodes before a step.",
        ),
        click.option(
            "--poll",
            type=_Seconds(),
            default="5s",
            show_default=True,
            help="Between two looks at the scheduler.",
        ),
        click.option("--soak", type=_Seconds(), default=0.0, help="Wait so long after the canaries."),
        click.option(
            "--window",
            multiple=True,
            type=_Checked("window", Window),
            help="When to work: '22:00-06:00', 'sat,sun 08:00-20:00', or FROM/TO in ISO 8601. Repeatable.",
        ),
        click.option("--reboot", is_flag=True, help="Let the scheduler reboot each node after the change."),
        click.option("--scheduler", type=click.Choice(SCHEDULERS), default="auto", show_default=True),
        click.option(
            "--scheduler-host",
            help="Host that has the scheduler's commands, or localhost.  [default: slurm_controller]",
        ),
        click.option(
            "--space",
            type=click.IntRange(0),
            default=SPACE,
            show_default=True,
            help="MiB that have to be free on nodes.",
        ),
    ]
    what = [
        click.option(
            "--to",
            "version",
            type=_Checked("version", apptainer_version.parse),
            help="Version of Apptainer, newer or older than what is there.",
        ),
        click.option(
            "--tags", help="Instead of a version: tags of site.yml, with commas; `all` for all of it."
        ),
        click.option(
            "-w",
            "--nodes",
            help="Nodes as a hostlist, like n[1-200],@gpu.  [default: all compute nodes with Apptainer]",
        ),
    ]

    def decorate(function: click.decorators.FC) -> click.decorators.FC:
        for option in reversed([_inventory, *([] if provision else what), *carefulness, _state]):
            function = option(function)
        return function

    return decorate


@click.group(cls=_Group)
def rollout() -> None:
    """Upgrade or change nodes under a scheduler, in batches, without disturbing a job.

    Exit status: 0 all is done, 1 an error, 2 wrong usage, 3 it ended or stopped and not all nodes are done,
    4 paused or interrupted (`resume` goes on), 5 another controller is at work.
    """
    # What is written is for whoever runs this.
    os.umask(0o077)


# --- plans --------------------------------------------------------------------------------------------------


def _settings(given: dict[str, Any]) -> Settings:
    limits: dict[str, str] = {"*": "10%"}
    for text in given["max_unavailable"]:
        partition, _, value = text.rpartition("=")
        limits[partition or "*"] = value
    return Settings(
        unavailable=limits,
        failures=given["max_failures"],
        drain_timeout=given["drain_timeout"],
        node_timeout=given["node_timeout"],
        gather=given["gather"],
        poll=max(1.0, given["poll"]),
        soak=given["soak"],
        windows=tuple(given["window"]),
    )


def _make_plan(given: dict[str, Any], kind: str, *, begin: bool) -> Plan:
    """The plan that options ask for."""
    if given["no_canary"] and given["canary"]:
        raise click.UsageError("--canary and --no-canary exclude each other.")
    if given["window"] and all(Window(text).is_over(datetime.datetime.now()) for text in given["window"]):
        raise click.UsageError("--window: it is over.")
    site = Site.of(given["sources"])
    name = site.kind(given["scheduler"])
    where = f"inventory {', '.join(map(str, given['sources']))}"

    def nodes(option: str, default: list[str]) -> list[str]:
        if given.get(option) is None:
            return default
        chosen = set(choose(given[option], site.hosts, site.groups, where, f"--{option}"))
        return [host for host in site.hosts if host in chosen]

    wanted = nodes("nodes", compute_nodes(site, name))
    out = set(nodes("exclude", []))
    chosen = tuple(node for node in wanted if node not in out)
    canary = () if given["no_canary"] else tuple(nodes("canary", [])) or None
    if strange := set(canary or ()) - set(chosen):
        raise FleetError(f"--canary: {fold(strange)} not among the nodes", "see to --nodes and --exclude")
    wish = Wish(
        kind=kind,
        nodes=chosen,
        version=given.get("version") or "",
        tags=() if given.get("tags") in (None, "all") else tuple(map(str.strip, given["tags"].split(","))),
        reboot=given["reboot"],
        canary=canary,
        largest=given["batch"] or 0,
        settings=_settings(given),
        space=given["space"],
    )
    host = site.scheduler_host(given["scheduler_host"])
    return _planned(wish, site, name, host, given["state"], begin=begin)


def _planned(wish: Wish, site: Site, kind: str, host: str, state: Path | None, *, begin: bool) -> Plan:
    if not wish.nodes:
        raise FleetError("no node is left to work on", "see to --nodes, --exclude and the group apptainer")
    # Before nodes are asked, which takes a while; what counts is asked again under the lock.
    if begin:
        journal = Journal(folder(site.cluster(), state))
        with controller.locked(journal):
            _check_ended(journal)
    scheduler = site.scheduler(kind, host, state)
    if wish.reboot and (why := scheduler.no_reboot()):
        raise FleetError(f"--reboot: {why}", "leave --reboot out, or let slurm.conf have RebootProgram")
    return Planner(site, controller.console()).plan(
        wish, {"kind": kind, "host": host}, scheduler.look(), scheduler.ends()
    )


def _kind(given: dict[str, Any]) -> str:
    if bool(given["version"]) == bool(given["tags"]):
        raise click.UsageError("Give either --to VERSION or --tags TAGS.")
    return "upgrade" if given["version"] else "change"


@rollout.command()
@_options(provision=False)
@click.option("--save", type=click.Path(path_type=Path), help="Write the plan to a file, for `start --plan`.")
@_json
def plan(save: Path | None, as_json: bool, **given: Any) -> None:
    """Say what would be done, in which order; ask nodes and change nothing.

    The same plan is the same text: a saved one can be compared with diff.
    """
    made = _make_plan(given, _kind(given), begin=False)
    if save:
        save.write_text(made.dumps() + "\n")
    if as_json:
        click.echo(made.dumps())
    else:
        view.show_plan(made, controller.console())
        _say_later(made)


@rollout.command()
@_options(provision=False)
@click.option(
    "--plan",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A plan that `plan --save` wrote.",
)
@_yes
def start(file: Path | None, yes: bool, **given: Any) -> None:
    """Make a plan, ask, and carry it out; a second time there is nothing to do."""
    if file:
        _refuse_more()
        made = _read_plan(file)
    else:
        made = _make_plan(given, _kind(given), begin=True)
    _begin(made, given["state"], yes=yes)


def _refuse_more() -> None:
    """Refuse options that a saved plan makes meaningless, instead of leaving them unheeded."""
    context = click.get_current_context()
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        kept = option.name in ("file", "yes", "state")
        if source is click.core.ParameterSource.COMMANDLINE and not kept:
            raise click.UsageError(f"--plan has all of this: leave {option.opts[-1]} out.")


def _read_plan(file: Path) -> Plan:
    try:
        made = Plan.loads(file.read_text())
        site = Site.of([Path(path) for path in made.inventories])
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise FleetError(
            f"{file}: is no plan: {error!r}", "write one with `fleet rollout plan --save`"
        ) from error
    examine(made, site)
    return made


def _check_ended(journal: Journal) -> None:
    other = controller.unfinished(journal)
    if other:
        raise FleetError(
            f"rollout {other.id} of {other.cluster} ({other.title}) has not ended",
            "`fleet rollout resume` goes on with it, `fleet rollout abort` ends it",
        )


def _begin(made: Plan, state: Path | None, *, yes: bool) -> None:
    console = controller.console()
    view.show_plan(made, console)
    if not made.nodes:
        sys.exit(0)
    if not yes:
        if not sys.stdin.isatty():
            raise FleetError("nobody can be asked here", "give --yes")
        click.confirm("begin?", abort=True)
    journal = Journal(folder(made.cluster, state))
    with controller.locked(journal):
        _check_ended(journal)
        moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        named = dataclasses.replace(
            made, id=f"r{moment}-{secrets.token_hex(2)}", created=time.time(), by=getpass.getuser()
        )
        journal.begin(named)
        status = controller.drive(named, journal, console, "start")
    _say_later(named)
    sys.exit(status)


def _say_later(made: Plan) -> None:
    site = Site.of([Path(path) for path in made.inventories], check=False)
    if text := later(made, site):
        click.secho(text, fg="yellow", err=True)


# --- a rollout that is there --------------------------------------------------------------------------------


def _open(sources: tuple[Path, ...], state: Path | None) -> Journal:
    cluster = Site.of(sources, check=False).cluster()
    home = folder(cluster, state)
    try:
        there = home.is_dir()
    except OSError as error:
        raise FleetError(f"{home}: {error.strerror}", "see to --state, or ask who rolls out here") from error
    if not there:
        raise FleetError(f"{home}: there was no rollout on {cluster} yet", "see to -i and --state")
    return Journal(home)


@rollout.command()
@_one
@_inventory
@_state
@_json
def status(rollout_id: str | None, sources: tuple[Path, ...], state: Path | None, as_json: bool) -> None:
    """Show where a rollout is, the last one if none is named; exit as it ended, 4 while it has not."""
    journal = _open(sources, state)
    at_work = journal.at_work()
    made = journal.plan(rollout_id or at_work or None)
    entries = journal.entries(made.id)
    now = State.of(made, entries)
    running = at_work == made.id
    if as_json:
        click.echo(json.dumps(view.as_dict(made, now, entries, running=running), indent=1))
    else:
        controller.console().print(view.picture(made, now, entries, "", running=running))
    sys.exit(OUTCOMES.get(now.outcome, controller.INTERRUPTED))


@rollout.command()
@_one
@click.option("--retry", is_flag=True, help="Also try failed nodes again.")
@_inventory
@_state
def resume(rollout_id: str | None, retry: bool, sources: tuple[Path, ...], state: Path | None) -> None:
    """Go on with a rollout that was paused, stopped, or whose controller died."""
    journal = _open(sources, state)
    with controller.locked(journal):
        made = journal.plan(rollout_id)
        now = State.of(made, journal.entries(made.id))
        failed = now.at(Stage.FAILED)
        if now.outcome in ("complete", "incomplete", "aborted") and not (retry and failed):
            click.echo(f"rollout {made.id} has ended: {now.outcome}; nothing to do")
            sys.exit(OUTCOMES[now.outcome])
        other = controller.unfinished(journal)
        if other and other.id != made.id:
            raise FleetError(f"rollout {other.id} has not ended", "resume or abort that one first")
        if retry and failed:
            journal.write(made.id, "retry", failed)
        sys.exit(controller.drive(made, journal, controller.console(), "resume"))


@rollout.command()
@_one
@_inventory
@_state
def pause(rollout_id: str | None, sources: tuple[Path, ...], state: Path | None) -> None:
    """Ask the controller to bring to an end what it has begun, and to begin nothing new."""
    _ask("pause", _open(sources, state), rollout_id)


@rollout.command()
@_one
@_inventory
@_state
def abort(rollout_id: str | None, sources: tuple[Path, ...], state: Path | None) -> None:
    """End a rollout: nodes that are drained and not touched are given back, others brought to an end."""
    journal = _open(sources, state)
    if _ask("abort", journal, rollout_id):
        return
    with controller.locked(journal):
        made = journal.plan(rollout_id)
        sys.exit(controller.drive(made, journal, controller.console(), "abort", ask="abort"))


def _ask(what: str, journal: Journal, rollout_id: str | None) -> bool:
    """Ask the controller that is at work; False if none is."""
    at_work = journal.at_work()
    made = journal.plan(rollout_id or at_work or None)
    now = State.of(made, journal.entries(made.id))
    if now.outcome in ("complete", "incomplete", "aborted"):
        raise FleetError(f"rollout {made.id} has ended: {now.outcome}", "fleet rollout history")
    if at_work == made.id:
        journal.write(made.id, "request", what=what, by=getpass.getuser())
        click.echo(f"rollout {made.id}: asked to {what}; fleet rollout status shows how it goes")
        return True
    if what == "pause":
        click.echo(
            f"rollout {made.id}: no controller is at work, nothing is begun; fleet rollout resume goes on"
        )
    return False


@rollout.command()
@_one
@_inventory
@_state
@_yes
def rollback(rollout_id: str | None, sources: tuple[Path, ...], state: Path | None, yes: bool) -> None:
    """Take the nodes of a rollout back to the version that they had before, by a rollout of its own."""
    journal = _open(sources, state)
    old = journal.plan(rollout_id)
    if old.kind != "upgrade":
        raise FleetError(
            f"rollout {old.id} was no upgrade", "take the change back in the inventory and roll that out"
        )
    now = State.of(old, journal.entries(old.id))
    touched = [name for name, node in now.nodes.items() if node.touched]
    if not touched:
        raise FleetError(f"rollout {old.id} has touched no node", "there is nothing to take back")
    site = Site.of([Path(path) for path in old.inventories])
    versions = {
        version: [
            name for name in touched if name in set(choose(nodes, site.hosts, {}, "the inventory", "plan"))
        ]
        for version, nodes in old.before.items()
    }
    wanted = {version: names for version, names in versions.items() if names and version != "none"}
    if len(wanted) != 1:
        said = ", ".join(f"{version}: {fold(names)}" for version, names in versions.items() if names)
        raise FleetError(
            f"the nodes had different versions, or none ({said})",
            "roll each back by itself: fleet rollout start --to VERSION --nodes NODES",
        )
    (version, names), host = next(iter(wanted.items())), old.scheduler.get("host", "")
    canary = tuple(name for name in old.canary if name in names) or None
    wish = Wish(
        "upgrade", tuple(names), version, canary=canary, settings=old.settings, adopts=(old.tag, *old.adopts)
    )
    made = _planned(wish, site, old.scheduler["kind"], host, state, begin=True)
    _begin(made, state, yes=yes)


@rollout.command()
@_inventory
@_state
@_json
def history(sources: tuple[Path, ...], state: Path | None, as_json: bool) -> None:
    """List the rollouts of a cluster, the last one first."""
    journal = _open(sources, state)
    at_work = journal.at_work()
    rows = []
    for made in journal.rollouts():
        entries = journal.entries(made.id)
        now = State.of(made, entries)
        rows.append(view.as_dict(made, now, entries, running=at_work == made.id))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("rollout", "what", "status", "nodes", "done", "failed"):
        table.add_column(column, justify="right" if column in ("nodes", "done", "failed") else "left")
    for row in rows:
        counts = row["counts"]
        numbers = (row["nodes"], counts.get("done", 0), counts.get("failed", 0))
        table.add_row(row["id"], row["what"], row["status"], *map(str, numbers))
    controller.console().print(table)


@rollout.command()
@_one
@_inventory
@_state
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write.")
def report(
    rollout_id: str | None, sources: tuple[Path, ...], state: Path | None, output: Path | None
) -> None:
    """Write a page: each node over time, waiting times, lost node-hours."""
    journal = _open(sources, state)
    click.echo(controller.write_report(journal.plan(rollout_id), journal, output))


@click.command(cls=click.Command)
@click.argument("nodes", metavar="NODES")
@_options(provision=True)
@_yes
def provision(yes: bool, **given: Any) -> None:
    """Bring new nodes into service: configured, proved, and then known to the scheduler.

    NODES is a hostlist of hosts of the inventory. Nodes that somebody drained stay drained.
    """
    os.umask(0o077)
    try:
        _begin(_make_plan(given, "provision", begin=True), given["state"], yes=yes)
    except controller.BusyError as error:
        click.secho(f"fleet: {error}", fg="red", err=True)
        sys.exit(controller.BUSY)
