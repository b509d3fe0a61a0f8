# SPDX-License-Identifier: Apache-2.0
"""Callback: what ansible-playbook prints, readable with thousands of hosts, and a log of events."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

from fleet.hostlist import fold

DOCUMENTATION = """
name: fleet_progress
type: stdout
short_description: Few lines for many hosts
description:
  - Prints a line for a task that is under way, with hosts done, rate and time left, and one for what changed
    or failed in it. Hosts are folded to hostlists, those that said the same in one line.
  - Writes every event that matters to a file of JSON lines, if it is asked for. What a task with C(no_log)
    said is in neither.
options:
  log:
    description:
      - File to which events are appended, one JSON object a line. Keys are C(time) (seconds since the epoch),
        C(run) (the same for one run of a playbook), C(event) and what belongs to it. C(fleet audit --runs)
        reads it.
    type: path
    env: [{name: FLEET_PROGRESS_LOG}]
    ini: [{section: fleet_progress, key: log}]
  seconds:
    description:
      - Where the output is no terminal, a line about a task that is under way is printed so often.
    type: float
    default: 30
    env: [{name: FLEET_PROGRESS_SECONDS}]
    ini: [{section: fleet_progress, key: seconds}]
requirements:
  - C(ANSIBLE_STDOUT_CALLBACK=fleet_progress)
