# SPDX-License-Identifier: Apache-2.0
"""The health program of a node: whether it can do its work, and what becomes of it if it can't.

One program for Slurm's HealthCheckProgram, for the boot, for a rollout that wants to know whether a node is
good again, and for PBS. It looks at what its settings name (`health_checks`), everything at the same time and
each look in a process of its own, so that nothing that hangs keeps it.

With ``--act`` it tells the resource manager: an unhealthy node is drained, with a Reason that names the check
and carries a seal. Only a node whose Reason still has this seal is resumed when it is healthy again: whatever
somebody else has set, or has only added a word to, stays. A node that is drained again and again stays so
after some times.

Exit status: 0 healthy, 1 not, 2 if it can't be said.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple

from . import atomic_file, bounded, health_checks, node_metrics, pbs_nodes, slurm_nodes, typed
from .slurm_nodes import SlurmError
from .typed import Field

SETTINGS = "/etc/apptainer-fleet/node-health.json"
#: What it remembers: gone with the next boot.
STATE = "/run/apptainer-fleet/node-health.json"
#: There since the node was healthy once after it booted.
GATE = "/run/apptainer-fleet/node-health.passed"
TAG = "node_health"
#: Seconds that the resource manager may take for an answer; three with `health_checks.LONGEST` are below 60.
PATIENCE = 5
_DAY = 86400


class HealthError(ValueError):
    """What keeps the program from its work; the message says why."""


class ManagerError(Exception):
    """The resource manager can't be told; the message says why."""


class Manager(Protocol):
    """A resource manager, as far as it is about this node. Its methods raise ManagerError or PbsError."""

    def reason(self) -> Optional[str]:
        """Return why the node is drained, None if it is not."""

    def drain(self, reason: str) -> None:
        """Let the node take no jobs, if nobody else has said so."""

    def change(self, old: str, new: str) -> None:
        """Drain a node that is drained for *old* for another reason."""

    def resume(self, reason: str) -> None:
        """Let the node take jobs again, if it is drained for exactly *reason*."""


class Settings(NamedTuple):
    """What a node has to be, and what happens if it isn't.

    :param node: its name for the resource manager.
    :param manager: which one, or ``none``.
    :param drain: whether an unhealthy node is drained.
    :param resume: whether it is resumed when it is healthy again.
    :param heals: how often within a day; after that it waits for a person.
    :param checks: entries of `health_checks.CHECKS`, by name.
    :param metrics: file for Prometheus that each whole look writes; empty for none.
    """

    node: str
    checks: Mapping[str, Any]
    manager: str = "none"
    drain: bool = True
    resume: bool = True
    heals: int = 3
    metrics: str = ""


def _metrics(value: object) -> str:
    return "" if value == "" else typed.text(re.compile("/.+"), "an absolute path, or empty")(value)


_FIELDS: Mapping[str, Field] = {
    "node": Field(typed.text(), required=True),
    "checks": Field(
        typed.nested({name: Field(check.read) for name, check in health_checks.CHECKS.items()}), required=True
    ),
    "manager": Field(typed.choice("slurm", "torque", "openpbs", "none")),
    "drain": Field(typed.boolean),
    "resume": Field(typed.boolean),
    "heals": Field(typed.integer(0)),
    "metrics": Field(_metrics),
}


def read(data: object) -> Settings:
    """Read settings from the data that JSON gave. Raises HealthError, with everything that is wrong."""
    problems: List[str] = []
    good = typed.mapping(data, _FIELDS, "", problems)
    if problems:
        raise HealthError("\n".join(problems))
    return Settings(**good)


class Report(NamedTuple):
    """What was found: for each check, whether all is well, what is not, and how long it took."""

    node: str
    checks: Mapping[str, Mapping[str, Any]]

    @property
    def failed(self) -> List[str]:
        """Names of the checks that failed."""
        return [name for name, found in self.checks.items() if not found["ok"]]

    @property
    def reason(self) -> str:
        """What is wrong, as the Reason of a drain."""
        failed = self.failed
        return slurm_nodes.sealed(TAG, f"{', '.join(failed)}: {self.checks[failed[0]]['message']}")

    def as_dict(self) -> Dict[str, Any]:
        """Return it as data for JSON."""
        return {
            "node": self.node,
            "healthy": not self.failed,
            "failed": self.failed,
            "checks": dict(self.checks),
        }


