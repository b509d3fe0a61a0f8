"""``fleet pull``: let nodes converge themselves now, and see how it went, without Ansible on the way."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from fleet import fanout
from fleet.converge import FAILED, GOOD, UNREACHABLE, limit_option
from fleet.errors import FleetError
from fleet.fanout import Answer, Reach
from fleet.hostlist import choose, fold
from fleet.nodes import inventory_option
from fleet.paths import PROJECT
from fleet.validate.resolve import Resolved, UnresolvedError
from fleet.validate.vocabulary import Vocabulary
from fleet.validate.written import read as read_written
from module_utils.pull import RESULT

UNIT = "apptainer-fleet-pull.service"
#: The result, and before it how the unit ended, and whether the result is of this run: a new file each time.
TRIGGER = f"""\
before=$(stat -c %i {RESULT} 2>/dev/null)
systemctl start {UNIT} >/dev/null 2>&1; code=$?
[ "$(stat -c %i {RESULT} 2>/dev/null)" != "$before" ] && new=new || new=old
echo "$code $new"; cat {RESULT} 2>/dev/null; true"""
STATUS = f'echo "0 new"; cat {RESULT} 2>/dev/null; true'
#: Options of ssh beyond the inventory's: nobody is there to be asked, and a node that died is given up.
_SSH = ("-oBatchMode=yes", "-oConnectTimeout=15", "-oServerAliveInterval=15")

console = Console(highlight=False, soft_wrap=True, stderr=True)


@dataclass(frozen=True)
class State:
    """How a node stands: ``outcome`` as in pull.json, or ``silent``, ``late``, ``never``, ``broken``."""

    outcome: str
    message: str = ""
    commit: str = ""
    signer: str = ""
    when: str = ""

    @property
    def status(self) -> int:
        """The exit status that it makes for."""
        return {"converged": GOOD, "silent": UNREACHABLE}.get(self.outcome, FAILED)


@click.group()
def pull() -> None:
    """Nodes of group pull converge themselves; start that on many of them, and see how it went.

    Exit status 0: all of them have converged; 2: some have not; 4: some could not be reached, the others have
    converged; 1: nothing was begun.
    """


_json = click.option("--json", "as_json", is_flag=True, help="State of each node, as JSON.")


@pull.command()
@inventory_option
@limit_option
@click.option(
    "--at-once",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Nodes that fetch and converge at a time; the others wait for their turn.",
)
@click.option(
    "--timeout", type=click.IntRange(1), default=3900, show_default=True, help="Seconds for a node."
)
@_json
def trigger(
    sources: tuple[Path, ...], expression: str | None, at_once: int, timeout: int, as_json: bool
) -> None:
    """Let nodes converge now, and print how it went when all are through."""
    _finish(_ask(sources, expression, TRIGGER, at_once, timeout), as_json)


@pull.command()
@inventory_option
@limit_option
@click.option(
    "--results",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder in which nodes put results (pull_results), instead of asking them.",
)
@click.option(
    "--at-once", type=click.IntRange(1), default=100, show_default=True, help="Nodes asked at a time."
)
@_json
def status(
    sources: tuple[Path, ...], expression: str | None, results: Path | None, at_once: int, as_json: bool
) -> None:
    """Print how the last run of each node went."""
    if results is None:
        _finish(_ask(sources, expression, STATUS, at_once, 60), as_json)
        return
    names = _nodes(_resolved(sources), expression)
    _finish({name: _of_file(results, name) for name in names}, as_json)


def _of_file(folder: Path, node: str) -> State:
    # Nodes call themselves by the first part of their name.
    path = folder / f"{node.partition('.')[0]}.json"
    try:
        return read_result(path.read_text(errors="replace"))
    except FileNotFoundError:
        return State("never", f"has put no result into {folder}")
    except OSError as error:
        return State("broken", f"{path}: {error.strerror}")


def read_result(text: str) -> State:
    """What a result file says. Nodes write it, so it is checked like anything from outside."""
    try:
        result = json.loads(text)
        values = {name: result.get(name) or "" for name in State.__dataclass_fields__}
    except (ValueError, AttributeError):
        return State("broken", "its result is no JSON object")
    if not all(isinstance(value, str) for value in values.values()) or not values["outcome"]:
        return State("broken", "its result has not what it should have")
    # One line, and nothing that a terminal would take for a command.
    clean = {name: re.sub(r"[^\x20-\x7e\u00a0-\uffff]", " ", value) for name, value in values.items()}
    return State(**clean)


def _judge(answer: Answer) -> State:
    if answer.status is None:
        return State("late", "did not end in time")
    if not answer.reached:
        return State("silent", answer.text.strip().splitlines()[-1] if answer.text.strip() else "")
    # Before it stands what the login printed, if it did.
    match = re.search(r"^(\d+) (new|old)$\n?", answer.text, re.MULTILINE)
    if match is None:
        return State("broken", f"answered {answer.text.strip()[:200]!r}")
    content = answer.text[match.end() :]
    if not content.strip():
        return State("never", "has no result: is it in group pull, and bootstrap.yml applied?")
    if match[2] == "old":
        return State("error", f"systemctl start ended with status {match[1]} and there is no new result")
    return read_result(content)


def _resolved(sources: Sequence[Path]) -> Resolved:
    written = read_written(sources)
    resolved = Resolved.of(written, PROJECT, Vocabulary.of(PROJECT).defaults.values())
    if written.findings:
        raise FleetError(str(written.findings[0]), "fleet validate names all that is wrong")
    return resolved


def _nodes(resolved: Resolved, expression: str | None) -> list[str]:
    groups = {name: resolved.members(name) for name in resolved.manager.groups}
    members = groups.get("pull", [])
    if not members:
        raise FleetError("no host is in group pull", "see docs/pull.md")
    if expression is None:
        return members
    chosen = list(choose(expression, groups["all"], groups, "the inventory", "--limit"))
    strange = set(chosen) - set(members)
    if strange:
        raise FleetError(
            f"--limit {expression}: {fold(strange)} not in group pull", f"it has {fold(members)}"
        )
    return chosen


def _ask(
    sources: Sequence[Path], expression: str | None, command: str, at_once: int, seconds: int
) -> dict[str, State]:
    resolved = _resolved(sources)
    names = _nodes(resolved, expression)
    reaches = {name: _reach(resolved, name) for name in names}
    parts: dict[tuple[str, bool], list[str]] = {}
    for name, reach in reaches.items():
        parts.setdefault((reach.arguments, reach.become), []).append(name)
    answers: dict[str, Answer] = {}
    showing = console.status("") if console.is_terminal else nullcontext()
    with tempfile.TemporaryDirectory(prefix="fleet-pull-") as private, showing as display:
        config = Path(private, "ssh_config")
        config.write_text(fanout.ssh_config(reaches))
        for (arguments, become), part in parts.items():
            done = len(answers)

            def report(count: int, before: int = done) -> None:
                if display:
                    display.update(f"{before + count} of {len(names)} nodes done")

            answers |= fanout.run_on_nodes(
                part,
                f"sudo -n sh -c {shlex.quote(command)}" if become else command,
                options=["-F", str(config), *_SSH, *fanout.options(arguments)],
                at_once=at_once,
                seconds=seconds,
                report=report,
            )
    return {name: _judge(answers[name]) for name in names}


def _reach(resolved: Resolved, host: str) -> Reach:
    def value(*variables: str) -> str:
        for variable in variables:
            try:
                found = resolved.lookup(host, variable)
            except UnresolvedError:
                found = None
            if found not in (None, ""):
                return str(found)
        return ""

    return Reach(
        address=value("ansible_ssh_host", "ansible_host"),
        user=value("ansible_ssh_user", "ansible_user"),
        port=value("ansible_ssh_port", "ansible_port"),
        key=value("ansible_ssh_private_key_file", "ansible_private_key_file"),
        arguments=" ".join(filter(None, (value("ansible_ssh_common_args"), value("ansible_ssh_extra_args")))),
        become=value("ansible_become").lower() in ("true", "yes", "1"),
    )


def _finish(states: Mapping[str, State], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({name: vars(state) for name, state in states.items()}, indent=1))
    else:
        click.echo("\n".join(lines(states)))
    found = {state.status for state in states.values()}
    sys.exit(FAILED if FAILED in found else UNREACHABLE if UNREACHABLE in found else GOOD)


def lines(states: Mapping[str, State]) -> Iterator[str]:
    """What people read: nodes folded by commit and outcome, then how many are at the newest commit."""
    alike: dict[tuple[str, str, str, str], list[str]] = {}
    for name, state in states.items():
        who = state.signer if state.outcome == "converged" else ""
        message = "" if state.outcome == "converged" else state.message
        alike.setdefault((state.outcome, state.commit, who, message), []).append(name)
    for (outcome, commit, who, message), names in sorted(alike.items(), key=lambda item: -len(item[1])):
        at = f" at {commit[:12]}" if commit else ""
        by = f", signed by {who}" if who else ""
        yield f"{outcome.upper():9} {fold(names)}{at}{by}{f': {message}' if message else ''}"
    good = [state for state in states.values() if state.outcome == "converged"]
    newest = max(good, key=lambda state: state.when, default=None)
    yield f"{len(good)} of {len(states)} nodes have converged" + (
        f", {sum(s.commit == newest.commit for s in good)} of them at {newest.commit[:12]}" if newest else ""
    )