"""

#: A terminal is written to so often at the most.
_REFRESH = 0.2
_COLOURS = {"changed": "yellow", "failed": "red", "ignored": "cyan", "unreachable": "bright red"}
_SHOWN = 400
#: In a task so many different messages are printed, and of one so many characters are in the log.
_MESSAGES, _LOGGED = 20, 4000


class CallbackModule(CallbackBase):
    """Prints progress by task, and folds hosts."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "fleet_progress"

    def __init__(self) -> None:
        super().__init__()
        self._terminal = sys.stdout.isatty()
        self._log: Any = None
        self._run = f"{time.time():.3f}-{os.getpid()}"
        self._play_hosts = 0
        self._task = ""
        self._begin("")

    def _begin(self, task: str) -> None:
        """Begin a task, having summed up the one before."""
        self._finish()
        self._task = task
        self._started = self._said = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._hosts: dict[tuple[str, str], list[str]] = {}

    def _finish(self) -> None:
        """Say what is to be said of the task that has ended: nothing, if all hosts were ok in it."""
        if not self._task:
            return
        self._clear()
        seconds = time.monotonic() - self._started
        if self._hosts:
            self._display.display(f"{self._task}: {self._line()}")
        # What most hosts said, if each has words of its own.
        said = sorted(self._hosts.items(), key=lambda one: (-len(one[1]), one[0]))
        for (state, message), hosts in sorted(said[:_MESSAGES]):
            text = f"  {state} {fold(hosts)}" + (f": {message}" if message else "")
            self._display.display(text, color=_COLOURS[state])
        if rest := [host for _, hosts in said[_MESSAGES:] for host in hosts]:
            self._display.display(
                f"  {fold(rest)}: {len(said) - _MESSAGES} other messages, which are in the log"
            )
        self._event("task", task=self._task, seconds=round(seconds, 3), **self._counts)
        # Hosts that are lost have no further task.
        self._play_hosts -= self._counts["failed"] + self._counts["unreachable"]
        self._task = ""

    def _line(self) -> str:
        """How far the task is: ``512/5000 hosts, 41/s, 1:49 left, 3 changed``."""
        done, seconds = sum(self._counts.values()), time.monotonic() - self._started
        rate = done / seconds if seconds else 0.0
        left = self._play_hosts - done
        parts = [f"{done}/{max(self._play_hosts, done)} hosts", f"{rate:.3g}/s"]
        if left > 0 and rate:
            parts.append(f"{_clock(left / rate)} left")
        parts += [f"{self._counts[state]} {state}" for state in _COLOURS if self._counts[state]]
        return ", ".join(parts)

    def _clear(self) -> None:
        if self._terminal:
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()

    def _progress(self) -> None:
        now = time.monotonic()
        if now - self._said < (_REFRESH if self._terminal else self.get_option("seconds")):
            return
        self._said = now
        if self._terminal:
            sys.stdout.write(f"\r\033[K{self._task}: {self._line()}"[:200])
            sys.stdout.flush()
        else:
            self._display.display(f"{self._task}: {self._line()}")

    def _host(self, state: str, result: Any, *, said: str = "") -> None:
        name = result._host.get_name()
        self._counts[state] += 1
        if state in _COLOURS:
            self._hosts.setdefault((state, " ".join(said.split())[:_SHOWN]), []).append(name)
            message = {"message": said[:_LOGGED]} if said else {}
            self._event("host", host=name, task=self._task, state=state, **message)
        self._progress()

    def _event(self, event: str, **values: Any) -> None:
        if self._log:
            stamp = {"time": round(time.time(), 3), "run": self._run}
            self._log.write(json.dumps({**stamp, "event": event, **values}) + "\n")
            self._log.flush()

    @staticmethod
    def _message(result: Any) -> str:
        """What failed, in its own words; those of a task with ``no_log`` are already replaced by Ansible."""
        values = result._result
        return str(values.get("msg") or values.get("stderr") or values.get("module_stderr") or "no message")

    # What Ansible calls.

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Open the log."""
        if path := self.get_option("log"):
            self._log = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - closed by the last event
        self._event("playbook", playbook=Path(playbook._file_name).name, user=_user())

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Say which play, and for how many hosts; nothing of one that has none."""
        self._finish()
        hosts = play.get_variable_manager()._inventory.get_hosts(play.hosts, order=play.order)
        self._play_hosts = len(hosts)
        if hosts:
            names = fold(host.get_name() for host in hosts)
            self._display.display(f"{play.get_name()} ({len(hosts)}): {names}", color="bright blue")
        self._event("play", play=play.get_name(), hosts=len(hosts))

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Say nothing: play_start knows."""

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Begin a task."""
        self._begin(task.get_name().strip())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Begin a handler."""
        self._begin(f"handler {task.get_name().strip()}")

    def v2_runner_on_ok(self, result: Any) -> None:
        """Count a host."""
        self._host("changed" if result._result.get("changed") else "ok", result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Count a host that had nothing to do."""
        self._host("skipped", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Keep what a host said."""
        self._host("ignored" if ignore_errors else "failed", result, said=self._message(result))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Keep which hosts did not answer."""
        self._host("unreachable", result, said=self._message(result))

    def v2_on_file_diff(self, result: Any) -> None:
        """Print differences, if they are asked for, with the host that they are of."""
        diffs = result._result.get("diff")
        for diff in diffs if isinstance(diffs, list) else [diffs]:
            if diff and result._result.get("changed") and (text := self._get_diff(diff)):
                self._clear()
                self._display.display(f"{result._host.get_name()}:\n{text}")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Say how it ended, hosts with equal numbers in one line."""
        self._finish()
        folded: dict[str, list[str]] = {}
        bad = set()
        for host in stats.processed:
            numbers = stats.summarize(host)
            shown = [(name, numbers[key]) for name, key in _SUMMARY if numbers[key] or name == "ok"]
            line = ", ".join(f"{name} {number}" for name, number in shown)
            folded.setdefault(line, []).append(host)
            if numbers["failures"] or numbers["unreachable"]:
                bad.add(line)
            self._event("end", host=host, **{name: numbers[key] for name, key in _SUMMARY})
        self._display.display("")
        for line, hosts in sorted(folded.items(), key=lambda item: (item[0] in bad, -len(item[1]))):
            text = f"{fold(hosts)} ({len(hosts)}): {line}"
            self._display.display(text, color="red" if line in bad else None)
        if self._log:
            self._log.close()
            self._log = None


_SUMMARY = (
    ("ok", "ok"),
    ("changed", "changed"),
    ("failed", "failures"),
    ("unreachable", "unreachable"),
    ("rescued", "rescued"),
    ("ignored", "ignored"),
)


def _user() -> str:
    """Who runs it, who became root for it included."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _clock(seconds: float) -> str:
    """Seconds as people read them: ``1:49``, ``2:00:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
