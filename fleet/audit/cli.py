"""``fleet audit``: what nodes are, what is wrong with them, and what has changed since."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import click
from rich.console import Console

from fleet import converge
from fleet.audit import page, report, run
from fleet.audit.history import History
from fleet.audit.metrics import render as to_prometheus
from fleet.audit.model import Audit, moment
from fleet.converge import FAILED, GOOD, UNREACHABLE
from fleet.errors import FleetError
from fleet.inventory import read_groups
from fleet.nodes import inventory_option
from fleet.runs import Run
from fleet.runs import read as read_runs
from module_utils import atomic_file

#: Exit status: there are warnings and no errors.
WARNINGS = 3

console = Console(highlight=False, soft_wrap=True, stderr=True)

_state = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the history, instead of one for this inventory below ~/.local/state/apptainer-fleet.",
)
_file = click.Path(path_type=Path, dir_okay=False)


def _outputs(function: click.decorators.FC) -> click.decorators.FC:
    """The options for what becomes of an audit."""
    for option in reversed(
        (
            click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON."),
            click.option("--html", type=_file, help="Write it as a page for browsers."),
            click.option(
                "--runs",
                type=_file,
                multiple=True,
                envvar="FLEET_PROGRESS_LOG",
                show_envvar=True,
                help="Show the last runs of playbooks on the page, from this log of callback fleet_progress.",
            ),
            click.option("--metrics", type=_file, help="Write numbers of it for Prometheus."),
            click.option("--junit", type=_file, help="Write it as JUnit XML, for CI servers."),
            click.option("--sarif", type=_file, help="Write it as SARIF 2.1.0, for code scanners."),
            click.option(
                "--fail-on",
                type=click.Choice(["error", "warning", "never"]),
                default="warning",
                show_default=True,
                help="The least severity that makes for an exit status.",
            ),
            click.option(
                "-v", "--verbose", is_flag=True, help="Print what is waived, or only worth knowing, too."
            ),
        )
    ):
        function = option(function)
    return function


@click.group(invoke_without_command=True)
@inventory_option
@_state
@converge.limit_option
@converge.batch_options
@_outputs
@click.option("--forget", is_flag=True, help="Do not keep it in the history.")
@click.pass_context
def audit(
    context: click.Context,
    /,
    *,
    sources: tuple[Path, ...],
    state: Path | None,
    expression: str | None,
    batch: int,
    forks: int | None,
    forget: bool,
    **outputs: object,
) -> None:
    """Say of each node what it is and what is wrong with it; change nothing, at any time.

    Versions, whether the security profile really holds, what differs from the last converge (file and line),
    the rules of Apptainer and security advisories, setuid programs of no package, images that the policy
    refuses, health, and how the last pull ended. One task a node; a store that nodes share is judged by one
    of them. It is kept, for diff, show and list.

    Exit status 0: nothing to mend; 2: errors; 4: no errors, but nodes that could not be reached; 3: warnings
    alone; 1: nothing was begun.
    """
    if context.invoked_subcommand:
        given = [
            name for name in context.params
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        ]  # fmt: skip
        if given:
            command = f"fleet audit {context.invoked_subcommand} …"
            raise click.UsageError(f"options stand behind the command: {command}")
        return
    groups = read_groups(sources)
    chosen = converge.participants(groups, expression, None)
    audited = {host for name in run.groups() for host in groups.get(name, [])}
    hosts = [host for host in chosen if host in audited]
    if not hosts:
        raise FleetError("none of these nodes is configured by site.yml", "see fleet nodes --groups")
    # Before nodes are asked: an audit that can't be kept would have been in vain.
    history = None if forget else _history(sources, state)
    made = run.audit(sources, hosts, batch, forks or converge.forks(), console)
    if history:
        history.add(made)
    _give(made, sources, history, **outputs)  # type: ignore[arg-type]


@audit.command()
@inventory_option
@_state
@_outputs
@click.argument("which", default="-1")
def show(sources: tuple[Path, ...], state: Path | None, which: str, **outputs: object) -> None:
    """Print an audit again, the last one without WHICH.

    WHICH is a number (fleet audit list), -2 for the last but one, or a time like 2026-11-24T10:00, for the
    last one by then.
    """
    history = _history(sources, state)
    _give(history.read(history.find(which)), sources, history, **outputs)  # type: ignore[arg-type]


@audit.command("list")
@inventory_option
@_state
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(sources: tuple[Path, ...], state: Path | None, as_json: bool) -> None:
    """List the audits of an inventory, the last one first."""
    history = _history(sources, state)
    audits = [history.read(number) for number, _ in reversed(history.audits())]
    if as_json:
        said = [
            {"audit": one.number, "when": moment(one.at), "nodes": len(one.nodes), **one.tally()}
            for one in audits
        ]
        click.echo(json.dumps(said, indent=1))
        return
    for one in audits:
        counts = one.tally()
        click.echo(
            f"{one.number:5}  {one.when}  {len(one.nodes)} nodes, {len(one.bad_nodes())} with something to"
            f" mend: {counts['error']} errors, {counts['warning']} warnings, {counts['waived']} waived"
        )


@audit.command(context_settings={"ignore_unknown_options": True})
@inventory_option
@_state
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.argument("before", default="-2")
@click.argument("after", default="-1")
def diff(sources: tuple[Path, ...], state: Path | None, as_json: bool, before: str, after: str) -> None:
    """Print what has changed between two audits, the last two without BEFORE and AFTER.

    Each is a number, -1 for the last one, or a time like 2026-11-24 or 2026-11-24T10:00, for the last one by
    then.

    Exit status 0: nothing is wrong that was not before; 2: something is; 1: there are no such audits.
    """
    history = _history(sources, state)
    made = report.compare(history.read(history.find(before)), history.read(history.find(after)))
    click.echo(report.difference_json(made) if as_json else "\n".join(report.difference_lines(made)))
    sys.exit(FAILED if made.worse else GOOD)


def _give(
    made: Audit,
    sources: tuple[Path, ...],
    history: History | None,
    *,
    as_json: bool,
    html: Path | None,
    runs: tuple[Path, ...],
    metrics: Path | None,
    junit: Path | None,
    sarif: Path | None,
    fail_on: str,
    verbose: bool,
) -> None:
    """Write and print an audit, and end with its exit status."""
    where = sources[0].absolute().name
    if metrics:
        _write(metrics, to_prometheus(made, where))
    if html:
        past = history.before(made.number, page.BACK) if history else []
        _write(html, page.render(made, where, past, page.progress(sources), _runs(runs)))
    if junit:
        _write(junit, report.as_junit(made))
    if sarif:
        _write(sarif, report.as_sarif(made, importlib.metadata.version("apptainer-fleet")))
    click.echo(report.as_json(made) if as_json else "\n".join(report.lines(made, verbose)))
    sys.exit(status(made, fail_on))


def _runs(logs: tuple[Path, ...]) -> list[Run]:
    """The runs of playbooks in *logs*; of one that can't be read a word, as the audit is made by now."""
    try:
        return read_runs(logs)
    except OSError as error:
        console.print(f"{error.filename}: {error.strerror}: the page is without runs of playbooks")
        return []


def _history(sources: tuple[Path, ...], state: Path | None) -> History:
    return History(state or converge.state_folder(sources))


def _write(path: Path, text: str) -> None:
    try:
        atomic_file.replace(str(path.absolute()), text.encode(), 0o644)
    except OSError as error:
        raise FleetError(f"{path}: {error.strerror}", "name a file in a folder that is there") from error


def status(made: Audit, fail_on: str = "warning") -> int:
    """The exit status of an audit."""
    if fail_on == "never":
        return GOOD
    counted = [finding for finding in made.found if not finding.waived and finding.rule != "unreachable"]
    if any(finding.severity == "error" for finding in counted):
        return FAILED
    if made.unreachable:
        return UNREACHABLE
    warned = fail_on == "warning" and any(finding.severity == "warning" for finding in counted)
    return WARNINGS if warned else GOOD
