"""Callback fleet_progress without Ansible around it: a play on as many hosts as one likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Stats:
    """What Ansible counts of hosts, the state that each ended with."""

    def __init__(self, hosts: dict[str, str]) -> None:
        self.processed = hosts

    def summarize(self, host: str) -> dict[str, int]:
        numbers = dict.fromkeys(("ok", "changed", "failures", "unreachable", "rescued", "ignored"), 0)
        return {**numbers, "ok": 1, self.processed[host]: 1}


def hosts(number: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(get_name=lambda index=index: f"n{index:04}") for index in range(1, number + 1)]


def make(plugin: Any, log: Path | None, seconds: float, said: list[str]) -> Any:
    """The callback of *plugin*, whose lines go to *said*."""
    made = plugin.CallbackModule()
    made._terminal = False
    made._display = SimpleNamespace(display=lambda text, **_: said.append(text))
    made.get_option = {"log": str(log) if log else None, "seconds": seconds}.get
    return made


def play(callback: Any, all_: list[SimpleNamespace], message: Callable[[int], str]) -> Iterator[int]:
    """A play of two tasks: in the first all are ok; in the second each 100th host changes, each 50th fails.

    Yields after each event how many there were.
    """
    manager = SimpleNamespace(_inventory=SimpleNamespace(get_hosts=lambda *_, **__: all_))
    callback.v2_playbook_on_start(SimpleNamespace(_file_name="/p/site.yml"))
    shown = SimpleNamespace(
        hosts="all", order=None, get_name=lambda: "Nodes", get_variable_manager=lambda: manager
    )
    callback.v2_playbook_on_play_start(shown)
    ended: dict[str, str] = {}
    events = 0
    for task in ("Look", "Work"):
        callback.v2_playbook_on_task_start(SimpleNamespace(get_name=lambda task=task: task), False)
        for index, host in enumerate(all_, 1):
            result = SimpleNamespace(_host=host, _result={"changed": False})
            if task == "Work" and index % 100 == 0:
                result._result["changed"] = True
                ended[host.get_name()] = "changed"
            if task == "Work" and index % 50 == 1:
                result._result["msg"] = message(index)
                ended[host.get_name()] = "failures"
                callback.v2_runner_on_failed(result)
            else:
                ended.setdefault(host.get_name(), "ok")
                callback.v2_runner_on_ok(result)
            events += 1
            yield events
    callback.v2_playbook_on_stats(Stats(ended))