def examine(
    settings: Settings, state: Dict[str, Any], only: Sequence[str] = (), fresh: bool = False
) -> Report:
    """Look at everything, or at the checks named in *only*; *state* is what was remembered, and is changed.

    With *fresh*, nothing is believed because it was so a while ago.
    """
    probes: Dict[str, health_checks.Probe] = {}
    for name, entry in settings.checks.items():
        if not only or name in only:
            for what, probe in health_checks.CHECKS[name].probes(entry).items():
                probes[f"{name}:{what}"] = probe
    kept: Dict[str, Any] = state.setdefault("kept", {})

    def task(label: str, probe: health_checks.Probe) -> bounded.Task:
        return bounded.Task(lambda: probe.look(None if fresh else kept.get(label)), probe.seconds)

    ended = bounded.run({label: task(label, probe) for label, probe in probes.items()}, state.get("left"))
    checks: Dict[str, Dict[str, Any]] = {}
    for label, one in ended.items():
        name, _, what = label.partition(":")
        wrong, keep = one.value if one.value is not None else (_said(name, what, one.error), None)
        found = checks.setdefault(name, {"ok": True, "message": "", "seconds": 0.0})
        if wrong:
            found["ok"] = False
            found["message"] = "; ".join(filter(None, (found["message"], typed.printable(wrong))))
        found["seconds"] = max(found["seconds"], round(one.seconds, 3))
        kept.pop(label, None)
        if keep is not None:
            kept[label] = keep
    left = {label: process for label, process in state.get("left", {}).items() if label not in ended}
    state["left"] = {**left, **{label: one.process for label, one in ended.items() if one.process}}
    return Report(settings.node, checks)


def _said(name: str, what: str, error: str) -> str:
    """Return what is said of a look that failed: beginning with what it looked at, once."""
    return error if error.startswith(what) else f"{what if what != name else 'this'} {error}"


def act(report: Report, settings: Settings, state: Dict[str, Any], manager: Manager) -> str:
    """Tell the resource manager what was found, and return what was done, empty if nothing.

    It is asked only if the node is unhealthy, or may be drained by this program. Raises ManagerError.
    """
    if report.failed:
        return _unhealthy(report, state, manager) if settings.drain else ""
    # Unknown since the boot: it may be drained from before.
    if not settings.resume or state.get("drained") is False:
        return ""
    reason = manager.reason()
    if reason is None or not slurm_nodes.is_sealed(TAG, reason):
        state["drained"] = False
        return ""
    state["drained"] = True
    now = time.time()
    heals = [when for when in state.get("heals", ()) if now - _DAY < when <= now]
    if len(heals) >= settings.heals:
        return f"is healthy again, and stays drained: it was resumed {len(heals)} times within a day"
    manager.resume(reason)
    state["drained"], state["heals"] = False, [*heals, now]
    return f"is resumed: it was drained for {reason!r}"


def _unhealthy(report: Report, state: Dict[str, Any], manager: Manager) -> str:
    new, old = report.reason, manager.reason()
    if old is None:
        manager.drain(new)
        state["drained"] = True
        return f"is drained for {new!r}"
    if not slurm_nodes.is_sealed(TAG, old):
        state["drained"] = False
        return f"stays as it is, drained by somebody else for {old!r}"
    state["drained"] = True
    # Not for every other figure: a Reason has a time, which is when this began.
    if _names(old) == _names(new):
        return ""
    manager.change(old, new)
    return f"is drained for {new!r}"


def _names(reason: str) -> str:
    """Return the names of the checks in a Reason of `Report.reason`."""
    return reason.split(": ")[1]


class SlurmManager:
    """Slurm, by scontrol on this node, which runs it as root."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._slurm = slurm_nodes.SlurmNodes(run)

    def reason(self) -> Optional[str]:
        """Return why the node is drained, or down, None if it is neither."""
        node = self._ask(lambda: self._slurm.read([self._node]))[self._node]
        return node.reason if node.drain or node.base == "DOWN" else None

    def drain(self, reason: str) -> None:
        """Drain it. What somebody else has said meanwhile stays."""
        self._ask(lambda: self._slurm.drain([self._node], reason))

    def change(self, old: str, new: str) -> None:
        """Change the Reason, if it is still *old*."""
        self._ask(lambda: self._slurm.change_reason([self._node], old, new))

    def resume(self, reason: str) -> None:
        """Resume it, if the Reason is still this one."""
        self._ask(lambda: self._slurm.resume([self._node], reason))

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except SlurmError as error:
            raise ManagerError(str(error)) from error


def run(argv: Sequence[str]) -> Tuple[int, str, str]:
    """Run a program for `PATIENCE` seconds at most: exit code, output, errors."""
    try:
        ended = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": health_checks.PROGRAMS},
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer within {PATIENCE} seconds"
    except OSError as error:
        return 127, "", str(error.strerror)
    return ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")


def _pbs(flavour: pbs_nodes.Flavour) -> Callable[[str], Manager]:
    return lambda node: pbs_nodes.PbsNode(node, TAG, flavour, run)


#: Makes a manager for a node, by the name that settings have for it.
MANAGERS: Mapping[str, Callable[[str], Manager]] = {
    "slurm": SlurmManager,
    "torque": _pbs(pbs_nodes.TORQUE),
    "openpbs": _pbs(pbs_nodes.OPENPBS),
}


def load(path: str) -> Settings:
    """Return the settings in a file. Raises HealthError."""
    try:
        return read(json.loads(Path(path).read_text()))
    except OSError as error:
        raise HealthError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise HealthError(f"{path}: is no JSON: {error}") from error
    except HealthError as error:
        raise HealthError("\n".join(f"{path}: {line}" for line in str(error).split("\n"))) from error


def remembered(path: str) -> Dict[str, Any]:
    """Return what an earlier run has written; nothing if it can't be read."""
    try:
        state = json.loads(atomic_file.read(path) or b"{}")
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="node-health", description=__doc__.split("\n")[0])
    parser.add_argument("--settings", default=SETTINGS, metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--act", action="store_true", help="drain the node, or resume it, as the settings say"
    )
    parser.add_argument(
        "--gate", action="store_true", help="only until the node was healthy once since its boot"
    )
    parser.add_argument("--all", action="store_true", help="believe nothing because it was so a while ago")
    parser.add_argument("--json", action="store_true", help="write the report as JSON")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="these checks alone")
    options = parser.parse_args(argv)
    if options.gate and Path(GATE).exists():
        return 0
    try:
        settings = load(options.settings)
        unknown = [name for name in options.checks if name not in settings.checks]
        if unknown:
            raise HealthError(f"{unknown[0]}: the settings have no such check")
    except HealthError as error:
        print("\n".join(f"error: node_health: {line}" for line in str(error).split("\n")), file=sys.stderr)
        return 2
    state = remembered(STATE)
    report = examine(settings, state, options.checks, options.all)
    done, code = "", int(bool(report.failed))
    acted = {name: report.checks[name] for name in health_checks.ACTING if name in report.checks}
    if acted:
        state["acted"] = {**state.get("acted", {}), **acted}
    if options.act and settings.manager in MANAGERS:
        try:
            done = act(report, settings, state, MANAGERS[settings.manager](settings.node))
        except (ManagerError, pbs_nodes.PbsError) as error:
            code, done = 1, f"could not be changed: {error}"
    _write(state, passed=options.gate and not report.failed)
    if settings.metrics and not options.checks:
        try:
            node_metrics.write(settings.metrics, report.checks, time.time())
        except OSError as error:
            print(f"error: node_health: {error.filename}: {error.strerror}", file=sys.stderr)
    _say(report, done, options.json)
    return code


def _write(state: Mapping[str, Any], passed: bool) -> None:
    """Remember, where that is possible: a node whose /run is full is judged all the same."""
    try:
        Path(STATE).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        atomic_file.replace(STATE, json.dumps(state).encode(), 0o600)
        if passed:
            atomic_file.replace(GATE, b"")
    except OSError as error:
        print(f"error: node_health: {error.filename}: {error.strerror}", file=sys.stderr)


def _say(report: Report, done: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**report.as_dict(), "done": done}))
    for name in report.failed:
        # Daemons and Ansible look for this word.
        print(f"error: node_health: {name}: {report.checks[name]['message']}", file=sys.stderr)
    if done:
        print(f"node_health: {report.node} {done}", file=sys.stderr)
